"""JSON that is no list of rows: what other programs write, and files whose name promises another form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from qdq.data.source import open_source
from qdq.errors import DataError
from tests.data.support import write

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [{"text": "one", "label": 0}, {"text": "two", "label": 1}, {"text": "three", "label": 0}]


def rows_of(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    return [record.values for record in open_source(path, split=split)]


def refusal(path: Path, split: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path, split)
    return str(caught.value)


@pytest.mark.parametrize("indent", [None, 1], ids=["one line", "indented"])
class TestDocuments:
    @pytest.mark.parametrize("orient", ["records", "columns", "index", "table", "list"])
    def test_what_pandas_writes(self, tmp_path: Path, orient: Any, indent: int | None) -> None:
        frame = pd.DataFrame(ROWS)
        text = json.dumps(frame.to_dict("list"), indent=indent)
        if orient != "list":
            text = frame.to_json(orient=orient, indent=indent, index=orient != "table" and None)
        assert rows_of(write(tmp_path / "a.json", text)) == ROWS

    def test_the_form_of_pandas_without_names_is_told(self, tmp_path: Path, indent: int | None) -> None:
        text = pd.DataFrame(ROWS).to_json(orient="split", indent=indent)
        assert "orient='split'; write it with orient='records'" in refusal(write(tmp_path / "a.json", text))

    def test_splits(self, tmp_path: Path, indent: int | None) -> None:
        path = write(tmp_path / "a.json", json.dumps({"train": ROWS, "test": ROWS[:1], "dev": []}, indent=indent))
        assert rows_of(path, "test") == ROWS[:1]
        assert "the splits 'train' (3 rows), 'test' (1 rows); name one" in refusal(path)
        assert "no split 'x'; its splits are 'train'" in refusal(path, "x")
        single = write(tmp_path / "b.json", json.dumps({"train": ROWS, "test": []}, indent=indent))
        assert rows_of(single) == ROWS

    def test_rows_under_a_usual_name(self, tmp_path: Path, indent: int | None) -> None:
        document = {"license": "any", "notes": ["a", "b"], "examples": ROWS}
        assert rows_of(write(tmp_path / "a.json", json.dumps(document, indent=indent))) == ROWS

    def test_one_row_with_lists_is_a_row(self, tmp_path: Path, indent: int | None) -> None:
        for row in (
            {"tokens": ["a", "b"], "ner_tags": ["O", "O"]},
            {"question": "q", "context": "c", "answers": [{"text": "c", "answer_start": 0}]},
            ROWS[0],
        ):
            assert rows_of(write(tmp_path / "a.json", json.dumps(row, indent=indent))) == [row]

    def test_objects_one_after_another(self, tmp_path: Path, indent: int | None) -> None:
        text = "\n".join(json.dumps(row, indent=indent) for row in ROWS)
        for name in ("a.json", "a.jsonl"):
            assert rows_of(write(tmp_path / name, text)) == ROWS

    def test_an_array_in_a_file_of_lines(self, tmp_path: Path, indent: int | None) -> None:
        assert rows_of(write(tmp_path / "a.jsonl", json.dumps(ROWS, indent=indent))) == ROWS

    def test_columns_of_other_lengths(self, tmp_path: Path, indent: int | None) -> None:
        text = json.dumps({"text": ["a", "b"], "label": [1]}, indent=indent)
        message = refusal(write(tmp_path / "a.json", text))
        assert "valid JSON, but an object of columns of different lengths ('text' 2, 'label' 1)" in message


class TestLines:
    @pytest.mark.parametrize("name", ["a.ndjson", "a.jsonlines", "A.NDJSON", "a.ldjson", "my.jsonl"])
    def test_the_names_of_one_format(self, tmp_path: Path, name: str) -> None:
        assert rows_of(write(tmp_path / name, "\n".join(map(json.dumps, ROWS)))) == ROWS

    def test_a_damaged_line_is_one_problem(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '{"text": "a"\n{"text": "b"}\n{"text": "c"}\n')
        assert refusal(path).startswith(f"{path}: line 1: invalid JSON")

    def test_lines_of_arrays_are_no_rows(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path / "a.jsonl", '["a", "b"]\n["c", "d"]\n'))
        assert "line 2: neither a JSON object nor a string but an array" in message

    def test_what_follows_an_array_is_not_dropped(self, tmp_path: Path) -> None:
        assert "the array ends, and '['" in refusal(write(tmp_path / "a.json", '[{"text": "a"}]\n[{"text": "b"}]'))

    def test_null_is_a_row_without_text(self, tmp_path: Path) -> None:
        assert rows_of(write(tmp_path / "a.jsonl", 'null\n{"text": null}\n')) == [{"": None}, {"text": None}]
