"""Take the files of sentence-transformers along to an output, so that it loads there as it does in its source."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from qdq.sentence.folder import SETTINGS_FILE, TRANSFORMER_FILES
from qdq.sentence.modules_file import EMPTY_KINDS, MODULES_FILE, read_json_file, read_modules
from qdq.storage import refuse_pointer, write_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["copy_sentence_files"]

_LOG = logging.getLogger(__name__)


def copy_sentence_files(root: Path, model: Path, target: Path) -> None:
    """Copy the files and the directories that ``modules.json`` names; nothing where there is no such file.

    The transformer of an output lies in the output itself: a path that places it below, as releases before 2.0 had it,
    is written as the empty path. A directory that is missing is warned of. Contents are copied, never links, and get
    usual permissions.

    Args:
        root: The directory of ``modules.json``.
        model: The directory of the transformer.
        target: The output, which exists.

    Raises:
        CheckpointError: A file is a pointer of Git LFS.
        ConfigError: ``modules.json`` is damaged, or a path in it leaves the directory.
    """
    modules = read_modules(root)
    if modules is None:
        return
    entries = read_json_file(root / MODULES_FILE, list)
    for entry, module in zip(entries, modules, strict=True):
        if module.path and root / module.path == model:
            entry["path"] = ""
        elif module.path and (root / module.path).is_dir():
            _copy_directory(root / module.path, target / module.path)
        elif module.path and module.kind not in EMPTY_KINDS and not module.is_transformer:
            message = "%s names %s, but there is no such directory: sentence-transformers will not load the output"
            _LOG.warning(message, root / MODULES_FILE, module)
    if model == root:
        shutil.copyfile(root / MODULES_FILE, target / MODULES_FILE)
    else:
        write_json(target / MODULES_FILE, entries)
    for file in (root / SETTINGS_FILE, *(model / name for name in TRANSFORMER_FILES)):
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def _copy_directory(source: Path, target: Path) -> None:
    """Copy a directory's contents; unlike ``shutil.copytree``, without its permissions, which may forbid writing."""
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            _copy_directory(entry, target / entry.name)
        else:
            refuse_pointer(entry)
            shutil.copyfile(entry, target / entry.name)
