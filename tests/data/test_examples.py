"""Rows of public sets as examples: columns without flags, labels, what is skipped, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from qdq.data.columns import Columns
from qdq.data.examples import (
    ChoiceExample,
    IdsExample,
    QuestionExample,
    Summary,
    TextExample,
    TokenExample,
    read_examples,
)
from qdq.data.labels import Labels
from qdq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.data.source import SourceLike

BINARY = Labels(("negative", "positive"))


def read(source: SourceLike, task: str, **options: Any) -> list[Any]:
    return list(read_examples(source, task, **options))


def one(row: object, task: str, **options: Any) -> Any:
    (example,) = read([row], task, **options)
    return example


def refusal(source: SourceLike, task: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(source, task, **options)
    return str(caught.value)


def text_file(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


class TestTexts:
    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ({"sentence": "a", "label": 1, "idx": 0}, ("a", None, 1)),
            ({"sentence1": "a", "sentence2": "b", "label": 0}, ("a", "b", 0)),
            ({"premise": "a", "hypothesis": "b", "label": 1}, ("a", "b", 1)),
            ({"question": "a", "sentence": "b", "label": 1}, ("a", "b", 1)),
            ({"question1": "a", "question2": "b", "label": "0"}, ("a", "b", 0)),
            ({"query": "a", "passage": "b", "label": "positive"}, ("a", "b", 1)),
            ({"question": "a", "passage": "b", "answer": True}, ("a", "b", 1)),
            ({"question1": "a", "question2": "b", "is_duplicate": "1"}, ("a", "b", 1)),
            ({"Quality": "1", "#1 ID": "7", "#1 String": "a", "#2 String": "b"}, ("a", "b", 1)),
            ({"text": "a", "labels": "Negative"}, ("a", None, 0)),
            ({"Text": "a", "LABEL": 1}, ("a", None, 1)),
            ({"text": "a", "text_pair": None, "label": -1}, ("a", None, None)),
            ({"sentence1": "a", "sentence2": "b", "gold_label": "-"}, ("a", "b", None)),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_the_usual_columns_are_found(
        self, row: dict[str, object], expected: tuple[str, str | None, int | None]
    ) -> None:
        example = one(row, "sequence-classification", labels=BINARY)
        assert (example.text, example.text_pair, example.label) == expected

    def test_columns_by_name(self) -> None:
        row = {"text": "usual", "body": "a", "title": "b", "stars": 1}
        columns = Columns(text="body", text_pair="title", label="stars")
        assert one(row, "sequence-classification", columns=columns) == TextExample(0, "row 1", "a", "b", 1)
        message = refusal([row], "sequence-classification", columns=Columns(text="bdy", label="star"))
        assert "no column 'bdy', 'star'; its columns are 'text', 'body', 'title', 'stars'" in message

    def test_columns_of_a_table_without_header_by_number(self, tmp_path: Path) -> None:
        path = text_file(tmp_path / "a.tsv", "x\tgood film\tpositive\ny\tbad film\tnegative\n")
        columns = Columns(text="1", label="2")
        examples = read(path, "sequence-classification", columns=columns, labels=BINARY)
        assert [(example.text, example.label) for example in examples] == [("good film", 1), ("bad film", 0)]
        assert examples[0].location == "line 1"

    def test_a_head_with_a_single_output_wants_scores(self) -> None:
        example = one({"text": "a", "score": "2.5"}, "sequence-classification", labels=Labels.of(1))
        assert example.label == 2.5
        assert isinstance(one({"text": "a", "label": 3}, "sequence-classification", labels=Labels.of(1)).label, float)

    def test_several_labels(self) -> None:
        labels = Labels(("a", "b", "c"), multi_label=True)
        assert one({"text": "x", "labels": ["c", "a"]}, "sequence-classification", labels=labels).label == (1, 0, 1)

    def test_the_names_behind_the_numbers_decide(self) -> None:
        """A dataset that counts positive first, and a model that counts it last."""
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["Positive", "Negative"])}
        )
        dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features=features)
        assert [e.label for e in read(dataset, "sequence-classification", labels=BINARY)] == [1, 0]
        assert [e.label for e in read(dataset, "sequence-classification", labels=Labels.of(2))] == [0, 1]

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ({"tokens": ["a", "b"], "ner_tags": [0, 1]}, ("a b", None)),
            ({"question": "a", "context": "b", "answers": None}, ("a", "b")),
            ({"ctx": "a", "endings": ["b", "c"], "label": 1}, ("a", "b")),
        ],
        ids=["words", "question", "choices"],
    )
    def test_what_was_written_for_another_task_is_text_too(self, row: dict[str, object], expected: str) -> None:
        example = one(row, "feature-extraction")
        assert (example.text, example.text_pair, example.label) == (*expected, None)


class TestScores:
    def test_unscored_rows_are_skipped_and_counted(self, tmp_path: Path) -> None:
        path = text_file(tmp_path / "a.tsv", "4.2\ta\tb\n\tc\td\n0\te\tf\n")
        examples = read_examples(path, "sts", need_labels=True)
        assert [(e.index, e.text, e.label) for e in examples] == [(0, "a", 4.2), (1, "e", 0.0)]
        assert examples.skipped == 1
        assert examples.check() == Summary(examples=2, skipped=1)
        assert [e.label for e in read(path, "sts")] == [4.2, None, 0.0]

    def test_a_negative_score_is_a_score(self) -> None:
        assert one(("a", "b", -1), "sts").label == -1.0

    def test_what_is_no_score_is_named(self) -> None:
        assert "'3,5' is not a number; write decimals with a point" in refusal([("a", "b", "3,5")], "sts")
        assert "row 1: the score 'high' is not a number" in refusal([{"text": "a", "score": "high"}], "sts")


class TestTokens:
    TAGS = Labels(("O", "B-PER", "I-PER"))

    def test_names_and_ids(self, tmp_path: Path) -> None:
        path = text_file(tmp_path / "a.conll", "Ada\tB-PER\nsings\tO\n")
        expected = TokenExample(0, "line 1", ("Ada", "sings"), (1, 0))
        assert read(path, "token-classification", labels=self.TAGS) == [expected]
        row = {"tokens": ["Ada", "sings"], "ner_tags": [1, 0]}
        assert one(row, "token-classification").tags == (1, 0)
        assert one({"words": ["Ada"]}, "token-classification").tags is None

    def test_another_column_of_a_conll_file(self, tmp_path: Path) -> None:
        path = text_file(tmp_path / "a.conll", "Ada N B-PER\nsings V O\n")
        columns = Columns(tags="1")
        assert read(path, "token-classification", columns=columns, labels=Labels(("N", "V")))[0].tags == (0, 1)

    def test_problems_of_rows_come_together(self) -> None:
        rows = [
            {"tokens": ["a", "b"], "ner_tags": [0]},
            {"tokens": ["a"], "ner_tags": ["B-LOC"]},
            {"tokens": "a", "ner_tags": ["O"]},
            {"tokens": ["a"], "ner_tags": "O"},
        ]
        message = refusal(rows, "token-classification", labels=self.TAGS)
        for problem in (
            "row 1: 2 tokens and 1 tags",
            "row 2: the label 'B-LOC' is not one of the head's labels: 0 'O', 1 'B-PER', 2 'I-PER'",
            "row 3: 'tokens' is a string, where a list of words is expected",
            "row 4: 'ner_tags' is a string, where a list with a tag for each token is expected",
        ):
            assert problem in message


class TestQuestions:
    def test_both_forms_of_answers(self) -> None:
        row = {
            "id": "x",
            "question": "Where?",
            "context": "In France.",
            "answers": {"text": ["France"], "answer_start": [3]},
        }
        expected = QuestionExample(0, "row 1", "x", "Where?", "In France.", ("France",), (3,))
        assert one(row, "question-answering") == expected
        row["answers"] = [{"text": "France", "answer_start": 3}]
        assert one(row, "question-answering") == expected

    def test_no_answer_and_nobody_knows(self) -> None:
        row = {"question": "Where?", "context": "In France."}
        assert one(row, "question-answering").answers is None
        assert one({**row, "is_impossible": True}, "question-answering").answers == ()
        assert one({**row, "answers": {"text": [], "answer_start": []}}, "question-answering").answers == ()
        assert one(row, "question-answering").id == "0"

    @pytest.mark.parametrize(
        ("answers", "expected"),
        [
            (
                {"text": ["France"], "answer_start": [99]},
                "the answer 'France' at character 99 is not within its context",
            ),
            ({"text": ["France"], "answer_start": []}, "two lists of the same length"),
            ("France", "must have 'text' and 'answer_start'"),
        ],
        ids=["outside", "lengths", "text"],
    )
    def test_answers_that_cannot_be(self, answers: object, expected: str) -> None:
        row = {"question": "Where?", "context": "In France.", "answers": answers}
        assert expected in refusal([row], "question-answering")


class TestChoices:
    @pytest.mark.parametrize(
        ("row", "text", "choices", "label"),
        [
            ({"sent1": "s", "sent2": "t", "ending0": "a", "ending1": "b", "label": 1}, "s", ("t a", "t b"), 1),
            ({"ctx": "s", "endings": ["a", "b"], "label": "0"}, "s", ("a", "b"), 0),
            ({"article": "s", "question": "q", "options": ["a", "b"], "answer": "B"}, "s", ("q a", "q b"), 1),
            (
                {"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
                "q",
                ("a", "b"),
                1,
            ),
            ({"goal": "g", "sol1": "a", "sol2": "b", "label": 1}, "g", ("a", "b"), 1),
            ({"sentence": "s", "option1": "a", "option2": "b", "answer": "2"}, "s", ("a", "b"), 1),
            (
                {"premise": "p", "choice1": "a", "choice2": "b", "question": "cause", "label": 0},
                "p",
                ("cause a", "cause b"),
                0,
            ),
            ({"ctx": "s", "endings": ["a", "b"], "label": ""}, "s", ("a", "b"), None),
        ],
        ids=["swag", "hellaswag", "race", "arc", "piqa", "winogrande", "copa", "unlabelled"],
    )
    def test_the_forms_of_public_sets(
        self, row: dict[str, object], text: str, choices: tuple[str, ...], label: int | None
    ) -> None:
        assert one(row, "multiple-choice") == ChoiceExample(0, "row 1", text, choices, label)

    def test_ten_choices_are_in_the_order_of_their_numbers(self) -> None:
        row = {"text": "t", **{f"choice_{n}": str(n) for n in reversed(range(11))}}
        assert one(row, "multiple-choice").choices == tuple(str(n) for n in range(11))

    def test_a_label_beyond_the_choices_is_named(self) -> None:
        row = {"ctx": "s", "endings": ["a", "b"], "label": 2}
        assert "the label 2 is not one of the 2 choices, 0 to 1 or A to B" in refusal([row], "multiple-choice")


class TestIds:
    def test_they_are_taken_as_they_are(self) -> None:
        row = {"input_ids": [101, 7, 102], "attention_mask": [1, 1, 1], "label": "positive"}
        expected = IdsExample(0, "row 1", (101, 7, 102), (1, 1, 1), None, 1)
        assert one(row, "sequence-classification", labels=BINARY) == expected
        assert one({"input_ids": [1, 2], "labels": [-100, 3]}, "token-classification").label == (-100, 3)

    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            ({"input_ids": []}, "'input_ids' is empty"),
            ({"input_ids": [1.5]}, "'input_ids' is an array, where a list of whole numbers"),
            ({"input_ids": [1, 2], "attention_mask": [1]}, "2 numbers in 'input_ids' and 1 in 'attention_mask'"),
        ],
        ids=["empty", "fractions", "lengths"],
    )
    def test_what_does_not_go_together(self, row: dict[str, object], expected: str) -> None:
        assert expected in refusal([row], "feature-extraction")


class TestWhole:
    """Whole passes: order, skipping, sampling, memory, and problems."""

    def test_an_unknown_task_lists_those_there_are(self) -> None:
        with pytest.raises(ConfigError, match="question-answering"):
            read_examples(["a"], "summarization")

    def test_problems_of_labels_and_of_lines_come_together_in_order(self, tmp_path: Path) -> None:
        lines = [{"text": "a", "label": 0}, {"text": "b", "label": 7}, {"text": 3}, {"text": "c", "label": "maybe"}]
        path = text_file(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n{")
        message = refusal(path, "sequence-classification", labels=BINARY)
        assert message.startswith(f"{path}: 4 problems")
        assert [line.split(":")[0] for line in message.splitlines()[1:]] == [f"  - line {n}" for n in (2, 3, 4, 5)]
        assert "the label 'maybe' is not one of the head's labels: 0 'negative', 1 'positive'" in message

    def test_check_tells_every_problem_before_any_work(self, tmp_path: Path) -> None:
        path = text_file(tmp_path / "a.csv", "text,label\n" + "a,0\n" * 50 + "b,7\n" * 30)
        examples = read_examples(path, "sequence-classification", labels=BINARY)
        with pytest.raises(DataError) as caught:
            examples.check()
        assert "30 problems" in str(caught.value)
        assert "line 71: the label '7'" in str(caught.value)
        assert "line 72" not in str(caught.value)
        assert str(caught.value).endswith("and 10 more")

    def test_a_name_without_the_names_of_a_head_is_named(self) -> None:
        assert "'good' is not a whole number, and no label names" in refusal(
            [("a", "b", "good")], "sequence-classification"
        )

    def test_labels_that_are_needed(self) -> None:
        assert "none of its 2 rows has a label" in refusal(["a", "b"], "sequence-classification", need_labels=True)
        rows = [{"text": "a", "note": 3}]
        message = refusal(rows, "sequence-classification", need_labels=True)
        assert "no column has a usual name for labels" in message
        assert "'text', 'note'" in message

    @pytest.mark.parametrize("null", [None, float("nan"), ""], ids=["null", "nan", "empty"])
    def test_a_null_is_a_row_without_text(self, null: object, caplog: pytest.LogCaptureFixture) -> None:
        rows = [{"text": "a", "label": 0}, {"text": null, "label": 1}, {"text": "b", "label": 1}]
        examples = read_examples(rows, "feature-extraction")
        assert [e.text for e in examples] == ["a", "b"]  # type: ignore[union-attr]
        assert examples.skipped == 1
        assert "1 of 3 rows (33.3 %) have no text and are skipped" in caplog.text
        # With a label that is needed it counts, as an empty text of a table does.
        assert [e.label for e in read(rows, "sequence-classification", need_labels=True)] == [0, 1, 1]

    def test_a_null_is_no_context_and_no_choice(self) -> None:
        assert "'context' is null, not text" in refusal([{"question": "q", "context": None}], "question-answering")
        row = {"question": "q", "choice0": "a", "choice1": None}
        assert "'choice1' is null, not text" in refusal([row], "multiple-choice")

    def test_rows_without_text_are_skipped_unless_they_have_a_label_that_counts(self) -> None:
        rows = [{"text": " ", "label": 1}, {"text": "a", "label": 0}]
        assert [e.text for e in read(rows, "masked-lm")] == ["a"]
        assert [e.label for e in read(rows, "sequence-classification", need_labels=True)] == [1, 0]

    @pytest.mark.parametrize("task", ["token-classification", "question-answering", "multiple-choice"])
    def test_bare_texts_have_no_columns(self, tmp_path: Path, task: str) -> None:
        path = text_file(tmp_path / "a.txt", "a\nb\n")
        assert f"line 1 is a bare text; {task} needs rows with columns" in refusal(path, task)

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            ("token-classification", "no list of tokens has a usual name among its columns 'a', 'b'"),
            ("question-answering", "no question with its context"),
            ("multiple-choice", "no text with its choices"),
            ("sts", "no text has a usual name"),
        ],
    )
    def test_no_usual_column(self, task: str, expected: str) -> None:
        assert expected in refusal([{"a": 1, "b": 2}], task)

    def test_another_delimiter_is_recognised(self, tmp_path: Path) -> None:
        example, *_ = read(text_file(tmp_path / "a.csv", "text;label\na, b;1\n"), "sequence-classification")
        assert (example.text, example.label) == ("a, b", 1)
        message = refusal(text_file(tmp_path / "b.csv", "text;label\na;1;2\n"), "sequence-classification")
        assert "has a single column, 'text;label'; fields seem to stand between ';'" in message

    def test_a_file_can_be_read_again_and_an_iterator_once(self, tmp_path: Path) -> None:
        examples = read_examples(text_file(tmp_path / "a.txt", "a\nb\n"), "masked-lm")
        assert list(examples) == list(examples)
        once = read_examples(iter(["a"]), "masked-lm")
        assert len(list(once)) == 1
        with pytest.raises(DataError, match="used up"):
            list(once)

    def test_a_draw_keeps_the_order_and_counts_anew(self, tmp_path: Path) -> None:
        path = text_file(tmp_path / "a.txt", "".join(f"text {n:04}\n" for n in range(1000)))
        first, again, other = (read(path, "masked-lm", num_samples=20, seed=seed) for seed in (1, 1, 2))
        assert first == again != other
        assert [example.index for example in first] == list(range(20))
        assert [example.text for example in first] == sorted(example.text for example in first)
        assert read_examples(path, "masked-lm", num_samples=20).check() == Summary(20, 0)
        with pytest.raises(ConfigError, match="at least 1"):
            read_examples(path, "masked-lm", num_samples=0)

    @pytest.mark.parametrize(
        ("extension", "num_samples"),
        [("csv", None), ("tsv", None), ("jsonl", None), ("txt", None), ("conll", None), ("jsonl", 16)],
        ids=["csv", "tsv", "jsonl", "txt", "conll", "drawn"],
    )
    def test_a_large_file_takes_constant_memory(self, tmp_path: Path, extension: str, num_samples: int | None) -> None:
        line = {
            "csv": 'a,"{}, and more",1\n',
            "tsv": "a\t{} and more\t1\n",
            "jsonl": '{{"text": "{} and more"}}\n',
            "txt": "{} and more\n",
            "conll": "{}\tO\n\n",
        }[extension]
        path = tmp_path / f"a.{extension}"
        with path.open("w") as file:
            file.write({"csv": "id,text,label\n", "tsv": "id\ttext\tlabel\n"}.get(extension, ""))
            file.writelines(line.format(f"{n} {'word ' * 150}") for n in range(6_000))
        assert path.stat().st_size > 4 << 20
        tracemalloc.start()
        try:
            examples = read_examples(path, "feature-extraction", num_samples=num_samples)
            assert sum(1 for _ in examples) == (num_samples or 6_000)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
