"""Tables as programs write them: quotes, escapes, delimiters and lines of odd lengths."""

from __future__ import annotations

import csv
import io
import logging
from typing import TYPE_CHECKING

import pandas as pd
import pytest

from qdq.data.columns import Columns
from qdq.data.examples import read_examples
from qdq.data.source import open_source
from qdq.data.text_files import read_lines
from qdq.errors import DataError
from tests.data.support import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qdq.data.records import Problems
    from qdq.data.source import Say

PLAIN = [["The cat sleeps.", "A dog barks.", str(n)] for n in range(3)]
QUOTES = [['He said "no" twice', "plain", "1"], ['"Stop"', 'all of "it"', "2"]]
BREAKS = [["one\ttab inside", "none", "3"], ["two lines\nof one text", "a, b", "4"]]
HEADER = ["sentence1", "sentence2", "score"]


def written(rows: list[list[str]], delimiter: str, quoting: int) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(rows)  # type: ignore[arg-type]
    return file.getvalue()


def raw(rows: list[list[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def rows_of(path: Path, say: Say | None = None) -> list[list[str]]:
    return [list(record.values.values()) for record in open_source(path, say=say)]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path)
    return str(caught.value)


class TestQuotes:
    @pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    @pytest.mark.parametrize("rows", [QUOTES + PLAIN, QUOTES + BREAKS, BREAKS + PLAIN], ids=["quotes", "all", "breaks"])
    def test_marks_of_csv_writers_are_no_part_of_texts_with_tabs(
        self, tmp_path: Path, quoting: int, rows: list[list[str]]
    ) -> None:
        path = write(tmp_path / "a.tsv", written([HEADER, *rows], "\t", quoting))
        assert rows_of(path) == rows

    def test_what_pandas_writes_is_what_is_read(self, tmp_path: Path) -> None:
        frame = pd.DataFrame(QUOTES + BREAKS, columns=HEADER)
        for name, delimiter in (("a.tsv", "\t"), ("a.csv", ","), ("b.csv", ";")):
            frame.to_csv(tmp_path / name, sep=delimiter, index=False)
            assert rows_of(tmp_path / name) == QUOTES + BREAKS

    def test_quotes_as_characters_stay(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = write(tmp_path / "a.tsv", raw([HEADER, *QUOTES, *PLAIN]))
        assert rows_of(path) == QUOTES + PLAIN
        assert not caplog.records

    def test_a_single_text_in_quotes_keeps_them(self, tmp_path: Path) -> None:
        rows = [['"Stop"', "a", "1"], *PLAIN]
        assert rows_of(write(tmp_path / "a.tsv", raw([HEADER, *rows]))) == rows

    def test_a_column_in_quotes_throughout(self, tmp_path: Path) -> None:
        wrapped = [['"The cat sleeps."', "A dog barks.", str(n)] for n in range(3)]
        assert rows_of(write(tmp_path / "a.tsv", raw([HEADER, *wrapped]))) == PLAIN

    def test_a_spreadsheet_quotes_texts_with_commas(self, tmp_path: Path) -> None:
        rows = [[f'"One, {n}"', "two", str(n)] for n in range(3)]
        found = rows_of(write(tmp_path / "a.tsv", raw([HEADER, *rows, *PLAIN])))
        assert [row[0] for row in found[:3]] == [f"One, {n}" for n in range(3)]
        bare = [["a, b", "c", "1"]]  # a comma without quotes: they are not a spreadsheet's
        found = rows_of(write(tmp_path / "b.tsv", raw([HEADER, *rows, *bare])))
        assert found[0][0] == '"One, 0"'

    def test_a_header_in_quotes_says_enough(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tsv", '"text"\t"label"\n"a film"\t1\n')
        assert [record.values for record in open_source(path)] == [{"text": "a film", "label": "1"}]

    def test_blanks_before_quotes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", 'text, label\n"a, b", "neg"\n"c", "pos"\n')
        assert [record.values for record in open_source(path)] == [
            {"text": "a, b", "label": "neg"},
            {"text": "c", "label": "pos"},
        ]
        frame = pd.read_csv(path, skipinitialspace=True)
        assert frame.to_dict("records") == [record.values for record in open_source(path)]

    def test_both_ways_in_one_file_are_warned_of(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [['"He said ""no"""', "a", "1"], ['She said "yes"', "b", "2"]]
        assert rows_of(write(tmp_path / "a.tsv", raw([HEADER, *rows]))) == rows
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "1 fields stand in double quotes with doubled quotes inside, but 1 others" in record.message

    def test_a_damaged_line_among_many_is_a_problem_of_its_own(self, tmp_path: Path) -> None:
        rows = [[f'He said "no" {n}', "a", "1"] for n in range(20)]
        text = written([HEADER, *rows], "\t", csv.QUOTE_MINIMAL) + '"unclosed" x\tb\t1\n'
        assert "line 22: " in refusal(write(tmp_path / "a.tsv", text))

    def test_quotes_at_one_end_of_texts_are_characters(self, tmp_path: Path) -> None:
        rows = [['""bar"" baz', "a", "1"], ['"open', "b", "2"], ['close"', "c", "3"], ['a 5" pipe', "d", "4"]]
        assert rows_of(write(tmp_path / "a.tsv", raw([HEADER, *rows]))) == rows
        assert rows_of(write(tmp_path / "b.tsv", raw([HEADER, *rows[1:3]]))) == rows[1:3]

    def test_decisions_are_said_once(self, tmp_path: Path) -> None:
        said: list[str] = []
        source = open_source(
            write(tmp_path / "a.tsv", written([HEADER, *QUOTES], "\t", csv.QUOTE_ALL)),
            say=lambda level, text: said.append(f"{level} {text}"),
        )
        assert [len(list(source)) for _ in range(2)] == [2, 2]
        assert len(said) == 1
        assert said[0].startswith(f"{logging.INFO} {tmp_path / 'a.tsv'}: texts stand in double quotes")


class TestEscapes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('title,text\na,"2\\" pipe, blue"\nb,"plain, yes"\n', ['2" pipe, blue', "plain, yes"]),
            ('title,text\na,"5\\" pipe"\nb,"plain, yes"\nc,the cat\n', ['5" pipe', "plain, yes", "the cat"]),
            ('title,text\na,"say \\"no\\" now"\nb,the cat\n', ['say "no" now', "the cat"]),
            ('title,text\na,"ends in 5\\""\nb,"7\\""\nc,x\n', ['ends in 5"', '7"', "x"]),
            ('title,text\na,"C:\\new \\"x\\""\nb,d:\\e\n', ['C:\\new "x"', "d:\\e"]),
        ],
        ids=["comma", "inch", "words", "at the end", "other backslashes"],
    )
    def test_a_backslash_before_a_quote(self, tmp_path: Path, text: str, expected: list[str]) -> None:
        assert [row[1] for row in rows_of(write(tmp_path / "a.csv", text))] == expected

    def test_it_is_the_python_writers_escape(self, tmp_path: Path) -> None:
        rows = [["a", 'say "no", now'], ["b", 'tail"'], ["c", "plain"]]
        file = io.StringIO()
        csv.writer(file, doublequote=False, escapechar="\\", lineterminator="\n").writerows([["title", "text"], *rows])
        assert rows_of(write(tmp_path / "a.csv", file.getvalue())) == rows

    def test_a_path_before_a_quote_stays(self, tmp_path: Path) -> None:
        rows = [["a", "C:\\dir\\"], ["b", "x, y"]]
        path = write(tmp_path / "a.csv", written([["title", "text"], *rows], ",", csv.QUOTE_ALL))
        assert rows_of(path) == rows

    def test_where_nothing_fits_the_line_and_the_backslash_are_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", 'title,text\na,"2\\" pipe"\nb,"broken" x\n')
        message = refusal(path)
        assert "line 2: " in message
        assert "a backslash does not escape a double quote" in message
        assert "line 3: " in message


class TestDelimiters:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.csv", "text;label\na, b;1\nc;0\n"),
            ("a.csv", "text\tlabel\na, b\t1\nc\t0\n"),
            ("a.csv", "text|label\na, b|1\nc|0\n"),
            ("a.tsv", 'text,label\n"a, b",1\nc,0\n'),
            ("a.csv", 'text;label\n"a, b";1\n"c";0\n'),
            ("a.tsv", "text;label\na, b;1\nc;0\n"),
            ("a.tab", "text\tlabel\na, b\t1\nc\t0\n"),
        ],
        ids=["semicolons", "tabs", "bars", "commas", "quoted", "semicolons in tsv", "tab"],
    )
    def test_the_lines_decide(self, tmp_path: Path, name: str, text: str) -> None:
        assert rows_of(write(tmp_path / name, text)) == [["a, b", "1"], ["c", "0"]]

    @pytest.mark.parametrize("text", ["text\na; b\nc; d\n", "text,label\na;b,1\n", "text\na\n"])
    def test_a_mark_in_a_text_is_no_delimiter(self, tmp_path: Path, text: str) -> None:
        found = rows_of(write(tmp_path / "a.csv", text))
        assert [row[0] for row in found] == [line.split(",")[0] for line in text.splitlines()[1:]]

    def test_a_table_with_tabs_and_commas_in_every_line(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "A man, a plan\tB\t5.0\nA\tB, c\t4.0\n")
        assert [row[:2] for row in rows_of(path)] == [["A", "B, c"]]  # the first line is the header here


class TestWidths:
    def test_empty_fields_at_the_end_are_no_columns(self, tmp_path: Path) -> None:
        assert rows_of(write(tmp_path / "a.csv", "text,label\na,1,\nb,0,,\nc,1\n")) == [
            ["a", "1"],
            ["b", "0"],
            ["c", "1"],
        ]
        assert rows_of(write(tmp_path / "b.csv", "text,label,\na,1,\nb,0\n")) == [["a", "1", ""], ["b", "0", ""]]

    def test_others_are_problems(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path / "a.csv", "text,label\na\nb,0,x\n"))
        assert "line 2: 1 field, where the header has 2" in message
        assert "line 3: 3 fields" in message

    def test_crlf_and_line_ends_in_quotes(self, tmp_path: Path) -> None:
        assert rows_of(write(tmp_path / "a.csv", 'text,label\r\n"one\r\ntwo",1\r\n')) == [["one\r\ntwo", "1"]]

    def test_the_first_line_of_excel_names_the_delimiter(self, tmp_path: Path) -> None:
        assert rows_of(write(tmp_path / "a.csv", "sep=;\r\ntext;label\r\na, b;1\r\nc;0\r\n")) == [
            ["a, b", "1"],
            ["c", "0"],
        ]
        message = refusal(write(tmp_path / "b.csv", "sep=;\ntext;label\na, b;1\nc\n"))
        assert "line 4: 1 field, where the header has 2" in message

    def test_an_empty_name_before_names_of_one_word_is_a_header(self, tmp_path: Path) -> None:
        frame = pd.DataFrame({"tweet": ["A cat sleeps.", "A dog barks."], "class": [1, 0]})
        path = tmp_path / "a.csv"
        frame.to_csv(path)
        with pytest.raises(DataError, match="no text has a usual name among its columns '', 'tweet', 'class'"):
            read_examples(path, "sequence-classification")
        columns = Columns(text="tweet", label="class")
        found = read_examples(path, "sequence-classification", columns=columns)
        assert [getattr(example, "text", None) for example in found] == list(frame["tweet"])

    def test_a_pair_without_a_score_is_no_header(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.tsv", "\tA cat sleeps.\tA dog barks.\n1\tOne cat.\tTwo dogs.\n")
        assert len(list(read_examples(path, "sts"))) == 2


class TestLooks:
    def test_a_file_is_looked_at_again_when_it_changes(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text;label\na, b;1\n")
        assert rows_of(path) == [["a, b", "1"]]
        assert rows_of(write(path, 'text,label\n"a, b",1\nc,0\n')) == [["a, b", "1"], ["c", "0"]]

    def test_notes_are_said_each_time_it_is_opened(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text;label\na, b;1\n")
        for _ in range(2):
            notes: list[str] = []
            rows_of(path, lambda _, text, notes=notes: notes.append(text))  # type: ignore[misc]
            assert len(notes) == 1
            assert "semicolons" in notes[0]

    @pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
    def test_normal_tables_are_read_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        mark = "\t" if name == "a.tsv" else ","
        path = write(tmp_path / name, written([HEADER, *PLAIN, *QUOTES], mark, csv.QUOTE_MINIMAL))
        passes: list[Path] = []

        def counted(path: Path, problems: Problems) -> Iterator[str]:
            yield from read_lines(path, problems)
            passes.append(path)  # a whole pass, not the first line alone

        for module in ("table", "table_look"):
            monkeypatch.setattr(f"qdq.data.{module}.read_lines", counted)
        for total in (2, 3):  # the look and a reading, and another reading of another opening
            assert len(rows_of(path)) == 5
            assert passes == [path] * total
