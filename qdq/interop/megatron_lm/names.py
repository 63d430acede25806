"""Translate the names of Megatron-LM's tensors to the keys of transformers.

Two implementations have names of their own. The older one nests dicts (``language_model.encoder``), Megatron core has
flat names (``encoder.layers.0.self_attention.linear_qkv``), and Transformer Engine keeps the norms inside the linear
layers that read them (``linear_qkv.layer_norm_weight``). Names of core are first translated to the older ones.

Query, key and value are one matrix, whose rows depend on ``checkpoint_version``:

    0 or none     [3, heads, head size]
    1.0           [heads, head size, 3]
    2.0 or more   [heads, 3, head size]

With fewer groups of keys and values than heads, a group has the rows of its queries, of its key and of its value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from qdq.interop.conversion import Conversion, Mapped, Skipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from qdq.models.config import ModelConfig

__all__ = ["NOT_A_WEIGHT", "canonical", "is_of_core", "rename", "split"]

NOT_A_WEIGHT = "training state, not a weight"

# The names of core, and the older ones.
_CORE = (
    (r"embedding\.(.+)", r"language_model.embedding.\1"),
    (r"pooler\.(.+)", r"language_model.pooler.\1"),
    (r"lm_head\.layer_norm\.(.+)", r"lm_head.layernorm.\1"),
    (r"output_layer\.bias", "lm_head.bias"),
    (r"encoder\.final_layernorm\.(.+)", r"language_model.encoder.final_layernorm.\1"),
    (r"encoder\.(layers\.\d+)\.self_attention\.linear_qkv\.layer_norm_(.+)", r"\1.input_layernorm.\2"),
    (r"encoder\.(layers\.\d+)\.mlp\.linear_fc1\.layer_norm_(.+)", r"\1.post_attention_layernorm.\2"),
    (r"encoder\.(layers\.\d+)\.input_layernorm\.(.+)", r"\1.input_layernorm.\2"),
    (r"encoder\.(layers\.\d+)\.pre_mlp_layernorm\.(.+)", r"\1.post_attention_layernorm.\2"),
    (r"encoder\.(layers\.\d+)\.self_attention\.linear_qkv\.(.+)", r"\1.self_attention.query_key_value.\2"),
    (r"encoder\.(layers\.\d+)\.self_attention\.linear_proj\.(.+)", r"\1.self_attention.dense.\2"),
    (r"encoder\.(layers\.\d+)\.mlp\.linear_fc1\.(.+)", r"\1.mlp.dense_h_to_4h.\2"),
    (r"encoder\.(layers\.\d+)\.mlp\.linear_fc2\.(.+)", r"\1.mlp.dense_4h_to_h.\2"),
)
# Modules of a layer, and their names in transformers. Norms have had several names over the years.
_LAYER = {
    r"input_(layer)?norm": "attention.ln",
    r"post_attention_(layer)?norm": "ln",
    r"(self_)?attention\.dense": "attention.output.dense",
    r"mlp\.dense_h_to_4h": "intermediate.dense",
    r"mlp\.dense_4h_to_h": "output.dense",
}
_FUSED = re.compile(r"(self_)?attention\.query_key_value")
_HEADS = {
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.layernorm": "cls.predictions.transform.LayerNorm",
    "lm_head.norm": "cls.predictions.transform.LayerNorm",
    "binary_head": "cls.seq_relationship",
    "language_model.pooler.dense": "bert.pooler.dense",
}
_TABLES = {"word": "word", "position": "position", "tokentype": "token_type"}
_DECODER = "cls.predictions.decoder.weight"


def is_of_core(names: Mapping[str, Any]) -> bool:
    """Return whether Megatron core wrote these names."""
    return any(re.match(r"(module\.)*(encoder\.layers\.\d|embedding\.)", name) for name in names)


def canonical(name: str) -> str:
    """Return the name that the older implementation has for a tensor; unknown names stay as they are."""
    while name.startswith("module."):  # wrappers for distributed training
        name = name.removeprefix("module.")
    for pattern, older in _CORE:
        if match := re.fullmatch(pattern, name):
            found = match.expand(older)
            return f"language_model.encoder.{found}" if found.startswith("layers.") else found
    return name


def rename(
    tensors: Mapping[str, Tensor], config: ModelConfig, version: float, groups: int, report: Conversion
) -> dict[str, Tensor]:
    """Return the tensors under the keys of transformers, and report unknown ones as problems.

    Args:
        tensors: The tensors by their names in the checkpoint.
        config: The configuration of the model.
        version: ``checkpoint_version``.
        groups: The number of heads of keys and values.
        report: The report, which is filled.
    """
    state: dict[str, Tensor] = {}

    def put(name: str, tensors_by_key: dict[str, Tensor], how: str = "") -> None:
        if taken := state.keys() & tensors_by_key.keys():
            report.problems.append(f"{name} would be {', '.join(sorted(taken))}, which another tensor is")
        state.update(tensors_by_key)
        report.mapped.append(Mapped(name, tuple(tensors[name].shape), tuple(tensors_by_key), how))

    words = next((t for n, t in tensors.items() if canonical(n).endswith("embedding.word_embeddings.weight")), None)
    for name, tensor in tensors.items():
        known = canonical(name)
        module, _, leaf = known.rpartition(".")
        if leaf == "_extra_state":
            report.skipped.append(Skipped(name, NOT_A_WEIGHT, tuple(tensor.shape)))
        elif known == "lm_head.bias":
            put(name, _cut({"cls.predictions.bias": tensor}, config.vocab_size))
        elif module in _HEADS and leaf in ("weight", "bias"):
            put(name, {f"{_HEADS[module]}.{leaf}": tensor})
        elif match := re.fullmatch(r"language_model\.embedding\.(word|position|tokentype)_embeddings\.weight", known):
            key = f"bert.embeddings.{_TABLES[match[1]]}_embeddings.weight"
            named = {key: tensor}
            if match[1] == "word":
                named = _cut(named, config.vocab_size)
            cut = named[key].shape != tensor.shape
            put(name, named, f"the first {config.vocab_size} of {len(tensor)} rows" if cut else "")
        # With pipeline parallelism the last stage has its own copy for the head.
        elif re.fullmatch(r"word_embeddings(_for_head)?\.weight", known):
            report.skipped.append(Skipped(name, "a copy of the word embeddings", tuple(tensor.shape)))
        elif re.fullmatch(r"(language_model\.)?output_layer\.weight", known):
            if words is not None and torch.equal(words, tensor):
                report.skipped.append(Skipped(name, "a copy of the word embeddings", tuple(tensor.shape)))
            else:
                put(name, _cut({_DECODER: tensor}, config.vocab_size))
        elif match := re.fullmatch(r"language_model\.(?:transformer|encoder)\.(.+)\.(weight|bias)", known):
            _put_layer(name, match[1], match[2], tensor, config, version, groups, report, put)
        else:
            report.problems.append(f"{name} is unknown")
    return state


def _put_layer(
    name: str,
    module: str,
    leaf: str,
    tensor: Tensor,
    config: ModelConfig,
    version: float,
    groups: int,
    report: Conversion,
    put: Any,
) -> None:
    if re.fullmatch(r"final_(layer)?norm", module):
        put(name, {f"bert.encoder.ln.{leaf}": tensor})
        return
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    if match is None:
        report.problems.append(f"{name} is unknown")
        return
    layer = f"bert.encoder.layer.{match[1]}"
    if _FUSED.fullmatch(match[2]):
        rows = config.hidden_size + 2 * groups * config.head_size
        if not tensor.dim() or tensor.shape[0] != rows:
            wanted = f"3 * hidden_size {config.hidden_size}" if groups == config.num_attention_heads else str(rows)
            report.problems.append(f"{name} has {tensor.shape[0] if tensor.dim() else 0} rows, must be {wanted}")
            return
        matrices = split(tensor, config.num_attention_heads, version, groups=groups)
        keys = (f"{layer}.attention.self.{role}.{leaf}" for role in ("query", "key", "value"))
        how = f"split, rows of checkpoint_version {version:g}"
        if groups != config.num_attention_heads:
            how = f"split, keys and values of {groups} groups repeated for {config.num_attention_heads} heads"
        put(name, dict(zip(keys, matrices, strict=True)), how)
        return
    for pattern, ours in _LAYER.items():
        if re.fullmatch(pattern, match[2]):
            put(name, {f"{layer}.{ours}.{leaf}": tensor})
            return
    report.problems.append(f"{name} is unknown")


def split(fused: Tensor, heads: int, version: float, *, groups: int | None = None) -> tuple[Tensor, ...]:
    """Split the joint matrix or bias of query, key and value.

    Args:
        fused: The joint matrix ``(rows, hidden)`` or bias ``(rows,)`` with ``(heads + 2 * groups) * head size`` rows.
        heads: The number of heads.
        version: ``checkpoint_version``, which decides the order of the rows.
        groups: The number of heads of keys and values, by default ``heads``. If it is smaller, each key and value is
            repeated for the heads that share it.

    Returns:
        Query, key and value, each with ``heads * head size`` rows.
    """
    groups = groups or heads
    rows, rest = fused.shape[0] // (heads + 2 * groups), fused.shape[1:]
    if groups != heads:
        shared = heads // groups
        whole = fused.reshape(groups, shared + 2, rows, *rest)
        key, value = (whole[:, place : place + 1].repeat_interleave(shared, dim=1) for place in (shared, shared + 1))
        return tuple(part.reshape(heads * rows, *rest).contiguous() for part in (whole[:, :shared], key, value))
    # The order of the rows, by the table at the top of this module.
    if version >= 2.0:
        matrices = fused.view(heads, 3, rows, *rest).transpose(0, 1)
    elif version == 1.0:
        matrices = fused.view(heads, rows, 3, *rest).movedim(2, 0)
    else:
        matrices = fused.view(3, heads, rows, *rest)
    return tuple(matrix.reshape(heads * rows, *rest).contiguous() for matrix in matrices)


def _cut(named: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    # A tensor without rows is reported with its shape when it is loaded.
    return {key: tensor[:size] if tensor.dim() else tensor for key, tensor in named.items()}
