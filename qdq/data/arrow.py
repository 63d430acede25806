"""What the package ``datasets`` reads: parquet files and directories it saved. Rows stream from the disk."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from qdq.data.formats import Record, listing
from qdq.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from qdq.data.problems import Problems

__all__ = ["class_names_of", "open_dataset", "open_parquet"]

#: A reader of rows and, by column, the names behind class labels.
Opened: TypeAlias = "tuple[Callable[[Problems], Iterator[Record]], Mapping[str, tuple[str, ...]]]"

#: Rows that are turned into Python objects at a time.
_CHUNK = 256


def open_parquet(path: Path) -> Opened:
    """The rows of a parquet file, and the names behind its class labels.

    Raises:
        DataError: It is no parquet file, or damaged.
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
        raise DataError(f"{path}: is no parquet file, or damaged: {_first_line(error)}") from error

    def read(_: Problems) -> Iterator[Record]:
        number = 0
        try:
            with parquet.ParquetFile(path) as file:
                for chunk in file.iter_batches(_CHUNK):
                    for row in chunk.to_pylist():
                        number += 1
                        yield Record(f"row {number}", row)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is damaged behind row {number}: {_first_line(error)}") from error

    return read, class_names_of(features)


def open_dataset(path: Path, split: str | None) -> Opened:
    """The rows of a directory that ``save_to_disk`` wrote, and the names behind its class labels.

    Raises:
        DataError: It is no such directory, is damaged, or has several splits of which none was named.
        MissingPackageError: ``datasets`` is not installed.
    """
    kinds = {"dataset_dict.json", "state.json"}
    if not any((path / name).is_file() for name in kinds):
        raise DataError(
            f"{path}: is a directory that datasets did not save (neither state.json nor dataset_dict.json is there); "
            "give a file, or what Dataset.save_to_disk wrote"
        )
    _require(f"reading {path}")
    import datasets

    try:
        found: Any = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever the damaged files bring up inside
        raise DataError(f"{path}: is a damaged dataset directory: {_first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        splits = listing(list(found))
        if split is None and len(found) != 1:
            raise DataError(
                f"{path}: has the splits {splits}; name one, or give its folder, such as {path / min(found)}"
            )
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
    """The names of each column of class labels (or of lists of them), by column; empty where there are none.

    Needs no import: only an object of ``datasets`` has such features.
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
