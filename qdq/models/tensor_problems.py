"""Describe tensors that do not fit a model: what is missing, left over or of another shape, and the way out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qdq.errors import QDQError
from qdq.models.keymap import name_of
from qdq.models.registry import FAMILIES
from qdq.models.stored_names import KnownNames
from qdq.models.weight_files import tensor_names

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from qdq.models.config import ModelConfig

__all__ = ["TensorProblems", "describe_missing_model_type", "families_like", "listed"]

_SHOWN = 10

# Endings of names by which other toolkits store weights that are no longer floats.
_QUANTIZED = {
    "bitsandbytes": (".SCB", ".quant_map", ".absmax", ".weight_format"),
    "GPTQ or AWQ": (".qweight", ".qzeros", ".g_idx"),
    "compressed-tensors": (".weight_packed", ".weight_scale", ".weight_zero_point"),
}
_PRUNED = (".weight_orig", ".weight_mask")


@dataclass
class TensorProblems:
    """What is wrong with the tensors of a checkpoint.

    Args:
        missing: Keys that the model needs.
        unexpected: Keys that the model does not know.
        misshaped: One description for each tensor with a wrong shape or dtype.
        twice: One description for each pair of tensors that are one weight of the model.
        incomplete_modules: Top-level modules of the missing keys.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    incomplete_modules: set[str] = field(default_factory=set)

    def lines(self, config: ModelConfig) -> list[str]:
        """Return one line for each kind of problem, and one for each cause that is recognized.

        Args:
            config: The configuration of the model.
        """
        lines = []
        if self.missing:
            lines.append(f"{_count(self.missing)} missing: {listed(self.missing)}{self._initializing()}")
        if self.unexpected:
            lines.append(f"{_count(self.unexpected)} unexpected: {listed(self.unexpected)}")
            causes = [*_causes(self.unexpected, config), *_other_family(self.unexpected, config.model_type)]
            lines += causes
            if not causes and not self.missing:
                lines[-1] += f" ({_ignoring(self.unexpected)} leaves them out)"
        if self.misshaped:
            shown = _first(self.misshaped)
            lines.append(f"{len(self.misshaped)} with another shape: {shown}; check the sizes in config.json")
        return [*lines, *self.twice]

    def _initializing(self) -> str:
        if not self.incomplete_modules or not self.incomplete_modules <= {"head", "pooler"}:
            return ""
        options = " ".join(f"--allow-missing {name}" for name in sorted(self.incomplete_modules))
        return f" ({options}, in Python allow_missing={sorted(self.incomplete_modules)}, initializes them)"


def _count(names: Iterable[str]) -> int:
    return len({*names})  # the parts of a fused tensor report it once each


def _first(names: Iterable[str]) -> str:
    unique = [*dict.fromkeys(names)]
    more = f", and {len(unique) - _SHOWN} more" if len(unique) > _SHOWN else ""
    return ", ".join(unique[:_SHOWN]) + more


def listed(names: Iterable[str]) -> str:
    """Return names in a few words: all of them if they are few, else those of all layers together, or by module."""
    unique = [*dict.fromkeys(names)]
    if len(unique) <= _SHOWN:
        return ", ".join(unique)
    layers = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in unique)
    if len(layers) > _SHOWN:
        layers = Counter(f"{'.'.join(name.split('.')[: _depth(name)])}.*" for name in unique)
    return _first(name if count == 1 else f"{name} ({count})" for name, count in layers.items())


def _depth(name: str) -> int:
    """Return how many parts of a name to show: two, or three behind the prefix of a family."""
    parts = name.split(".")
    return 1 if parts[0] in {"embeddings", "encoder", "pooler"} else min(2, len(parts) - 1)


def _ignoring(names: Iterable[str]) -> str:
    """Return the options that leave the tensors out."""
    modules = dict.fromkeys(f"{name.rpartition('.')[0]}.*" if "." in name else name for name in names)
    if len(modules) > 3:
        modules = dict.fromkeys(f"{name.partition('.')[0]}.*" for name in names)
    shown = " ".join(f"--ignore-keys '{pattern}'" for pattern in [*modules][:3])
    return f"{shown}{' ...' if len(modules) > 3 else ''}"


# --- causes ---


def _causes(unexpected: list[str], config: ModelConfig) -> list[str]:
    causes = []
    for toolkit, endings in _QUANTIZED.items():
        if found := [name for name in unexpected if name.endswith(endings)]:
            causes.append(
                f"the weights are quantized by {toolkit} ({found[0]}): take the float model that they were made from"
            )
    if found := [name for name in unexpected if name.endswith(_PRUNED)]:
        causes.append(
            f"the weights are being pruned ({found[0]}): torch.nn.utils.prune.remove makes the pruning permanent"
        )
    layers = [int(number) for name in unexpected for number in re.findall(r"layers?\.(\d+)\.", name)[:1]]
    if layers and min(layers) >= (count := config.num_hidden_layers):
        causes.append(f"num_hidden_layers is {count} in config.json, but the file has {max(layers) + 1} layers")
    return causes


def _other_family(unexpected: list[str], model_type: str) -> list[str]:
    """Return a line if the names are those of other families and not of this one."""
    like = families_like(unexpected)
    if not like or model_type in like:
        return []
    return [
        f"the tensors are named like those of {' or '.join(like)}: is the model_type '{model_type}' of config.json "
        "right?"
    ]


def describe_missing_model_type(folder: Path) -> str:
    """Return what to add to the message for a ``config.json`` without ``model_type``: which family the tensors name."""
    try:
        like = families_like(tensor_names(folder))
    except QDQError:  # the weights may be missing or damaged, too
        return ""
    if not like:
        return ""
    return f'; the tensors are named like those of {" or ".join(like)}: add "model_type": "{like[0]}"'


def families_like(names: Iterable[str]) -> list[str]:
    """Return the families whose names the tensors have; none if that is true of less than half of them.

    A family whose own prefix stands before the names goes before others that call their modules the same. Of families
    that differ in nothing but the computation, the first is named.
    """
    unique = [*names]
    scores: dict[str, tuple[int, int]] = {}
    seen = set()
    for model_type, family in FAMILIES.items():
        look = (family.prefix, *sorted((ours, name_of(key)) for ours, key in family.keys.items()))
        if look in seen:
            continue
        seen.add(look)
        known = KnownNames(family)
        found = [name for name in unique if known.wrapper_of(name) is not None]
        scores[model_type] = len(found), sum(f"{family.prefix}." in name for name in found)
    best = max(scores.values(), default=(0, 0))
    if 2 * best[0] < len(unique) or not best[0]:
        return []
    return [model_type for model_type, score in scores.items() if score == best]
