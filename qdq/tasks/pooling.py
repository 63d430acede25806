"""From token vectors to one vector per text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qdq.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["POOLINGS", "Pooling", "Vectors", "pool", "read_max_length", "read_pooling"]

Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
Vectors = NDArray[np.float32]

# What sentence-transformers calls them; a mean divided by the root of the length instead has the same direction.
_MODES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max", "mean_sqrt_len_tokens": "mean"}
_OLD_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Modules of a sentence-transformers folder that leave cosines as they are.
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def pool(hidden: NDArray[Any], mask: NDArray[Any], how: Pooling) -> Vectors:
    """One vector ``(batch, hidden)`` per text from token vectors ``(batch, seq, hidden)``, padding left out.

    1. ``mean``: of the tokens where ``mask`` ``(batch, seq)`` is not 0.
    2. ``cls``: the first of them.
    3. ``max``: the largest value of each component.
    """
    visible = mask != 0
    if how == "cls":
        return np.take_along_axis(hidden, visible.argmax(axis=1)[:, np.newaxis, np.newaxis], axis=1)[:, 0]
    if how == "max":
        largest: Vectors = np.where(visible[..., np.newaxis], hidden, -np.inf).max(axis=1).astype(hidden.dtype)
        return largest
    shares = visible / np.maximum(visible.sum(axis=1, keepdims=True), 1)
    mean: Vectors = np.matmul(shares[:, np.newaxis].astype(hidden.dtype), hidden)[:, 0]
    return mean


def read_pooling(folder: Path) -> Pooling:
    """The pooling that a sentence-transformers folder asks for, mean when it says nothing.

    Raises:
        ConfigError: it asks for something else, or does more with the vectors than normalize them.
    """
    kinds = [str(module.get("type", "")).rpartition(".")[-1] for module in _read(folder / "modules.json", [])]
    if foreign := [kind for kind in kinds if kind not in _KNOWN_MODULES]:
        raise ConfigError(
            f"{folder / 'modules.json'}: the module {', '.join(foreign)} is not followed; "
            f"--pooling {'|'.join(POOLINGS)} leaves it out"
        )
    file = folder / "1_Pooling" / "config.json"
    config = _read(file, {})
    modes = config.get("pooling_mode", [name for key, name in _OLD_MODES.items() if config.get(key)])
    modes = [modes] if isinstance(modes, str) else modes
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in _MODES:
        raise ConfigError(f"{file}: the pooling {' and '.join(map(str, modes))} is not followed; choose a --pooling")
    return _MODES[modes[0]]


def read_max_length(folder: Path) -> int | None:
    """The longest text in tokens that a sentence-transformers folder asks for, if it does."""
    length = _read(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    return length if isinstance(length, int) else None


def _read(file: Path, default: Any) -> Any:
    if not file.is_file():
        return default
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(document, type(default)):
        raise ConfigError(f"{file}: must hold a JSON {'object' if default == {} else 'list'}")
    return document
