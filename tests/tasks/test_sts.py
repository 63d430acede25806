"""The real model on pairs that people scored: the published figure on 1,620 of them, by every way to run it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats
import torch
import transformers

import qdq
from qdq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.tasks.evaluate import Evaluation
    from tests.tasks.conftest import TinyModels

PUBLISHED = 0.8658
CLOSE = 0.0002  # 0.02 points


def pairs_of(path: Path) -> list[tuple[float, str, str]]:
    rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return [(float(score), one, two) for score, one, two in rows if score]


@pytest.fixture(scope="module")
def few_file(sts_file: Path, root: Path) -> Path:
    """Every twelfth line of the sets."""
    path = root / "few-sts.tsv"
    path.write_text("\n".join(sts_file.read_text(encoding="utf-8").splitlines()[::12]) + "\n", encoding="utf-8")
    return path


def in_transformers(folder: Path, file: Path) -> dict[str, float]:
    """Spearman and Pearson of scipy for the mean of transformers' own forward, texts sorted by length."""
    pairs = pairs_of(file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    texts = sorted({text for _, *both in pairs for text in both}, key=len)
    vectors = {}
    for begin in range(0, len(texts), 64):
        chunk = texts[begin : begin + 64]
        inputs = tokenizer(chunk, return_tensors="pt", padding=True)
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
        vectors.update(zip(chunk, mean.numpy(), strict=True))
    cosines = [float(vectors[one] @ vectors[two]) for _, one, two in pairs]
    scores = [score for score, _, _ in pairs]
    return {
        "spearman": float(scipy.stats.spearmanr(cosines, scores).statistic),
        "pearson": float(scipy.stats.pearsonr(cosines, scores).statistic),
    }


@pytest.fixture(scope="module")
def of_transformers(minilm_dir: Path, sts_file: Path) -> dict[str, float]:
    """The figures of all pairs."""
    torch.set_num_threads(2)
    return in_transformers(minilm_dir, sts_file)


def check(found: Evaluation, file: Path, want: dict[str, float]) -> None:
    """The same figures as transformers and scipy find, for as many pairs as have a score."""
    assert found.examples == len(pairs_of(file))
    assert found.skipped == sum(line.startswith("\t") for line in file.read_text(encoding="utf-8").splitlines())
    swap = 12 / found.examples**2  # what two neighbours that change places move a rank correlation by, at most
    assert found.metrics["spearman"] == pytest.approx(want["spearman"], abs=max(1e-5, swap))
    assert found.metrics["pearson"] == pytest.approx(want["pearson"], abs=1e-5)


def test_the_float_checkpoint_on_few_pairs(minilm_dir: Path, few_file: Path) -> None:
    found = qdq.evaluate(minilm_dir, "sts", few_file)
    assert found.examples > 100
    assert found.skipped > 10
    check(found, few_file, in_transformers(minilm_dir, few_file))
    low, high = found.intervals["spearman"]  # type: ignore[misc]
    assert low < PUBLISHED < high


@pytest.mark.slow
def test_the_float_checkpoint(minilm_dir: Path, sts_file: Path, of_transformers: dict[str, float]) -> None:
    torch.set_num_threads(2)
    found = qdq.evaluate(minilm_dir, "sts", sts_file)
    assert found.examples == 1620
    check(found, sts_file, of_transformers)
    assert of_transformers["spearman"] == pytest.approx(PUBLISHED, abs=CLOSE)
    low, high = found.intervals["spearman"]  # type: ignore[misc]
    assert low < PUBLISHED < high
    assert 0.01 < high - low < 0.04
    assert found.settings["pooling"] == "mean"


@pytest.mark.slow
def test_the_onnx_export(minilm_dir: Path, sts_file: Path, of_transformers: dict[str, float], tmp_path: Path) -> None:
    qdq.export(minilm_dir, tmp_path / "float", target=None)
    found = qdq.evaluate(tmp_path / "float", "sts", sts_file, threads=2, resamples=0)
    assert found.runtime == "onnxruntime"
    assert found.metrics["spearman"] == pytest.approx(of_transformers["spearman"], abs=CLOSE)


def test_figures_equal_the_independent_computation(tiny_models: TinyModels, tmp_path: Path, sts_file: Path) -> None:
    """To 1e-6 with the same similarities: a small model, every pooling."""
    folder = tiny_models.save(tmp_path / "model")
    pairs = pairs_of(sts_file)[:120]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    poolings = {"mean": lambda h: h.mean(1), "cls": lambda h: h[:, 0], "max": lambda h: h.max(1).values}
    cosines: dict[str, list[float]] = {name: [] for name in poolings}
    for _, one, two in pairs:
        with torch.no_grad():
            states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in (one, two)]
        for name, pool in poolings.items():
            cosines[name].append(float(torch.nn.functional.cosine_similarity(*map(pool, states))))
    scores = [score for score, _, _ in pairs]
    rows = [{"score": score, "sentence1": one, "sentence2": two} for score, one, two in pairs]
    for name, values in cosines.items():
        found = qdq.evaluate(folder, "sts", rows, resamples=0, pooling=name, batch_size=9)
        assert found.metrics == {
            "spearman": pytest.approx(scipy.stats.spearmanr(values, scores).statistic, abs=2e-4),
            "pearson": pytest.approx(scipy.stats.pearsonr(values, scores).statistic, abs=1e-6),
        }
    assert len({round(float(np.mean(values)), 3) for values in cosines.values()}) == 3


def test_sentences_without_partner(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model")
    with pytest.raises(DataError, match="needs pairs"):
        qdq.evaluate(folder, "sts", [{"text": "alone", "score": 1.0}, {"text": "alone", "score": 2.0}])


def test_a_file_without_pairs_is_named_with_its_line(minilm_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("sentence\tlabel\na fine film\t1\na bore\t0\n")
    with pytest.raises(DataError, match=r"labels\.tsv.*no second text; the task sts needs pairs"):
        qdq.evaluate(minilm_dir, "sts", tmp_path / "labels.tsv")
