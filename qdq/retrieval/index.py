"""Build and open the directory of an index: the texts, their embeddings, and optional FAISS indexes.

    index.json                            format, number of blocks, width, and how the embeddings were made
    texts.bin  offsets.bin                the texts
    block_embeddings.safetensors          ``block_emb`` ``(blocks, width)`` in float32
    faiss-flat.index  faiss-int8.index    optional

An index is built in the directory ``.NAME.qdq-index`` beside it. Every process writes its own rows of one file, and
records after each batch how many are done. An interrupted build is resumed if the next request is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qdq.errors import CheckpointError, ConfigError, DataError, StorageError, describe_problems
from qdq.processes import Process
from qdq.retrieval.records import OFFSETS_FILE, TEXTS_FILE, Records, write_records
from qdq.retrieval.search import ExactSearcher, FaissSearcher
from qdq.storage import atomic_directory, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from qdq.retrieval.search import Searcher

__all__ = [
    "EMBEDDINGS_FILE",
    "INDEX_FILE",
    "Embedder",
    "Index",
    "Shard",
    "build_index",
    "open_embeddings",
    "weights_digest",
]

FORMAT = 1
INDEX_FILE = "index.json"
EMBEDDINGS_FILE = "block_embeddings.safetensors"
TENSOR = "block_emb"
_READY = "ready.json"
_POLL_SECONDS = 0.2  # between two looks at the progress of other processes


class Embedder(Protocol):
    """Computes the vectors of texts."""

    @property
    def width(self) -> int:
        """The length of a vector."""

    def __call__(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return the vectors ``(texts, width)`` in float32."""


class Shard:
    """The rows that one of several processes embeds.

    Args:
        rank: The rank of the process, from 0.
        world_size: The number of processes.

    Raises:
        ConfigError: The rank is not below the number of processes.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} of {world_size} processes: it must be at least 0 and below their number")
        self.rank, self.world_size = rank, world_size

    @classmethod
    def of_torchrun(cls) -> Shard:
        """Return the shard of a process that ``torchrun`` started, or all rows without it."""
        process = Process.current()
        return cls(process.rank, process.world_size)

    def rows(self, count: int) -> range:
        """Return the rows of this process out of ``count``."""
        return range(count * self.rank // self.world_size, count * (self.rank + 1) // self.world_size)


class Index:
    """A finished index, whose files are memory-mapped.

    Args:
        folder: The directory of the index.

    Raises:
        CheckpointError: The directory is not an index, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.metadata = read_json(
            self.folder / INDEX_FILE,
            missing=f"{self.folder} is not an index of qdq: it has no {INDEX_FILE}; qdq realm index makes one",
        )
        self.records = Records(self.folder)
        self.embeddings = open_embeddings(self.folder / EMBEDDINGS_FILE)
        problems = []
        if len(self.records) != len(self.embeddings):
            problems.append(f"{len(self.records):,} records, but {len(self.embeddings):,} embeddings")
        if self.metadata.get("format") != FORMAT:
            problems.append(f"{INDEX_FILE} is of format {self.metadata.get('format')!r}, this version reads {FORMAT}")
        if self.metadata.get("blocks") != len(self.embeddings):
            problems.append(
                f"{INDEX_FILE} names {self.metadata.get('blocks')} blocks, but there are {len(self.embeddings)}"
            )
        if problems:
            raise CheckpointError(describe_problems(f"{folder} is a damaged index", problems))

    def searcher(self, kind: str = "exact") -> Searcher:
        """Return a searcher: ``exact``, or ``flat`` or ``int8`` with FAISS.

        Raises:
            CheckpointError: The directory has no such FAISS index, or it is damaged.
            ConfigError: There is no such kind.
            MissingPackageError: FAISS is not installed.
        """
        if kind == "exact":
            return ExactSearcher(self.embeddings)
        if kind not in ("flat", "int8"):
            raise ConfigError(f"searcher {kind!r}: it must be exact, flat or int8")
        return FaissSearcher.read(self.folder, kind, self.embeddings)


