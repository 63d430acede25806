"""Read ``modules.json`` of sentence-transformers: the modules in order, and the directory of each.

    [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
     {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]

Releases before 2.0 keep the transformer in ``0_Transformer/``, later ones in the directory itself. The names of the
types have changed from release to release, their last part has not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from qdq.errors import ConfigError, StorageError, describe_problems
from qdq.storage import refuse_pointer

__all__ = ["EMPTY_KINDS", "MODULES_FILE", "ModuleEntry", "read_json_file", "read_modules", "transformer_folder"]

MODULES_FILE = "modules.json"
#: The modules that need no file of their own.
EMPTY_KINDS = ("Normalize", "Dropout")

_PACKAGE = "sentence_transformers."
# Classes of releases before 1.0, each for one family of transformers.
_OLD_TRANSFORMERS = ("ALBERT", "BERT", "CamemBERT", "DistilBERT", "RoBERTa", "XLMRoBERTa", "XLNet")


@dataclass(frozen=True)
class ModuleEntry:
    """A module that ``modules.json`` names.

    Args:
        path: Its directory, relative to that of ``modules.json``; empty for that directory itself.
        type: The name of its class.
    """

    path: str
    type: str

    @property
    def kind(self) -> str:
        """The last part of the name, such as ``Pooling``."""
        return self.type.rpartition(".")[-1]

    @property
    def is_custom(self) -> bool:
        """Whether its code is not that of sentence-transformers."""
        return not self.type.startswith(_PACKAGE)

    @property
    def is_transformer(self) -> bool:
        """Whether a transformer's configuration and weights lie in its directory."""
        return self.kind.endswith("Transformer") or self.kind in _OLD_TRANSFORMERS

    def __str__(self) -> str:
        """Return its directory and its class, as messages name it."""
        name = self.type if self.is_custom else self.kind
        return f"{self.path} ({name})" if self.path else name


def read_modules(root: Path) -> tuple[ModuleEntry, ...] | None:
    """Return the modules that ``modules.json`` names, in its order; None if there is no such file.

    Raises:
        ConfigError: The file is damaged, or has paths that leave the directory; all problems are
            listed.
        StorageError: The file cannot be read.
    """
    file = root / MODULES_FILE
    if not file.is_file():
        return None
    given = read_json_file(file, list)
    problems: list[str] = []
    entries: list[ModuleEntry] = []
    for number, values in enumerate(given):
        kind = values.get("type") if isinstance(values, dict) else None
        if not isinstance(kind, str):
            problems.append(f"module {number} must be an object with a type, the name of a class")
            continue
        entry = ModuleEntry("", kind)
        path = values.get("path", "" if entry.is_transformer else f"{number}_{entry.kind}")
        if not isinstance(path, str) or _leaves_directory(path):
            problems.append(f"module {number}: the path {path!r} leaves the directory; give a relative path without ..")
        else:
            entries.append(replace(entry, path="" if path in ("", ".") else Path(path).as_posix()))
    if problems:
        raise ConfigError(describe_problems(str(file), problems))
    return tuple(entries)


def transformer_folder(root: Path) -> Path:
    """Return the directory of configuration, weights and tokenizer, which ``modules.json`` may place below ``root``.

    It is ``root`` itself without ``modules.json``.

    Raises:
        ConfigError: ``modules.json`` is damaged, or the directory that it names does not exist.
        StorageError: It cannot be read.
    """
    path = next((entry.path for entry in read_modules(root) or () if entry.is_transformer), "")
    if path and not (root / path).is_dir():
        # Someone may have moved the model up without writing modules.json anew.
        if (root / "config.json").is_file():
            return root
        raise ConfigError(f"{root / MODULES_FILE}: the model should be in {path}, which does not exist: copy it there")
    return root / path if path else root


def read_json_file(file: Path, kind: type[Any], *, missing: Any = None) -> Any:
    """Read a JSON file that holds an object or a list.

    Args:
        file: The file.
        kind: ``dict`` or ``list``.
        missing: What to return if there is no such file.

    Raises:
        ConfigError: The file is damaged or holds another kind of value.
        StorageError: The file cannot be read.
    """
    refuse_pointer(file, ConfigError)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return missing
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(document, kind):
        raise ConfigError(f"{file}: must hold a JSON {'object' if kind is dict else 'list'}")
    return document


def _leaves_directory(path: str) -> bool:
    # Windows' syntax covers both: its paths may also have / and .. in them.
    parsed = PureWindowsPath(path)
    return bool(parsed.anchor) or ".." in parsed.parts or "\0" in path
