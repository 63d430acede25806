"""Convert models and checkpoints of other packages.

transformers             models in memory, to and from transformers
pytorch_quantization     QDQBERT's checkpoints and modules in memory, both ways
megatron_lm, tensorflow  checkpoints, to models of this package
conversion               the report: what became of every tensor
"""