def build_index(
    embed: Embedder,
    texts: Callable[[], Iterable[str]],
    output: str | Path,
    *,
    metadata: Mapping[str, Any],
    faiss: Sequence[str] = (),
    batch: int = 256,
    shard: Shard | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embed all texts and write an index.

    Several processes embed one shard each. The first one writes the texts, waits for the others and completes the
    index.

    Args:
        embed: Computes the vectors.
        texts: Returns an iterable of all texts.
        output: The directory to write; an older index there is replaced.
        metadata: What the vectors depend on. It is written to ``index.json``, and an interrupted build is only resumed
            if it is the same.
        faiss: The kinds of FAISS indexes to add: ``flat``, ``int8``.
        batch: The number of texts that are embedded between two records of the progress.
        shard: The rows of this process.
        resume: Resume an interrupted build of the same index; otherwise begin from the first text.
        progress: Called with the number of texts of this process that are done and the number of all its texts.

    Returns:
        The number of blocks.

    Raises:
        ConfigError: There is no such kind of FAISS index, or ``output`` holds something other than an index.
        DataError: There are no texts, or vectors are not finite.
        StorageError: A file cannot be written, for instance because the disk is full.
    """
    if unknown := [kind for kind in faiss if kind not in ("flat", "int8")]:
        raise ConfigError(f"FAISS index {unknown[0]!r}: it must be flat or int8")
    shard, output = shard or Shard(), Path(output)
    work = output.with_name(f".{output.name}.qdq-index")
    request = {"format": FORMAT, "width": embed.width, **metadata}
    try:
        if shard.rank == 0:
            _prepare(work, request, texts, shard.world_size, embed.width, resume=resume)
        else:
            _wait_for(work / _READY, request)
        records = Records(work)
        rows = shard.rows(len(records))
        _embed_rows(embed, records, work, rows, shard, batch=batch, progress=progress or _no_progress)
        if shard.rank == 0:
            for rank in range(1, shard.world_size):
                _wait_until_done(work, Shard(rank, shard.world_size), len(records))
            _finish(work, output, {**request, "blocks": len(records)}, faiss)
        return len(records)
    except OSError as error:
        raise StorageError(f"{error.filename or work}: {error.strerror or error}") from error


def open_embeddings(path: Path) -> NDArray[Any]:
    """Open ``block_emb`` of a safetensors file as a memory map.

    Raises:
        CheckpointError: The file does not exist, is damaged, or has no such tensor in float32.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(size - 8, 2**20):
                raise CheckpointError(f"{path}: damaged or incomplete safetensors file")
            header = json.loads(file.read(length))
        entry = header[TENSOR]
        # The header of safetensors is small JSON, which is read by hand to know where the tensor begins in the file.
        begin, end = entry["data_offsets"]
        rows, width = entry["shape"]
        if entry["dtype"] != "F32" or end - begin != 4 * rows * width or 8 + length + end > size:
            raise CheckpointError(f"{path}: {TENSOR} must be float32 and whole; the file is damaged or incomplete")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file, or one without {TENSOR}") from error
    if rows == 0 or width == 0:
        raise CheckpointError(f"{path}: {TENSOR} is empty")
    # Copy-on-write: torch accepts the array without a copy, and pages that are not written stay shared with the file.
    return np.memmap(path, dtype="<f4", mode="c", offset=8 + length + begin, shape=(rows, width))


def _prepare(
    work: Path,
    request: Mapping[str, Any],
    texts: Callable[[], Iterable[str]],
    world_size: int,
    width: int,
    *,
    resume: bool,
) -> None:
    """Write the texts and an empty file of embeddings, unless an interrupted build of the same index left both."""
    ready = work / _READY
    if resume and ready.is_file() and read_json(ready) == {**request, "processes": world_size}:
        return
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    try:
        count = write_records(texts(), work)
        if not count:
            raise DataError("no records: nothing to make an index of")
        _allocate(work / EMBEDDINGS_FILE, count, width)
    except BaseException:  # there is nothing that a later build could resume
        shutil.rmtree(work)
        raise
    # Written last: other processes wait for this file, and a later build resumes only with it.
    write_json(ready, {**request, "processes": world_size})


def _allocate(path: Path, rows: int, width: int) -> None:
    """Create a safetensors file of zeros as a sparse file, which takes no room on the disk yet."""
    size = 4 * rows * width
    header = json.dumps({TENSOR: {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, size]}}).encode()
    # safetensors pads its header to 8 bytes with blanks.
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def _embed_rows(
    embed: Embedder,
    records: Records,
    work: Path,
    rows: range,
    shard: Shard,
    *,
    batch: int,
    progress: Callable[[int, int], None],
) -> None:
    target = open_embeddings(work / EMBEDDINGS_FILE)
    target = np.memmap(
        work / EMBEDDINGS_FILE, dtype="<f4", mode="r+", offset=int(getattr(target, "offset", 0)), shape=target.shape
    )
    done_file = _progress_file(work, shard)
    done = read_json(done_file)["done"] if done_file.is_file() else 0
    progress(done, len(rows))
    for begin in range(rows.start + done, rows.stop, batch):
        end = min(begin + batch, rows.stop)
        try:
            vectors = embed([records[index] for index in range(begin, end)])
        except KeyboardInterrupt:
            kept = (
                f"{begin - rows.start:,} of {len(rows):,} blocks are embedded and kept: the same command resumes there"
            )
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
        if not np.isfinite(vectors).all():
            row = begin + int(np.nonzero(~np.isfinite(vectors).all(axis=1))[0][0])
            raise DataError(f"block {row}: its embedding is not finite; is the model damaged?")
        target[begin:end] = vectors
        # The vectors reach the disk before the record that says so.
        target.flush()
        write_json(done_file, {"done": end - rows.start})
        progress(end - rows.start, len(rows))
    write_json(done_file, {"done": len(rows)})


