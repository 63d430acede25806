"""Read Parquet and Arrow files, and directories saved by the package ``datasets``; rows stream from the disk."""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from qdq.data.records import Record, quoted
from qdq.errors import DataError, MissingPackageError
from qdq.storage import refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from qdq.data.records import Problems

__all__ = ["class_names_of", "open_columns", "open_dataset"]

#: Reads rows: problems go to the first argument, and the second one names the columns to read, or is None for all.
Read: TypeAlias = "Callable[[Problems, Sequence[str] | None], Iterator[Record]]"

#: A reader of rows, the class names of each column of class labels, and the names of all columns.
Opened: TypeAlias = "tuple[Read, Mapping[str, tuple[str, ...]], tuple[str, ...]]"

#: Rows that are converted to Python objects at a time.
_CHUNK_ROWS = 256


def open_columns(path: Path) -> Opened:
    """Open a Parquet file, or an Arrow file (also one of the cache of ``datasets``, and ``.feather``).

    Only the columns that are asked for are read, so that others may have any type.

    Returns:
        A reader of its rows, the class names of its columns, and their names.

    Raises:
        DataError: The file is of another kind, or it is damaged.
        MissingPackageError: ``pyarrow`` is not installed.
    """
    _require("pyarrow", purpose=f"reading {path.name}")
    import pyarrow as pa

    kind = "a Parquet file" if path.suffix.lower() == ".parquet" else "an Arrow file"
    try:
        with _opened(path) as (schema, _):
            names = tuple(schema.names)
            class_names = _class_names_in(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: is not {kind}, or it is damaged: {_first_line(error)}") from error

    def read(_: Problems, columns: Sequence[str] | None = None) -> Iterator[Record]:
        wanted = [name for name in dict.fromkeys(names) if columns is None or name in columns]
        repeated = tuple(name for name in dict.fromkeys(names) if names.count(name) > 1)
        number = 0
        try:
            with _opened(path) as (_, batches):
                for batch in batches(wanted):
                    # Row groups can be large; small chunks keep the memory constant.
                    for begin in range(0, batch.num_rows, _CHUNK_ROWS):
                        for row in _rows(path, batch.slice(begin, _CHUNK_ROWS), wanted):
                            number += 1
                            yield Record(f"row {number}", row, repeated)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is damaged after row {number}: {_first_line(error)}") from error

    return read, class_names, names


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Callable[[list[str]], Iterator[Any]]]]:
    """Yield the schema of a file and a function that yields batches with the columns that are asked for."""
    import pyarrow as pa
    from pyarrow import ipc, parquet

    if path.suffix.lower() == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield file.schema_arrow, lambda columns: file.iter_batches(_CHUNK_ROWS, columns=columns)
        return
    with pa.memory_map(str(path)) as source:
        try:
            reader = ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            stream = ipc.open_stream(source)  # as the cache of datasets writes it
            yield stream.schema, lambda _: iter(stream)
            return
        yield reader.schema, lambda _: map(reader.get_batch, range(reader.num_record_batches))


def _rows(path: Path, batch: Any, wanted: list[str]) -> Iterator[dict[str, Any]]:
    columns = [_values(path, name, batch.column(batch.schema.names.index(name))) for name in wanted]
    if not columns:
        return iter([{}] * batch.num_rows)
    return (dict(zip(wanted, row, strict=True)) for row in zip(*columns, strict=True))


def _values(path: Path, name: str, column: Any) -> list[Any]:
    import pyarrow as pa

    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        # Some programs write texts without saying that they are UTF-8.
        try:
            column = column.cast(pa.string())
        except pa.ArrowInvalid:
            return column.to_pylist()  # type: ignore[no-any-return]
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, TypeError, OverflowError, NotImplementedError) as error:
        raise DataError(
            f"{path}: the column {name!r} has the type {column.type}, which is not read: {_first_line(error)}; name "
            "the columns to read (--text-column, --label-column)"
        ) from error


def _class_names_in(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the class names that ``datasets`` stored in the metadata of a schema."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        columns = features.items()
    except (KeyError, TypeError, AttributeError, ValueError):
        return found
    for column, feature in columns:
        # A list of classes is written as {"feature": ...} or, by old versions, as [...].
        inner = feature[0] if isinstance(feature, list) and feature else feature
        inner = inner.get("feature", inner) if isinstance(inner, dict) else None
        names = inner.get("names") if isinstance(inner, dict) else None
        if isinstance(names, list) and names:
            found[column] = tuple(map(str, names))
    return found


def open_dataset(path: Path, split: str | None) -> Opened:
    """Open a directory that ``save_to_disk`` wrote.

    Args:
        path: The directory.
        split: The split to read; None where the directory has one split or none.

    Returns:
        A reader of its rows, the class names of its columns, and their names.

    Raises:
        DataError: The directory was not saved by ``datasets``, is damaged, or has several splits and none was chosen.
        MissingPackageError: ``datasets`` is not installed.
    """
    kinds = {"dataset_dict.json", "state.json"}
    if not any((path / name).is_file() for name in kinds):
        raise DataError(
            f"{path}: is a directory that datasets did not save (it has neither state.json nor dataset_dict.json); "
            f"give a file{_files_in(path)}, or what Dataset.save_to_disk wrote"
        )
    for file in sorted(path.rglob("*")):
        refuse_pointer(file, DataError)
    _require("datasets", "pyarrow", purpose=f"reading {path}")
    import datasets

    try:
        found: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # damaged files raise errors of many libraries
        raise DataError(f"{path}: is a damaged dataset directory: {_first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        found = found[chosen_split(str(path), list(found), split, example=path)]
    elif split is not None:
        raise DataError(f"{path}: is one set without splits; leave out the split {split!r}")
    names = tuple(found.column_names)

    def read(_: Problems, columns: Sequence[str] | None = None) -> Iterator[Record]:
        wanted = found if columns is None else found.select_columns([name for name in names if name in columns])
        return (Record(f"row {number}", dict(row)) for number, row in enumerate(wanted, start=1))

    return read, class_names_of(found.features), names


def chosen_split(name: str, splits: Sequence[str], split: str | None, *, example: Path | None = None) -> str:
    """Return the split to read of several.

    Raises:
        DataError: There is no such split, or several and none was named.
    """
    listed = quoted(splits)
    if split is None and len(splits) != 1:
        folder = "" if example is None else f", or give its folder, such as {example / min(splits)}"
        raise DataError(f"{name}: has the splits {listed}; name one{folder}")
    chosen = split or splits[0]
    if chosen not in splits:
        raise DataError(f"{name}: has no split {chosen!r}; its splits are {listed}")
    return chosen


def _files_in(path: Path) -> str:
    from qdq.data.formats import EXTENSIONS, format_of

    near = (*path.glob("*"), *path.glob("*/*"))  # a whole tree may take long
    files = sorted(file for file in near if format_of(file)[0] in EXTENSIONS and file.is_file())
    if not files:
        return ""
    more = f" or one of {len(files) - 3} others" if len(files) > 3 else ""
    return f" in it ({', '.join(str(file.relative_to(path)) for file in files[:3])}{more})"


def class_names_of(features: Any) -> dict[str, tuple[str, ...]]:
    """Return the class names of each column of class labels or of lists of them.

    Nothing is imported for this: only an object of ``datasets`` has such features.
    """
    if not hasattr(features, "items"):
        return {}
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: tuple(feature.names) for column, feature in inner.items() if getattr(feature, "names", None)}


def _require(*packages: str, purpose: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise MissingPackageError(package, extra="data", purpose=purpose)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
