"""Query, key and value read one tensor: it is quantized once for all, and never given out when it is out of date."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from qdq.quantization.spec import PerAxis, QuantSpec

if TYPE_CHECKING:
    from qdq.models.attention import Attention
    from tests.quantization.conftest import QuantizedModels, SpecPair

STATIC = (QuantSpec(), QuantSpec(granularity=PerAxis(0)))
MASKED = ("bert", "masked-lm")


def attention_of(quantized_models: QuantizedModels, kind: SpecPair = STATIC) -> tuple[Attention, Tensor]:
    model = quantized_models.specified(*kind)
    return model.encoder.layers[0].attention, torch.randn(2, 5, 32)


def test_attention_called_twice_with_the_same_tensor(kind: SpecPair, quantized_models: QuantizedModels) -> None:
    attention, x = attention_of(quantized_models, kind)
    x.requires_grad_()
    grads = []
    for _ in range(3):
        x.grad = None
        out, _, _ = attention(x)
        out.square().sum().backward()
        assert x.grad is not None
        grads.append(x.grad.clone())
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_tensor_that_is_changed_in_place_is_quantized_anew(kind: SpecPair, quantized_models: QuantizedModels) -> None:
    attention, x = attention_of(quantized_models, kind)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            static = x.clone()
            attention(static)
            static.mul_(0.5)
            got, _, _ = attention(static)
            want, _, _ = attention(static.clone())
        assert torch.equal(got, want), context.__name__


def test_one_reader_alone_asks_again_and_again(kind: SpecPair, quantized_models: QuantizedModels) -> None:
    attention, x = attention_of(quantized_models, kind)
    x.requires_grad_()
    grads = []
    for _ in range(4):
        x.grad = None
        attention.query(x).sum().backward()
        assert x.grad is not None
        grads.append(x.grad.clone())
    assert all(torch.equal(grad, grads[0]) for grad in grads)


@pytest.mark.parametrize("kind", ["static", "learned"], indirect=True)
def test_reader_sees_a_scale_that_was_set_since(kind: SpecPair, quantized_models: QuantizedModels) -> None:
    attention, x = attention_of(quantized_models, kind)
    with torch.no_grad():
        attention.query(x)
        quantizer = attention.query.input_quantizer
        quantizer.set_scale(quantizer.scale.detach() * 2, quantizer.zero_point.clone())
        assert torch.equal(attention.query(x), attention.query(x.clone()))


class Interrupted(Exception):
    """Stands for whatever ends a forward pass."""


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_exception_between_the_readers_leaves_nothing_behind(training: bool, quantized_models: QuantizedModels) -> None:
    model, inputs = quantized_models.quantized("qdqbert", *MASKED).train(training), quantized_models.inputs(*MASKED)

    def outputs() -> Tensor:
        with torch.no_grad():
            found = model(**inputs).logits
        assert isinstance(found, Tensor)
        return found

    def interrupt(*_: object) -> None:
        raise Interrupted

    want, gradients = outputs(), quantized_models.gradients(model, inputs)
    for name in ("key", "value"):
        hook = model.encoder.layers[1].attention.get_submodule(name).register_forward_pre_hook(interrupt)
        with pytest.raises(Interrupted):
            model(**inputs)
        hook.remove()
        assert torch.equal(outputs(), want)
        again = quantized_models.gradients(model, inputs)
        assert list(again) == list(gradients)
        assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items())
