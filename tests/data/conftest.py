"""Texts of every kind, and the tokenizer files of three families, made small."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest

from qdq.data.text import read_samples, sample_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TEXTS = (
    "The cat sat on the mat.",
    "Où sont les élèves naïfs? Größe, São Tomé, Ångström, ǅ, ﬁ",
    "日本語のテキスト 和 English, 中文字符也在这里。 한국어 문장",
    "thumbs 👍🏽 family 👨‍👩‍👧 flags 🇳🇱",
    "tab\there\r\nnull-free \x01control\x7f \u200bzero\u200dwidth\u00a0space\ufeff",
    "Pneumonoultramicroscopicsilicovolcanoconiosis" * 4,
    "x" * 500,
    "[CLS] special [SEP] tokens [MASK] inside [PAD] text [UNK]",
    "<s> other </s>tokens <mask>inside <pad> text<unk> ",
    "https://example.org/a?b=c&d=%20#e  $1,234.56 -- (c) 3.14e-10",
    "(well-known) ``quoted'' 'tis 9,000.\n\n a   b ½ ① ﷺ",
    "عربى עברית Ελληνικά Кириллица हिन्दी ไทย",
    "",
    "   ",
    " ".join(f"word{n}" for n in range(300)),
)


@pytest.fixture(scope="session")
def texts() -> tuple[str, ...]:
    """The texts, and as many of random characters from all over Unicode."""
    generator = random.Random(0)
    blocks = [(32, 127), (160, 592), (0x2000, 0x2100), (0x4E00, 0x4F00), (0x1F300, 0x1F600), (0x300, 0x370)]
    made = []
    for _ in range(200):
        spans = [generator.choice(blocks) for _ in range(generator.randrange(1, 30))]
        made.append("".join(chr(generator.randrange(*span)) for span in spans))
    return (*TEXTS, *made)


def _corpus() -> list[str]:
    return [sample.text for sample in read_samples(sample_text("calibration"))]


def _train_sentencepiece(folder: Path, *, symbols: Sequence[str] = (), **settings: object) -> Path:
    """``spiece.model`` as ALBERT's makers made theirs, of 1000 pieces."""
    sentencepiece = pytest.importorskip("sentencepiece")
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_corpus()),
            model_writer=file,
            vocab_size=1000,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],
            user_defined_symbols=list(symbols),
            normalization_rule_name="nmt_nfkc",
            minloglevel=2,
            num_threads=1,
            **settings,
        )
    (folder / "config.json").write_text('{"model_type": "albert"}')
    return folder


@pytest.fixture(scope="session")
def train_sentencepiece() -> Callable[..., Path]:
    """Makes a folder with a ``spiece.model``."""
    return _train_sentencepiece


@pytest.fixture(scope="session")
def albert_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train_sentencepiece(tmp_path_factory.mktemp("albert"))


@pytest.fixture(scope="session")
def roberta_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vocab.json`` and ``merges.txt`` with RoBERTa's special tokens."""
    from tokenizers import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("roberta")
    trainer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer.train_from_iterator(_corpus(), vocab_size=900, special_tokens=special, show_progress=False)
    trainer.save_model(str(folder))
    assert list(json.loads((folder / "vocab.json").read_text()))[:5] == special
    return folder
