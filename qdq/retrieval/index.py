"""The directory of an index: what was asked for, the texts, their embeddings, and indexes of FAISS.

    index.json                        format, blocks, width, what they were made with
    texts.bin  offsets.bin            the texts
    block_embeddings.safetensors      ``block_emb`` ``(blocks, width)`` in float32
    faiss-flat.index  faiss-int8.index

It is made in a directory beside it, ``.NAME.qdq-index``, where every process writes its own rows of one file and notes
after each batch how far it is. What was interrupted goes on from there if it is asked for the same thing.
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

__all__ = ["EMBEDDINGS_FILE", "INDEX_FILE", "Embed", "Index", "Shard", "build_index", "digest_of", "open_embeddings"]

FORMAT = 1
INDEX_FILE = "index.json"
EMBEDDINGS_FILE = "block_embeddings.safetensors"
TENSOR = "block_emb"
_READY = "ready.json"
_WAIT = 0.2  # seconds between two looks at what other processes have done


class Embed(Protocol):
    """Makes vectors of texts."""

    @property
    def width(self) -> int:
        """How many numbers a vector has."""

    def __call__(self, texts: Sequence[str]) -> NDArray[Any]:
        """``(texts, width)`` in float32."""


class Shard:
    """Which part of the work is this process's: ``rank`` of ``world``.

    Args:
        rank: of this process, from 0.
        world: how many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world} processes: it must be at least 0 and below their number")
        self.rank, self.world = rank, world

    @classmethod
    def of_torchrun(cls) -> Shard:
        """What ``torchrun`` says in the environment; all the work without it."""
        process = Process.current()
        return cls(process.rank, process.world_size)

    def rows(self, count: int) -> range:
        """The rows of this process, of ``count``."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)


class Index:
    """A finished index, mapped from the disk.

    Args:
        folder: its directory.

    Raises:
        CheckpointError: no index, a damaged one, or records and embeddings of different length.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = read_json(
            self.folder / INDEX_FILE, missing=f"{self.folder} is not an index of qdq: it has no {INDEX_FILE}"
        )
        self.records = Records(self.folder)
        self.embeddings = open_embeddings(self.folder / EMBEDDINGS_FILE)
        problems = []
        if len(self.records) != len(self.embeddings):
            problems.append(f"{len(self.records):,} records, but {len(self.embeddings):,} embeddings")
        if self.about.get("format") != FORMAT:
            problems.append(f"{INDEX_FILE} is of format {self.about.get('format')!r}, this version reads {FORMAT}")
        if self.about.get("blocks") != len(self.embeddings):
            problems.append(
                f"{INDEX_FILE} speaks of {self.about.get('blocks')} blocks, there are {len(self.embeddings)}"
            )
        if problems:
            raise CheckpointError(describe_problems(f"{folder} is a damaged index", problems))

    def searcher(self, kind: str = "exact") -> Searcher:
        """Who finds blocks: ``exact``, or with FAISS ``flat`` or ``int8``.

        Raises:
            CheckpointError: there is no such FAISS index, or a damaged one.
            ConfigError: for another kind.
            MissingPackageError: faiss is not installed.
        """
        if kind == "exact":
            return ExactSearcher(self.embeddings)
        if kind not in ("flat", "int8"):
            raise ConfigError(f"searcher {kind!r}: it must be exact, flat or int8")
        return FaissSearcher.read(self.folder, kind, self.embeddings)


