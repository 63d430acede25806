"""Head modules: what stands between hidden states and logits. Each is made from a configuration."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from qdq.models.activations import activation
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

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, seq, hidden)`` -> ``(batch, seq, vocab)``."""
        logits: Tensor = self.decoder(self.norm(self.activation(self.dense(hidden))))
        return logits


class Classifier(nn.Module):
    """Dropout and a linear to the labels; with ``hidden`` (RoBERTa) a linear with tanh and another dropout before.

    Labels and dropout are those of the configuration unless given.
    """

    def __init__(
        self, config: ModelConfig, num_labels: int | None = None, dropout: float | None = None, *, hidden: bool = False
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.head_dropout if dropout is None else dropout)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size) if hidden else None
        self.classifier = nn.Linear(config.hidden_size, num_labels or config.num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., hidden)`` -> ``(..., num_labels)``."""
        hidden = self.dropout(hidden)
        if self.dense is not None:
            hidden = self.dropout(torch.tanh(self.dense(hidden)))
        logits: Tensor = self.classifier(hidden)
        return logits


# One score per choice; and two logits, start and end of an answer or the relation of two sentences.
choice_head = partial(Classifier, num_labels=1)
pair_head = partial(Classifier, num_labels=2, dropout=0.0)


class PreTrainingHead(nn.Module):
    """Masked tokens from the sequence, and a relation of the two sentences from the pooled output."""

    def __init__(self, config: ModelConfig, relationship: Callable[[ModelConfig], Classifier] = pair_head) -> None:
        super().__init__()
        self.predictions = LanguageModelHead(config)
        self.relationship = relationship(config)

    def forward(self, hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(batch, seq, vocab)`` and ``(batch, 2)``."""
        return self.predictions(hidden), self.relationship(pooled)
