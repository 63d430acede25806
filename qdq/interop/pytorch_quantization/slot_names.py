"""The names that QDQBERT has for the quantizers of our slots: one table, read in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.errors import ConfigError
from qdq.models.keymap import below, name_of, translate
from qdq.models.registry import family_of, task_of
from qdq.quantization.wrap import slots

if TYPE_CHECKING:
    from qdq.models.keymap import Keys
    from qdq.models.model import Model
    from qdq.quantization.slot import Slot

__all__ = ["QUANTIZER_KEYS", "prefix_of", "qdqbert_names"]

# The families whose layers are those of QDQBERT.
_MODEL_TYPES = ("bert", "qdqbert")

_ATTENTION: Keys = {
    "query.input": "self.query._input_quantizer",
    "query.weight": "self.query._weight_quantizer",
    "key.input": "self.key._input_quantizer",
    "key.weight": "self.key._weight_quantizer",
    "value.input": "self.value._input_quantizer",
    "value.weight": "self.value._weight_quantizer",
    "scores.input": "self.matmul_q_input_quantizer",
    "scores.other": "self.matmul_k_input_quantizer",
    "context.input": "self.matmul_a_input_quantizer",
    "context.other": "self.matmul_v_input_quantizer",
    "output.input": "output.dense._input_quantizer",
    "output.weight": "output.dense._weight_quantizer",
    "add.input": "output.add_local_input_quantizer",
    "add.other": "output.add_residual_input_quantizer",
}
_FEED_FORWARD: Keys = {
    "up.input": "intermediate.dense._input_quantizer",
    "up.weight": "intermediate.dense._weight_quantizer",
    "down.input": "output.dense._input_quantizer",
    "down.weight": "output.dense._weight_quantizer",
    "add.input": "output.add_local_input_quantizer",
    "add.other": "output.add_residual_input_quantizer",
}

QUANTIZER_KEYS: Keys = {
    **below("encoder.layers.{}.attention", "encoder.layer.{}.attention", _ATTENTION),
    **below("encoder.layers.{}.cross_attention", "encoder.layer.{}.crossattention", _ATTENTION),
    **below("encoder.layers.{}.feed_forward", "encoder.layer.{}", _FEED_FORWARD),
}


def qdqbert_names(model: Model) -> dict[Slot, str]:
    """Return the slots of a wrapped model that QDQBERT quantizes, with QDQBERT's names without the base prefix.

    A layer has twenty of them, and fourteen more with cross-attention.

    Args:
        model: A wrapped model.

    Raises:
        ConfigError: The layers of the family are not BERT's.
    """
    if model.config.model_type not in _MODEL_TYPES:
        known = " and ".join(_MODEL_TYPES)
        raise ConfigError(f"model_type is '{model.config.model_type}'; QDQBERT's quantizers fit {known} models")
    found = {}
    for slot in slots(model):
        try:
            found[slot] = name_of(translate(str(slot), QUANTIZER_KEYS, model.config.layer_order))
        except KeyError:  # embeddings, pooler and head, which are float in QDQBERT
            continue
    return found


def prefix_of(model: Model) -> str:
    """Return the prefix of the encoder's names in transformers: ``bert.`` for a model with a head."""
    family, task = family_of(model.config.model_type), task_of(model.config, model.task)[1]
    return f"{family.prefix}." if task.prefixed else ""
