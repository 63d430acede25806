"""Load the tokenizer of a checkpoint, know its special ids, and copy it with truncation."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.normalizers import BertNormalizer

from qdq.data.vocabularies import (
    SPECIAL_ROLES,
    byte_level_pairs,
    read_settings,
    read_text,
    special_tokens,
    unigrams,
    wordpieces,
)
from qdq.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "TOKENIZER_FILES",
    "TextEncoder",
    "UnknownTokens",
    "check_room",
    "for_words",
    "load_encoder",
    "load_tokenizer",
    "with_truncation",
]

_LOG = logging.getLogger(__name__)

Strategy: TypeAlias = Literal["longest_first", "only_first", "only_second"]

#: The files of a tokenizer in a checkpoint directory, which are copied with the checkpoint.
TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)


def load_tokenizer(model_dir: str | Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory, without the truncation and padding that its file may set.

    The first of these files that exists is read:

    1. ``tokenizer.json``, in the format of the package ``tokenizers``. Settings of BERT's text cleaning in
       ``tokenizer_config.json`` (``do_lower_case``, ...) override it.
    2. ``vocab.txt``: WordPiece, with BERT's text cleaning as ``tokenizer_config.json`` sets it.
    3. ``spiece.model``: SentencePiece, with ALBERT's text cleaning as ``tokenizer_config.json`` sets it.
    4. ``vocab.json`` and ``merges.txt``: byte-level pairs, as RoBERTa has them.

    Raises:
        CheckpointError: The directory has none of these files, or one is damaged.
        StorageError: A file exists and cannot be read.
    """
    model_dir = Path(model_dir)
    if (model_dir / "tokenizer.json").is_file():
        tokenizer = _from_json(model_dir / "tokenizer.json")
        _apply_settings(tokenizer, read_settings(model_dir))
    elif (model_dir / "vocab.txt").is_file():
        tokenizer = wordpieces(model_dir)
    elif (model_dir / "spiece.model").is_file():
        tokenizer = unigrams(model_dir)
    elif (model_dir / "vocab.json").is_file() and (model_dir / "merges.txt").is_file():
        tokenizer = byte_level_pairs(model_dir)
    else:
        raise CheckpointError(_no_tokenizer(model_dir))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_json(path: Path) -> Tokenizer:
    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"{path}: is damaged or of an unknown format: {error}") from error


