"""Labels and scores of whole texts: transformers' predictions, scikit-learn's and scipy's metrics."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers

import qdq
from qdq.errors import DataError
from qdq.models.huggingface import save_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tasks.conftest import TinyModels

EXACT = 1e-6


def logits_of_transformers(folder: Path, texts: list[str] | list[tuple[str, str]]) -> np.ndarray:
    """One text at a time, without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        inputs = tokenizer(*((text,) if isinstance(text, str) else text), return_tensors="pt", truncation=True)
        with torch.no_grad():
            rows.append(model(**inputs).logits[0].numpy())
    return np.stack(rows)


def test_two_labels_on_sst2(tiny_models: TinyModels, tmp_path: Path, sentences: list[tuple[str, int]]) -> None:
    folder = tiny_models.save(tmp_path / "model", "sequence-classification")
    tiny_models.balance(folder, [text for text, _ in sentences])
    data = tmp_path / "dev.tsv"
    data.write_text("".join(f"{text}\t{label}\n" for text, label in sentences))
    texts, labels = zip(*sentences, strict=True)
    found = qdq.evaluate(folder, "sequence-classification", data, resamples=0)
    predictions = logits_of_transformers(folder, list(texts)).argmax(axis=1)
    assert 0 < predictions.mean() < 1
    assert found.examples == 200
    assert found.metrics == {
        "accuracy": pytest.approx(sklearn.metrics.accuracy_score(labels, predictions), abs=EXACT),
        "f1": pytest.approx(sklearn.metrics.f1_score(labels, predictions), abs=EXACT),
        "matthews": pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions), abs=EXACT),
    }


def test_several_labels_of_pairs_by_name(
    tiny_models: TinyModels, tmp_path: Path, sentences: list[tuple[str, int]]
) -> None:
    names = ["entailment", "neutral", "contradiction"]
    texts = [text for text, _ in sentences[:60]]
    folder = tiny_models.balance(tiny_models.save_labelled(tmp_path / "model", "sequence-classification", names), texts)
    pairs = list(zip(texts[:30], texts[30:], strict=True))
    labels = [(7 * index) % 3 for index in range(30)]
    rows = [
        {"premise": one, "hypothesis": two, "label": names[label]}
        for (one, two), label in zip(pairs, labels, strict=True)
    ]
    found = qdq.evaluate(folder, "sequence-classification", rows, resamples=0, batch_size=7)
    predictions = logits_of_transformers(folder, pairs).argmax(axis=1)
    assert found.metrics == {
        "accuracy": pytest.approx(sklearn.metrics.accuracy_score(labels, predictions), abs=EXACT),
        "f1_macro": pytest.approx(sklearn.metrics.f1_score(labels, predictions, average="macro"), abs=EXACT),
        "matthews": pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions), abs=EXACT),
    }


def test_a_score(tiny_models: TinyModels, tmp_path: Path, sentences: list[tuple[str, int]]) -> None:
    folder = tiny_models.save(tmp_path / "model", "sequence-classification", num_labels=1)
    texts = [text for text, _ in sentences[:80]]
    scores = np.random.default_rng(0).normal(size=80).round(1)
    rows = [{"sentence": text, "score": float(score)} for text, score in zip(texts, scores, strict=True)]
    found = qdq.evaluate(folder, "sequence-classification", rows, resamples=0)
    predictions = logits_of_transformers(folder, texts)[:, 0]
    assert found.metrics == {
        "spearman": pytest.approx(scipy.stats.spearmanr(predictions, scores).statistic, abs=EXACT),
        "pearson": pytest.approx(scipy.stats.pearsonr(predictions, scores).statistic, abs=EXACT),
        "mse": pytest.approx(sklearn.metrics.mean_squared_error(scores, predictions), abs=1e-5),
    }


