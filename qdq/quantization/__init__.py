"""Quantizers, the modules that hold them, and changes to weights that leave what a model computes as it is."""
