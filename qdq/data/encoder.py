"""A tokenizer with what batches need to know of it: its special ids, and how long the model's sequences are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from qdq.data.tokenize import load_tokenizer
from qdq.data.vocabularies import SPECIAL_ROLES, read_settings, special_tokens

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

__all__ = ["TextEncoder", "load_encoder"]

#: Where the files do not say: the names that BERT, ALBERT and RoBERTa use.
_USUAL = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer and its ids.

    Args:
        tokenizer: Without truncation and padding.
        pad_id: What fills the end of a shorter row.
        unk_id: What stands for the unknown; None where nothing is (byte-level vocabularies).
        cls_id: The first token of a sequence.
        sep_id: The token behind each text.
        mask_id: What stands for a masked token; None where the vocabulary has none.
        max_length: The longest sequence that the model has positions for; None where there is no bound.
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
        """The ids of a tokenizer's special tokens.

        Args:
            tokenizer: Any.
            tokens: Special tokens by role (``pad``, ``unk``, ``cls``, ``sep``, ``mask``); the usual names are tried.
            max_length: Of the model.
            pad_id: Of the model's configuration, where the tokenizer names no padding token; 0 without either.
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
        """Tokens of the vocabulary, added ones included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def special_ids(self) -> np.ndarray:
        """The ids of special tokens, sorted: int64."""
        added = self.tokenizer.get_added_tokens_decoder()
        ids = {index for index, token in added.items() if token.special}
        ids |= {i for i in (self.unk_id, self.cls_id, self.sep_id, self.mask_id) if i is not None}
        return np.array(sorted({self.pad_id, *ids}), dtype=np.int64)

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """All other ids of the vocabulary, sorted: int64."""
        every = np.array(sorted(self.tokenizer.get_vocab(with_added_tokens=True).values()), dtype=np.int64)
        return np.setdiff1d(every, self.special_ids)


def load_encoder(model_dir: Path, *, max_length: int | None = None, pad_id: int | None = None) -> TextEncoder:
    """The tokenizer of a checkpoint directory, with the special tokens that its files name.

    Args:
        model_dir: The directory.
        max_length: The longest sequence of the model.
        pad_id: ``pad_token_id`` of the model's configuration, for tokenizers that name no padding token.

    Raises:
        CheckpointError: There is no tokenizer, or it is damaged.
        StorageError: A file exists and cannot be read.
    """
    settings = read_settings(model_dir)
    tokens = special_tokens(settings, dict.fromkeys(SPECIAL_ROLES, ""))
    named = {role: token for role, token in tokens.items() if token}
    return TextEncoder.of(load_tokenizer(model_dir), tokens=named, max_length=max_length, pad_id=pad_id)
