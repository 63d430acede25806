from __future__ import annotations

from typing import Any

import pytest
import torch

from exporters.signature import Signature, example_inputs, signature_of
from qdq.errors import ExportError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def test_examples_are_padded_at_the_end_of_odd_rows() -> None:
    inputs = example_inputs(INPUTS, batch_size=3, seq_len=6, vocab_size=10, padding=2)
    assert list(inputs) == list(INPUTS)
    for name, tensor in inputs.items():
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.int64, (3, 6)), name
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2, [1] * 6]
    ids = inputs["input_ids"]
    assert ((ids == 0) == (inputs["attention_mask"] == 0)).all()
    assert 1 <= ids[ids != 0].min() <= ids.max() < 10
    assert not inputs["token_type_ids"].any()


def test_examples_follow_their_seed() -> None:
    first, again, other = (
        example_inputs(("input_ids",), batch_size=4, seq_len=9, seed=seed)["input_ids"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_examples_leave_the_callers_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    example_inputs(INPUTS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("feature-extraction", ("last_hidden_state", "pooler_output")),
        ("sequence-classification", ("logits",)),
        ("token-classification", ("logits",)),
        ("question-answering", ("start_logits", "end_logits")),
        ("masked-lm", ("logits",)),
        ("next-sentence", ("logits",)),
        ("pre-training", ("prediction_logits", "seq_relationship_logits")),
    ],
)
def test_outputs_are_what_the_task_computes_without_labels(workshop: Any, task: str, outputs: tuple[str, ...]) -> None:
    assert signature_of(workshop.model(task=task)) == Signature(INPUTS, outputs)


def test_a_cache_is_no_output(workshop: Any) -> None:
    model = workshop.model(task="causal-lm", is_decoder=True)
    assert signature_of(model).outputs == ("logits",)


@pytest.mark.parametrize(("model_type", "task"), [("bert", "multiple-choice"), ("realm", "scoring")])
def test_a_task_with_other_inputs_has_no_signature(workshop: Any, model_type: str, task: str) -> None:
    model = workshop.model(model_type, task)
    with pytest.raises(ExportError, match=rf"the task '{task}' cannot be exported: a file has the inputs input_ids"):
        signature_of(model)