def _no_progress(done: int, total: int) -> None:
    del done, total


def _progress_file(work: Path, shard: Shard) -> Path:
    return work / f"done-{shard.rank}-of-{shard.world_size}.json"


def _wait_for(ready: Path, request: Mapping[str, Any]) -> None:
    # The file also records the number of processes, which the request does not have.
    while not (ready.is_file() and {**read_json(ready), "processes": None} == {**request, "processes": None}):
        time.sleep(_POLL_SECONDS)


def _wait_until_done(work: Path, shard: Shard, count: int) -> None:
    done_file = _progress_file(work, shard)
    while not (done_file.is_file() and read_json(done_file)["done"] == len(shard.rows(count))):
        time.sleep(_POLL_SECONDS)


def _finish(work: Path, output: Path, metadata: Mapping[str, Any], faiss: Sequence[str]) -> None:
    embeddings = open_embeddings(work / EMBEDDINGS_FILE)
    for kind in dict.fromkeys(faiss):
        FaissSearcher.build(embeddings, kind).write(work, kind)
    with atomic_directory(output, kind="index") as folder:
        write_json(folder / INDEX_FILE, dict(metadata))
        # Linked, not moved: after an interruption here the build can still be resumed.
        for name in (TEXTS_FILE, OFFSETS_FILE, EMBEDDINGS_FILE, *(f"faiss-{kind}.index" for kind in faiss)):
            _link(work / name, folder / name)
    shutil.rmtree(work)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no hard links
        shutil.copyfile(source, target)


def weights_digest(folder: Path) -> str:
    """Return a digest of the names, sizes and first megabytes of a model's files, which changes with its weights."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".onnx", ".data", ".txt"):
            found.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                found.update(file.read(2**20))
    return found.hexdigest()
