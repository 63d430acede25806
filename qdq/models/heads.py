"""Head modules: what stands between hidden states and logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qdq.models.activations import activation

if TYPE_CHECKING:
    from qdq.models.config import ModelConfig


class LanguageModelHead(nn.Module):
    """Linear, activation, LayerNorm, and the linear to the vocabulary, whose weight is usually the word embedding."""

    def __init__(self, config: ModelConfig, hidden_act: str | None = None) -> None:
        super().__init__()
        width = config.embedding_width
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = activation(hidden_act or config.hidden_act)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(width, config.vocab_size)

    @property
    def output_embedding(self) -> nn.Linear:
        """The linear to the vocabulary."""
        return self.decoder

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, seq, hidden)`` -> ``(batch, seq, vocab)``."""
        logits: Tensor = self.decoder(self.norm(self.activation(self.dense(hidden))))
        return logits


class Classifier(nn.Module):
    """Dropout and a linear to the labels; with ``hidden`` (RoBERTa) a linear with tanh and another dropout before."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float = 0.0, *, hidden: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size) if hidden else None
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., hidden)`` -> ``(..., num_labels)``."""
        hidden = self.dropout(hidden)
        if self.dense is not None:
            hidden = self.dropout(torch.tanh(self.dense(hidden)))
        logits: Tensor = self.classifier(hidden)
        return logits


class PreTrainingHead(nn.Module):
    """Masked tokens from the sequence, and a relation of the two sentences from the pooled output."""

    def __init__(self, predictions: LanguageModelHead, relationship: Classifier) -> None:
        super().__init__()
        self.predictions = predictions
        self.relationship = relationship

    @property
    def output_embedding(self) -> nn.Linear:
        """The linear to the vocabulary."""
        return self.predictions.decoder

    def forward(self, hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(batch, seq, vocab)`` and ``(batch, 2)``."""
        return self.predictions(hidden), self.relationship(pooled)


def label_head(config: ModelConfig, *, hidden: bool = False) -> Classifier:
    """Dropout and a linear to ``num_labels``; with ``hidden`` RoBERTa's classifier of sequences."""
    return Classifier(config.hidden_size, config.num_labels, config.head_dropout, hidden=hidden)


def choice_head(config: ModelConfig, dropout: float | None = None) -> Classifier:
    """Dropout (the classifier's, or as given) and a linear to one score."""
    return Classifier(config.hidden_size, 1, config.head_dropout if dropout is None else dropout)


def pair_head(config: ModelConfig) -> Classifier:
    """A linear to two logits: start and end of an answer, or the relation of two sentences."""
    return Classifier(config.hidden_size, 2)


def pre_training_head(config: ModelConfig, relationship: Classifier | None = None) -> PreTrainingHead:
    """Masked tokens, and next sentence or as given."""
    return PreTrainingHead(LanguageModelHead(config), relationship or pair_head(config))
