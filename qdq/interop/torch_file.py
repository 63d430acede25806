"""Read files of ``torch.save`` without running the code in their pickles."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import torch

from qdq.errors import CheckpointError, StorageError
from qdq.storage import refuse_pointer

__all__ = ["StandIn", "load"]

# How PyTorch names a class or function that it does not load by default.
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL (\S+) was not")
_OTHER = re.compile(r"Can only [^\n]*|Trying to call [^\n]*|[^\n]* must be imported to load [^\n]*")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module")


class StandIn:
    """Stand for an object of a class that is not loaded: what the pickle says about it, and no behaviour.

    Attributes:
        path: The name of the class or function.
        arguments: The arguments that it would have been called with.
        state: The state that it would have been given.
    """

    path: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Self:
        """Keep the arguments, whatever they are."""
        found = super().__new__(cls)
        found.arguments, found.state = arguments, None
        return found

    def __setstate__(self, state: Any) -> None:
        """Keep the state instead of changing the object by it."""
        self.state = state

    def __repr__(self) -> str:
        """Return the call that would make the object."""
        return f"{self.path.rpartition('.')[2]}({', '.join(map(repr, self.arguments))})"


def load(source: Path | BinaryIO, *, name: str) -> Any:
    """Load a file of ``torch.save``.

    Tensors, containers, numbers, texts and ``argparse.Namespace`` are loaded. An object of any other class, such as the
    member of an enumeration, becomes a :class:`StandIn`: no code of the class runs, and none is imported.

    Args:
        source: The file, or an open one. The tensors of a file on disk are mapped into memory if its format allows it.
        name: The name of the file, for messages.

    Raises:
        CheckpointError: The file is not one of ``torch.save``, is damaged, or would run code.
        StorageError: The file cannot be read.
    """
    if isinstance(source, Path):
        refuse_pointer(source)
    stand_ins: dict[str, type[StandIn]] = {}
    # PyTorch names one unknown class at a time, so each round of this loop adds the stand-in for one more.
    while True:
        known: list[Any] = [argparse.Namespace, *((cls, path) for path, cls in stand_ins.items())]
        try:
            with torch.serialization.safe_globals(known):
                return _load(source)
        except pickle.UnpicklingError as error:
            unknown = _UNKNOWN.search(str(error))
            path = _full_path(unknown[1]) if unknown else None
            if path is None or path in stand_ins:
                raise CheckpointError(f"{name}: {_reason(str(error), path)}") from error
            stand_ins[path] = type(path.rpartition(".")[2], (StandIn,), {"path": path})
        except OSError as error:
            raise StorageError(f"cannot read {name}: {error.strerror or error}") from error
        except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            raise CheckpointError(f"{name}: damaged or incomplete PyTorch file ({error})") from error


def _load(source: Path | BinaryIO) -> Any:
    if isinstance(source, Path):
        return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    source.seek(0)
    return torch.load(source, map_location="cpu", weights_only=True)


def _full_path(path: str) -> str:
    # PyTorch's message leaves out the module of built-in functions.
    return path if "." in path else f"builtins.{path}"


def _reason(message: str, path: str | None) -> str:
    blocked = _BLOCKED.search(message)
    if blocked is None and (kind := _OTHER.search(message)):
        path = kind[0]
    if blocked is None and path is None:
        return "not a file of PyTorch, or damaged, or saved with a pickle protocol above 2"
    what = path if blocked is None else blocked[1]
    return (
        f"refused: the pickle holds more than data ({what}) and could run code; if you trust it, load it where it "
        "comes from and save only its tensors, numbers and texts again"
    )
