"""Float reference models: every family is assembled from one set of blocks, and computes the same as upstream.

"Upstream" is the implementation in Hugging Face transformers, whose names and checkpoints the models share.
"""