def _apply_settings(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    cleaning = tokenizer.normalizer
    if isinstance(cleaning, BertNormalizer):
        tokenizer.normalizer = BertNormalizer(
            clean_text=cleaning.clean_text,
            lowercase=settings.get("do_lower_case", cleaning.lowercase),
            strip_accents=settings.get("strip_accents", cleaning.strip_accents),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", cleaning.handle_chinese_chars),
        )


def _no_tokenizer(model_dir: Path) -> str:
    looked_for = "tokenizer.json, vocab.txt, spiece.model, or vocab.json with merges.txt"
    message = f"{model_dir}: no tokenizer; put one of these files there: {looked_for}"
    if (model_dir / "config.json").is_file():  # a trainer saves a model so, if it is given no tokenizer
        message += "; copy those of the model that the training began with, or name its directory with --tokenizer DIR"
    others = [name for name in ("sentencepiece.bpe.model", "vocab.json") if (model_dir / name).is_file()]
    if others:
        message += (
            f"; {others[0]} has to be converted once: "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json"
        )
    return message


# --- special ids ---


#: The special tokens of BERT, ALBERT and RoBERTa, for files that do not name theirs.
_USUAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer, the ids of its special tokens and the longest sequence of its model.

    Args:
        tokenizer: A tokenizer without truncation and padding.
        pad_id: The token that fills up shorter rows.
        unk_id: The token of unknown words; None for byte-level vocabularies, which know every word.
        cls_id: The first token of a sequence.
        sep_id: The token at the end of each text.
        mask_id: The token of a masked word; None where the vocabulary has none.
        max_length: The longest sequence that the model has positions for; None where there is no limit.
    """

    tokenizer: Tokenizer
    pad_id: int = 0
    unk_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None
    mask_id: int | None = None
    max_length: int | None = None

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        *,
        tokens: dict[str, str] | None = None,
        max_length: int | None = None,
        pad_id: int | None = None,
    ) -> TextEncoder:
        """Look up the ids of a tokenizer's special tokens.

        Args:
            tokenizer: Any tokenizer.
            tokens: The special tokens by role (``pad``, ``unk``, ``cls``, ``sep``, ``mask``); for roles that are
                missing the usual names are tried.
            max_length: The longest sequence of the model.
            pad_id: The padding token of the model's configuration, for a tokenizer without one; 0 without either.
        """
        tokens = tokens or {}
        ids: dict[str, int | None] = {}
        for role in SPECIAL_ROLES:
            names = (tokens[role],) if role in tokens else _USUAL[role]
            found = (tokenizer.token_to_id(name) for name in names)
            ids[role] = next((index for index in found if index is not None), None)
        pad = ids["pad"] if ids["pad"] is not None else pad_id
        return cls(
            tokenizer=tokenizer,
            pad_id=0 if pad is None else pad,
            unk_id=ids["unk"],
            cls_id=ids["cls"],
            sep_id=ids["sep"],
            mask_id=ids["mask"],
            max_length=max_length,
        )

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary, added tokens included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> np.ndarray:
        """The ids of all special tokens, int64, sorted."""
        added = self.tokenizer.get_added_tokens_decoder()
        ids = {index for index, token in added.items() if token.special}
        # The vocabulary file alone may not mark them as special.
        ids |= {i for i in (self.unk_id, self.cls_id, self.sep_id, self.mask_id) if i is not None}
        return np.array(sorted({self.pad_id, *ids}), dtype=np.int64)

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """The ids of all other tokens, int64, sorted."""
        every = np.array(sorted(self.tokenizer.get_vocab(with_added_tokens=True).values()), dtype=np.int64)
        return np.setdiff1d(every, self.special_ids)


def load_encoder(model_dir: Path, *, max_length: int | None = None, pad_id: int | None = None) -> TextEncoder:
    """Load the tokenizer of a checkpoint directory with the special tokens that its files name.

    Args:
        model_dir: The directory.
        max_length: The longest sequence of the model.
        pad_id: ``pad_token_id`` of the model's configuration, for a tokenizer that names no padding token.

    Raises:
        CheckpointError: There is no tokenizer, or it is damaged.
        StorageError: A file exists and cannot be read.
    """
    settings = read_settings(model_dir)
    tokens = special_tokens(settings, dict.fromkeys(SPECIAL_ROLES, ""))
    named = {role: token for role, token in tokens.items() if token}
    return TextEncoder.of(load_tokenizer(model_dir), tokens=named, max_length=max_length, pad_id=pad_id)


# --- copies with truncation ---


def with_truncation(
    tokenizer: Tokenizer, max_length: int, *, strategy: Strategy = "longest_first", stride: int = 0
) -> Tokenizer:
    """Return a copy of a tokenizer that cuts its results to ``max_length`` tokens, special ones included.

    Args:
        tokenizer: The tokenizer, which is not changed.
        max_length: The largest number of tokens.
        strategy: Which text of a pair is cut at its end: ``longest_first`` takes tokens from the longer one first.
        stride: With ``only_second``, the tokens that the next window repeats: the rest of the text follows in further
            windows.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.enable_truncation(max_length, strategy=strategy, stride=stride)
    return copy


def for_words(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy for texts that are split into words; a byte-level one puts the blank before each word."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    if isinstance(copy.pre_tokenizer, pre_tokenizers.ByteLevel):
        copy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=copy.pre_tokenizer.use_regex)
    return copy


def check_room(tokenizer: Tokenizer, max_length: int, *, is_pair: bool) -> None:
    """Raise if the special tokens alone are longer than ``max_length``, since tokenizers would then not cut at all.

    Raises:
        ConfigError: ``max_length`` is too short.
    """
    specials = tokenizer.num_special_tokens_to_add(is_pair)
    if specials > max_length:
        what = "a pair of texts" if is_pair else "a text"
        raise ConfigError(f"seq_len {max_length} has no room for {what}: the special tokens alone are {specials}")


# --- unknown tokens ---


class UnknownTokens:
    """Count unknown tokens over many texts, and warn at the end if they are the majority."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._id = _unknown_id(tokenizer)
        self._unknown = self._total = 0

    def count(self, ids: np.ndarray, special: np.ndarray) -> None:
        """Count the tokens of a batch.

        Args:
            ids: Token ids of any shape.
            special: The same shape; 1 or True for tokens that are not of the text.
        """
        if self._id is not None:  # a byte-level vocabulary knows every text
            self._unknown += int(np.count_nonzero(ids == self._id))
            self._total += ids.size - int(special.sum())

    def warn(self) -> None:
        """Log a warning if more than half of the tokens are unknown."""
        if self._unknown * 2 > self._total:
            _LOG.warning(
                "%.0f %% of the tokens (%d of %d) are unknown to the tokenizer's vocabulary: "
                "is this text in the language of the model?",
                100 * self._unknown / self._total,
                self._unknown,
                self._total,
            )


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    if isinstance(tokenizer.model, models.Unigram):  # its id can only be read from the file format
        found = json.loads(tokenizer.to_str())["model"]["unk_id"]
        return found if isinstance(found, int) else None
    token = tokenizer.model.unk_token
    return tokenizer.token_to_id(token) if token else None
