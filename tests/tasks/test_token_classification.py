"""Words and entities of WNUT-17: transformers' predictions at first pieces, seqeval's own scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import seqeval.metrics
import torch
import transformers

import qdq
from qdq.data.batches import make_batches
from qdq.data.examples import read_examples
from qdq.data.labels import Labels
from qdq.data.tokenizer import load_encoder
from qdq.models.huggingface import save_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tasks.conftest import TinyModels

EXACT = 1e-6


def sentences_of(path: Path) -> list[tuple[list[str], list[str]]]:
    """Words and tags; a line of white space between sentences."""
    sentences: list[tuple[list[str], list[str]]] = [([], [])]
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            sentences.append(([], []))
            continue
        word, tag = line.split("\t")
        sentences[-1][0].append(word)
        sentences[-1][1].append(tag)
    return [sentence for sentence in sentences if sentence[0]]


def tags_of_transformers(folder: Path, sentences: list[list[str]], *, max_length: int) -> list[list[str]]:
    """The label at the first piece of every word; ``O`` for words that have none."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    rows = []
    for words in sentences:
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt", truncation=True, max_length=max_length)
        with torch.no_grad():
            found = model(**inputs).logits[0].argmax(-1).tolist()
        tags = ["O"] * len(words)
        for position, word in reversed(list(enumerate(inputs.word_ids()))):
            if word is not None:
                tags[word] = model.config.id2label[found[position]]
        rows.append(tags)
    return rows


@pytest.fixture(scope="module")
def tagger(tiny_models: TinyModels, root: Path, data_dir: Path) -> Path:
    """A small tagger, taught a little so that it finds some entities."""
    names = sorted({tag for _, tags in sentences_of(data_dir / "wnut17" / "train.conll") for tag in tags})
    folder = tiny_models.save_labelled(root / "tagger", "token-classification", names)
    labels = Labels.of(len(names), {name: index for index, name in enumerate(names)})
    examples = read_examples(data_dir / "wnut17" / "dev.conll", "token-classification", labels=labels, num_samples=150)
    batches = make_batches(examples, load_encoder(folder), "token-classification", batch_size=16)
    tiny_models.train(folder, [dict(batch) for batch in batches] * 20, rate=3e-3)
    return folder


@pytest.mark.parametrize("max_length", [512, 16], ids=["whole", "cut"])
def test_entities_and_words(tagger: Path, data_dir: Path, tmp_path: Path, max_length: int) -> None:
    sentences = sentences_of(data_dir / "wnut17" / "dev.conll")[:150]
    data = tmp_path / "dev.conll"
    data.write_text("\n\n".join("\n".join(map("\t".join, zip(*s, strict=True))) for s in sentences), encoding="utf-8")
    found = qdq.evaluate(tagger, "token-classification", data, resamples=0, seq_len=max_length)
    true = [tags for _, tags in sentences]
    predicted = tags_of_transformers(tagger, [words for words, _ in sentences], max_length=max_length)
    expected = {
        name: getattr(seqeval.metrics, f"{name}_score")(true, predicted) for name in ("f1", "precision", "recall")
    }
    assert expected["f1"] > 0.02, "nothing is compared when nothing is found"
    right = np.concatenate(
        [[a == b for a, b in zip(one, two, strict=True)] for one, two in zip(true, predicted, strict=True)]
    )
    assert found.examples == 150
    assert found.metrics == {
        **{name: pytest.approx(value, abs=EXACT) for name, value in expected.items()},
        "accuracy": pytest.approx(right.mean(), abs=EXACT),
    }
    assert any("beyond the longest sequence" in note for note in found.notes) == (max_length == 16)


def test_labels_that_describe_no_entities_give_the_accuracy_alone(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save_labelled(tmp_path / "model", "token-classification", ["noun", "verb"])
    rows = [{"tokens": ["birds", "fly"], "pos_tags": ["noun", "verb"]}]
    found = qdq.evaluate(folder, "token-classification", rows, resamples=0)
    assert list(found.metrics) == ["accuracy"]
    assert "describe no entities" in found.notes[0]


def test_numbers_of_tags_in_another_order_are_noted(tiny_models: TinyModels, tmp_path: Path) -> None:
    names = ["O", "B-X", "I-X"]
    folder = tiny_models.save_labelled(tmp_path / "model", "token-classification", names)
    model = qdq.load(folder)
    with torch.no_grad():
        model.head.classifier.weight.zero_()
        model.head.classifier.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    save_model(model, folder)
    rows = [{"tokens": ["a", "film"], "ner_tags": [2, 2]}] * 10
    found = qdq.evaluate(folder, "token-classification", rows, resamples=0)
    assert found.metrics["accuracy"] == 0
    assert any("another order (2 for 'O'), it is 100.0 %" in note for note in found.notes)
    named = [{"tokens": ["a", "film"], "ner_tags": ["I-X", "I-X"]}] * 10
    assert not qdq.evaluate(folder, "token-classification", named, resamples=0).notes
