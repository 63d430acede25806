"""Quantizers, wrapped modules that hold them, and transforms that change weights but not what a model computes."""
