"""Copies of a tokenizer that cut what is too long; the given one stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tokenizers import Tokenizer, pre_tokenizers

from qdq.errors import ConfigError

if TYPE_CHECKING:
    Strategy = Literal["longest_first", "only_first", "only_second"]

__all__ = ["check_room", "for_words", "truncating"]


def truncating(
    tokenizer: Tokenizer, max_length: int, *, strategy: Strategy = "longest_first", stride: int = 0
) -> Tokenizer:
    """A copy that cuts to ``max_length`` tokens, special ones included, at the end of the longer text first.

    With ``only_second`` and a stride, what is cut off comes in further windows, which repeat ``stride`` tokens.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.enable_truncation(max_length, strategy=strategy, stride=stride)
    return copy


def for_words(tokenizer: Tokenizer) -> Tokenizer:
    """A copy for texts that are split into words: in a byte-level vocabulary each word begins with its blank."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    if isinstance(copy.pre_tokenizer, pre_tokenizers.ByteLevel):
        copy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=copy.pre_tokenizer.use_regex)
    return copy


def check_room(tokenizer: Tokenizer, max_length: int, *, is_pair: bool) -> None:
    """Refuse a length that the special tokens alone exceed: tokenizers would then not cut at all.

    Raises:
        ConfigError: It is too short.
    """
    specials = tokenizer.num_special_tokens_to_add(is_pair)
    if specials > max_length:
        what = "a pair of texts" if is_pair else "a text"
        raise ConfigError(f"seq_len {max_length} has no room for {what}: the special tokens alone are {specials}")
