from __future__ import annotations

import pytest
import torch

from exporters.io_signature import PAST_AND_SEQ, SIZES, InputSpec, IOSignature, example_inputs, token_inputs


def test_examples_are_padded_at_the_end_of_odd_rows() -> None:
    inputs = example_inputs(token_inputs(), batch_size=3, seq_len=6, vocab_size=10, padding=2)
    assert list(inputs) == ["input_ids", "attention_mask", "token_type_ids"]
    for name, tensor in inputs.items():
        assert (tensor.dtype, tuple(tensor.shape)) == (torch.int64, (3, 6)), name
    assert inputs["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2, [1] * 6]
    ids = inputs["input_ids"]
    assert ((ids == 0) == (inputs["attention_mask"] == 0)).all()
    assert 1 <= ids[ids != 0].min() <= ids.max() < 10
    assert not inputs["token_type_ids"].any()


def test_examples_follow_their_seed() -> None:
    first, again, other = (
        example_inputs(token_inputs("input_ids"), batch_size=4, seq_len=9, seed=seed)["input_ids"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_examples_leave_the_callers_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    example_inputs(token_inputs())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("entry", "shape"),
    [
        (InputSpec("input_ids", ("batch", "choices", "seq"), "int32"), (2, SIZES["choices"], 8)),
        (InputSpec("attention_mask", ("batch", PAST_AND_SEQ)), (2, SIZES["past_seq"] + 8)),
        (InputSpec("past_key_values.0.key", ("batch", 4, "past_seq", 16), "float16"), (2, 4, SIZES["past_seq"], 16)),
        (InputSpec("relevance_score", (5,), "bfloat16"), (5,)),
    ],
    ids=lambda value: value.name if isinstance(value, InputSpec) else None,
)
def test_examples_have_the_shape_and_type_of_their_input(entry: InputSpec, shape: tuple[int, ...]) -> None:
    tensor = example_inputs((entry,), padding=2)[entry.name]
    assert tuple(tensor.shape) == shape
    assert str(tensor.dtype) == f"torch.{entry.dtype}"
    if tensor.is_floating_point():
        assert tensor.unique().numel() > 3


def test_free_axes_have_lengths_that_tell_them_apart() -> None:
    lengths = [*SIZES.values(), 2, 8]
    assert len(set(lengths)) == len(lengths)


def test_a_signature_names_its_inputs() -> None:
    assert IOSignature(token_inputs("input_ids", "attention_mask"), ()).input_names == ("input_ids", "attention_mask")
