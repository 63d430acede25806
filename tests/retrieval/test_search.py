"""The nearest blocks: what FAISS and one large product find, in bounded memory."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from qdq.errors import CheckpointError, ConfigError, DataError
from qdq.retrieval.index import Index, build_index
from qdq.retrieval.search import ExactSearcher, FaissSearcher, faiss_file, recall

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

faiss = pytest.importorskip("faiss", reason="pip install 'qdq[retrieval]'")


def blocks(count: int = 3000, width: int = 16) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


def queries(count: int = 5, width: int = 16) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("chunk", [None, 1, 7, 1000, 3000, 5000])
@pytest.mark.parametrize("k", [1, 10, 2999, 4000])
def test_chunks_find_what_one_product_finds(chunk: int | None, k: int) -> None:
    count = 300 if chunk in (1, 7) else 3000
    rows = blocks(count)
    scores, ids = ExactSearcher(rows, chunk=chunk).search(queries(), k)
    wanted = (queries() @ rows.T).topk(min(k, count), dim=1)
    torch.testing.assert_close(scores, wanted.values)
    torch.testing.assert_close(rows[ids].mul(queries()[:, None]).sum(-1), scores, atol=1e-4, rtol=1e-4)
    assert all(len({*row}) == len(row) for row in ids.tolist())


def test_equal_blocks_come_by_their_numbers() -> None:
    rows = torch.ones(40, 3)
    rows[7] *= 2
    for chunk in (5, 40):
        _, ids = ExactSearcher(rows, chunk=chunk).search(torch.ones(1, 3), 1)
        assert ids.tolist() == [[7]]
    _, ids = ExactSearcher(rows, chunk=100).search(torch.ones(1, 3), 40)
    assert ids.tolist() == [[7, *(n for n in range(40) if n != 7)]]


def test_flat_finds_the_same_as_exact() -> None:
    rows = blocks()
    scores, ids = ExactSearcher(rows).search(queries(), 20)
    found, faiss_ids = FaissSearcher.build(rows, "flat").search(queries(), 20)
    assert torch.equal(ids, faiss_ids)
    torch.testing.assert_close(found, scores)
    index = faiss.IndexFlatIP(16)
    index.add(rows.numpy())
    assert np.array_equal(index.search(queries().numpy(), 20)[1], ids.numpy())


def test_int8_finds_nearly_the_same_in_a_quarter_of_the_room(tmp_path: Path) -> None:
    rows, asked = blocks(4000, 64), queries(200, 64)
    _, ids = ExactSearcher(rows).search(asked, 5)
    small = FaissSearcher.build(rows, "int8")
    _, found = small.search(asked, 5)
    assert recall(found, ids[:, 0]) > 0.99
    small.write(tmp_path, "int8")
    assert faiss_file(tmp_path, "int8").stat().st_size < 0.26 * rows.numel() * 4


def test_embeddings_of_blocks_are_exact() -> None:
    rows = blocks(50)
    ids = torch.tensor([3, 49, 0])
    for searcher in (ExactSearcher(rows), ExactSearcher(rows.numpy()), FaissSearcher.build(rows, "int8")):
        assert torch.equal(searcher.embeddings_of(ids), rows[ids])


def test_a_search_on_the_disk_takes_little_memory(tmp_path: Path) -> None:
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype="float32", shape=(200_000, 32))
    rows[::1000] = 1.0
    searcher = ExactSearcher(np.load(tmp_path / "rows.npy", mmap_mode="r"), chunk=10_000)
    tracemalloc.start()
    _, ids = searcher.search(torch.ones(1, 32), 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {*ids[0].tolist()} <= {*range(0, 200_000, 1000)}
    assert peak < 3 * 10_000 * 32 * 4  # of 25 MB a chunk of 1.3 MB is copied


class Rows:
    """Embeddings that are there already."""

    width = 16

    def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return blocks()[[int(text) for text in texts]].numpy()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(Rows(), lambda: map(str, range(3000)), folder, metadata={}, batch=1000, faiss=["flat", "int8"])
    return folder


def test_all_searchers_of_an_index(index: Path) -> None:
    opened = Index(index)
    found = {kind: opened.searcher(kind).search(queries(), 5)[1] for kind in ("exact", "flat", "int8")}
    assert torch.equal(found["exact"], found["flat"])
    assert recall(found["int8"], found["exact"][:, 0]) == 1
    with pytest.raises(ConfigError, match="it must be exact, flat or int8"):
        opened.searcher("hnsw")


def test_a_missing_or_damaged_faiss_index_is_told(index: Path, tmp_path: Path) -> None:
    embeddings = Index(index).embeddings
    with pytest.raises(CheckpointError, match="--faiss flat makes one"):
        FaissSearcher.read(tmp_path, "flat", embeddings)
    faiss_file(tmp_path, "flat").write_bytes(b"noise" * 30)
    with pytest.raises(CheckpointError, match="damaged FAISS index"):
        FaissSearcher.read(tmp_path, "flat", embeddings)
    FaissSearcher.build(blocks(10), "flat").write(tmp_path, "flat")
    with pytest.raises(CheckpointError, match="holds 10 vectors of 16 numbers"):
        FaissSearcher.read(tmp_path, "flat", embeddings)


def test_queries_that_do_not_fit_are_refused() -> None:
    for searcher in (ExactSearcher(blocks()), FaissSearcher.build(blocks(50), "flat")):
        with pytest.raises(DataError, match=r"queries have shape \[1, 8\], the index needs \[queries, 16\]"):
            searcher.search(torch.ones(1, 8), 3)
        with pytest.raises(DataError, match="k is 0"):
            searcher.search(torch.ones(1, 16), 0)
    with pytest.raises(ConfigError, match="it must be flat or int8"):
        FaissSearcher.build(blocks(), "hnsw")
