"""Reading text: the formats, their columns, and every way in which a file can be wrong."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from qdq.data.source import draw
from qdq.data.text import TextSample, read_samples, sample_text
from qdq.errors import ConfigError, DataError, QDQError
from tests.data.support import write

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

PAIRS = [("Où est-il ?", "In the garden, I think."), ('She said "no", twice.', "日本語のテキスト"), ("a,b;c", "🙂 x")]
CSV = {"csv": {"dialect": "excel"}, "tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}}


def write_table(path: Path, rows: Iterable[Sequence[str]], encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, **CSV[path.suffix[1:]]).writerows(rows)
    return path


def read(path: Path, **columns: str) -> list[TextSample]:
    return list(read_samples(path, **columns))


def refusal(path: Path, error: type[QDQError] = DataError, **columns: str) -> str:
    with pytest.raises(error) as caught:
        read(path, **columns)
    assert str(path) in str(caught.value)
    return str(caught.value)


class TestFormats:
    @pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
    @pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
    def test_txt_is_a_sentence_a_line(self, tmp_path: Path, mark: bytes, end: str) -> None:
        path = write(tmp_path / "a.txt", mark + end.join(["Üben.", "", "   ", " two words ", "last"]).encode())
        assert [sample.text for sample in read(path)] == ["Üben.", "two words", "last"]

    def test_txt_keeps_separators_that_are_no_line_ends(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "one\u2028line\x0bstill\nanother\n")
        assert [sample.text for sample in read(path)] == ["one\u2028line\x0bstill", "another"]

    @pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_pairs_survive_the_standard_writers(self, tmp_path: Path, extension: str, encoding: str) -> None:
        path = tmp_path / f"a.{extension}"
        if extension == "jsonl":
            lines = [json.dumps({"sentence1": a, "sentence2": b, "label": 1}) for a, b in PAIRS]
            path.write_text("\n".join(lines), encoding)
        else:
            write_table(path, [("id", "sentence1", "sentence2"), *((1, a, b) for a, b in PAIRS)], encoding)
        assert read(path) == [TextSample(a, b) for a, b in PAIRS]

    def test_a_quoted_csv_field_may_span_lines(self, tmp_path: Path) -> None:
        path = write_table(tmp_path / "a.csv", [("text",), ("one\ntwo, three",), ("four",)])
        assert [sample.text for sample in read(path)] == ["one\ntwo, three", "four"]

    def test_rows_without_text_are_skipped(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", "text,label\n,1\n\n  ,1\nhere,0\n")
        assert read(path) == [TextSample("here")]

    def test_jsonl_takes_bare_strings(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", '"one"\n\n{"text": "two", "text_pair": null}\n"three"\n')
        assert read(path) == [TextSample("one"), TextSample("two"), TextSample("three")]

    def test_the_extension_may_be_in_capitals(self, tmp_path: Path) -> None:
        assert read(write(tmp_path / "A.TXT", "x")) == [TextSample("x")]


class TestColumns:
    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ("label,text", "1"),
            ("sentence,label", "0"),
            ("sentence1,sentence2,label", "01"),
            ("idx,premise,hypothesis", "12"),
            ("id,context,question", "21"),
            ("query,passage", "01"),
            ("text,text_pair,premise,hypothesis", "01"),
        ],
    )
    def test_the_usual_names_are_found(self, tmp_path: Path, header: Sequence[str], expected: str) -> None:
        path = write(tmp_path / "a.csv", f"{header}\n" + ",".join(str(n) for n in range(header.count(",") + 1)))
        (sample,) = read(path)
        assert [sample.text, sample.text_pair] == [*expected, None][:2]

    @pytest.mark.parametrize("extension", ["csv", "jsonl"])
    def test_named_columns_win(self, tmp_path: Path, extension: str) -> None:
        record = {"text": "usual", "review": "named", "title": "second"}
        path = tmp_path / f"a.{extension}"
        if extension == "csv":
            write_table(path, [list(record), list(record.values())])
        else:
            write(path, json.dumps(record))
        assert read(path, text_column="review") == [TextSample("named")]
        assert read(path, text_column="review", text_pair_column="title") == [TextSample("named", "second")]
        assert read(path, text_pair_column="title") == [TextSample("usual", "second")]

    @pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl"])
    def test_a_wrong_column_lists_those_that_exist(self, tmp_path: Path, extension: str) -> None:
        path = tmp_path / f"a.{extension}"
        if extension == "jsonl":
            write(path, '{"titre": "a", "note": 3}')
        else:
            write_table(path, [("titre", "note"), ("a", 3)])
        assert "no column 'review'; its columns are 'titre', 'note'" in refusal(path, text_column="review")
        message = refusal(path)
        assert "'titre', 'note'" in message
        assert "--text-column" in message

    def test_a_column_that_appears_twice_is_refused(self, tmp_path: Path) -> None:
        assert "more than one" in refusal(write(tmp_path / "a.csv", "text,text\na,b\n"))

    def test_txt_has_no_columns(self, tmp_path: Path) -> None:
        assert "no columns" in refusal(write(tmp_path / "a.txt", "x"), text_column="text")


class TestRefusals:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        assert "no such file" in refusal(tmp_path / "a.txt")

    def test_a_directory(self, tmp_path: Path) -> None:
        assert "is a directory" in refusal(tmp_path)

    def test_an_unsupported_extension_lists_the_supported(self, tmp_path: Path) -> None:
        assert ".txt, .jsonl, .csv, .tsv, .conll" in refusal(write(tmp_path / "a.docx", "x"))

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.txt", ""),
            ("b.txt", " \n\n"),
            ("c.jsonl", "\n"),
            ("d.csv", ""),
            ("e.csv", "text\n"),
            ("f.tsv", "text\n\n"),
        ],
    )
    def test_no_text_at_all(self, tmp_path: Path, name: str, content: bytes) -> None:
        assert "holds no text" in refusal(write(tmp_path / name, content))

    @pytest.mark.parametrize("extension", ["txt", "jsonl", "csv", "tsv"])
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"text\nab\0cd", "line 2 is binary: character 3 is a zero byte"),
            ("text\ncafé".encode("latin-1"), "line 2: byte 0xe9 at character 4 is binary or another encoding"),
            ("text\nabc".encode("utf-16"), "line 1 is in UTF-16"),
            ("text\nabc".encode("utf-32"), "line 1 is in UTF-32"),
            (b"\x7fELF\x02\x01\x01\0\0\0", "line 1 is binary"),
        ],
        ids=["nul", "latin-1", "utf-16", "utf-32", "program"],
    )
    def test_what_is_not_text_is_told_by_line_and_byte(
        self, tmp_path: Path, extension: str, content: bytes, expected: str
    ) -> None:
        if extension == "jsonl":
            content = content.replace(b"text\n", b'"text"\n')
        assert expected in refusal(write(tmp_path / f"a.{extension}", content))

    def test_another_encoding_is_named(self, tmp_path: Path) -> None:
        assert "read in cp1252 (iconv -f cp1252 -t UTF-8)" in refusal(write(tmp_path / "a.txt", b"\x93quoted\x94"))
        assert "read in latin-1" in refusal(write(tmp_path / "b.txt", b"\x81"))

    def test_all_lines_of_a_second_encoding_come_together(self, tmp_path: Path) -> None:
        lines = ["plain", "Où", "plain"]
        content = "\n".join(lines).encode() + b"\n" + "né\nplain\nça".encode("latin-1")
        message = refusal(write(tmp_path / "a.txt", content))
        assert "2 problems" in message
        assert "line 4: byte 0xe9 at character 2" in message
        assert "line 6: byte 0xe7 at character 1" in message
        assert message.count("line 2 is UTF-8: the file mixes two encodings") == 2

    def test_a_line_without_end_is_not_read_into_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        with path.open("wb") as file:
            file.write(b"x" * (40 << 20))
        tracemalloc.start()
        try:
            assert "line 1 is longer" in refusal(path)
            assert tracemalloc.get_traced_memory()[1] < 100 << 20
        finally:
            tracemalloc.stop()

    def test_all_damaged_lines_of_a_jsonl_come_together(self, tmp_path: Path) -> None:
        lines = ['{"text": "fine"}', '{"text": }', '{"txt": "x"}', '{"text": 3}', '["a"]', '{"text": "fine"}']
        message = refusal(write(tmp_path / "a.jsonl", "\n".join(lines)))
        assert "4 problems" in message
        for problem in (
            "line 2: invalid JSON",
            "line 3: no key 'text'; it has 'txt'",
            "line 4: 'text' is a number",
            "line 5: neither a JSON object nor a string but an array",
        ):
            assert problem in message

    def test_no_more_than_twenty_are_shown(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path / "a.jsonl", '"fine"\n' + "{\n" * 50))
        assert message.startswith(f"{tmp_path / 'a.jsonl'}: 50 problems")
        assert message.count("invalid JSON") == 20
        assert "line 21:" in message
        assert "line 22:" not in message
        assert message.endswith("and 30 more")

    @pytest.mark.parametrize("content", ['"\\ud83d"', '{"text": "a \\udc00"}'], ids=["string", "object"])
    def test_half_a_character_is_refused(self, tmp_path: Path, content: bytes) -> None:
        assert "line 2: half of a surrogate pair" in refusal(write(tmp_path / "a.jsonl", f'"x"\n{content}\n'))

    def test_json_too_deep_is_a_problem_not_a_crash(self, tmp_path: Path) -> None:
        assert "line 1: invalid JSON" in refusal(write(tmp_path / "a.jsonl", "[" * 200_000))

    def test_a_bare_string_has_no_named_column(self, tmp_path: Path) -> None:
        assert "line 1: a bare string" in refusal(write(tmp_path / "a.jsonl", '"x"'), text_column="text")

    @pytest.mark.parametrize("extension", ["csv", "tsv"])
    def test_rows_of_another_width_name_their_lines(self, tmp_path: Path, extension: str) -> None:
        rows = ["text,label", "a,1", "b", "c,1,2", "d,0"]
        path = write(tmp_path / f"a.{extension}", "\n".join(rows).replace(",", "," if extension == "csv" else "\t"))
        message = refusal(path)
        assert "line 3: 1 field, where the header has 2" in message
        assert "line 4: 3 fields, where the header has 2" in message

    def test_the_line_is_the_first_of_its_record(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",1\n"three\nfour"\nfive,1\n')
        assert "line 4: 1 field" in refusal(path)

    def test_a_quote_that_is_never_closed(self, tmp_path: Path) -> None:
        assert "line 2: unexpected end of data" in refusal(write(tmp_path / "a.csv", 'text\n"never\nclosed\n'))

    def test_a_field_too_long_for_csv_says_where_it_goes(self, tmp_path: Path) -> None:
        message = refusal(write(tmp_path / "a.csv", "text\nfine\n" + "x" * 200_000 + "\n"))
        assert "line 3: field larger than field limit" in message
        assert "goes into .jsonl" in message

    def test_the_beginning_is_refused_by_the_call_itself(self, tmp_path: Path) -> None:
        with pytest.raises(DataError):
            read_samples(write(tmp_path / "a.csv", "label\n1\n"))


class TestDraw:
    def test_reading_and_drawing_take_constant_memory(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        with path.open("w") as file:
            file.writelines(f"sentence number {n} {'word ' * 40}\n" for n in range(40_000))
        assert path.stat().st_size > 8 << 20
        tracemalloc.start()
        try:
            drawn = draw(read_samples(path), 16, seed=1)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
        assert len(drawn) == 16

    def test_the_order_is_kept_and_the_seed_decides(self) -> None:
        samples = [TextSample(f"{n:04}") for n in range(1000)]
        first, again, other = (draw(samples, 50, seed=seed) for seed in (7, 7, 8))
        assert first == again
        assert first != other
        assert [s.text for s in first] == sorted(s.text for s in first)
        assert len(set(first)) == 50

    def test_the_choice_is_the_same_on_every_platform(self) -> None:
        assert [int(s.text) for s in draw((TextSample(str(n)) for n in range(100)), 6, seed=0)] == [
            1,
            9,
            21,
            31,
            46,
            58,
        ]

    @pytest.mark.parametrize("num_samples", [None, 10, 11])
    def test_too_few_are_all(self, num_samples: int | None) -> None:
        samples = [TextSample(str(n)) for n in range(10)]
        assert draw(iter(samples), num_samples, seed=0) == samples

    def test_every_sample_is_as_likely(self) -> None:
        samples = [TextSample(str(n)) for n in range(20)]
        counts = Counter(s.text for seed in range(4000) for s in draw(samples, 5, seed=seed))
        # 4000 draws of 5 in 20: 1000 each, standard deviation sqrt(4000 * 1/4 * 3/4) = 27
        assert all(abs(counts[s.text] - 1000) < 5 * 27 for s in samples)

    @pytest.mark.parametrize("num_samples", [0, -1])
    def test_none_at_all_is_refused(self, num_samples: int) -> None:
        with pytest.raises(ConfigError, match="at least 1"):
            draw([], num_samples, seed=0)


class TestSampleText:
    WORDS = range(5, 121)

    @pytest.mark.parametrize(("name", "count"), [("calibration", 256), ("heldout", 96)])
    def test_the_sentences_are_many_and_of_every_length(self, name: str, count: int) -> None:
        sentences = [sample.text for sample in read_samples(sample_text(name))]
        assert len(sentences) == count
        lengths = [len(sentence.split()) for sentence in sentences]
        assert [s for s, n in zip(sentences, lengths, strict=True) if n not in self.WORDS] == []
        assert 0.12 < sum(n > 60 for n in lengths) / count < 0.20
        assert sum(n >= 100 for n in lengths) >= 3
        assert sum(n <= 10 for n in lengths) >= count // 10
        for low in range(5, 120, 15):
            assert any(low <= n < low + 15 for n in lengths), f"no sentence of {low} to {low + 14} words"

    def test_no_sentence_comes_twice(self) -> None:
        both = [s.text.casefold() for name in ("calibration", "heldout") for s in read_samples(sample_text(name))]
        assert [text for text, n in Counter(both).items() if n > 1] == []

    def test_no_phrase_is_a_template(self) -> None:
        """Runs of six words that return in another sentence."""
        both = [s.text for name in ("calibration", "heldout") for s in read_samples(sample_text(name))]
        runs = Counter()
        for text in both:
            words = text.casefold().split()
            runs.update({" ".join(words[at : at + 6]) for at in range(len(words) - 5)})
        assert [run for run, n in runs.items() if n > 1] == []

    def test_an_unknown_name_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="calibration, heldout"):
            sample_text("training")
