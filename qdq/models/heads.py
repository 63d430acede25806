"""Head modules, which compute logits from hidden states."""

import torch
from torch import Tensor, nn


class Pooler(nn.Module):
    """Linear layer and tanh on the first position, also if the padding is on the left.

    Args:
        hidden_size: Width of the hidden states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the pooled output ``(batch, hidden)`` of hidden states ``(batch, seq, hidden)``."""
        return torch.tanh(self.dense(hidden[:, 0]))


class LanguageModelHead(nn.Module):
    """Linear layer, activation, norm, and a linear layer to the vocabulary, usually tied to the word embedding.

    Args:
        hidden: Width of the hidden states.
        width: Width of the word embedding.
        vocab_size: Number of logits.
        activation: The function after the first linear layer.
        norm: The norm after the activation.
    """

    def __init__(self, hidden: int, width: int, vocab_size: int, *, activation: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, width)
        self.activation = activation
        self.norm = norm
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits ``(batch, seq, vocab)`` of hidden states ``(batch, seq, hidden)``."""
        logits: Tensor = self.decoder(self.norm(self.activation(self.dense(hidden))))
        return logits


class Classifier(nn.Module):
    """Dropout, and a linear layer to the labels.

    Args:
        hidden: Width of the hidden states.
        num_labels: Number of logits.
        dropout: Dropout before each linear layer.
        dense: Whether a linear layer of the same width, with tanh, comes first (RoBERTa).
    """

    def __init__(self, hidden: int, num_labels: int, *, dropout: float = 0.0, dense: bool = False) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden, hidden) if dense else None
        self.classifier = nn.Linear(hidden, num_labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits ``(..., num_labels)`` of hidden states or pooled output ``(..., hidden)``."""
        hidden = self.dropout(hidden)
        if self.dense is not None:
            hidden = self.dropout(torch.tanh(self.dense(hidden)))
        logits: Tensor = self.classifier(hidden)
        return logits


class PreTrainingHead(nn.Module):
    """Two heads: masked tokens from the hidden states, and the relation of two sentences from the pooled output.

    Args:
        predictions: The head for the tokens.
        relationship: The head for the sentences.
    """

    def __init__(self, predictions: LanguageModelHead, relationship: Classifier) -> None:
        super().__init__()
        self.predictions = predictions
        self.relationship = relationship

    def forward(self, hidden: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(batch, seq, vocab)`` and ``(batch, 2)``."""
        return self.predictions(hidden), self.relationship(pooled)