def test_any_number_of_labels(tiny_models: TinyModels, tmp_path: Path, sentences: list[tuple[str, int]]) -> None:
    folder = tiny_models.save(
        tmp_path / "model", "sequence-classification", num_labels=4, problem_type="multi_label_classification"
    )
    texts = [text for text, _ in sentences[:50]]
    labels = np.random.default_rng(0).integers(2, size=(50, 4))
    rows = [{"text": text, "labels": row.astype(float).tolist()} for text, row in zip(texts, labels, strict=True)]
    found = qdq.evaluate(folder, "sequence-classification", rows, resamples=0)
    predictions = logits_of_transformers(folder, texts) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where a row has no label
        expected = {
            name: getattr(sklearn.metrics, f"{name}_score")(labels, predictions, average="micro")
            for name in ("f1", "precision", "recall")
        }
    assert found.metrics == {
        **{name: pytest.approx(value, abs=EXACT) for name, value in expected.items()},
        "exact_match": pytest.approx(sklearn.metrics.accuracy_score(labels, predictions), abs=EXACT),
    }


def test_a_label_the_head_does_not_have(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save_labelled(tmp_path / "model", "sequence-classification", ["negative", "positive"])
    rows = [{"text": "fine", "label": "positive"}, {"text": "so so", "label": "neutral"}]
    with pytest.raises(DataError, match=r"row 2.*neutral.*negative.*positive"):
        qdq.evaluate(folder, "sequence-classification", rows)


def test_rows_without_label_are_skipped_and_counted(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model", "sequence-classification")
    rows = [{"text": "fine", "label": 1}, {"text": "unknown", "label": None}, {"text": "bad", "label": 0}]
    found = qdq.evaluate(folder, "sequence-classification", rows, resamples=0)
    assert (found.examples, found.skipped) == (2, 1)


class TestLabelTables:
    """Heads whose two tables of labels disagree, and data that counts its labels in another order."""

    NAMES = ("neg", "neu", "pos")

    def model(self, tiny_models: TinyModels, folder: Path, **changes: object) -> Path:
        """A model that answers ``neu`` to everything."""
        tiny_models.save_labelled(folder, "sequence-classification", list(self.NAMES))
        model = qdq.load(folder)
        with torch.no_grad():
            model.head.classifier.weight.zero_()
            model.head.classifier.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
        save_model(model, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    @pytest.mark.parametrize(
        "label2id",
        [
            {"neg": 0, "neu": 1, "pos": 2},
            {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
            {"LABEL_0": 0, "LABEL_1": 1},
            {"neu": 0, "neg": 1, "pos": 2},
        ],
        ids=["right", "stale", "short", "permuted"],
    )
    def test_id2label_decides(self, tiny_models: TinyModels, tmp_path: Path, label2id: dict[str, int]) -> None:
        folder = self.model(tiny_models, tmp_path / "model", label2id=label2id)
        answer = transformers.pipeline("text-classification", str(folder), device="cpu")("a film")[0]["label"]
        rows = [{"text": "a film", "label": answer}] * 4 + [{"text": "a film", "label": "pos"}]
        assert qdq.evaluate(folder, "sequence-classification", rows, resamples=0).metrics["accuracy"] == 0.8

    def test_another_order_of_numbers_is_noted(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        folder = self.model(tiny_models, tmp_path / "model")
        rows = [{"text": "a film", "label": 0}] * 20
        found = qdq.evaluate(folder, "sequence-classification", rows, resamples=0)
        assert found.metrics["accuracy"] == 0
        order, one_label = found.notes
        assert "If the data counts in another order (0 for 'neu'), it is 100.0 %" in order
        assert "all examples have the same label" in one_label
        assert found.to_dict()["notes"] == [order, one_label]

    def test_rows_without_a_label_are_noted_with_their_share(self, tiny_models: TinyModels, tmp_path: Path) -> None:
        folder = self.model(tiny_models, tmp_path / "model")
        rows = [{"text": "a film", "label": label} for label in (-1, 1, 1, 2)]
        found = qdq.evaluate(folder, "sequence-classification", rows, resamples=0)
        assert (found.examples, found.skipped) == (3, 1)
        assert any("1 of 4 rows (25.0 %) have '-1' in 'label'" in note for note in found.notes)
