"""Convert BERT checkpoints of Megatron-LM (Shoeybi et al. 2019) to models of the family megatron-bert.

convert    the conversion
reader     find and read the files, one for each part of the model
arguments  what the arguments of the training say about the model
parts      merge the parts of tensor and pipeline parallelism
names      the names of both implementations, and the rows of query, key and value
"""

from qdq.interop.megatron_lm.convert import convert
from qdq.interop.megatron_lm.names import split

__all__ = ["convert", "split"]
