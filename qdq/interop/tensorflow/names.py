"""Translate the names of TensorFlow's variables to the keys of transformers.

A name is a path of scopes such as ``bert/encoder/layer_0/attention/self/query/kernel``, and the modules of transformers
have the names of the scopes. The tables list the exceptions: ALBERT's scopes have numbers of older code, and REALM's
modules were nested in others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

__all__ = ["heads_elsewhere", "is_of_objects", "key_of", "needs_transposing", "not_a_weight"]

# The scopes of optimizers, and the numbers that a training keeps.
_OPTIMIZERS = frozenset({"adam_v", "adam_m", "AdamWeightDecayOptimizer", "AdamWeightDecayOptimizer_1"})
_NUMBERS = frozenset(
    {
        "global_step",
        "beta1_power",
        "beta2_power",
        "loss_scale",
        "current_loss_scale",
        "good_steps",
        "bad_steps",
        "num_good_steps",
        "num_bad_steps",
        "learning_rate",
        "accum_step",
        "local_step",
        "save_counter",
    }
)
# The heads of ALBERT's run_squad.py, which models of transformers do not have.
_HEADS_ELSEWHERE = ("start_logits/", "end_logits/", "answer_class/")

_LEAVES = {"kernel": "weight", "gamma": "weight", "output_weights": "weight", "output_bias": "bias", "beta": "bias"}

# Replaced in this order, anywhere in the name.
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

# Beginnings of names by task; the first that fits is replaced.
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


def not_a_weight(name: str, names: Collection[str]) -> str | None:
    """Return why a variable is not a weight, or None.

    An optimizer keeps its state below the variable that it belongs to: ``kernel/adam_m`` beside ``kernel``.

    Args:
        name: The name of the variable.
        names: The names of all variables of the checkpoint.
    """
    scopes = name.split("/")
    parent, _, last = name.rpartition("/")
    if _OPTIMIZERS & {*scopes} or "global_step" in scopes or (parent in names and last != "ExponentialMovingAverage"):
        return "optimizer state, not a weight"
    if parent in names:
        return "a moving average of a weight, not the weight"
    if re.sub(r"_\d+$", "", last) in _NUMBERS or "loss_scale" in scopes:
        return "optimizer state, not a weight"
    return None


def is_of_objects(names: Iterable[str]) -> bool:
    """Return whether the names are those of an object-based checkpoint, which Keras writes in TensorFlow 2."""
    return any(name.endswith((".ATTRIBUTES/VARIABLE_VALUE", "_CHECKPOINTABLE_OBJECT_GRAPH")) for name in names)


def heads_elsewhere(name: str) -> bool:
    """Return whether a variable is of a head of ALBERT's ``run_squad.py``, which models of transformers do not have."""
    return name.removeprefix("module/").startswith(_HEADS_ELSEWHERE)


def key_of(name: str, model_type: str, task: str) -> str | None:
    """Return the key of a variable in transformers, or None for a variable of another component.

    First the names of ALBERT and REALM are rewritten by the tables. Then numbers become scopes of their own
    (``layer_0`` becomes ``layer.0``), and the last scope becomes weight or bias.

    Args:
        name: The name of the variable.
        model_type: The family.
        task: The task of the model.
    """
    if model_type != "realm":
        name = name.removeprefix("module/")  # the scope of a module of TensorFlow Hub
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


def _scopes(scopes: Sequence[str]) -> list[str]:
    """Return the scopes with their numbers as scopes of their own."""
    found: list[str] = []
    for scope in scopes:
        numbered = re.fullmatch(r"([A-Za-z]+)_(\d+)", scope)
        found += numbered.groups() if numbered else [scope]
    return found


def _with_leaf(scopes: list[str], task: str) -> list[str]:
    *outer, last = scopes
    if last.endswith("_embeddings"):
        return [*scopes, "weight"]
    # A classifier is at the root in run_classifier.py, and below cls/squad in run_squad.py.
    if last in ("output_weights", "output_bias") and outer in ([], ["cls", "squad"]):
        outer = ["qa_outputs" if task == "question-answering" else "classifier"]
    return [*outer, _LEAVES.get(last, last)]


def needs_transposing(name: str) -> bool:
    """Return whether the array is stored as ``(in, out)`` and has to be transposed."""
    return name.rpartition("/")[2] == "kernel"
