"""The vocabulary that lies with a foreign checkpoint: found, renamed, and read with the right case."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from qdq.data.tokenizer import load_tokenizer
from qdq.interop.megatron_lm import convert
from qdq.interop.tokenizer_files import take_vocabulary
from tests.interop.megatron_model import Trained

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNCASED = [*SPECIAL, "the", "cat", "bird", "##s"]
CASED = [*SPECIAL, "The", "the", "Cat", "cat", "##s"]


def folders(tmp_path: Path, name: str, words: list[str]) -> tuple[Path, Path]:
    """The directory of a checkpoint with a vocabulary, and an empty one."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / name).write_text("\n".join(words) + "\n", encoding="utf-8")
    return source, target


@pytest.mark.parametrize("name", ["vocab.txt", "bert-large-uncased-vocab.txt", "vocab_chinese.txt"])
def test_a_vocabulary_of_words_is_found(name: str, tmp_path: Path) -> None:
    source, target = folders(tmp_path, name, UNCASED)
    note = take_vocabulary([tmp_path / "none", source], target, model_type="bert")
    assert name in note
    assert load_tokenizer(target).encode("The CATS").tokens == ["[CLS]", "the", "cat", "##s", "[SEP]"]


@pytest.mark.parametrize(
    ("words", "lowercase", "tokens"),
    [(CASED, None, ["The", "cat"]), (CASED, True, ["the", "cat"]), (UNCASED, None, ["the", "cat"])],
    ids=["by the words", "as the training", "by default"],
)
def test_the_case_is_that_of_the_training(
    words: list[str], lowercase: bool | None, tokens: list[str], tmp_path: Path
) -> None:
    source, target = folders(tmp_path, "vocab.txt", words)
    note = take_vocabulary([source], target, model_type="megatron-bert", lowercase=lowercase)
    assert load_tokenizer(target).encode("The cat").tokens[1:-1] == tokens
    assert ("without lowercasing" in note) == (tokens[0] == "The")


def test_settings_that_are_there_decide(tmp_path: Path) -> None:
    source, target = folders(tmp_path, "vocab.txt", CASED)
    (source / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert "lowercasing" not in take_vocabulary([source], target, model_type="bert")
    assert load_tokenizer(target).encode("The cat").tokens[1:-1] == ["the", "cat"]


def test_a_tokenizer_that_was_copied_before_stays(tmp_path: Path) -> None:
    source, target = folders(tmp_path, "vocab.txt", UNCASED)
    (target / "tokenizer.json").write_text("{}")
    assert take_vocabulary([source], target, model_type="bert") == ""
    assert [file.name for file in target.iterdir()] == ["tokenizer.json"]


def test_several_vocabularies_are_not_guessed_from(tmp_path: Path) -> None:
    source, target = folders(tmp_path, "a-vocab.txt", UNCASED)
    (source / "b-vocab.txt").write_text("x\n")
    assert "copy its vocab.txt" in take_vocabulary([source], target, model_type="bert")
    assert not any(target.iterdir())


@pytest.mark.parametrize(
    ("kind", "lowercase"), [("BertWordPieceLowerCase", True), ("BertWordPieceCase", False), ("Other", None)]
)
def test_megatron_says_the_case_and_where_it_may_lie(kind: str, lowercase: bool | None, tmp_path: Path) -> None:
    source = Trained(args={"tokenizer_type": kind}).write(tmp_path / "run" / "iter_0000007" / "mp_rank_00")
    found = convert(source)
    assert found.lowercase is lowercase
    assert found.folders == (source.parent, source.parent.parent, tmp_path / "run")
