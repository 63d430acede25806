"""Tokenizers built from vocabulary files, compared with transformers and with the SentencePiece library itself."""

from __future__ import annotations

import json
import shutil
import unicodedata
from typing import TYPE_CHECKING

import pytest
from transformers import AlbertTokenizer, RobertaTokenizer

from qdq.data.sentencepiece import parse_sentencepiece
from qdq.data.tokenizer import load_encoder, load_tokenizer
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from qdq.data.source import SourceLike


def configured(source: SourceLike, target: Path, settings: dict[str, object]) -> Path:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        shutil.copy(path, target)
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    return target


def assert_same_ids(folder: Path, reference: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    tokenizer = load_tokenizer(folder)
    pairs = list(zip(texts, reversed(texts), strict=True))
    expected = reference(list(texts))["input_ids"]
    assert [
        text for text, ids, wanted in zip(texts, ids_of(tokenizer, texts), expected, strict=True) if ids != wanted
    ] == []
    expected = reference(*map(list, zip(*pairs, strict=True)), return_token_type_ids=True)
    encodings = tokenizer.encode_batch(pairs)
    assert [encoding.ids for encoding in encodings] == expected["input_ids"]
    assert [encoding.type_ids for encoding in encodings] == expected["token_type_ids"]


def ids_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


class TestSentencePiece:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"do_lower_case": False}, {"keep_accents": True}, {"do_lower_case": False, "keep_accents": True}],
        ids=["default", "cased", "accents", "cased-accents"],
    )
    def test_ids_are_those_of_transformers(
        self, albert_dir: Path, tmp_path: Path, texts: tuple[str, ...], settings: dict[str, object]
    ) -> None:
        folder = configured(albert_dir, tmp_path / "model", settings)
        assert_same_ids(folder, AlbertTokenizer.from_pretrained(folder), texts)

    @pytest.mark.parametrize("symbols", [(), ("(", ")", '"', "-", ".", "\u2013", "£", "€")], ids=["plain", "symbols"])
    def test_pieces_are_those_of_sentencepiece(
        self, tmp_path: Path, train_sentencepiece: Callable[..., Path], texts: tuple[str, ...], symbols: tuple[str, ...]
    ) -> None:
        """Defined symbols too: ALBERT's own model has these, and no blank begins behind them."""
        import sentencepiece

        folder = train_sentencepiece(tmp_path, symbols=symbols)
        original = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
        tokenizer = load_tokenizer(folder)
        for text in texts:
            if any(special in text for special in ("[CLS]", "<pad>", "<unk>", "[MASK]")):
                continue  # SentencePiece reads these as text
            # what ALBERT's authors do before SentencePiece: blanks, quotation marks, accents, capitals
            clean = " ".join(text.split()).replace("``", '"').replace("''", '"')
            clean = unicodedata.normalize("NFKD", clean)
            clean = "".join(c for c in clean if unicodedata.category(c) != "Mn").lower()
            assert tokenizer.encode(text, add_special_tokens=False).ids == original.encode(clean), text

    def test_the_file_reads_as_its_library_reads_it(self, albert_dir: Path) -> None:
        import sentencepiece

        original = sentencepiece.SentencePieceProcessor(model_file=str(albert_dir / "spiece.model"))
        model = parse_sentencepiece((albert_dir / "spiece.model").read_bytes())
        count = original.get_piece_size()
        assert [piece for piece, _ in model.pieces] == [original.id_to_piece(index) for index in range(count)]
        assert [score for _, score in model.pieces] == [original.get_score(index) for index in range(count)]
        assert model.unknown_id == original.unk_id()
        assert set(model.control) == {original.id_to_piece(i) for i in range(count) if original.is_control(i)}
        assert model.charsmap

    def test_special_ids_come_from_the_files(self, albert_dir: Path) -> None:
        encoder = load_encoder(albert_dir)
        assert (encoder.pad_id, encoder.unk_id, encoder.cls_id, encoder.sep_id, encoder.mask_id) == (0, 1, 2, 3, 4)
        assert encoder.vocab_size == 1000

    def test_another_algorithm_is_refused(self, tmp_path: Path, train_sentencepiece: Callable[..., Path]) -> None:
        with pytest.raises(CheckpointError, match="not of unigrams"):
            load_tokenizer(train_sentencepiece(tmp_path, model_type="bpe"))

    @pytest.mark.parametrize("cut", [0, 1, 100, 5000])
    def test_a_damaged_file_is_refused(self, albert_dir: Path, tmp_path: Path, cut: int) -> None:
        (tmp_path / "spiece.model").write_bytes((albert_dir / "spiece.model").read_bytes()[:cut])
        with pytest.raises(CheckpointError, match=r"spiece\.model: is no"):
            load_tokenizer(tmp_path)


