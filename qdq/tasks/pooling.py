"""Combine the token vectors of a text to one vector, as sentence-transformers does."""

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

# The names of sentence-transformers. mean_sqrt_len_tokens has another length than the mean, but the same direction.
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
    """Return one vector ``(batch, hidden)`` for each text, without its padding.

    Args:
        hidden: Token vectors ``(batch, seq, hidden)``.
        mask: Attention mask ``(batch, seq)``; tokens with 0 do not count.
        how: ``mean`` of the tokens, ``cls`` for the first token, or ``max`` of each component.
    """
    visible = mask != 0
    if how == "cls":
        return np.take_along_axis(hidden, visible.argmax(axis=1)[:, np.newaxis, np.newaxis], axis=1)[:, 0]
    if how == "max":
        # Padding must never be the largest value.
        largest: Vectors = np.where(visible[..., np.newaxis], hidden, -np.inf).max(axis=1).astype(hidden.dtype)
        return largest
    # A product of matrices instead of a masked mean: it needs no copy of the token vectors.
    shares = visible / np.maximum(visible.sum(axis=1, keepdims=True), 1)
    mean: Vectors = np.matmul(shares[:, np.newaxis].astype(hidden.dtype), hidden)[:, 0]
    return mean


def read_pooling(folder: Path) -> Pooling:
    """Read the pooling of a sentence-transformers folder; the default is ``mean``.

    Raises:
        ConfigError: The folder has another pooling, or a module that changes the direction of the vectors.
    """
    # The last name of a type such as sentence_transformers.models.Pooling.
    kinds = [str(module.get("type", "")).rpartition(".")[-1] for module in _read(folder / "modules.json", [])]
    if foreign := [kind for kind in kinds if kind not in _KNOWN_MODULES]:
        raise ConfigError(
            f"{folder / 'modules.json'}: the module {', '.join(foreign)} is not supported; "
            f"choose --pooling {'|'.join(POOLINGS)} to leave it out"
        )
    file = folder / "1_Pooling" / "config.json"
    config = _read(file, {})
    modes = config.get("pooling_mode", [name for key, name in _OLD_MODES.items() if config.get(key)])
    modes = [modes] if isinstance(modes, str) else modes
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in _MODES:
        raise ConfigError(f"{file}: the pooling {' and '.join(map(str, modes))} is not supported; choose a --pooling")
    return _MODES[modes[0]]


def read_max_length(folder: Path) -> int | None:
    """Read the longest text in tokens of a sentence-transformers folder, or return None."""
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
