"""Put prompts in front of texts, and count their tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from qdq.data.tokenizer import with_truncation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from qdq.data.example_types import TextExample
    from qdq.data.text import TextSample
    from qdq.data.tokenizer import TextEncoder

__all__ = ["prompt_tokens", "with_prompt"]

T = TypeVar("T", "TextExample", "TextSample")


def with_prompt(texts: Iterable[T], prompt: str) -> Iterator[T]:
    """Yield texts with a prompt in front; of a pair that the model reads together, the first text gets it.

    Args:
        texts: The texts.
        prompt: What is put in front, without a blank between.
    """
    for text in texts:
        yield replace(text, text=prompt + text.text) if prompt else text


def prompt_tokens(encoder: TextEncoder, prompt: str, length: int) -> int:
    """Return the number of tokens of a prompt in front of a text: with the special token before it, not that behind.

    Args:
        encoder: The tokenizer.
        prompt: The prompt; an empty one has no tokens.
        length: The longest text in tokens.
    """
    if not prompt:
        return 0
    ids = with_truncation(encoder.tokenizer, length).encode(prompt).ids
    return len(ids) - int(bool(ids) and ids[-1] in encoder.special_ids.tolist())
