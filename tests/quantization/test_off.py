"""With all quantizers off a wrapped model is the float model: the same bits, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.models.registry import FAMILIES
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from tests.quantization.conftest import QuantizedModels

EVERY = [pytest.param(name, task, id=f"{name}/{task}") for name, family in FAMILIES.items() for task in family.tasks]
KINDS = ("relative_key", "relative_key_query")
RELATIVE = [pytest.param(name, kind, id=f"{name}/{kind}") for name in FAMILIES for kind in KINDS]
DECODERS = [name for name, family in FAMILIES.items() if family.config.supports_decoder]


def assert_equal_bits(got: Any, want: Any, quantized_models: QuantizedModels) -> None:
    mine, other = quantized_models.leaves(got), quantized_models.leaves(want)
    assert len(mine) == len(other) > 0
    for index, (a, b) in enumerate(zip(mine, other, strict=True)):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), f"tensor {index} of the output"


@pytest.mark.parametrize(("model_type", "task"), EVERY)
def test_outputs_and_gradients_of_every_head(model_type: str, task: str, quantized_models: QuantizedModels) -> None:
    model, inputs = quantized_models.model(model_type, task), quantized_models.inputs(model_type, task)
    shown = {} if task == "scoring" else {"output_attentions": True, "output_hidden_states": True}
    want, gradients = model(**inputs, **shown), quantized_models.gradients(model, inputs)
    assert task in ("feature-extraction", "retrieval", "scoring") or want.loss.isfinite()
    quantize(model, "qdqbert")
    assert_equal_bits(model(**inputs, **shown), want, quantized_models)
    after = quantized_models.gradients(model, inputs)
    assert list(after) == list(gradients)
    assert all(torch.equal(after[name], gradient) for name, gradient in gradients.items())


@pytest.mark.parametrize(("model_type", "kind"), RELATIVE)
def test_relative_positions(model_type: str, kind: str, quantized_models: QuantizedModels) -> None:
    model, inputs = (
        quantized_models.model(model_type, position_embedding_type=kind),
        quantized_models.inputs(model_type),
    )
    with torch.no_grad():
        want = model(**inputs)
        quantize(model, "qdqbert")
        assert_equal_bits(model(**inputs), want, quantized_models)


@pytest.mark.parametrize("model_type", DECODERS)
def test_decoder_with_cache_and_cross_attention(model_type: str, quantized_models: QuantizedModels) -> None:
    model = quantized_models.model(model_type, is_decoder=True, add_cross_attention=True)
    ids, memory = torch.randint(4, 83, (2, 7)), torch.randn(2, 5, 32)

    def run() -> list[Any]:
        with torch.no_grad():
            first = model(ids[:, :4], encoder_hidden_states=memory, use_cache=True)
            second = model(ids[:, 4:], encoder_hidden_states=memory, past_key_values=first.past_key_values)
        return [first, second]

    want = run()
    quantize(model, "qdqbert")
    assert_equal_bits(run(), want, quantized_models)


@pytest.mark.parametrize("model_type", DECODERS)
def test_head_mask_pruned_heads_and_chunks(model_type: str, quantized_models: QuantizedModels) -> None:
    model = quantized_models.model(model_type, pruned_heads={0: [1]}, chunk_size_feed_forward=4)
    inputs = quantized_models.unlabelled(quantized_models.inputs(model_type))
    with torch.no_grad():
        want = model(**inputs)
        quantize(model, "qdqbert")
        assert_equal_bits(model(**inputs), want, quantized_models)
    whole = quantized_models.model(model_type)
    mask = torch.tensor([1.0, 0.0, 0.5, 1.0])
    with torch.no_grad():
        want = whole(**inputs, head_mask=mask)
        quantize(whole, "qdqbert")
        assert_equal_bits(whole(**inputs, head_mask=mask), want, quantized_models)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types(dtype: torch.dtype, quantized_models: QuantizedModels) -> None:
    model, inputs = quantized_models.model().to(dtype), quantized_models.inputs()
    with torch.no_grad():
        want = model(**inputs)
        quantize(model, "qdqbert")
        assert_equal_bits(model(**inputs), want, quantized_models)
