"""Train the vectors that sentence-transformers makes of a directory: its prompt, its length, its modules."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from qdq.sentence.embedder import load_embedder
from qdq.sentence.prompts import prompt_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from qdq.sentence.embedder import SentenceEmbedder
    from qdq.source import ModelDirectory

__all__ = ["SentenceVectors", "notes_on_training", "prepare_pairs", "vector_width"]

_CURE = "take it out of the file to train the vectors without it"


@dataclass(frozen=True)
class SentenceVectors:
    """Maps token vectors ``(texts, seq, hidden)`` and their mask to the vectors that are compared ``(texts, width)``.

    Args:
        embedder: What follows the transformer; its weights are not trained.
        prompt_tokens: The number of tokens of the prompt in front of every text.
        width: The number of numbers that are kept; None for all.
    """

    embedder: SentenceEmbedder
    prompt_tokens: int
    width: int | None

    @classmethod
    def of(cls, directory: ModelDirectory, *, seq_len: int, device: torch.device | None = None) -> SentenceVectors:
        """Load what the files of a directory say.

        Args:
            directory: The checkpoint.
            seq_len: The longest text in tokens.
            device: Where the model is trained.

        Raises:
            CheckpointError: Weights of a module are missing or damaged.
            ConfigError: The directory has modules that are not supported.
        """
        sentence = directory.sentence
        embedder = load_embedder(sentence, cure=_CURE)
        tokens = prompt_tokens(directory.encoder, sentence.default_prompt, seq_len)
        return cls(embedder if device is None else embedder.to(device), tokens, sentence.truncate_dim)

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the vectors."""
        vectors: Tensor = self.embedder(hidden, mask, self.prompt_tokens)
        return vectors[:, : self.width]


def prepare_pairs(examples: Sequence[Any], directory: ModelDirectory) -> list[Any]:
    """Return pairs of texts with the directory's default prompt in front of both, which the model reads one by one."""
    prompt = directory.sentence.default_prompt
    if not prompt:
        return list(examples)
    return [
        replace(pair, text=prompt + pair.text, text_pair=prompt + pair.text_pair)
        if getattr(pair, "text_pair", None) is not None
        else pair
        for pair in examples
    ]


def vector_width(directory: ModelDirectory) -> int:
    """Return how many numbers a vector of the directory has.

    Raises:
        CheckpointError: Weights of a module are missing or damaged.
        ConfigError: The directory has modules that are not supported.
    """
    embedder = load_embedder(directory.sentence, cure=_CURE)
    vectors = SentenceVectors(embedder, 0, directory.sentence.truncate_dim)
    return vectors(torch.zeros(1, 1, directory.config.hidden_size), torch.ones(1, 1)).shape[-1]


def notes_on_training(directory: ModelDirectory) -> list[str]:
    """Return what a training of vectors does not do, in sentences."""
    sentence, notes = directory.sentence, []
    if others := sentence.changes_vectors:
        notes.append(f"{', '.join(map(str, others))} is applied, and not trained")
    if sentence.similarity != "cosine":
        notes.append(f"the loss compares cosines, although the model compares its vectors by {sentence.similarity}")
    return notes
