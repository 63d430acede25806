"""Small models of every family, inputs and labels for every task, and the comparison of outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from qdq.models.registry import build, configure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qdq.models.model import Model

Nested: TypeAlias = "Tensor | Sequence[Nested] | None"
"""A tensor, or the tensors of several layers, or a field that was not computed."""

SMALL: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2, "classifier_dropout_prob": 0.0},
    "realm": {
        "retriever_proj_size": 12,
        "num_candidates": 2,
        "span_hidden_size": 10,
        "max_span_width": 3,
        "reader_beam_size": 2,
    },
}


@dataclass(frozen=True)
class SmallModels:
    """Makes small configurations and models of every family, and inputs for their tasks."""

    def build(self, model_type: str, task: str = "feature-extraction", **changes: Any) -> Model:
        """Return a model in evaluation mode with fresh weights; ``changes`` are fields of its configuration."""
        return build(configure(model_type, **self.fields(model_type, **changes)), task).eval()

    def fields(self, model_type: str, **changes: Any) -> dict[str, Any]:
        """Return the fields of a small configuration under Hugging Face's names."""
        return {**SMALL, **OWN.get(model_type, {}), **changes}

    def inputs(self, task: str, fields: dict[str, Any], *, batch: int = 3, length: int = 12) -> dict[str, Tensor]:
        """Return padded ids, mask and token types, with the labels of a task."""
        generator = torch.Generator().manual_seed(7)

        def draw(high: int, *shape: int) -> Tensor:
            return torch.randint(0, high, shape, generator=generator)

        shape = (batch, 2, length) if task == "multiple-choice" else (batch, length)
        ids = 4 + draw(fields["vocab_size"] - 4, *shape)
        mask = torch.ones_like(ids)
        mask[1, ..., length - 4 :] = 0
        mask[2, ..., : length // 2] = 0
        ids[mask == 0] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": draw(fields["type_vocab_size"], *shape)}
        tokens = draw(fields["vocab_size"], batch, length).masked_fill(mask.reshape(batch, -1)[:, :length] == 0, -100)
        labels: dict[str, dict[str, Tensor]] = {
            "sequence-classification": {"labels": draw(2, batch)},
            "token-classification": {"labels": draw(2, batch, length)},
            "multiple-choice": {"labels": draw(2, batch)},
            "question-answering": {
                "start_positions": torch.tensor([2, length + 3, -1]),
                "end_positions": torch.tensor([5, 7, 3]),
            },
            "masked-lm": {"labels": tokens},
            "causal-lm": {"labels": tokens},
            "next-sentence": {"labels": draw(2, batch)},
            "pre-training": {"labels": tokens},
        }
        return inputs | labels.get(task, {})


def assert_same(ours: Nested, theirs: Nested, *, atol: float = 1e-5, where: str = "output") -> None:
    """Check that nested outputs agree to ``atol``, which is float32's precision after a few layers."""
    if theirs is None:
        assert ours is None, where
    elif isinstance(theirs, Tensor):
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-5, msg=lambda text: f"{where}: {text}")
    else:
        assert ours is not None, where
        assert len(ours) == len(theirs), where
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, other, atol=atol, where=f"{where}[{index}]")
