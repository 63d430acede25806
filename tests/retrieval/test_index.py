"""The index: what is written is found again, whoever wrote it, and damage is told."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qdq.errors import CheckpointError, ConfigError, DataError
from qdq.retrieval.index import Index, Shard, build_index, open_embeddings
from qdq.retrieval.records import Records, read_texts, write_records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from qdq.retrieval.index import Embedder
    from tests.retrieval.conftest import Golden

TEXTS = [f"text {number} " + "é🙂" * (number % 3) for number in range(50)]


class Letters:
    """Vectors that only depend on the text."""

    width = 4

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls = 0
        self._fail_at = fail_at

    def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        self.calls += 1
        if self.calls == self._fail_at:
            raise KeyboardInterrupt
        return np.stack([self.of(text) for text in texts])

    @staticmethod
    def of(text: str) -> np.ndarray[Any, Any]:
        return np.random.default_rng(list(text.encode())).normal(size=4).astype("float32")


def made(folder: Path, embed: Embedder | None = None, **options: Any) -> Path:
    build_index(embed or Letters(), lambda: iter(TEXTS), folder, metadata={"model": "letters"}, batch=8, **options)
    return folder


def assert_whole(folder: Path) -> None:
    index = Index(folder)
    assert [index.records[number] for number in range(len(index.records))] == TEXTS
    np.testing.assert_array_equal(index.embeddings, np.stack([Letters.of(text) for text in TEXTS]))


def test_texts_and_embeddings_are_found_again(tmp_path: Path) -> None:
    assert_whole(made(tmp_path / "index"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]
    tensors = load_file(tmp_path / "index" / "block_embeddings.safetensors")  # a true safetensors file
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"block_emb": (50, 4)}


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="24 of 50 blocks are embedded and kept"):
        made(tmp_path / "index", Letters(fail_at=4))
    assert not (tmp_path / "index").exists()
    rest = Letters()
    made(tmp_path / "index", rest)
    assert rest.calls == 4  # of seven batches three were done
    assert_whole(tmp_path / "index")


@pytest.mark.parametrize("how", ["another-model", "no-resume"])
def test_an_interrupted_run_for_something_else_is_no_beginning(how: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "index", Letters(fail_at=4))
    embed = Letters()
    about = {"model": "another" if how == "another-model" else "letters"}
    build_index(embed, lambda: iter(TEXTS), tmp_path / "index", metadata=about, batch=8, resume=how != "no-resume")
    assert embed.calls == 7
    assert_whole(tmp_path / "index")


def test_several_processes_share_the_work(tmp_path: Path) -> None:
    embeds = [Letters() for _ in range(3)]
    others = [
        threading.Thread(target=made, args=(tmp_path / "index", embeds[rank]), kwargs={"shard": Shard(rank, 3)})
        for rank in (2, 1)
    ]
    for thread in others:
        thread.start()
    made(tmp_path / "index", embeds[0], shard=Shard(0, 3))
    for thread in others:
        thread.join(timeout=30)
    assert [embed.calls for embed in embeds] == [2, 3, 3]
    assert_whole(tmp_path / "index")


@pytest.mark.parametrize("world", [1, 2, 3, 7, 60])
def test_shards_cover_every_row_once(world: int) -> None:
    assert [row for rank in range(world) for row in Shard(rank, world).rows(50)] == list(range(50))


def test_torchrun_says_which_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "5")
    shard = Shard.of_torchrun()
    assert (shard.rank, shard.world_size) == (2, 5)
    with pytest.raises(ConfigError, match="rank 5 of 5"):
        Shard(5, 5)


def test_nothing_to_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records"):
        build_index(Letters(), lambda: iter([]), tmp_path / "index", metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_broken_model_is_told_with_its_block(tmp_path: Path) -> None:
    class Broken(Letters):
        def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
            vectors = super().__call__(texts)
            if self.calls == 2:
                vectors[3] = np.nan
            return vectors

    with pytest.raises(DataError, match="block 11: its embedding is not finite"):
        made(tmp_path / "index", Broken())


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="was not made by qdq"):
        made(tmp_path / "index")
    assert (tmp_path / "index" / "letter.txt").read_text() == "mine"


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def another_count(folder: Path) -> None:
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**about, "blocks": 3, "format": 9}))


def fewer_texts(folder: Path) -> None:
    for name in ("texts.bin", "offsets.bin"):
        (folder / name).unlink()
    write_records(TEXTS[:20], folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / "block_embeddings.safetensors", 300), "the file is damaged or incomplete"),
        (lambda f: cut(f / "block_embeddings.safetensors", 5), "damaged"),
        (lambda f: (f / "block_embeddings.safetensors").write_bytes(b"\xff" * 900), "damaged"),
        (lambda f: (f / "block_embeddings.safetensors").unlink(), "no such file"),
        (lambda f: save_file({"other": torch.ones(3)}, f / "block_embeddings.safetensors"), "one without block_emb"),
        (lambda f: cut(f / "texts.bin", 30), "do not belong together"),
        (lambda f: cut(f / "offsets.bin", 12), "no records, or damaged ones"),
        (lambda f: (f / "index.json").write_text("{"), r"index\.json: not valid JSON"),
        (lambda f: (f / "index.json").unlink(), "is not an index of qdq"),
        (fewer_texts, "20 records, but 50 embeddings"),
        (another_count, r"(?s)format 9.*names 3 blocks, but there are 50"),
    ],
    ids=[
        *("embeddings-cut", "embeddings-stump", "embeddings-noise", "embeddings-gone", "embeddings-others"),
        *("texts-cut", "offsets-cut", "about-cut", "about-gone", "fewer-texts", "about-wrong"),
    ],
)
def test_a_damaged_index_is_told(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made(tmp_path / "whole"), tmp_path / "damaged"))
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        Index(folder)


# --- records ---


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    return path


def test_texts_of_jsonl_and_parquet(rows: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    assert list(read_texts(rows)) == TEXTS
    assert list(read_texts(rows, column="text")) == TEXTS
    parquet.write_table(pa.table({"passage": TEXTS}), tmp_path / "rows.parquet")
    assert list(read_texts(tmp_path / "rows.parquet")) == TEXTS


def test_a_pickle_needs_permission(tmp_path: Path) -> None:
    path = tmp_path / "block_records.npy"
    np.save(path, np.array([text.encode() for text in TEXTS], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="--allow-pickle"):
        read_texts(path)
    assert list(read_texts(path, allow_pickle=True)) == TEXTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 2)), r"holds \(2, 2\), must be one row of texts"),
        (np.arange(3), "no text at 0, 1, 2"),
        (None, "not a NumPy array, or damaged"),
    ],
    ids=["matrix", "numbers", "noise"],
)
def test_other_arrays_are_refused(content: np.ndarray[Any, Any] | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "block_records.npy"
    if content is None:
        path.write_bytes(b"\x93NUMPY" + b"\x01\x00" + b"v" * 90)
    else:
        np.save(path, content)
    with pytest.raises(DataError, match=message):
        list(read_texts(path, allow_pickle=True))


def test_rows_without_a_text_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"title": "b"}\n{"text": 3}\n')
    with pytest.raises(DataError, match=r"(?s)line 2.*line 3"):
        list(read_texts(path))
    with pytest.raises(DataError, match="no text called body"):
        list(read_texts(path, column="body"))


def test_no_records_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no records"):
        Records(tmp_path)
    assert write_records([], tmp_path) == 0
    assert len(Records(tmp_path)) == 0
    with pytest.raises(IndexError, match="block 0 of 0"):
        Records(tmp_path)[0]


def test_embeddings_of_upstreams_checkpoint_can_be_opened(golden: Golden) -> None:
    found = open_embeddings(golden.folder / "model.safetensors")
    np.testing.assert_array_equal(found, load_file(golden.folder / "model.safetensors")["block_emb"].numpy())


@pytest.mark.parametrize("name", ["blocks.txt", "blocks.jsonl"])
def test_lines_without_columns_are_texts(name: str, tmp_path: Path) -> None:
    lines = ["a cat", "", "a dog"] if name.endswith("txt") else ['"a cat"', '""', '"a dog"']
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    assert list(read_texts(tmp_path / name)) == ["a cat", "", "a dog"]


def test_blank_records_keep_their_numbers_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["a", "", "b", "  \t", "c"]
    assert write_records(texts, tmp_path) == 5
    found = Records(tmp_path)
    assert [found[number] for number in range(5)] == texts
    assert "2 of 5 blocks are blank (1, 3)" in caplog.text
    with pytest.raises(DataError, match="all 2 records are blank"):
        write_records(["", " "], tmp_path)


@pytest.mark.parametrize(("value", "kind"), [("null", "null"), ("3", "int"), ('["a"]', "list")])
def test_records_that_are_no_text_are_told_by_line(value: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "blocks.jsonl").write_text('{"text": "a"}\n{"text": ' + value + "}\n")
    with pytest.raises(DataError, match=rf'line 2: "text" is {kind}, must be a text'):
        list(read_texts(tmp_path / "blocks.jsonl"))
