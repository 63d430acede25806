"""Labels of a dataset as ids of a head."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from qdq.data.examples import read_examples
from qdq.data.labels import LabelError, Labels, find_labels, is_unlabelled, number_of
from qdq.errors import ConfigError, DataError
from tests.data.support import write

if TYPE_CHECKING:
    from pathlib import Path

NLI = Labels(("entailment", "neutral", "contradiction"))


def labelled(*labels: object) -> list[dict[str, object]]:
    return [{"text": "a", "label": label} for label in labels]


class TestIds:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [("neutral", 1), (" Neutral ", 1), (2, 2), ("2", 2), (2.0, 2), (True, 1), ("ENTAILMENT", 0)],
    )
    def test_names_and_numbers(self, value: object, expected: int) -> None:
        assert NLI.id_of(value) == expected

    @pytest.mark.parametrize("value", ["yes", 3, -1, 0.5, "1.5", None, [1], float("nan")])
    def test_others_are_named_with_those_there_are(self, value: object) -> None:
        with pytest.raises(LabelError) as caught:
            NLI.id_of(value)
        assert repr(value) in str(caught.value)
        assert "0 'entailment', 1 'neutral', 2 'contradiction'" in str(caught.value)

    def test_names_that_are_numbers_are_names(self) -> None:
        assert Labels(("1", "0")).id_of("0") == 1

    def test_names_that_differ_in_capitals_only_are_two(self) -> None:
        labels = Labels(("a", "A"))
        assert [labels.id_of("a"), labels.id_of("A")] == [0, 1]

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (["neutral"], (0, 1, 0)),
            ([0, 2], (1, 0, 1)),
            ([1, 0, 1], (1, 0, 1)),
            ([], (0, 0, 0)),
            ("neutral", (0, 1, 0)),
        ],
    )
    def test_several_labels(self, value: object, expected: tuple[float, ...]) -> None:
        assert Labels(NLI.names, multi_label=True).vector_of(value) == expected

    def test_a_long_listing_is_cut(self) -> None:
        assert Labels.of(25).describe().endswith("19 'LABEL_19' and 5 more")


class TestConfiguration:
    def test_the_names_of_ids_decide(self) -> None:
        assert Labels.of_ids(2, {0: "a", 1: "b"}).names == ("a", "b")
        with pytest.raises(ConfigError, match="the id 1 has no name"):
            Labels.of_ids(2, {0: "a", 2: "b"})

    def test_ids_that_are_no_numbers_are_named(self) -> None:
        with pytest.raises(ConfigError, match="the id of 'neg' is not a whole number, such as 'a'"):
            Labels.of(2, {"neg": "a"})  # type: ignore[dict-item]

    def test_a_name_of_two_ids_is_no_label_of_data(self) -> None:
        labels = Labels(("neg", "pos", "pos"))
        assert labels.id_of("neg") == 0
        assert labels.id_of(2) == 2
        with pytest.raises(LabelError, match="'pos' is the name of the ids 1, 2 of the head; give ids"):
            labels.id_of("pos")

    def test_ids_need_not_be_in_order(self) -> None:
        assert Labels.of(2, {"b": 1, "a": 0}).names == ("a", "b")
        assert Labels.of(2).names == ("LABEL_0", "LABEL_1")

    def test_a_single_output_is_a_score(self) -> None:
        assert Labels.of(1).is_regression
        assert not Labels.of(2).is_regression

    def test_all_that_is_wrong_comes_together(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Labels.of(3, {"a": 0, "b": 0, "c": 7})
        for problem in ("id 7 of 'c' is not below num_labels", "no name has id 1", "no name has id 2", "two names"):
            assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("value", "of_classes", "of_scores"),
    [
        (None, True, True),
        ("", True, True),
        (float("nan"), True, True),
        (-1, True, False),
        ("-", True, False),
        (0, False, False),
    ],
    ids=str,
)
def test_what_says_that_there_is_no_label(value: object, of_classes: bool, of_scores: bool) -> None:
    assert is_unlabelled(value, score=False) == of_classes
    assert is_unlabelled(value, score=True) == of_scores


@pytest.mark.parametrize(
    ("value", "expected"), [("1e3", 1000), ("x", None), (10**400, None), ("inf", None), (None, None), (True, 1)]
)
def test_numbers_and_texts_that_spell_one(value: object, expected: float | None) -> None:
    assert number_of(value) == expected


class TestFinding:
    @pytest.mark.parametrize(
        ("task", "rows", "expected"),
        [
            ("sequence-classification", [("a", "yes", 1), ("a", "no", 0)], ("LABEL_0", "LABEL_1")),
            ("sequence-classification", labelled("pos", "neg", "-", "pos"), ("neg", "pos")),
            ("sequence-classification", labelled("0", "2"), ("LABEL_0", "LABEL_1", "LABEL_2")),
            ("sequence-classification", labelled(0.5, 2), ("LABEL_0",)),
            ("sts", [("a", "b", 4)], ("LABEL_0",)),
            ("token-classification", [{"tokens": ["a", "b"], "ner_tags": ["B-X", "O"]}], ("O", "B-X")),
        ],
        ids=["tuples", "names", "numbers", "scores", "sts", "tags"],
    )
    def test_what_a_source_uses(self, task: str, rows: list[object], expected: tuple[str, ...]) -> None:
        assert find_labels(rows, task).names == expected

    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            ([{"text": "a"}], "no column of labels for sequence-classification; its columns are 'text'"),
            ([{"text": "a", "label": None}], "no row has a label in 'label'"),
            (labelled("x", 1), "both names ('x') and numbers (1)"),
            (labelled(-5), "all 1 rows have the label '-5'"),
            (labelled(*map("n{}".format, range(10_001))), "is it the column of labels?"),
        ],
        ids=["none", "empty", "mixed", "negative", "too many"],
    )
    def test_what_is_no_column_of_labels(self, rows: list[dict[str, object]], expected: str) -> None:
        with pytest.raises(DataError) as caught:
            find_labels(rows, "sequence-classification")
        assert expected in str(caught.value)


class TestRefusals:
    def test_a_source_without_a_readable_row_names_its_problems(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.json", '[["a", "pos"], ["b", "neg"]]')
        with pytest.raises(DataError, match="row 1: neither a JSON object nor a string but an array"):
            find_labels(path, "sequence-classification")

    def test_a_column_without_a_usual_name_has_its_option(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "review,sentiment\na cat,pos\na dog,neg\n")
        with pytest.raises(DataError, match="'review', 'sentiment'; name it with --label-column"):
            find_labels(path, "sequence-classification")
        with pytest.raises(DataError, match="'review', 'sentiment'; name it with --label-column"):
            read_examples(path, "sequence-classification", need_labels=True)


class TestNumbersOfANewHead:
    @pytest.mark.parametrize(
        ("labels", "names", "level", "said"),
        [
            ([-1, 0, 1] * 20, ("-1", "0", "1"), logging.WARNING, "20 of 60 rows (33.3 %) have the label -1"),
            (["-1", "1"] * 20, ("-1", "1"), logging.INFO, "20 of 40 rows (50.0 %) have the label -1"),
            ([1001, 1002, 1005] * 9, ("1001", "1002", "1005"), logging.INFO, "3 labels for the new head: 1001 33.3 %"),
            ([1, 2, 3, 4, 5] * 5, ("1", "2", "3", "4", "5"), logging.INFO, "5 labels for the new head: 1 20.0 %"),
            (["1.0", "2.0"] * 5, ("1", "2"), logging.INFO, "2 labels"),
            ([1, 2, 5] * 5, ("1", "2", "5"), logging.INFO, "3 labels"),
            ([0, 4] * 5, ("0", "4"), logging.INFO, "2 labels"),
            ([0, 2, 4] * 5, ("0", "2", "4"), logging.INFO, "3 labels"),
            ([0, 1, 3] * 5, ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), logging.WARNING, "no row has the label 2"),
            (
                [0, 1, 2] * 50 + [-1],
                ("LABEL_0", "LABEL_1", "LABEL_2"),
                logging.WARNING,
                "1 of 151 rows (0.7 %) have -1",
            ),
            ([True, False] * 5, ("LABEL_0", "LABEL_1"), logging.INFO, "2 labels"),
            (["0012", "12", "0104"] * 5, ("0012", "0104", "12"), logging.INFO, "3 labels"),
            (["pos", "neg", -1] * 5, ("neg", "pos"), logging.WARNING, "5 of 15 rows (33.3 %) have -1"),
            (["Pos", "pos", "neg"] * 5, ("Pos", "neg", "pos"), logging.WARNING, "'Pos' (5 times), 'pos' (5 times)"),
            (list(range(30)), Labels.of(30).names, logging.WARNING, "30 different labels in 30 rows"),
            (
                ["nan", "neg", "pos"] * 5,
                ("nan", "neg", "pos"),
                logging.WARNING,
                "'nan' in 'label' looks like a lost value",
            ),
            (
                [9007199254740992, 9007199254740993] * 5,
                ("9007199254740992", "9007199254740993"),
                logging.INFO,
                "2 labels",
            ),
            ([0.5, -1, 2] * 5, ("LABEL_0",), logging.INFO, "gives a score"),
        ],
        ids=str,
    )
    def test_classes_are_those_found_and_it_is_said(
        self, labels: list[object], names: tuple[str, ...], level: int, said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="qdq")
        rows = labelled(*labels)
        found = find_labels(rows, "sequence-classification")
        assert found.names == names
        assert any(record.levelno == level and said in record.message for record in caplog.records)
        # What the new head is trained on has all rows but those that were said to be left out.
        examples = list(read_examples(rows, "sequence-classification", labels=found, need_labels=True))
        left_out = sum(label == -1 for label in labels) if "-1" not in names and names != ("LABEL_0",) else 0
        assert len(examples) == len(rows) - left_out
        if not found.are_generic or found.names[0] != "LABEL_0":
            kept = [label for label in labels if label != -1 or "-1" in names]
            assert [names[e.label] for e in examples] == [str(label).removesuffix(".0") for label in kept]  # type: ignore[index, union-attr]

    def test_names_of_the_file_say_that_there_is_no_label(self, caplog: pytest.LogCaptureFixture) -> None:
        datasets = pytest.importorskip("datasets")
        names = datasets.ClassLabel(names=["bad", "good"])
        features = datasets.Features({"text": datasets.Value("string"), "label": names})
        rows = datasets.Dataset.from_dict({"text": ["a"] * 4, "label": [-1, 0, 1, -1]}, features=features)
        assert find_labels(rows, "sequence-classification").names == ("bad", "good")
        assert "2 of 4 rows (50.0 %) have -1 in 'label', which is taken as no label" in caplog.text

    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            (["pos"] * 5, "all 5 rows have the label 'pos'"),
            ([1] * 5, "all 5 rows have the label '1' in 'label'; a classifier needs two labels or more"),
            ([0.5] * 5, "all 5 rows have the label '0.5'"),
            ([1, None, ""], "all 1 rows have the label '1'"),
            ([-1] * 5, "no row has a label in 'label': 5 of 5 rows (100.0 %) have '-1'"),
            (["-"] * 5, "no row has a label"),
            ([[0], [1]], "2 values in 'label' are lists or objects, where one label is wanted"),
            (["0", "1", "unknown"], "both names ('unknown') and numbers (0); keep one: 0 33.3 %"),
        ],
        ids=str,
    )
    def test_what_makes_no_classifier(self, labels: list[object], expected: str) -> None:
        with pytest.raises(DataError) as caught:
            find_labels(labelled(*labels), "sequence-classification")
        assert expected in str(caught.value)

    def test_tags_count_from_zero(self) -> None:
        rows = [{"tokens": ["a", "b"], "ner_tags": [-100, 1]}]
        with pytest.raises(DataError, match="holds -100 to 1; tags count from 0"):
            find_labels(rows, "token-classification")
        with pytest.raises(DataError, match="all 2 tokens have the label 'O'"):
            find_labels([{"tokens": ["a", "b"], "ner_tags": ["O", "O"]}], "token-classification")


class TestSeveralLabels:
    @pytest.mark.parametrize("mark", [",", ";", "|", " , "])
    def test_texts_of_a_table_are_divided(self, mark: str) -> None:
        rows = labelled(f"red{mark}blue", "blue", f"red{mark}green{mark}blue", f"green{mark}red", "red")
        found = find_labels(rows, "sequence-classification", multi_label=True)
        assert found.names == ("blue", "green", "red")
        first, *_ = read_examples(rows, "sequence-classification", labels=found)
        assert first.label == (1, 0, 1)

    def test_lists_as_texts(self) -> None:
        rows = labelled("['red', 'blue']", '["blue"]', "[]")
        found = find_labels(rows, "sequence-classification", multi_label=True)
        assert found.names == ("blue", "red")
        labels = [example.label for example in read_examples(rows, "sequence-classification", labels=found)]
        assert labels == [(1, 1), (1, 0), (0, 0)]

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            ((["red", "blue"], ["blue"], []), ("blue", "red")),
            (([0, 2], [1]), ("LABEL_0", "LABEL_1", "LABEL_2")),
            (([0, 1, 0, 0], [1, 0, 0, 1]), ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")),
            (([0, 1], [1]), ("LABEL_0", "LABEL_1")),
            (("red", "blue"), ("blue", "red")),
        ],
        ids=["names", "numbers", "vectors", "short lists", "one each"],
    )
    def test_what_a_source_uses(self, labels: tuple[object, ...], names: tuple[str, ...]) -> None:
        found = find_labels(labelled(*labels), "sequence-classification", multi_label=True)
        assert found == Labels(names, multi_label=True)

    def test_numbers_that_are_no_classes(self) -> None:
        with pytest.raises(DataError, match="classes count from 0"):
            find_labels(labelled([0.5, 1]), "sequence-classification", multi_label=True)
