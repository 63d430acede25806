"""Query, key and value read one tensor: it is quantized once for all, and never given out when it is out of date."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qdq.quantization.spec import PerAxis, PerGroup, PerToken, QuantSpec

STATIC = (QuantSpec(), QuantSpec(granularity=PerAxis(0)))
GROUPED = (QuantSpec(signed=False, symmetric=False), QuantSpec(bits=4, granularity=PerGroup(7)))
DYNAMIC = (QuantSpec(dynamic=True, granularity=PerToken()), QuantSpec(granularity=PerAxis(0)))
LEARNED = (QuantSpec(learned_scale=True), QuantSpec(learned_scale=True, granularity=PerAxis(0)))
KINDS = [
    pytest.param(STATIC, id="static"),
    pytest.param(GROUPED, id="grouped"),
    pytest.param(DYNAMIC, id="dynamic"),
    pytest.param(LEARNED, id="learned"),
]
MASKED = ("bert", "masked-lm")


def attention_of(workshop: Any, kind: Any = STATIC) -> tuple[Any, Tensor]:
    model = workshop.specified(*kind)
    return model.encoder.layers[0].attention, torch.randn(2, 5, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_called_twice_with_the_same_tensor(kind: Any, workshop: Any) -> None:
    attention, x = attention_of(workshop, kind)
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


@pytest.mark.parametrize("kind", KINDS)
def test_tensor_that_is_changed_in_place_is_quantized_anew(kind: Any, workshop: Any) -> None:
    attention, x = attention_of(workshop, kind)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            static = x.clone()
            attention(static)
            static.mul_(0.5)
            got, _, _ = attention(static)
            want, _, _ = attention(static.clone())
        assert torch.equal(got, want), context.__name__


@pytest.mark.parametrize("kind", KINDS)
def test_one_reader_alone_asks_again_and_again(kind: Any, workshop: Any) -> None:
    attention, x = attention_of(workshop, kind)
    x.requires_grad_()
    grads = []
    for _ in range(4):
        x.grad = None
        attention.query(x).sum().backward()
        assert x.grad is not None
        grads.append(x.grad.clone())
    assert all(torch.equal(grad, grads[0]) for grad in grads)


@pytest.mark.parametrize("kind", [pytest.param(STATIC, id="static"), pytest.param(LEARNED, id="learned")])
def test_reader_sees_a_scale_that_was_set_since(kind: Any, workshop: Any) -> None:
    attention, x = attention_of(workshop, kind)
    with torch.no_grad():
        attention.query(x)
        quantizer = attention.query.input_quantizer
        quantizer.set_scale(quantizer.scale.detach() * 2, quantizer.zero_point.clone())
        assert torch.equal(attention.query(x), attention.query(x.clone()))


class Interrupted(Exception):
    """Stands for whatever ends a forward pass."""


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_exception_between_the_readers_leaves_nothing_behind(training: bool, workshop: Any) -> None:
    model, inputs = workshop.quantized("qdqbert", *MASKED).train(training), workshop.inputs(*MASKED)

    def outputs() -> Tensor:
        with torch.no_grad():
            found = model(**inputs).logits
        assert isinstance(found, Tensor)
        return found

    def interrupt(*_: Any) -> None:
        raise Interrupted

    want, gradients = outputs(), workshop.gradients(model, inputs)
    for name in ("key", "value"):
        hook = model.encoder.layers[1].attention.get_submodule(name).register_forward_pre_hook(interrupt)
        with pytest.raises(Interrupted):
            model(**inputs)
        hook.remove()
        assert torch.equal(outputs(), want)
        again = workshop.gradients(model, inputs)
        assert list(again) == list(gradients)
        assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items())
