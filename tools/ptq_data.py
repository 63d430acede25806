"""Choose the sentences that a comparison calibrates on and measures with, and measure models on them."""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from qdq.data.text import read_samples, sample_text
from qdq.data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]
    Runner = Callable[[Arrays], NDArray[Any]]

__all__ = ["SETS", "Split", "batches", "make_split", "measure", "write_reference"]

SETS = ("sts", "squad", "sample")
"""Text of the domain of the calibration; paragraphs of questions; the sentences that ship with the package."""

LONGEST = 512
PARAGRAPHS = 100


@dataclass(frozen=True)
class Split:
    """Hold sentences to calibrate on and others to measure with.

    Args:
        calibration: Sentences drawn from ``sts/``.
        texts: Texts to measure with, for each of :data:`SETS`. None of them is in ``calibration``.
        pairs: Indices of two sentences in ``texts["sts"]`` and their similarity as people rated it, 0 to 5.
    """

    calibration: list[str]
    texts: dict[str, list[str]]
    pairs: list[tuple[int, int, float]]

    def write(self, folder: Path) -> None:
        (folder / "calibration.txt").write_text("".join(f"{text}\n" for text in self.calibration), encoding="utf-8")
        (folder / "split.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Split:
        return cls(**json.loads((folder / "split.json").read_text(encoding="utf-8")))


def make_split(data: Path, *, samples: int, limit: int | None, seed: int) -> Split:
    """Split off ``samples`` sentences to calibrate on, and keep at most ``limit`` of each set to measure with.

    The sentences to calibrate on do not depend on the limit.
    """
    rows = []
    for file in sorted((data / "sts").glob("*.tsv")):
        with file.open(encoding="utf-8", newline="") as lines:
            for score, *texts in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
                rows.append((*(" ".join(text.split()) for text in texts[:2]), score.strip()))
    sentences = sorted({text for first, second, _ in rows for text in (first, second) if text})
    draw = random.Random(seed)
    calibration = draw.sample(sentences, samples)
    used = set(calibration)
    kept = [text for text in sentences if text not in used]
    scored = [(a, b, float(score)) for a, b, score in rows if score and not {a, b, ""} & used]
    if limit is not None:
        scored = draw.sample(scored, min(limit // 2, len(scored)))
        kept = sorted({text for a, b, _ in scored for text in (a, b)})
    indices = {text: index for index, text in enumerate(kept)}
    paragraphs = [
        paragraph["context"]
        for article in json.loads((data / "squad/dev-subset.json").read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
    ]
    other = [sample.text for name in ("calibration", "heldout") for sample in read_samples(sample_text(name))]  # type: ignore[arg-type]
    texts = {
        "sts": kept,
        "squad": draw.sample(paragraphs, min(limit or PARAGRAPHS, PARAGRAPHS, len(paragraphs))),
        "sample": other[:limit],
    }
    return Split(calibration, texts, [(indices[a], indices[b], score) for a, b, score in scored])


def batches(
    texts: Sequence[str], model_dir: Path, *, rows: int, longest: int = LONGEST
) -> Iterator[tuple[list[int], Arrays]]:
    """Yield batches of up to ``rows`` texts of equal length, without padding, and their indices in ``texts``.

    The shortest come first. The order of the texts does not depend on ``rows``.
    """
    tokenizer = load_tokenizer(model_dir)
    tokenizer.enable_truncation(longest)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
    for _, same in groupby(order, key=lambda index: len(ids[index])):
        indices = list(same)
        for start in range(0, len(indices), rows):
            chosen = indices[start : start + rows]
            tokens = np.array([ids[index] for index in chosen], dtype=np.int64)
            ones = np.ones_like(tokens)
            yield chosen, {"input_ids": tokens, "attention_mask": ones, "token_type_ids": 0 * ones}


def write_reference(run: Runner, split: Split, model_dir: Path, folder: Path) -> None:
    """Write the float model's token vectors ``(tokens, hidden)`` of every set, in the order of :func:`batches`."""
    for name in SETS:
        hidden = [run(arrays) for _, arrays in batches(split.texts[name], model_dir, rows=16)]
        np.save(folder / f"{name}.npy", np.concatenate([array.reshape(-1, array.shape[-1]) for array in hidden]))


def measure(run: Runner, split: Split, model_dir: Path, folder: Path, *, rows: int) -> dict[str, Any]:
    """Measure how far a model is from the float model.

    Args:
        run: Function from arrays to ``last_hidden_state`` ``(batch, seq, hidden)``.
        split: The texts.
        model_dir: Directory with the tokenizer.
        folder: Directory that :func:`write_reference` wrote.
        rows: Rows of a batch; 1 for models whose ranges depend on the other rows.

    Returns:
        For each set mean and smallest cosine of mean-pooled embeddings, and the SQNR of the token vectors in dB. For
        ``sts`` also Spearman's correlation with the ratings of people in hundredths, beside that of the float model.
    """
    figures: dict[str, Any] = {}
    for name in SETS:
        reference = np.load(folder / f"{name}.npy", mmap_mode="r")
        vectors = np.zeros((2, len(split.texts[name]), reference.shape[1]))
        signal, noise, start = 0.0, 0.0, 0
        for indices, arrays in batches(split.texts[name], model_dir, rows=rows):
            found = run(arrays).astype(np.float64)
            end = start + found.shape[0] * found.shape[1]
            want = reference[start:end].reshape(found.shape).astype(np.float64)
            signal += float(np.square(want).sum())
            noise += float(np.square(found - want).sum())
            vectors[:, indices] = want.mean(axis=1), found.mean(axis=1)
            start = end
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        cosines = (vectors[0] * vectors[1]).sum(axis=-1)
        figures[name] = {
            "texts": len(cosines),
            "cosine": float(cosines.mean()),
            "cosine_p1": float(np.quantile(cosines, 0.01)),
            "sqnr_db": min(10 * math.log10(signal / noise), 200.0) if noise else 200.0,
        }
        if name == "sts":
            figures["spearman_float"], figures["spearman"] = (_spearman(v, split.pairs) for v in vectors)
    return figures


def _spearman(vectors: NDArray[Any], pairs: Sequence[tuple[int, int, float]]) -> float:
    first, second, scores = (np.array(column) for column in zip(*pairs, strict=True))
    cosines = (vectors[first] * vectors[second]).sum(axis=-1)
    return 100 * float(spearmanr(cosines, scores).statistic)
