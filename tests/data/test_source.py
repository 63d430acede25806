"""Where rows come from: each kind of source, streaming, and every way in which one can be wrong."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from qdq.data.columns import Columns, headerless_names
from qdq.data.source import open_source
from qdq.errors import DataError, MissingPackageError
from tests.data.support import write

if TYPE_CHECKING:
    from pathlib import Path

    import datasets

    from qdq.data.source import SourceLike


def rows(source: SourceLike, **options: Any) -> list[dict[str, Any]]:
    return [record.values for record in open_source(source, **options)]


def refusal(source: SourceLike, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        rows(source, **options)
    return str(caught.value)


class TestConll:
    def test_sentences_with_tags_and_every_column(self, tmp_path: Path) -> None:
        lines = [
            "-DOCSTART- -X- O O",
            "",
            "# text = EU rejects",
            "EU NNP B-NP B-ORG",
            "rejects VBZ B-VP O",
            "",
            "",
            "x Y Z O",
        ]
        path = write(tmp_path / "a.conll", "\n".join(lines))
        first, second = open_source(path)
        assert first.location == "line 4"
        assert first.values["tokens"] == ["EU", "rejects"]
        assert first.values["ner_tags"] == ["B-ORG", "O"]
        assert first.values["1"] == ["NNP", "VBZ"]
        assert second.location == "line 8"
        assert second.values["tokens"] == ["x"]

    def test_tabs_keep_blanks_inside_tokens_and_sharps_are_tokens(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.iob", "New York\tB-LOC\r\n#\tO\r\n\t\r\n# O\tO\n")
        assert [row["tokens"] for row in rows(path)] == [["New York", "#"], ["# O"]]

    def test_words_alone(self, tmp_path: Path) -> None:
        assert rows(write(tmp_path / "a.bio", "one\ntwo\n")) == [{"tokens": ["one", "two"], "0": ["one", "two"]}]

    def test_lines_of_another_width_come_together(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path / "a.conll", "a\tO\nb\nc\tX\tO\n\n\tO\n"))
        for problem in (
            "line 2: 1 column, where the first line has 2",
            "line 3: 3 columns",
            "line 5: a tag without a token",
        ):
            assert problem in message


SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": "Normandy is in France. é",
                    "qas": [
                        {"id": "a", "question": "Where?", "answers": [{"text": "France", "answer_start": 15}]},
                        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        },
        {"title": "Empty", "paragraphs": []},
        {"title": "Last", "paragraphs": [{"context": "x", "qas": [{"id": "c", "question": "?"}]}]},
    ],
}


class TestJson:
    @pytest.mark.parametrize(
        "options", [{}, {"indent": 2}, {"separators": (",", ":")}], ids=["plain", "indented", "tight"]
    )
    @pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
    def test_squad_gives_a_row_a_question(self, tmp_path: Path, options: dict[str, Any], mark: str) -> None:
        found = rows(write(tmp_path / "a.json", mark + json.dumps(SQUAD, **options)))
        assert [row["id"] for row in found] == ["a", "b", "c"]
        assert found[0]["answers"] == {"text": ["France"], "answer_start": [15]}
        assert found[0]["context"] == "Normandy is in France. é"
        assert found[0]["title"] == "Normans"
        assert found[1]["answers"] == {"text": [], "answer_start": []}
        assert found[1]["is_impossible"] is True
        assert "answers" not in found[2]

    @pytest.mark.parametrize(
        "text",
        [
            '[{"text": "a"}, {"text": "b"}]',
            '{"version": 1, "data": [{"text": "a"}, {"text": "b"}], "x": 3}',
            '{"text": "a"}\n{"text": "b"}\n',
        ],
        ids=["array", "data", "lines"],
    )
    def test_every_form_of_rows(self, tmp_path: Path, text: str) -> None:
        assert rows(write(tmp_path / "a.json", text)) == [{"text": "a"}, {"text": "b"}]

    def test_items_across_chunks(self, tmp_path: Path) -> None:
        items = [{"text": 'é\\"{}[]' * n, "n": n} for n in (1, 40_000, 3, 0, 20_000)]
        assert rows(write(tmp_path / "a.json", json.dumps(items))) == items

    def test_a_large_file_streams(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        article = {"title": "t", "paragraphs": [{"context": "word " * 2000, "qas": [{"id": "1", "question": "?"}]}]}
        with path.open("w") as file:
            file.write('{"data": [' + ", ".join([json.dumps(article)] * 2000) + "]}")  # one line of 20 MB
        tracemalloc.start()
        try:
            assert sum(1 for _ in open_source(path)) == 2000
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('{"data": 3}', "its 'data' is a number, where an array is expected"),
            ('{"version": "2"}', "has no array 'data'"),
            ("3", "holds a number"),
            ('[{"text": "a"}, {"text": ]', "invalid JSON at character 26"),
            ('[{"text": "a"} {"text": "b"}]', "invalid JSON at character 16: ',' or ']' expected, not '{'"),
            ('[{"text": "a"}', "not the end of the file"),
            ("[" * 100_000, "nested too deeply"),
            ("[" + "9" * 5000 + "]", "invalid JSON at character 2: Exceeds the limit"),
            ('["\\ud800"]', "half of a surrogate pair"),
            ('[3, ["a"]]', "row 1: neither a JSON object nor a string but a number"),
            ('{"data": [{"paragraphs": [{"qas": []}]}]}', "article 1, paragraph 1: no text 'context'"),
            ('{"data": [{"paragraphs": [{"context": "x"}]}]}', "'qas' is null"),
            (
                '{"data": [{"paragraphs": [{"context": "", "qas": [{"answers": [{"text": "a"}]}]}]}]}',
                "an answer without 'answer_start'",
            ),
            (b'["a\0"]', "line 1 is binary: character 4"),
            (b'[\n"caf\xe9"]', "line 2: byte 0xe9 at character 5"),
        ],
    )
    def test_damage_is_named(self, tmp_path: Path, text: str, expected: str) -> None:
        assert expected in refusal(write(tmp_path / "a.json", text))


class TestArrow:
    ROWS = ({"text": "a", "label": 0, "tags": [0, 1]}, {"text": "b", "label": 1, "tags": []})

    @pytest.fixture
    def dataset(self) -> datasets.Dataset:
        datasets = pytest.importorskip("datasets")
        names = datasets.ClassLabel(names=["bad", "good"])
        features = datasets.Features({"text": datasets.Value("string"), "label": names, "tags": datasets.List(names)})
        return datasets.Dataset.from_list(list(self.ROWS), features=features)

    def test_parquet(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        dataset.to_parquet(str(tmp_path / "a.parquet"))
        source = open_source(tmp_path / "a.parquet")
        assert [record.values for record in source] == list(self.ROWS)
        assert source.class_names == {"label": ("bad", "good"), "tags": ("bad", "good")}

    def test_a_saved_dataset(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        dataset.save_to_disk(str(tmp_path / "set"))
        source = open_source(tmp_path / "set")
        assert [record.values for record in source] == list(self.ROWS)
        assert source.class_names["label"] == ("bad", "good")

    def test_a_dataset_in_memory(self, dataset: datasets.Dataset) -> None:
        source = open_source(dataset)
        assert [record.values for record in source] == list(self.ROWS)
        assert source.class_names["label"] == ("bad", "good")

    def test_splits(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        folder = tmp_path / "set"
        datasets.DatasetDict({"train": dataset, "validation": dataset.select([1])}).save_to_disk(str(folder))
        assert "has the splits 'train', 'validation'" in refusal(folder)
        assert "has no split 'test'; its splits are 'train', 'validation'" in refusal(folder, split="test")
        assert rows(folder, split="validation") == rows(folder / "validation") == [self.ROWS[1]]
        assert "without splits" in refusal(folder / "train", split="train")

    def test_damage_is_named(self, dataset: datasets.Dataset, tmp_path: Path) -> None:
        assert "is not a Parquet file, or it is damaged" in refusal(write(tmp_path / "a.parquet", b"PAR1"))
        dataset.save_to_disk(str(tmp_path / "set"))
        (arrow,) = (tmp_path / "set").glob("*.arrow")
        arrow.write_bytes(arrow.read_bytes()[:50])
        assert "is a damaged dataset directory" in refusal(tmp_path / "set")

    def test_a_directory_that_is_no_dataset(self, tmp_path: Path) -> None:
        assert "is a directory that datasets did not save" in refusal(tmp_path)

    @pytest.mark.parametrize("name", ["a.parquet", "set"])
    def test_without_the_package_the_command_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        (tmp_path / "set").mkdir()
        write(tmp_path / "set" / "state.json", "{}")
        write(tmp_path / "a.parquet", b"PAR1")
        monkeypatch.setattr("qdq.data.arrow.find_spec", lambda package: None)
        with pytest.raises(MissingPackageError, match=r"pip install 'qdq\[data\]'"):
            rows(tmp_path / name)


class TestIterables:
    def test_texts_tuples_and_dicts(self) -> None:
        given = ["a", ("b", "c"), ("d", "e", 1), ("f", 2), {"question": "g"}]
        assert rows(given) == [
            {"": "a"},
            {"text": "b", "text_pair": "c"},
            {"text": "d", "text_pair": "e", "label": 1},
            {"text": "f", "label": 2},
            {"question": "g"},
        ]

    def test_an_iterator_is_used_up_after_one_pass(self) -> None:
        source = open_source(iter(["a"]))
        assert len(list(source)) == 1
        with pytest.raises(DataError, match="is used up"):
            list(source)

    def test_rows_of_other_kinds_come_together(self) -> None:
        message = refusal(["a", 3, ("one",), None])
        for problem in ("row 2: neither text nor a tuple", "row 3: ", "row 4: "):
            assert problem in message

    @pytest.mark.parametrize("given", [3, None, b"text", {"text": ["a", "b"]}], ids=repr)
    def test_what_holds_no_rows_is_refused(self, given: Any) -> None:
        assert f"rows cannot come from type {type(given).__name__}" in refusal(given)


class TestRandom:
    def test_it_has_to_be_asked_for_by_name(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        found = rows("random:5")
        assert len(found) == 5
        assert found == rows("random:5")
        assert found == rows("random:9")[:5]
        assert "mean nothing" in caplog.text
        assert "no such file" in refusal(tmp_path / "random.txt")

    @pytest.mark.parametrize("count", ["", "0", "-1", "x", "1.5"])
    def test_the_count_is_checked(self, count: str) -> None:
        assert "needs the number of rows" in refusal(f"random:{count}")


class TestHeader:
    """Whether the first row of a table is its header."""

    @pytest.mark.parametrize(
        ("first", "expected"),
        [
            ("4.2|a cat|a dog", ("label", "sentence1", "sentence2")),
            ("|a cat|a dog", ("label", "sentence1", "sentence2")),
            ("a cat|a dog|0.5", ("sentence1", "sentence2", "label")),
            ("a film|1", ("sentence", "label")),
            ("0|a film", ("label", "sentence")),
            ("gj04|1||They sang.", ("source", "label", "mark", "sentence")),
            ("gj04|0|*|They sang it.", ("source", "label", "mark", "sentence")),
            ("score|sentence1|sentence2", None),
            ("label|text", None),
            ("|text|label", None),
            ("title|note", None),
            ("a film|good", None),
        ],
    )
    def test_by_its_kinds(self, first: str, expected: tuple[str, ...] | None) -> None:
        assert headerless_names(Columns(), "sequence-classification", first.split("|")) == expected

    def test_by_the_columns_asked_for(self) -> None:
        first = ["a film", "good"]
        assert headerless_names(Columns(text="0", label="1"), "sequence-classification", first) == ("0", "1")
        assert headerless_names(Columns(text="a film"), "sequence-classification", first) is None
        assert headerless_names(Columns(text="0"), "sequence-classification", ["0", "1"]) is None
