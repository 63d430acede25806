"""Merge the parts of a model that was trained with tensor or pipeline parallelism."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from qdq.interop.megatron_lm.names import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from qdq.interop.conversion import Conversion

__all__ = ["merge_stages", "merge_tensors"]

_FUSED = re.compile(r".+\.query_key_value\.(weight|bias)")
# Column-parallel layers and the vocabulary are divided by rows, row-parallel layers by columns. The rest is the same
# in all parts.
_BY_ROWS = re.compile(
    r".+\.word_embeddings\.weight|word_embeddings(_for_head)?\.weight|lm_head\.bias|.*output_layer\.weight"
    r"|.+\.mlp\.dense_h_to_4h\.(weight|bias)"
)
_BY_COLUMNS = re.compile(r".+attention\.dense\.weight|.+\.mlp\.dense_4h_to_h\.weight")


def merge_tensors(parts: Sequence[Mapping[str, Tensor]], version: float, report: Conversion) -> dict[str, Tensor]:
    """Merge the parts of one pipeline stage.

    Args:
        parts: The tensors of every tensor-parallel rank.
        version: ``checkpoint_version``, which decides the order of the rows of query, key and value.
        report: The report, which gets a problem for each tensor that not all parts have.
    """
    if len(parts) == 1:
        return dict(parts[0])
    merged: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        found = [part[name] for part in parts if name in part]
        if len(found) < len(parts):
            report.problems.append(f"{name} is missing in {len(parts) - len(found)} of {len(parts)} parts")
            continue
        try:
            merged[name] = _joined(canonical(name), found, version)
        except (RuntimeError, IndexError):
            shapes = ", ".join(str(list(tensor.shape)) for tensor in found)
            report.problems.append(f"{name} has the shapes {shapes} in the parts, which do not go together")
            continue
        if merged[name] is found[0] and any(not torch.equal(tensor, found[0]) for tensor in found[1:]):
            report.notes.append(f"{name} differs between the parts: the first one is taken, as Megatron-LM does")
    return merged


def _joined(name: str, found: Sequence[Tensor], version: float) -> Tensor:
    """Return the whole of a tensor."""
    if _FUSED.fullmatch(name):
        # Only the oldest order has all queries in front; the others have the heads in front.
        fold = 3 if version == 0.0 else 1
        rows = [tensor.reshape(fold, -1, *tensor.shape[1:]) for tensor in found]
        return torch.cat(rows, dim=1).flatten(0, 1)
    if _BY_ROWS.fullmatch(name) or _BY_COLUMNS.fullmatch(name):
        return torch.cat(list(found), dim=1 if _BY_COLUMNS.fullmatch(name) else 0)
    return found[0]


def merge_stages(stages: Sequence[Mapping[str, Tensor]], report: Conversion) -> dict[str, Tensor]:
    """Join the stages of a pipeline, each of which counts its layers from 0."""
    if len(stages) == 1:
        return dict(stages[0])
    merged: dict[str, Tensor] = {}
    begin = 0
    for stage in stages:
        layers = 0
        for name, tensor in stage.items():
            match = re.search(r"(?<=layers\.)\d+", name)
            if match:
                layers = max(layers, int(match[0]) + 1)
                name = f"{name[: match.start()]}{begin + int(match[0])}{name[match.end() :]}"  # noqa: PLW2901
            if name in merged:
                report.problems.append(f"{name} is in several stages of the pipeline")
            merged[name] = tensor
        begin += layers
    return merged
