"""qdq realm: blocks are indexed, by several processes too, and questions answered from them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file

from qdq.retrieval.index import Index
from qdq.retrieval.open_qa import load_component

if TYPE_CHECKING:
    from tests.cli.conftest import Refused, Run


GOLDEN = Path(__file__).resolve().parents[1] / "retrieval" / "golden"
RECORDS = GOLDEN / "records.jsonl"
QUESTIONS = ("Who invented the telephone?", "Test question")


@pytest.fixture
def index(run: Run, tmp_path: Path) -> Path:
    ended = run("realm", "index", "-m", GOLDEN, "--records", RECORDS, "-o", tmp_path / "index", "--faiss", "flat")
    assert ended.code == 0, ended.err
    assert ended.out == f"{tmp_path / 'index'}: 40 blocks, 6 numbers each\n"
    return tmp_path / "index"


def test_questions_are_answered(run: Run, index: Path) -> None:
    found = {}
    for searcher in ("exact", "flat"):
        ended = run("realm", "answer", *QUESTIONS, "-m", GOLDEN, "--index", index, "--searcher", searcher, "--json")
        assert ended.code == 0, ended.err
        found[searcher] = ended.document["results"]
    assert found["exact"] == found["flat"]
    assert [entry["question"] for entry in found["exact"]] == list(QUESTIONS)
    opened = Index(index)
    for entry in found["exact"]:
        (answer,) = entry["answers"]
        assert answer["context"] == opened.records[answer["block"]]
        assert answer["text"]
        assert answer["score"] > answer["relevance"] - 100
    several = run("realm", "answer", QUESTIONS[0], "-m", GOLDEN, "--index", index, "--top-k", 3, "--json").document
    scores = [answer["score"] for answer in several["results"][0]["answers"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert several["results"][0]["answers"][0]["text"] == found["exact"][0]["answers"][0]["text"]


def test_people_see_the_block(run: Run, index: Path) -> None:
    ended = run("realm", "answer", QUESTIONS[0], "-m", GOLDEN, "--index", index)
    assert ended.code == 0
    assert ended.out.splitlines()[0].split() == ["question", "answer", "score", "block"]
    block = int(ended.out.splitlines()[-1].split()[1].rstrip(":"))
    assert ended.out.endswith(f"{Index(index).records[block]}\n")


@pytest.mark.slow
def test_an_exported_embedder_makes_the_same_index(run: Run, index: Path, tmp_path: Path) -> None:
    from exporters.directory import export
    from qdq.models.huggingface import save_model

    save_model(load_component(GOLDEN, "retrieval"), tmp_path / "embedder")
    (tmp_path / "embedder" / "vocab.txt").write_text((GOLDEN / "vocab.txt").read_text())
    export(tmp_path / "embedder", tmp_path / "exported", target=None)
    for model in ("embedder", "exported"):
        ended = run("realm", "index", "-m", tmp_path / model, "--records", RECORDS, "-o", tmp_path / f"by-{model}")
        assert ended.code == 0, ended.err
        found = Index(tmp_path / f"by-{model}").embeddings
        np.testing.assert_allclose(found, Index(index).embeddings, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_torchrun_shares_the_work(index: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "--master-port", "0"]
    command += ["-m", "qdq", "realm", "index", "-m", str(GOLDEN), "--records", str(RECORDS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "shared")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(Index(tmp_path / "shared").embeddings, Index(index).embeddings, atol=1e-5, rtol=1e-5)


def test_what_is_wrong_is_told(refused: Refused, index: Path, tmp_path: Path) -> None:
    ask = ("-m", GOLDEN, "--index")
    assert refused("realm", "answer", " ", *ask, index) == "the question is empty"
    assert "is not an index of qdq" in refused("realm", "answer", "who?", *ask, tmp_path)
    assert "--faiss int8 makes one" in refused("realm", "answer", "who?", *ask, index, "--searcher", "int8")
    assert "must be exact, flat or int8" in refused("realm", "answer", "who?", *ask, index, "--searcher", "hnsw")
    make = ("realm", "index", "-m", GOLDEN, "-o", tmp_path / "other", "--records")
    np.save(tmp_path / "blocks.npy", np.array([b"one", b"two"], dtype=object), allow_pickle=True)
    assert "--allow-pickle" in refused(*make, tmp_path / "blocks.npy")
    assert "must be flat or int8" in refused(*make, RECORDS, "--faiss", "hnsw")
    assert "no such file" in refused(*make, tmp_path / "none.jsonl")


def test_a_pickle_is_read_with_permission(run: Run, index: Path, tmp_path: Path) -> None:
    texts = [Index(index).records[number] for number in range(40)]
    np.save(tmp_path / "blocks.npy", np.array([text.encode() for text in texts], dtype=object), allow_pickle=True)
    options = ("--records", tmp_path / "blocks.npy", "--allow-pickle", "-o", tmp_path / "same", "-q")
    assert run("realm", "index", "-m", GOLDEN, *options).code == 0
    np.testing.assert_array_equal(Index(tmp_path / "same").embeddings, Index(index).embeddings)
    assert load_file(tmp_path / "same" / "block_embeddings.safetensors")["block_emb"].shape == (40, 6)


def test_few_and_blank_blocks_are_told(run: Run, tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"text": "a cat sat on a mat and a dog ran to it"}\n{"text": " "}\n')
    ended = run("realm", "index", "-m", GOLDEN, "--records", records, "-o", tmp_path / "index")
    assert ended.code == 0, ended.err
    assert "1 of 2 blocks are blank (1)" in ended.err
    assert "1 blocks are longer than" in ended.err
    answered = run("realm", "answer", "cat", "-m", GOLDEN, "--index", tmp_path / "index", "--top-k", 9, "--json")
    assert answered.code == 0, answered.err
    assert "top_k is 9, but there are 1 answers" in answered.err
    (answer,) = answered.document["results"][0]["answers"]
    assert answer["block"] == 0


def test_a_question_that_is_not_utf8_is_refused(refused: Refused, index: Path) -> None:
    message = refused("realm", "answer", "who\udcff", "-m", GOLDEN, "--index", index)
    assert "'who\\udcff' has bytes that are not UTF-8" in message
