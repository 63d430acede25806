"""Open the directories that a command names, with its options of loading."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.load_settings import LoadSettings
    from qdq.source import ModelDirectory

__all__ = ["opened", "opened_beside"]


def opened(path: Path, loading: LoadSettings, *, seed: int) -> ModelDirectory:
    """Return the handle of the model that a command works on.

    Args:
        path: The directory that the command names.
        loading: The command's options of loading.
        seed: The command's ``--seed``, by which weights that the checkpoint lacks are drawn.

    Raises:
        CheckpointError: There is no such directory.
    """
    from qdq.source import ModelDirectory

    return ModelDirectory.of(path, replace(loading, seed=seed))


def opened_beside(path: Path, loading: LoadSettings, *, seed: int) -> ModelDirectory:
    """Return the handle of a second model, such as a teacher or a baseline.

    It may have another vocabulary than the first one: it gets the tokenizer of the options only if it has none itself.

    Raises:
        CheckpointError: There is no such directory.
    """
    from qdq.data.tokenizer import TOKENIZER_FILES

    has_own = any((path / name).is_file() for name in TOKENIZER_FILES)
    return opened(path, replace(loading, tokenizer=None) if has_own else loading, seed=seed)
