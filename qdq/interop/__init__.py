"""Models and checkpoints of other packages."""
