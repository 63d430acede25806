"""The blocks nearest to a question, by inner product: exactly, chunk by chunk, or with FAISS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from qdq.errors import CheckpointError, ConfigError, DataError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["KINDS", "ExactSearcher", "FaissSearcher", "Kind", "Searcher", "faiss_file", "recall"]

Kind = Literal["exact", "flat", "int8"]
KINDS: tuple[str, ...] = get_args(Kind)

CHUNK_BYTES = 64 * 2**20
"""Of the embeddings that are compared at a time; what a search takes beside them is small."""

_TRAINING = 100_000
"""Embeddings that FAISS learns the steps of its int8 from."""


class Searcher(Protocol):
    """Finds blocks by embeddings."""

    def __len__(self) -> int:
        """How many blocks there are."""

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` best blocks of every query ``(q, r)``: scores and ids ``(q, k)``, best first."""

    def embeddings_of(self, ids: Tensor) -> Tensor:
        """The embeddings ``(n, r)`` of blocks ``(n,)``, in float32, without gradients."""


class ExactSearcher:
    """Compares every block, some :data:`CHUNK_BYTES` at a time, so that a memory map may be larger than the memory.

    Blocks of equal score come in the order of their ids.

    Args:
        embeddings: ``(blocks, r)``, float32; a NumPy memory map is read as it is needed.
        chunk: blocks that are compared at a time.
    """

    def __init__(self, embeddings: NDArray[Any] | Tensor, *, chunk: int | None = None) -> None:
        self._rows = embeddings
        self._chunk = chunk or max(1, CHUNK_BYTES // (4 * embeddings.shape[1]))

    def __len__(self) -> int:
        return int(self._rows.shape[0])

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See :class:`Searcher`."""
        k = _checked(queries, k, len(self), int(self._rows.shape[1]))
        queries = queries.detach().float().cpu()
        scores = queries.new_full((len(queries), 0), 0.0)
        ids = torch.zeros(len(queries), 0, dtype=torch.long)
        for begin in range(0, len(self), self._chunk):
            found = queries @ _tensor(self._rows[begin : begin + self._chunk]).T
            best, places = found.topk(min(k, found.shape[1]), dim=1)
            scores, ids = torch.cat([scores, best], dim=1), torch.cat([ids, places + begin], dim=1)
            if scores.shape[1] > k:
                scores, kept = scores.topk(k, dim=1)
                ids = ids.gather(1, kept)
        ids, order = ids.sort(dim=1)
        scores = scores.gather(1, order)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores, ids.gather(1, order)

    def embeddings_of(self, ids: Tensor) -> Tensor:
        """See :class:`Searcher`."""
        return _tensor(self._rows[ids.cpu().numpy() if isinstance(self._rows, np.ndarray) else ids])


class FaissSearcher:
    """An index of FAISS: ``flat``, exact, or ``int8``, a quarter of the size.

    Args:
        index: of the package ``faiss``.
        embeddings: what it was made of, for their values.
    """

    def __init__(self, index: Any, embeddings: NDArray[Any] | Tensor) -> None:
        if index.ntotal != len(embeddings) or index.d != embeddings.shape[1]:
            raise CheckpointError(
                f"the FAISS index holds {index.ntotal} vectors of {index.d} numbers, the embeddings are "
                f"{len(embeddings)} of {embeddings.shape[1]}: make it anew"
            )
        self._index = index
        self._exact = ExactSearcher(embeddings)

    @classmethod
    def build(cls, embeddings: NDArray[Any] | Tensor, kind: str) -> FaissSearcher:
        """An index of ``kind`` ``flat`` or ``int8``, filled chunk by chunk.

        Raises:
            ConfigError: for another kind.
            MissingPackageError: faiss is not installed.
        """
        faiss = _faiss()
        width = int(embeddings.shape[1])
        if kind == "flat":
            index = faiss.IndexFlatIP(width)
        elif kind == "int8":
            index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            count = len(embeddings)
            sample = np.unique(np.linspace(0, count - 1, min(count, _TRAINING)).astype(np.int64))
            index.train(_tensor(embeddings[sample]).numpy())
        else:
            raise ConfigError(f"FAISS index {kind!r}: it must be flat or int8")
        for rows in _chunks(embeddings):
            index.add(rows)
        return cls(index, embeddings)

    @classmethod
    def read(cls, folder: Path, kind: str, embeddings: NDArray[Any] | Tensor) -> FaissSearcher:
        """The index of ``kind`` in the directory of an index; its numbers stay on the disk.

        Raises:
            CheckpointError: there is none, or a damaged one.
            MissingPackageError: faiss is not installed.
        """
        faiss, path = _faiss(), faiss_file(folder, kind)
        if not path.is_file():
            raise CheckpointError(f"{folder} has no FAISS index '{kind}': qdq realm index --faiss {kind} makes one")
        try:
            return cls(faiss.read_index(str(path), _mapping(faiss)), embeddings)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: damaged FAISS index: make it anew") from error

    def write(self, folder: Path, kind: str) -> None:
        """Write it into the directory of an index."""
        _faiss().write_index(self._index, str(faiss_file(folder, kind)))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See :class:`Searcher`."""
        k = _checked(queries, k, len(self), int(self._index.d))
        scores, ids = self._index.search(queries.detach().float().cpu().contiguous().numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(ids)

    def embeddings_of(self, ids: Tensor) -> Tensor:
        """See :class:`Searcher`."""
        return self._exact.embeddings_of(ids)


def faiss_file(folder: Path, kind: str) -> Path:
    """Where the FAISS index of a kind lies in the directory of an index."""
    return folder / f"faiss-{kind}.index"


def recall(found: Tensor, wanted: Tensor) -> float:
    """The share of queries for which the block wanted ``(q,)`` is among those found ``(q, k)``."""
    return float((found == wanted[:, None]).any(dim=1).double().mean())


def _checked(queries: Tensor, k: int, blocks: int, width: int) -> int:
    if queries.dim() != 2 or queries.shape[1] != width:
        raise DataError(f"queries have shape {list(queries.shape)}, the index needs [queries, {width}]")
    if k < 1:
        raise DataError(f"k is {k}, must be at least 1")
    return min(k, blocks)


def _chunks(embeddings: NDArray[Any] | Tensor) -> Iterator[NDArray[Any]]:
    size = max(1, CHUNK_BYTES // (4 * int(embeddings.shape[1])))
    for begin in range(0, len(embeddings), size):
        yield np.ascontiguousarray(_tensor(embeddings[begin : begin + size]).numpy())


def _tensor(rows: NDArray[Any] | Tensor) -> Tensor:
    """In float32; copied where torch would warn of memory that cannot be written."""
    if isinstance(rows, Tensor):
        return rows.float()
    return torch.from_numpy(np.require(rows, dtype=np.float32, requirements=["C", "W"]))


def _mapping(faiss: Any) -> int:
    """How to read an index without copying its numbers; only newer releases can for these kinds."""
    flag = getattr(faiss, "IO_FLAG_MMAP_IFC", None)
    return int(faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if flag is None else flag)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError("faiss-cpu", extra="retrieval", purpose="an index of FAISS") from error
    return faiss
