"""Ranks of passages against torchmetrics, and SQuAD's questions with the real model's embeddings by transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torchmetrics
import transformers

import qdq
from qdq.errors import DataError
from qdq.tasks.retrieval import _of_query

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tasks.conftest import TinyModels


def metrics_of_torchmetrics(cosines: np.ndarray, relevant: np.ndarray) -> dict[str, object]:
    """Cosines and relevance ``(queries, passages)``. Above 0: torchmetrics finds nothing below."""
    cosines = cosines + 2
    query = torch.arange(len(cosines))[:, None].expand(cosines.shape)
    arguments = (torch.from_numpy(cosines).flatten(), torch.from_numpy(relevant).flatten(), query.flatten())
    recalls = {f"recall@{k}": torchmetrics.retrieval.RetrievalRecall(top_k=k)(*arguments) for k in (1, 5, 10)}
    mrr = torchmetrics.retrieval.RetrievalMRR(top_k=10)(*arguments)
    return {name: pytest.approx(float(value), abs=1e-6) for name, value in {"mrr@10": mrr, **recalls}.items()}


@pytest.mark.parametrize("positives", [1, 3])
def test_ranks_against_torchmetrics(positives: int) -> None:
    generator = np.random.default_rng(0)
    cosines = generator.normal(size=(60, 25))
    relevant = np.argsort(generator.random((60, 25)), axis=1) < positives
    found = [_of_query(row, np.flatnonzero(flags)) for row, flags in zip(cosines, relevant, strict=True)]
    means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
    assert means == metrics_of_torchmetrics(cosines, relevant)


def test_a_model_that_tells_nothing_apart_gets_nothing() -> None:
    found = _of_query(np.ones(11), np.array([4]))
    assert found == {"recall@1": 0, "recall@5": 0, "recall@10": 0, "mrr@10": 0}


def test_squad_questions_find_their_paragraph(minilm_dir: Path, small_squad: Path) -> None:
    document = json.loads(small_squad.read_text())
    paragraphs = document["data"][0]["paragraphs"]
    asked = [(qa["question"], number) for number, paragraph in enumerate(paragraphs) for qa in paragraph["qas"]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_dir)
    model = transformers.AutoModel.from_pretrained(minilm_dir).eval()

    def embed(texts: list[str]) -> np.ndarray:
        inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=256)
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean).numpy()

    queries = embed([question for question, _ in asked])
    cosines = queries @ embed([paragraph["context"] for paragraph in paragraphs]).T
    relevant = np.arange(len(paragraphs)) == np.array([number for _, number in asked])[:, None]
    found = qdq.evaluate(minilm_dir, "retrieval", small_squad, resamples=50)
    assert found.examples == len(asked)
    assert found.settings["passages"] == 8
    assert found.metrics == metrics_of_torchmetrics(cosines, relevant)
    assert 0.5 < found.metrics["recall@1"] < 1


def test_own_format(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model")
    path = tmp_path / "queries.jsonl"
    rows = [
        {"query": "a film about birds", "positive": "birds on film", "negatives": ["a stock market report", "rain"]},
        {"query": "weather", "positive": ["rain", "snow in winter"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = qdq.evaluate(folder, "retrieval", path, resamples=0)
    assert (found.examples, found.settings["passages"]) == (2, 4)
    assert list(found.metrics) == ["mrr@10", "recall@1", "recall@5", "recall@10"]
    assert found.metrics["recall@5"] == found.metrics["recall@10"] == 1


def test_rows_that_are_no_queries_are_all_named(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model")
    path = tmp_path / "queries.jsonl"
    rows = [
        {"query": "fine", "positive": "fine"},
        {"query": "no passage"},
        {"positive": "no query"},
        {"query": "a", "positive": "b", "negatives": 3},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError) as refused:
        qdq.evaluate(folder, "retrieval", path)
    message = str(refused.value)
    assert "line 2: no passage that answers it" in message
    assert "line 3: no query" in message
    assert "line 4: negative or negatives or hard_negatives must be" in message
