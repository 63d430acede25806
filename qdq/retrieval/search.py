"""Find the blocks with the largest inner product with a question: exactly, chunk by chunk, or with FAISS."""

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

#: The size of the embeddings that are compared at a time, which is most of the memory of a search.
CHUNK_BYTES = 64 * 2**20

#: The number of embeddings from which FAISS learns the scales of its int8 values.
_TRAINING_ROWS = 100_000


class Searcher(Protocol):
    """Finds blocks by their embeddings."""

    def __len__(self) -> int:
        """Return the number of blocks."""

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the scores and ids ``(q, k)`` of the ``k`` best blocks of every query ``(q, r)``, best first."""

    def embeddings_of(self, ids: Tensor) -> Tensor:
        """Return the embeddings ``(n, r)`` of the blocks ``(n,)`` in float32, without gradients."""


class ExactSearcher:
    """Compares every block, :data:`CHUNK_BYTES` at a time, so that a memory map may be larger than the memory.

    Blocks of equal score come in the order of their ids.

    Args:
        embeddings: The embeddings ``(blocks, r)`` in float32; a NumPy memory map is read chunk by chunk.
        chunk: The number of blocks that are compared at a time.
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
            best, indices = found.topk(min(k, found.shape[1]), dim=1)
            scores, ids = torch.cat([scores, best], dim=1), torch.cat([ids, indices + begin], dim=1)
            if scores.shape[1] > k:
                scores, kept = scores.topk(k, dim=1)
                ids = ids.gather(1, kept)
        # topk leaves the order of equal scores open: sort by id first, then stably by score.
        ids, order = ids.sort(dim=1)
        scores = scores.gather(1, order)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores, ids.gather(1, order)

    def embeddings_of(self, ids: Tensor) -> Tensor:
        """See :class:`Searcher`."""
        return _tensor(self._rows[ids.cpu().numpy() if isinstance(self._rows, np.ndarray) else ids])


class FaissSearcher:
    """Searches with a FAISS index: ``flat``, which is exact, or ``int8``, which has a quarter of the size.

    Args:
        index: The index, an object of the package ``faiss``.
        embeddings: The embeddings that the index was made of ``(blocks, r)``.

    Raises:
        CheckpointError: Index and embeddings have different shapes.
    """

    def __init__(self, index: Any, embeddings: NDArray[Any] | Tensor) -> None:
        if index.ntotal != len(embeddings) or index.d != embeddings.shape[1]:
            raise CheckpointError(
                f"the FAISS index holds {index.ntotal} vectors of {index.d} numbers, the embeddings are "
                f"{len(embeddings)} of {embeddings.shape[1]}: build it again"
            )
        self._index = index
        self._exact = ExactSearcher(embeddings)

    @classmethod
    def build(cls, embeddings: NDArray[Any] | Tensor, kind: str) -> FaissSearcher:
        """Build an index of the kind ``flat`` or ``int8``, chunk by chunk.

        Raises:
            ConfigError: There is no such kind.
            MissingPackageError: FAISS is not installed.
        """
        faiss = _faiss()
        width = int(embeddings.shape[1])
        if kind == "flat":
            index = faiss.IndexFlatIP(width)
        elif kind == "int8":
            index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
            count = len(embeddings)
            # Evenly spaced rows, because neighbors may come from the same document.
            sample = np.unique(np.linspace(0, count - 1, min(count, _TRAINING_ROWS)).astype(np.int64))
            index.train(_tensor(embeddings[sample]).numpy())
        else:
            raise ConfigError(f"FAISS index {kind!r}: it must be flat or int8")
        for rows in _chunks(embeddings):
            index.add(rows)
        return cls(index, embeddings)

    @classmethod
    def read(cls, folder: Path, kind: str, embeddings: NDArray[Any] | Tensor) -> FaissSearcher:
        """Open the FAISS index in the directory of an index; its values stay on the disk.

        Raises:
            CheckpointError: The directory has no such FAISS index, or it is damaged.
            MissingPackageError: FAISS is not installed.
        """
        faiss, path = _faiss(), faiss_file(folder, kind)
        if not path.is_file():
            raise CheckpointError(f"{folder} has no FAISS index '{kind}': qdq realm index --faiss {kind} makes one")
        try:
            return cls(faiss.read_index(str(path), _mapping(faiss)), embeddings)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: damaged FAISS index: build it again") from error

    def write(self, folder: Path, kind: str) -> None:
        """Write the FAISS index into the directory of an index."""
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
    """Return the path of a FAISS index in the directory of an index."""
    return folder / f"faiss-{kind}.index"


def recall(found: Tensor, wanted: Tensor) -> float:
    """Return the share of queries whose wanted block ``(q,)`` is among the blocks found ``(q, k)``."""
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
    """Return the rows in float32; read-only memory, which PyTorch warns of, is copied."""
    if isinstance(rows, Tensor):
        return rows.float()
    return torch.from_numpy(np.require(rows, dtype=np.float32, requirements=["C", "W"]))


def _mapping(faiss: Any) -> int:
    """Return the flag that reads an index as a memory map; older releases copy these kinds."""
    flag = getattr(faiss, "IO_FLAG_MMAP_IFC", None)
    return int(faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if flag is None else flag)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError("faiss-cpu", extra="retrieval", purpose="an index of FAISS") from error
    return faiss
