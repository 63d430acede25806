"""Read Parquet files and directories saved by the package ``datasets``; rows stream from the disk."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from qdq.data.records import Record, quoted
from qdq.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from qdq.data.records import Problems

__all__ = ["class_names_of", "open_dataset", "open_parquet"]

#: A reader of rows, and the class names of each column of class labels.
Opened: TypeAlias = "tuple[Callable[[Problems], Iterator[Record]], Mapping[str, tuple[str, ...]]]"

#: Rows that are converted to Python objects at a time.
_CHUNK_ROWS = 256


def open_parquet(path: Path) -> Opened:
    """Open a Parquet file.

    Returns:
        A reader of its rows, and the class names of its columns.

    Raises:
        DataError: The file is not Parquet, or it is damaged.
        MissingPackageError: ``datasets`` is not installed.
    """
    _require(f"reading {path.name}")
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            features = datasets.Features.from_arrow_schema(file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: is not a Parquet file, or it is damaged: {_first_line(error)}") from error

    def read(_: Problems) -> Iterator[Record]:
        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                # Row groups can be large; small chunks keep the memory constant.
                for chunk in file.iter_batches(_CHUNK_ROWS):
                    for row in chunk.to_pylist():
                        number += 1
                        yield Record(f"row {number}", row)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is damaged after row {number}: {_first_line(error)}") from error

    return read, class_names_of(features)


def open_dataset(path: Path, split: str | None) -> Opened:
    """Open a directory that ``save_to_disk`` wrote.

    Args:
        path: The directory.
        split: The split to read; None where the directory has one split or none.

    Returns:
        A reader of its rows, and the class names of its columns.

    Raises:
        DataError: The directory was not saved by ``datasets``, is damaged, or has several splits and none was chosen.
        MissingPackageError: ``datasets`` is not installed.
    """
    kinds = {"dataset_dict.json", "state.json"}
    if not any((path / name).is_file() for name in kinds):
        raise DataError(
            f"{path}: is a directory that datasets did not save (it has neither state.json nor dataset_dict.json); "
            "give a file, or what Dataset.save_to_disk wrote"
        )
    _require(f"reading {path}")
    import datasets

    try:
        found: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # damaged files raise errors of many libraries
        raise DataError(f"{path}: is a damaged dataset directory: {_first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        splits = quoted(list(found))
        if split is None and len(found) != 1:
            raise DataError(
                f"{path}: has the splits {splits}; name one, or give its folder, such as {path / min(found)}"
            )
        # A single split needs no name.
        chosen = split or next(iter(found))
        if chosen not in found:
            raise DataError(f"{path}: has no split {chosen!r}; its splits are {splits}")
        found = found[chosen]
    elif split is not None:
        raise DataError(f"{path}: is one set without splits; leave out the split {split!r}")

    def read(_: Problems) -> Iterator[Record]:
        return (Record(f"row {number}", dict(row)) for number, row in enumerate(found, start=1))

    return read, class_names_of(found.features)


def class_names_of(features: Any) -> dict[str, tuple[str, ...]]:
    """Return the class names of each column of class labels or of lists of them.

    Nothing is imported for this: only an object of ``datasets`` has such features.
    """
    if not hasattr(features, "items"):
        return {}
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    return {column: tuple(feature.names) for column, feature in inner.items() if getattr(feature, "names", None)}


def _require(purpose: str) -> None:
    for package in ("datasets", "pyarrow"):
        if find_spec(package) is None:
            raise MissingPackageError(package, extra="data", purpose=purpose)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
