"""Head modules: what stands between hidden states and logits."""

import torch
from torch import Tensor, nn


class Pooler(nn.Module):
    """tanh of a linear on the first token, whichever side the padding is on."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, seq, hidden)`` -> ``(batch, hidden)``."""
        return torch.tanh(self.dense(hidden[:, 0]))


class LanguageModelHead(nn.Module):
    """Linear, activation, norm, and the linear to the vocabulary, whose weight is usually the word embedding.

    Args:
        hidden: Width of the hidden states.
        width: Width of the word embedding.
        vocab_size: Number of logits.
        activation: Behind the first linear.
        norm: Behind the activation.
    """

    def __init__(self, hidden: int, width: int, vocab_size: int, *, activation: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, width)
        self.activation = activation
        self.norm = norm
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, seq, hidden)`` -> ``(batch, seq, vocab)``."""
        logits: Tensor = self.decoder(self.norm(self.activation(self.dense(hidden))))
        return logits


class Classifier(nn.Module):
    """Dropout and a linear to the labels.

    Args:
        hidden: Width of the hidden states.
        num_labels: Number of logits.
        dropout: In front of each linear.
        dense: Whether a linear of the same width with tanh stands in front (RoBERTa).
    """

    def __init__(self, hidden: int, num_labels: int, *, dropout: float = 0.0, dense: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden, hidden) if dense else None
        self.classifier = nn.Linear(hidden, num_labels)

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

    def forward(self, hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(batch, seq, vocab)`` and ``(batch, 2)``."""
        return self.predictions(hidden), self.relationship(pooled)
