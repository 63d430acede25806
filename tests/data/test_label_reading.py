"""Columns of labels for a head that is there already: names, numbers, and numbers in another order."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from qdq.data.examples import read_examples
from qdq.data.labels import Labels
from qdq.errors import DataError

SENTIMENT = ("neg", "neu", "pos")


def read(labels: list[Any], names: tuple[str, ...], **options: Any) -> list[Any]:
    rows = [{"text": "a", "label": label} for label in labels]
    head = Labels(names, multi_label=options.pop("multi_label", False))
    return [e.label for e in read_examples(rows, "sequence-classification", labels=head, **options)]


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([" Pos ", "NEG", "neu"], SENTIMENT, [2, 0, 1]),
        (["not entailment", "Entailment"], ("entailment", "not_entailment"), [1, 0]),
        ([0.0, "1", "2.0"], SENTIMENT, [0, 1, 2]),
        ([-1, 0, 1], ("-1", "0", "1"), [0, 1, 2]),
        (["1001", 1005], ("1001", "1002", "1005"), [0, 2]),
        ([1, 2, 3], ("1", "2", "3"), [0, 1, 2]),
        ([1, 0], ("1", "0"), [0, 1]),
        ([True, "false"], ("False", "True"), [1, 0]),
        ([True, False], ("yes", "no"), [0, 1]),
        (["True", "False"], ("neg", "pos"), [1, 0]),
        (["LABEL_1", 0], ("LABEL_0", "LABEL_1"), [1, 0]),
        ([0, "-", 1], ("-", "a"), [0, 0, 1]),
    ],
    ids=str,
)
def test_what_needs_no_word(
    labels: list[Any], names: tuple[str, ...], expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    assert read(labels, names) == expected
    assert not caplog.records


@pytest.mark.parametrize(
    ("labels", "names", "expected", "said"),
    [
        ([0, 1, 2], ("1", "2", "3"), [0, 1, 2], "are not the names of the head's labels"),
        ([1, 2, 3, 1], ("1 star", "2 stars", "3 stars"), [0, 1, 2, 0], "counts from 1 to 3, and the head from 0"),
        ([-1, 0, 1, "-"], SENTIMENT, [0, 1], "2 of 4 rows (50.0 %) have '-', '-1' in 'label'"),
    ],
    ids=["ids of numbers", "from one", "no label"],
)
def test_what_is_likely_not_meant_is_warned_of(
    labels: list[Any], names: tuple[str, ...], expected: list[int], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(labels, names, need_labels=True) == expected
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert said in record.message


@pytest.mark.parametrize("labels", [[1, 2, 3], [0, 1, 3], [1, 5]], ids=str)
def test_numbers_that_fit_in_no_way_are_refused(labels: list[Any]) -> None:
    with pytest.raises(DataError, match="is not one of the head's labels"):
        read(labels, ("a", "b"))


def test_an_iterator_is_read_once_row_by_row() -> None:
    rows = iter([{"text": "a", "label": label} for label in (-1, 1, "0")])
    found = read_examples(rows, "sequence-classification", labels=Labels(("x", "y")), need_labels=True)
    assert [example.label for example in found] == [1, 0]  # type: ignore[union-attr]


class TestNamesOfTheFile:
    """Numbers of ``ClassLabel``, which the file counts in its own order."""

    @staticmethod
    def dataset(names: list[str], labels: list[int]) -> Any:
        datasets = pytest.importorskip("datasets")
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
        return datasets.Dataset.from_dict({"text": ["a"] * len(labels), "label": labels}, features=features)

    @pytest.mark.parametrize(
        ("file_names", "labels", "expected"),
        [
            (["pos", "neg", "neu"], [0, 1, 2], [2, 0, 1]),
            (["POS", "Neg", "neu"], [0, 1, 2], [2, 0, 1]),
            (["pos", "neg", "mixed"], [0, 1], [2, 0]),  # the name that the head lacks is not used
        ],
        ids=["another order", "other capitals", "an unused name"],
    )
    def test_they_decide(self, file_names: list[str], labels: list[int], expected: list[int]) -> None:
        rows = self.dataset(file_names, labels)
        found = read_examples(rows, "sequence-classification", labels=Labels(SENTIMENT))
        assert [example.label for example in found] == expected

    def test_names_that_the_head_does_not_know_are_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        rows = self.dataset(["bad", "soso", "good"], [0, 1, 2])
        found = read_examples(rows, "sequence-classification", labels=Labels(SENTIMENT))
        assert [example.label for example in found] == [0, 1, 2]
        assert "the file calls its labels 'bad', 'soso', 'good', and the head knows other names" in caplog.text

    def test_a_head_without_names_takes_the_numbers(self, caplog: pytest.LogCaptureFixture) -> None:
        rows = self.dataset(["bad", "soso", "good"], [0, 1, 2])
        found = read_examples(rows, "sequence-classification", labels=Labels.of(3))
        assert [example.label for example in found] == [0, 1, 2]
        assert not caplog.records

    def test_tags_in_another_order(self) -> None:
        datasets = pytest.importorskip("datasets")
        names = datasets.ClassLabel(names=["B-X", "O"])
        features = datasets.Features(
            {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)}
        )
        rows = datasets.Dataset.from_list([{"tokens": ["a", "b"], "ner_tags": [0, 1]}], features=features)
        (example,) = read_examples(rows, "token-classification", labels=Labels(("O", "B-X")))
        assert example.tags == (1, 0)  # type: ignore[union-attr]


class TestVectors:
    def test_lists_of_another_length_are_lists_of_ids(self) -> None:
        assert read([[0, 1], [1]], ("x", "y"), multi_label=True) == [(1, 1), (0, 1)]

    def test_lists_of_the_length_of_the_head_are_vectors(self) -> None:
        assert read([[0, 1], [1, 1]], ("x", "y"), multi_label=True) == [(0, 1), (1, 1)]


class TestChoices:
    @staticmethod
    def read(labels: list[Any], choices: list[str]) -> list[Any]:
        rows = [{"question": "q", "choices": choices, "label": label} for label in labels]
        return [example.label for example in read_examples(rows, "multiple-choice")]  # type: ignore[union-attr]

    def test_numbers_from_one(self, caplog: pytest.LogCaptureFixture) -> None:
        assert self.read([1, 2, 2], ["ran", "flew"]) == [0, 1, 1]
        assert "the right choices count from 1 to 2" in caplog.text

    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            ([0, 1, 1], [0, 1, 1]),
            ([1, 1], [1, 1]),
            (["ran", "flew"], [0, 1]),
            (["B", "a"], [1, 0]),
            ([-1, 1], [None, 1]),
        ],
        ids=str,
    )
    def test_other_ways_to_name_the_right_one(
        self, labels: list[Any], expected: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        assert self.read(labels, ["ran", "flew"]) == expected
        assert not caplog.records
