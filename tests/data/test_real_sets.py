"""Every set of the evaluation folder, read without flags and compared with a reading by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from qdq.data.batches import make_batches
from qdq.data.examples import Columns, read_examples
from qdq.data.labels import Labels, find_labels
from qdq.data.text import read_samples
from qdq.data.tokenizer import load_encoder
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from qdq.data.examples import Example
    from qdq.data.tokenizer import TextEncoder

STS = ("2014-deft-news", "2014-headlines", "2014-images", "2015-belief", "2015-headlines", "2015-images")


@pytest.fixture(scope="module")
def encoder(request: pytest.FixtureRequest) -> TextEncoder:
    return load_encoder(request.getfixturevalue("minilm_dir"), max_length=512)


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").removesuffix("\n").split("\n")


def rows_of(examples: Iterable[Example], encoder: TextEncoder, task: str) -> int:
    return sum(len(batch.index) for batch in make_batches(examples, encoder, task, batch_size=64))


@pytest.mark.parametrize("name", STS)
def test_sts(data_dir: Path, encoder: TextEncoder, name: str) -> None:
    path = data_dir / "sts" / f"{name}.tsv"
    expected = [line.split("\t") for line in lines(path)]
    scored = [(one, two, float(score)) for score, one, two in expected if score]
    examples = read_examples(path, "sts", need_labels=True)
    assert [(e.text, e.text_pair, e.label) for e in examples] == scored
    assert examples.skipped == len(expected) - len(scored)
    assert rows_of(examples, encoder, "sts") == len(scored)
    assert [(s.text, s.text_pair) for s in read_samples(path)] == [(one, two) for _, one, two in expected]


@pytest.mark.parametrize(("name", "count"), [("dev", 872), ("train", 6920)])
def test_sst2(data_dir: Path, encoder: TextEncoder, name: str, count: int) -> None:
    path = data_dir / "sst2" / f"{name}.tsv"
    assert find_labels(path, "sequence-classification").names == ("LABEL_0", "LABEL_1")
    examples = read_examples(path, "sequence-classification", labels=Labels(("negative", "positive")), need_labels=True)
    expected = [line.rsplit("\t", 1) for line in lines(path)]
    assert [[e.text, str(e.label)] for e in examples] == expected
    assert len(expected) == count
    if name == "dev":
        assert rows_of(examples, encoder, "sequence-classification") == count
        assert rows_of(read_examples(path, "masked-lm"), encoder, "masked-lm") == count


@pytest.mark.parametrize("name", ["dev", "train"])
def test_wnut17(data_dir: Path, encoder: TextEncoder, name: str) -> None:
    path = data_dir / "wnut17" / f"{name}.conll"
    labels = find_labels(path, "token-classification")
    assert labels.names[0] == "O"
    assert len(labels.names) == 13
    sentences, words = [], []
    for line in [*lines(path), ""]:
        if line.strip():
            words.append(tuple(line.split("\t")))
        elif words:
            sentences.append(words)
            words = []
    examples = read_examples(path, "token-classification", labels=labels, need_labels=True)
    found = [list(zip(e.tokens, [labels.names[tag] for tag in e.tags], strict=True)) for e in examples]
    assert found == sentences
    if name == "dev":
        batches = make_batches(examples, encoder, "token-classification", batch_size=64)
        first_pieces = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
        # no tweet is longer than the model's positions; four words are marks that cleaning takes away
        words = [word for sentence in sentences for word, _ in sentence]
        empty = [word for word in words if not encoder.tokenizer.encode(word, add_special_tokens=False).ids]
        assert {len(word) for word in empty} == {1}
        assert first_pieces == len(words) - len(empty)


def test_squad(data_dir: Path, encoder: TextEncoder) -> None:
    path = data_dir / "squad" / "dev-subset.json"
    articles = json.loads(path.read_text("utf-8"))["data"]
    expected = [
        (question["id"], question["question"], paragraph["context"], [answer["text"] for answer in question["answers"]])
        for article in articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    examples = list(read_examples(path, "question-answering", need_labels=True))
    assert [(e.id, e.question, e.context, list(e.answers)) for e in examples] == expected
    held = set()
    for batch in make_batches(examples, encoder, "question-answering", batch_size=64):
        for place, example in enumerate(batch.examples):
            first, last = int(batch["start_positions"][place]), int(batch["end_positions"][place])
            if first:
                begin, end = int(batch.offsets[place, first, 0]), int(batch.offsets[place, last, 1])
                assert example.answers[0] in example.context[begin:end]
                assert end - begin <= len(example.answers[0]) + 12  # up to a word cut on each side
                held.add(example.index)
    assert held == {e.index for e in examples if e.answers}


def test_a_wrong_column_lists_those_there_are(data_dir: Path) -> None:
    with pytest.raises(DataError, match="no column 'body'"):
        read_examples(data_dir / "sst2" / "dev.tsv", "sequence-classification", columns=Columns(text="body"))
