"""Statistics of activations: what is collected, how it is merged, and how it is stored."""
