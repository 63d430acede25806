"""Continue texts with a causal language model: greedy search and beam search with a cache of keys and values.

    decoder = TorchDecoder(model)                       or RunnerDecoder(OnnxRuntimeRunner("step/model.onnx"), config)
    generate(decoder, input_ids, attention_mask, settings=GenerationSettings(max_new_tokens=20, num_beams=4))

The ids are those of ``generate`` of transformers 5 for the same weights, padding included. One difference is intended:
positions begin where those of the family do. RoBERTa begins after the id of the padding token, as transformers 4 did
and transformers 5 does not; ``first_position=0`` gives the results of the latter.
"""

from qdq.generation.decoders import Decoder, FileRunner, RunnerDecoder, TorchDecoder
from qdq.generation.search import generate, visible_tokens
from qdq.generation.settings import GenerationSettings

__all__ = [
    "Decoder",
    "FileRunner",
    "GenerationSettings",
    "RunnerDecoder",
    "TorchDecoder",
    "generate",
    "visible_tokens",
]