def build_index(
    embed: Embed,
    texts: Callable[[], Iterable[str]],
    output: str | Path,
    *,
    about: Mapping[str, Any],
    faiss: Sequence[str] = (),
    batch: int = 256,
    shard: Shard | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Embed all texts and write an index; the number of blocks.

    Several processes (``shard``) embed a part each; the first one writes the texts, waits for the others and finishes.

    Args:
        embed: makes vectors.
        texts: gives the texts from the beginning.
        output: directory to write; an older index there is replaced.
        about: what decides the vectors, for the record and to recognise an interrupted run.
        faiss: kinds of FAISS indexes to make beside: ``flat``, ``int8``.
        batch: texts embedded between two notes of how far it is.
        shard: this process's part.
        resume: go on where an interrupted run for the same thing stopped; else begin anew.
        progress: told how many texts of this process are done, and of how many.

    Raises:
        ConfigError: an unknown kind of FAISS index, or something that is not ours is in the way.
        DataError: no texts, or vectors that are not finite.
        StorageError: when the disk is full, or the like.
    """
    if unknown := [kind for kind in faiss if kind not in ("flat", "int8")]:
        raise ConfigError(f"FAISS index {unknown[0]!r}: it must be flat or int8")
    shard, output = shard or Shard(), Path(output)
    work = output.with_name(f".{output.name}.qdq-index")
    request = {"format": FORMAT, "width": embed.width, **about}
    try:
        if shard.rank == 0:
            _prepare(work, request, texts, shard.world, embed.width, resume=resume)
        else:
            _wait_for(work / _READY, request)
        records = Records(work)
        rows = shard.rows(len(records))
        _embed_rows(embed, records, work, rows, shard, batch=batch, progress=progress or _silent)
        if shard.rank == 0:
            for rank in range(1, shard.world):
                _wait_until_done(work, Shard(rank, shard.world), len(records))
            _finish(work, output, {**request, "blocks": len(records)}, faiss)
        return len(records)
    except OSError as error:
        raise StorageError(f"{error.filename or work}: {error.strerror or error}") from error


def open_embeddings(path: Path) -> NDArray[Any]:
    """``block_emb`` of a safetensors file, mapped from the disk.

    Raises:
        CheckpointError: no such file, a damaged one, or one without this tensor in float32.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(size - 8, 2**20):
                raise CheckpointError(f"{path}: damaged or incomplete safetensors file")
            header = json.loads(file.read(length))
        entry = header[TENSOR]
        begin, end = entry["data_offsets"]
        rows, width = entry["shape"]
        if entry["dtype"] != "F32" or end - begin != 4 * rows * width or 8 + length + end > size:
            raise CheckpointError(f"{path}: {TENSOR} must be float32 and whole; the file is damaged or incomplete")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file, or none with {TENSOR}") from error
    if rows == 0 or width == 0:
        raise CheckpointError(f"{path}: {TENSOR} is empty")
    # "c": what nobody writes stays shared with the file, and torch takes it without a copy.
    return np.memmap(path, dtype="<f4", mode="c", offset=8 + length + begin, shape=(rows, width))


def _prepare(
    work: Path, request: Mapping[str, Any], texts: Callable[[], Iterable[str]], world: int, width: int, *, resume: bool
) -> None:
    """The texts and a file of embeddings still to be filled, unless an earlier run left both."""
    ready = work / _READY
    if resume and ready.is_file() and read_json(ready) == {**request, "processes": world}:
        return
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    try:
        count = write_records(texts(), work)
        if not count:
            raise DataError("no records: nothing to make an index of")
        _allocate(work / EMBEDDINGS_FILE, count, width)
    except BaseException:  # nothing that a later run could go on from
        shutil.rmtree(work)
        raise
    write_json(ready, {**request, "processes": world})


def _allocate(path: Path, rows: int, width: int) -> None:
    """A safetensors file of zeros, which take no room on the disk yet."""
    size = 4 * rows * width
    header = json.dumps({TENSOR: {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def _embed_rows(
    embed: Embed,
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
    note = _note(work, shard)
    done = read_json(note)["done"] if note.is_file() else 0
    progress(done, len(rows))
    for begin in range(rows.start + done, rows.stop, batch):
        end = min(begin + batch, rows.stop)
        try:
            vectors = embed([records[index] for index in range(begin, end)])
        except KeyboardInterrupt:
            kept = (
                f"{begin - rows.start:,} of {len(rows):,} blocks are embedded and kept: the same command goes on there"
            )
            raise KeyboardInterrupt(f"interrupted; {kept}") from None
        if not np.isfinite(vectors).all():
            row = begin + int(np.nonzero(~np.isfinite(vectors).all(axis=1))[0][0])
            raise DataError(f"block {row}: its embedding is not finite; is the model whole?")
        target[begin:end] = vectors
        target.flush()
        write_json(note, {"done": end - rows.start})
        progress(end - rows.start, len(rows))
    write_json(note, {"done": len(rows)})


def _silent(done: int, total: int) -> None:
    del done, total


def _note(work: Path, shard: Shard) -> Path:
    return work / f"done-{shard.rank}-of-{shard.world}.json"


def _wait_for(ready: Path, request: Mapping[str, Any]) -> None:
    while not (ready.is_file() and {**read_json(ready), "processes": None} == {**request, "processes": None}):
        time.sleep(_WAIT)


def _wait_until_done(work: Path, shard: Shard, count: int) -> None:
    note = _note(work, shard)
    while not (note.is_file() and read_json(note)["done"] == len(shard.rows(count))):
        time.sleep(_WAIT)


def _finish(work: Path, output: Path, about: Mapping[str, Any], faiss: Sequence[str]) -> None:
    embeddings = open_embeddings(work / EMBEDDINGS_FILE)
    for kind in dict.fromkeys(faiss):
        FaissSearcher.build(embeddings, kind).write(work, kind)
    with atomic_directory(output, kind="index") as folder:
        write_json(folder / INDEX_FILE, dict(about))
        # Linked, not moved: should this be interrupted, the work is still whole.
        for name in (TEXTS_FILE, OFFSETS_FILE, EMBEDDINGS_FILE, *(f"faiss-{kind}.index" for kind in faiss)):
            _link(work / name, folder / name)
    shutil.rmtree(work)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # not every file system can
        shutil.copyfile(source, target)


def digest_of(folder: Path) -> str:
    """What stands for the weights of a model in a directory: a digest of names, sizes and beginnings of its files."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".bin", ".onnx", ".data", ".txt"):
            found.update(f"{path.name} {path.stat().st_size}".encode())
            with path.open("rb") as file:
                found.update(file.read(2**20))
    return found.hexdigest()