class TestByteLevelPairs:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"add_prefix_space": True}, {"trim_offsets": False}],
        ids=["default", "prefix-space", "offsets-whole"],
    )
    def test_ids_are_those_of_transformers(
        self, roberta_dir: Path, tmp_path: Path, texts: tuple[str, ...], settings: dict[str, object]
    ) -> None:
        folder = configured(roberta_dir, tmp_path / "model", settings)
        assert_same_ids(folder, RobertaTokenizer.from_pretrained(folder), texts)

    def test_offsets_are_those_of_transformers(self, roberta_dir: Path, texts: tuple[str, ...]) -> None:
        reference = RobertaTokenizer.from_pretrained(roberta_dir)
        tokenizer = load_tokenizer(roberta_dir)
        for text in texts:
            assert tokenizer.encode(text).offsets == reference(text, return_offsets_mapping=True)["offset_mapping"]

    def test_special_ids_come_from_the_files(self, roberta_dir: Path) -> None:
        encoder = load_encoder(roberta_dir)
        assert (encoder.cls_id, encoder.pad_id, encoder.sep_id, encoder.unk_id, encoder.mask_id) == (0, 1, 2, 3, 4)

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("vocab.json", "[]", "must hold a JSON object"),
            ("vocab.json", '{"<s>": "0", "</s>": 1}', "not every token has a whole number"),
            ("vocab.json", '{"a": 0}', "lacks the special tokens <s> </s>"),
            ("merges.txt", "#version: 0.2\na b c", "line 2 is not a pair"),
            ("merges.txt", "qqq zzz", "does not fit"),
        ],
    )
    def test_damaged_files_are_refused(
        self, roberta_dir: Path, tmp_path: Path, name: str, content: str, expected: str
    ) -> None:
        folder = configured(roberta_dir, tmp_path / "model", {})
        (folder / name).write_text(content)
        with pytest.raises(CheckpointError, match=expected):
            load_tokenizer(folder)


class TestAddedTokens:
    def test_they_keep_their_ids(self, roberta_dir: Path, tmp_path: Path) -> None:
        entry = {"content": "<new>", "lstrip": True, "rstrip": False, "single_word": False, "special": True}
        another = {**entry, "content": "another", "special": False}
        decoder = {"901": another, "900": entry}
        tokenizer = load_tokenizer(configured(roberta_dir, tmp_path / "model", {"added_tokens_decoder": decoder}))
        assert tokenizer.encode("a  <new>another", add_special_tokens=False).ids[-2:] == [900, 901]

    def test_one_that_does_not_fit_the_vocabulary_is_refused(self, roberta_dir: Path, tmp_path: Path) -> None:
        folder = configured(roberta_dir, tmp_path / "model", {})
        (folder / "added_tokens.json").write_text('{"another": 950}')
        with pytest.raises(CheckpointError, match="'another' has id 950 in its files, but is token 900"):
            load_tokenizer(folder)

    def test_an_entry_that_is_no_token_is_refused(self, roberta_dir: Path, tmp_path: Path) -> None:
        folder = configured(roberta_dir, tmp_path / "model", {"added_tokens_decoder": {"900": "x"}})
        with pytest.raises(CheckpointError, match="added_tokens_decoder: '900' is not a token"):
            load_tokenizer(folder)


def test_the_pad_id_of_the_model_is_used_where_the_tokenizer_names_none(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("a\n[UNK]\n[CLS]\n[SEP]\nb")
    assert load_encoder(tmp_path, pad_id=4).pad_id == 4
    assert load_encoder(tmp_path).pad_id == 0
    assert load_encoder(tmp_path, max_length=77).max_length == 77
