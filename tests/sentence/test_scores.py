"""The figures of sts and retrieval, of directories with prompts and other similarities than the cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.stats
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import SimilarityFunction

import qdq
from qdq.errors import ConfigError
from qdq.sentence.folder import SIMILARITIES
from qdq.tasks.similarity import normalized, pairwise_similarity, similarity_matrix
from tests.sentence.conftest import TEXTS, WIDTH, WORDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUERIES = [" ".join(WORDS[number : number + 3]) for number in range(len(WORDS))]
PASSAGES = [f"{one} {other} by the {one}" for one in WORDS for other in WORDS]
ROWS = [
    {"query": query, "positive": PASSAGES[5 * number], "negatives": PASSAGES} for number, query in enumerate(QUERIES)
]


def pairs() -> list[dict[str, Any]]:
    scores = torch.rand(len(PASSAGES), generator=torch.Generator().manual_seed(1)).tolist()
    return [
        {"sentence1": one, "sentence2": other, "score": score}
        for one, other, score in zip(PASSAGES, PASSAGES[7:] + PASSAGES[:7], scores, strict=True)
    ]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities(name: str) -> None:
    one, other = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    vectors = [normalized(side.numpy()) if name == "cosine" else side.numpy() for side in (one, other)]
    pairwise = SimilarityFunction.to_similarity_pairwise_fn(name)(one, other)
    np.testing.assert_allclose(pairwise_similarity(*vectors, name), pairwise, atol=1e-5)
    matrix = SimilarityFunction.to_similarity_fn(name)(one, other)
    np.testing.assert_allclose(similarity_matrix(*vectors, name), matrix, atol=1e-5)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_sts(name: str, save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(
        Pooling(WIDTH), similarity_fn_name=name, prompts={"a": "red: "}, default_prompt_name="a"
    )
    model, rows = SentenceTransformer(str(folder), device="cpu"), pairs()
    sides = [model.encode([row[side] for row in rows]) for side in ("sentence1", "sentence2")]
    found = qdq.evaluate(folder, "sts", rows, resamples=0)
    expected = scipy.stats.pearsonr(model.similarity_pairwise(*sides), [row["score"] for row in rows]).statistic
    assert found.metrics["pearson"] == pytest.approx(expected, abs=1e-5)
    assert found.settings["prompt"] == "red: "
    assert found.settings.get("similarity", "cosine") == name
    assert not found.notes


@pytest.mark.parametrize("prompts", [{}, {"query": "red: "}, {"query": "wind: ", "document": "the lake: "}], ids=str)
@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_retrieval(name: str, prompts: dict[str, str], save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH), similarity_fn_name=name, prompts=prompts)
    model = SentenceTransformer(str(folder), device="cpu")
    similarity = model.similarity(model.encode_query(QUERIES), model.encode_document(PASSAGES)).numpy()
    right = similarity[np.arange(len(QUERIES)), 5 * np.arange(len(QUERIES))]
    ranks = (similarity >= right[:, np.newaxis] - 1e-6).sum(axis=1)
    found = qdq.evaluate(folder, "retrieval", ROWS, resamples=0)
    assert found.metrics["recall@5"] == pytest.approx(float((ranks <= 5).mean()))
    assert found.metrics["mrr@10"] == pytest.approx(float(np.where(ranks <= 10, 1 / ranks, 0).mean()))
    assert not found.notes


def test_a_default_prompt_is_not_put_in_front_of_queries(save_sentence_model: Callable[..., Path]) -> None:
    plain = save_sentence_model(Pooling(WIDTH), name="plain")
    other = save_sentence_model(Pooling(WIDTH), name="other", prompts={"a": "red: "}, default_prompt_name="a")
    found = [qdq.evaluate(folder, "retrieval", ROWS, resamples=0) for folder in (plain, other)]
    assert found[0].metrics == found[1].metrics
    assert found[0].settings == found[1].settings


def test_a_prompt_that_upstream_does_not_use_is_mentioned(save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH), prompts={"query": "red: ", "passage": "lake: "})
    model = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(model.encode_document(list(TEXTS)), model.encode(list(TEXTS)), atol=1e-6)
    (note,) = qdq.evaluate(folder, "retrieval", ROWS, resamples=0).notes
    assert "the prompt 'passage' is not put in front of passages" in note
    assert "call it 'document' in" in note


def test_a_chosen_pooling_says_what_it_leaves_out(save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH, "cls"), Dense(WIDTH, 4))
    (note,) = qdq.evaluate(folder, "sts", pairs(), resamples=0, pooling="cls").notes
    assert note == "the pooling cls alone makes the vectors: 2_Dense (Dense) of modules.json is left out"


def test_another_pooling_than_that_of_the_directory_is_mentioned(save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH, "cls"))
    (note,) = qdq.evaluate(folder, "sts", pairs(), resamples=0, pooling="mean").notes
    assert note == "the pooling mean makes the vectors, modules.json asks for cls"
    assert not qdq.evaluate(folder, "sts", pairs(), resamples=0, pooling="cls").notes


def test_longer_texts_than_upstream_reads_are_mentioned(save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH), length=8)
    (note,) = qdq.evaluate(folder, "sts", pairs(), resamples=0, seq_len=16).notes
    assert note == "texts of up to 16 tokens were read, sentence-transformers cuts them at 8"


@pytest.mark.parametrize("task", ["sts", "retrieval"])
def test_modules_that_are_not_supported(task: str, save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH), Dense(WIDTH, 4))
    file = folder / "modules.json"
    file.write_text(file.read_text().replace("sentence_transformers.base.modules.dense.Dense", "own_code.Dense"))
    data = ROWS if task == "retrieval" else pairs()
    with pytest.raises(ConfigError, match=r"not supported: 2_Dense \(own_code\.Dense\); --pooling mean leaves it out"):
        qdq.evaluate(folder, task, data, resamples=0)
    (note,) = qdq.evaluate(folder, task, data, resamples=0, pooling="mean").notes
    assert "2_Dense (own_code.Dense) of modules.json is left out" in note
