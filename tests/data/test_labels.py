"""Labels of a dataset as ids of a head."""

from __future__ import annotations

import pytest

from qdq.data.labels import LabelError, Labels, find_labels, is_unlabelled, number_of
from qdq.errors import ConfigError, DataError

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


@pytest.mark.parametrize(("value", "expected"), [("1e3", 1000), ("x", None), ("inf", None), (None, None), (True, 1)])
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


class TestSeveralLabels:
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
