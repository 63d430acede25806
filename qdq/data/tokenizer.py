"""Load the tokenizer of a checkpoint, know its special ids, and copy it with truncation."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from qdq.data.tokenizer_files import SPECIAL_ROLES
from qdq.data.tokenizer_loading import TOKENIZER_FILES, load_tokenizer, read_tokenizer
from qdq.data.tokenizer_parts import copied
from qdq.errors import ConfigError, DataError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from qdq.data.tokenizer_loading import Side

__all__ = [
    "TOKENIZER_FILES",
    "TextEncoder",
    "UnknownTokens",
    "check_room",
    "check_vectors",
    "for_words",
    "load_encoder",
    "load_tokenizer",
    "with_truncation",
]

_LOG = logging.getLogger(__name__)

Strategy: TypeAlias = Literal["longest_first", "only_first", "only_second"]

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
        usual_length: The longest sequence where no other is asked for (``model_max_length``); None without a limit.
        truncation_side: The end at which longer texts are cut.
        word_rows: The number of tokens that the model has vectors for; None where it is not known.
        type_rows: The number of token types of the model; None where it is not known.
        pair_note: What to tell about pairs of texts, if anything.
    """

    tokenizer: Tokenizer
    pad_id: int = 0
    unk_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None
    mask_id: int | None = None
    max_length: int | None = None
    usual_length: int | None = None
    truncation_side: Side = "right"
    word_rows: int | None = None
    type_rows: int | None = None
    pair_note: str | None = None

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        *,
        tokens: dict[str, str] | None = None,
        max_length: int | None = None,
        pad_id: int | None = None,
        word_rows: int | None = None,
    ) -> TextEncoder:
        """Look up the ids of a tokenizer's special tokens.

        Args:
            tokenizer: Any tokenizer.
            tokens: The special tokens by role (``pad``, ``unk``, ``cls``, ``sep``, ``mask``); for roles that are
                missing the usual names are tried.
            max_length: The longest sequence of the model.
            pad_id: The padding token of the model's configuration, for a tokenizer without one; 0 without either.
            word_rows: The number of tokens that the model has vectors for.
        """
        tokens = tokens or {}
        ids: dict[str, int | None] = {}
        for role in SPECIAL_ROLES:
            names = (tokens[role],) if role in tokens else _USUAL[role]
            found = (tokenizer.token_to_id(name) for name in names)
            ids[role] = next((index for index in found if index is not None), None)
        pad = ids["pad"]
        # Padding is masked, so that any token of the model serves where it has none for the tokenizer's.
        if pad is None or (word_rows is not None and pad >= word_rows):
            pad = pad_id
        return cls(
            tokenizer=tokenizer,
            pad_id=0 if pad is None else pad,
            unk_id=ids["unk"],
            cls_id=ids["cls"],
            sep_id=ids["sep"],
            mask_id=ids["mask"],
            max_length=max_length,
            word_rows=word_rows,
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
        if self.word_rows is not None:
            every = every[every < self.word_rows]
        return np.setdiff1d(every, self.special_ids)

    @cached_property
    def has_more_tokens(self) -> bool:
        """Whether the tokenizer has ids that the model has no vector for."""
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        return self.word_rows is not None and max(ids, default=0) >= self.word_rows

    def missing_vectors(self, ids: np.ndarray) -> list[str]:
        """Return a problem for each token that the model has no vector for.

        Args:
            ids: Token ids of any shape.
        """
        if not self.has_more_tokens:
            return []
        added = self.tokenizer.get_added_tokens_decoder()
        return [
            f"the token {(added[index].content if index in added else self.tokenizer.id_to_token(index))!r} has id "
            f"{index}, but the model has only {self.word_rows} word vectors"
            for index in np.unique(ids[ids >= self.word_rows]).tolist()
        ]


def load_encoder(
    model_dir: Path,
    *,
    max_length: int | None = None,
    pad_id: int | None = None,
    word_rows: int | None = None,
    type_rows: int | None = None,
) -> TextEncoder:
    """Load the tokenizer of a checkpoint directory with the special tokens that its files name.

    Args:
        model_dir: The directory.
        max_length: The longest sequence of the model.
        pad_id: ``pad_token_id`` of the model's configuration, for a tokenizer that names no padding token.
        word_rows: The number of tokens that the model has vectors for (``vocab_size``).
        type_rows: The number of token types of the model (``type_vocab_size``).

    Raises:
        CheckpointError: There is no tokenizer, it is damaged, or its class is not followed.
        StorageError: A file exists and cannot be read.
    """
    source = read_tokenizer(model_dir, type_rows=type_rows)
    encoder = TextEncoder.of(
        source.tokenizer, tokens=dict(source.special), max_length=max_length, pad_id=pad_id, word_rows=word_rows
    )
    return replace(
        encoder,
        usual_length=source.usual_length,
        truncation_side=source.truncation_side,
        type_rows=type_rows,
        pair_note=source.pair_note,
    )


# --- copies with truncation ---


def with_truncation(
    tokenizer: Tokenizer,
    max_length: int,
    *,
    strategy: Strategy = "longest_first",
    stride: int = 0,
    side: Side = "right",
) -> Tokenizer:
    """Return a copy of a tokenizer that cuts its results to ``max_length`` tokens, special ones included.

    Args:
        tokenizer: The tokenizer, which is not changed.
        max_length: The largest number of tokens.
        strategy: Which text of a pair is cut: ``longest_first`` takes tokens from the longer one first.
        stride: With ``only_second``, the tokens that the next window repeats: the rest of the text follows in further
            windows.
        side: The end at which texts are cut.
    """
    copy = copied(tokenizer)
    copy.no_padding()
    copy.enable_truncation(max_length, strategy=strategy, stride=stride, direction=side)
    return copy


def for_words(tokenizer: Tokenizer) -> Tokenizer:
    """Return a copy for texts that are split into words; a byte-level one puts the blank before each word."""
    copy = copied(tokenizer)
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


def check_vectors(
    encoder: TextEncoder, rows: Iterable[tuple[str, Sequence[int] | np.ndarray]], *, source: str = "the data"
) -> None:
    """Raise if texts have tokens that the model has no vector for.

    Args:
        encoder: The tokenizer, which knows how many tokens the model has vectors for.
        rows: For each text, where it stands in its source, and its token ids.
        source: The name of the source.

    Raises:
        DataError: There are such tokens; all of them are listed.
    """
    if not encoder.has_more_tokens:
        return
    problems = dict.fromkeys(
        f"{location}: {problem}" if location else problem
        for location, ids in rows
        for problem in encoder.missing_vectors(np.asarray(ids))
    )
    if problems:
        raise DataError(
            f"{describe_problems(source, problems)}; leave out texts with such tokens, or give the model the tokenizer "
            "that it was trained with"
        )


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
