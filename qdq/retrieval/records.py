"""Store the texts of blocks on disk, millions of them, and look up one at a time.

There are two files. ``texts.bin`` has the texts one after another in UTF-8. ``offsets.bin`` has little-endian int64
numbers: where each text begins, and where the last one ends.
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qdq.data.records import BARE, Problems
from qdq.data.source import open_source
from qdq.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from qdq.data.source import SourceLike

__all__ = ["COLUMNS", "OFFSETS_FILE", "TEXTS_FILE", "Records", "Texts", "read_texts", "write_records"]

TEXTS_FILE = "texts.bin"
OFFSETS_FILE = "offsets.bin"
#: The column names that the text of a record may have.
COLUMNS = ("text", "block", "passage", "context", "paragraph", "document", "sentence")

_LOG = logging.getLogger(__name__)

_OFFSET = np.dtype("<i8")


class Texts(Protocol):
    """Texts by index: a list of strings, or :class:`Records`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> str: ...


class Records:
    """The texts that :func:`write_records` wrote, as a memory map.

    Args:
        folder: The directory with the two files.

    Raises:
        CheckpointError: A file is missing, or the files do not belong together.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            self._offsets = np.memmap(folder / OFFSETS_FILE, dtype=_OFFSET, mode="r")
            texts = folder / TEXTS_FILE
            self._texts = np.memmap(texts, dtype=np.uint8, mode="r") if texts.stat().st_size else np.zeros(0, np.uint8)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{folder}: no records, or damaged ones ({error})") from error
        self._name = str(folder)
        if len(self._offsets) < 1 or self._offsets[-1] != len(self._texts) or self._offsets[0] != 0:
            raise CheckpointError(
                f"{folder}: {OFFSETS_FILE} and {TEXTS_FILE} do not belong together: build the index again"
            )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        begin, end = int(self._offsets[index]), int(self._offsets[index + 1])
        try:
            return bytes(self._texts[begin:end]).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._name}: block {index} is damaged ({error})") from error


def write_records(texts: Iterable[str], folder: Path) -> int:
    """Write the two files into ``folder`` in one pass and return the number of texts.

    Blank texts are kept, so that every record has its number, and a warning is logged.

    Raises:
        DataError: All texts are blank.
    """
    count, end = 0, 0
    blank: list[int] = []
    with (folder / TEXTS_FILE).open("wb") as body, (folder / OFFSETS_FILE).open("wb") as offsets:
        offsets.write(np.zeros(1, dtype=_OFFSET).tobytes())
        for text in texts:
            end += body.write(text.encode("utf-8", errors="replace"))
            offsets.write(np.array([end], dtype=_OFFSET).tobytes())
            if not text.strip():
                blank.append(count)
            count += 1
    if count and len(blank) == count:
        raise DataError(f"all {count} records are blank: there is nothing to read in them")
    if blank:
        shown = ", ".join(map(str, blank[:5])) + (", ..." if len(blank) > 5 else "")
        _LOG.warning(
            "%d of %d blocks are blank (%s): they keep their numbers and are never the answer",
            *(len(blank), count, shown),
        )
    return count


def read_texts(source: SourceLike, *, column: str | None = None, allow_pickle: bool = False) -> Iterator[str]:
    """Read the texts of a file of rows (``.jsonl``, ``.parquet``, ``.txt``, ...) or of REALM's ``block_records.npy``.

    Args:
        source: The file, or an iterable of rows.
        column: The column of the text; by default the first of :data:`COLUMNS` that exists.
        allow_pickle: Read a NumPy array of objects. Reading it runs any code that its author put into it.

    Raises:
        DataError: The file needs ``allow_pickle``, cannot be read, or has rows without a text.
        StorageError: The file exists and cannot be read.
    """
    if isinstance(source, str | Path) and str(source).endswith(".npy"):
        return iter(_from_numpy(Path(source), allow_pickle))
    return _from_rows(source, column)


def _from_rows(source: SourceLike, column: str | None) -> Iterator[str]:
    opened = open_source(source)
    problems, found = Problems(opened.name), 0
    for record in opened.records(problems):
        values = record.values
        # A line of a text file, or a bare JSON string, is the text itself.
        name = column or next((name for name in (*COLUMNS, BARE) if name in values), None)
        text = values.get(name) if name is not None else None
        if isinstance(text, bytes):
            # Parquet files may store texts as bytes.
            text = text.decode("utf-8", errors="replace")
        if not isinstance(text, str):
            problems.add(record.location, _no_text(values, name, column))
        elif not problems:
            found += 1
            yield text
    problems.raise_if_any()
    if not found:
        raise DataError(f"{opened.name}: no records")


def _no_text(values: Mapping[str, Any], name: str | None, column: str | None) -> str:
    """Return what is wrong with a row that has no text."""
    if name is not None and name in values:
        value = values[name]
        kind = "null" if value is None else type(value).__name__
        return f'"{name}" is {kind}, must be a text; an empty block is ""'
    wanted = column or " or ".join(COLUMNS)
    has = ", ".join(filter(None, values))
    return f"no text called {wanted}" + (f"; it has {has}" if has else "") + ("" if column else ": name it (--column)")


def _from_numpy(path: Path, allow_pickle: bool) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        array: Any = np.load(path, allow_pickle=allow_pickle)
    except ValueError as error:
        if "pickle" in str(error).lower() and not allow_pickle:
            raise DataError(
                f"{path}: an array of Python objects, which can run code when it is read: if you trust its author, "
                "give --allow-pickle (allow_pickle=True); JSONL and Parquet files cannot run code"
            ) from error
        raise DataError(f"{path}: not a NumPy array, or damaged ({error})") from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: not a NumPy array, or damaged ({error})") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not len(array):
        raise DataError(f"{path}: holds {getattr(array, 'shape', type(array).__name__)}, must be one row of texts")
    texts = [entry.decode("utf-8", errors="replace") if isinstance(entry, bytes) else entry for entry in array.tolist()]
    if wrong := [str(index) for index, entry in enumerate(texts) if not isinstance(entry, str)]:
        raise DataError(f"{path}: no text at {', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}")
    return texts
