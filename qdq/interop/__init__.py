"""Convert models and checkpoints of other packages."""
