"""Words with tags: comments, odd tokens, and corpora that are called train.txt."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from qdq.data.examples import TokenExample, read_examples
from qdq.data.labels import Labels, find_labels
from qdq.errors import DataError
from tests.data.support import write

if TYPE_CHECKING:
    from pathlib import Path

TAGS = Labels(("O", "B-X", "I-X"))
BODY = "Brim {0} B-X\nsleeps {0} O\nnear {0} O\nWick {0} I-X\n\n"


def words_of(path: Path) -> list[tuple[str, ...]]:
    return [e.tokens for e in read_examples(path, "token-classification", labels=TAGS) if isinstance(e, TokenExample)]


class TestComments:
    @pytest.mark.parametrize(
        "header",
        ["# id 0001\tdomain=en", "#\tid='1'", "# sent_id = 1", "#id=7", "# a b c", "# text = Brim sleeps"],
    )
    @pytest.mark.parametrize("extra", ["_ _", "NN"])
    def test_lines_before_a_sentence_that_are_no_tokens(self, tmp_path: Path, header: str, extra: str) -> None:
        body = BODY.format(extra)
        plain = write(tmp_path / "plain.conll", body * 3)
        headed = write(tmp_path / "headed.conll", f"{header}\n{body}" * 3)
        assert words_of(headed) == words_of(plain)
        assert find_labels(headed, "token-classification") == find_labels(plain, "token-classification")

    def test_a_token_that_is_a_sharp_stays(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.conll", "# O\none O\n\n#1 B-X\nx O\n\ny O\n# O\n")
        assert words_of(path) == [("#", "one"), ("#1", "x"), ("y", "#")]

    def test_hashtags_alone_are_tokens(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.conll", "#a O\n\n#b O\n")
        assert words_of(path) == [("#a",), ("#b",)]


class TestOddTokens:
    @pytest.mark.parametrize("token", ["\u00a0", "\u200b", " ", "\ufeff\u200d", "\u3000"])
    def test_a_word_without_a_character_to_see_is_a_word(
        self, tmp_path: Path, token: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write(tmp_path / "a.conll", f"Brim\tB-X\n{token}\tO\nWick\tI-X\n")
        assert words_of(path) == [("Brim", token, "Wick")]
        assert "1 words are blank or invisible characters" in caplog.text

    def test_a_no_break_space_inside_a_token_between_blanks(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.conll", "10\u00a0000 O\nWick B-X\n")
        assert words_of(path) == [("10\u00a0000", "Wick")]

    def test_the_width_of_most_lines_counts(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="line 1: 3 columns, where most lines have 2"):
            words_of(write(tmp_path / "a.conll", "a b O\nc O\nd O\n"))


class TestTextFiles:
    def test_columns_in_a_text_file_are_read_where_words_are_wanted(self, tmp_path: Path) -> None:
        text = BODY.format("NN") * 3
        assert words_of(write(tmp_path / "a.txt", text)) == words_of(write(tmp_path / "a.conll", text))
        assert find_labels(tmp_path / "a.txt", "token-classification").names == ("O", "B-X", "I-X")

    def test_a_single_sentence_is_enough_where_words_are_wanted(self, tmp_path: Path) -> None:
        assert words_of(write(tmp_path / "a.txt", "Brim B-X\nsleeps O\n")) == [("Brim", "sleeps")]

    def test_lower_case_tags_are_read_too_where_words_are_wanted(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "the det\ncat noun\n\na det\n")
        assert find_labels(path, "token-classification").names == ("det", "noun")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (BODY.format("NN") * 3, ".conll"),
            ("the DT\ncat NN\nsat VBD\n. .\n\n" * 9, ".conll"),
            ("a film\t1\n" * 9, ".tsv"),
            ('{"text": "a"}\n' * 9, ".jsonl"),
        ],
        ids=["entities", "parts of speech", "table", "json"],
    )
    def test_sentences_that_look_like_something_else_are_warned_of(
        self, tmp_path: Path, text: str, expected: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        examples = list(read_examples(write(tmp_path / "a.txt", text), "feature-extraction"))
        assert len(examples) == sum(1 for line in text.splitlines() if line)
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"rename it to {expected}" in record.message

    @pytest.mark.parametrize(
        "text",
        [
            "The cat sat.\nA dog ran away.\n" * 9,
            "good day\nbad night\n" * 9,
            "HELLO WORLD\nGOOD NIGHT\nBAD DREAM\nNEW IDEA\nOLD CAR\nBIG DOG\nRED CAT\n",
            "你好 。\n再见 。\n" * 9,
            "Oh no\n" * 9,
        ],
        ids=["sentences", "pairs of words", "capitals", "chinese", "one line"],
    )
    def test_sentences_are_not(self, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
        list(read_examples(write(tmp_path / "a.txt", text), "feature-extraction"))
        assert not caplog.records
