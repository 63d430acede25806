"""From names of TensorFlow's variables to upstream's keys.

A name is a path of scopes, ``bert/encoder/layer_0/attention/self/query/kernel``, chosen so that the modules of upstream
bear the names of the scopes. What differs is in tables here: ALBERT's scopes count from older code, REALM's modules
were nested in others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NOT_A_WEIGHT", "key_of", "needs_transposing"]

NOT_A_WEIGHT = frozenset({"adam_v", "adam_m", "AdamWeightDecayOptimizer", "AdamWeightDecayOptimizer_1", "global_step"})
"""Scopes of an optimizer, and the count of its steps."""

_LEAVES = {"kernel": "weight", "gamma": "weight", "output_weights": "weight", "output_bias": "bias", "beta": "bias"}

# In this order, wherever they stand in the name.
_ALBERT = (
    ("module/", ""),
    ("ffn_1", "ffn"),
    ("bert/", "albert/"),
    ("attention_1", "attention"),
    ("transform/", ""),
    ("LayerNorm_1", "full_layer_layer_norm"),
    ("LayerNorm", "attention/LayerNorm"),
    ("transformer/", ""),
    ("intermediate/dense/", ""),
    ("ffn/intermediate/output/dense/", "ffn_output/"),
    ("/output/", "/"),
    ("/self/", "/"),
    ("pooler/dense", "pooler"),
    ("cls/predictions", "predictions"),
    ("predictions/attention", "predictions"),
    ("embeddings/attention", "embeddings"),
    ("inner_group_", "albert_layers/"),
    ("group_", "albert_layer_groups/"),
    ("cls/seq_relationship/output_", "sop_classifier/classifier/"),
    ("seq_relationship/output_", "sop_classifier/classifier/"),
)

# Beginnings of names, the first that fits; by our task.
_READER = (
    ("reader/module/bert/", "realm/"),
    ("reader/module/cls/", "cls/"),
    ("reader/dense/", "qa_outputs/dense_intermediate/"),
    ("reader/dense_1/", "qa_outputs/dense_output/"),
    ("reader/layer_normalization", "qa_outputs/layer_normalization"),
)
_EMBEDDER = (
    ("module/module/module/module/bert/", "realm/"),
    ("module/module/module/LayerNorm/", "cls/LayerNorm/"),
    ("module/module/module/dense/", "cls/dense/"),
    ("module/module/module/module/cls/predictions/", "cls/predictions/"),
    ("module/module/module/bert/", "realm/"),
    ("module/module/module/cls/predictions/", "cls/predictions/"),
    ("module/module/LayerNorm/", "cls/LayerNorm/"),
    ("module/module/dense/", "cls/dense/"),
    ("module/module/bert/", "realm/"),
    ("module/module/cls/predictions/", "cls/predictions/"),
)
_REALM = {
    "question-answering": _READER,
    "retrieval": _EMBEDDER,
    "masked-lm": (("bert/", "realm/"), ("cls/", "cls/")),
}


def key_of(name: str, model_type: str, task: str) -> str | None:
    """Upstream's key of a variable in a model of a family and task; None for a variable of another part.

    ALBERT's and REALM's names are rewritten first. Then numbers are taken off scopes (``layer_0`` is ``layer.0``), and
    the last scope becomes weight or bias.
    """
    if model_type == "realm":
        begins = next((pair for pair in _REALM.get(task, ()) if name.startswith(pair[0])), None)
        if begins is None:
            return None
        name = begins[1] + name.removeprefix(begins[0])
    elif model_type == "albert":
        for old, new in _ALBERT:
            name = name.replace(old, new)
        if name.startswith("sop_classifier/"):
            name = re.sub(r"/weights$", "/weight", name)
    return ".".join(_with_leaf(_scopes(name.split("/")), task))


def _scopes(parts: Sequence[str]) -> list[str]:
    """Scopes with their numbers as scopes of their own."""
    found: list[str] = []
    for part in parts:
        numbered = re.fullmatch(r"([A-Za-z]+)_(\d+)", part)
        found += numbered.groups() if numbered else [part]
    return found


def _with_leaf(parts: list[str], task: str) -> list[str]:
    *scopes, last = parts
    if last.endswith("_embeddings"):
        return [*parts, "weight"]
    # A classifier at the very root, as run_classifier.py has it; or below cls/squad.
    if last in ("output_weights", "output_bias") and scopes in ([], ["cls", "squad"]):
        scopes = ["qa_outputs" if task == "question-answering" else "classifier"]
    return [*scopes, _LEAVES.get(last, last)]


def needs_transposing(name: str) -> bool:
    """Whether the array is stored as ``[in, out]``."""
    return name.rpartition("/")[2] == "kernel"
