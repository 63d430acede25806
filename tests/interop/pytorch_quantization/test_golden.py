"""The same numbers as the real QDQBERT: every head, dynamic and calibrated, with and without cross-attention.

Where an integer differs from upstream's, all later numbers may, by far more than a rounding error. The first one that
differs then has to be a tie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import qdq
from qdq.interop.pytorch_quantization.slot_names import prefix_of, qdqbert_names
from qdq.models.huggingface import load_weights
from qdq.models.registry import configure
from qdq.quantization.quantizer import Quantizer, quantizers
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from qdq.models.model import Model
    from tests.interop.pytorch_quantization.conftest import Golden


def run(model: Model, inputs: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The output, and under upstream's names what every quantizer of an activation saw, in steps of its grid."""
    names, prefix = qdqbert_names(model), prefix_of(model)
    called: dict[Quantizer, list[str]] = {}
    for slot, quantizer in named_slots(model):
        if slot in names and slot.name != "weight":
            called.setdefault(quantizer, []).append(prefix + names[slot])
    seen: dict[str, Tensor] = {}

    def note(quantizer: nn.Module, args: tuple[Tensor]) -> None:
        assert isinstance(quantizer, Quantizer)
        assert quantizer.spec is not None
        x = args[0]
        amax = x.abs().max() if quantizer.spec.dynamic else quantizer.amax
        for name in called[quantizer]:
            # Upstream quantizes keys that are transposed already.
            seen[name] = (x.transpose(-1, -2) if "matmul_k" in name else x) * (torch.tensor(127.0) / amax)

    for quantizer in called:
        quantizer.register_forward_pre_hook(note)
    with torch.no_grad():
        return model(**inputs), seen


def flips_at_a_tie(order: list[str], seen: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Whether integers differ. Those of the first quantizer where they do must be ties, else this is an error."""
    for name in order:
        steps, want = seen[name], wanted[name].float()
        differ = steps.round().clamp(-128, 127) != want
        if bool(differ.any()):
            to_tie = ((steps - steps.floor())[differ] - 0.5).abs()
            assert float(to_tie.max()) < 1e-3, f"{name}: {int(differ.sum())} integers differ, not at a tie"
            return True
    return False


@pytest.mark.parametrize("kind", ["dynamic", "calibrated"])
def test_outputs_and_integers(golden: Golden, kind: str, tmp_path: Path) -> None:
    model = qdq.load(golden.write(tmp_path / "c", golden.state if kind == "calibrated" else golden.weights))
    dynamic = {quantizer.spec.dynamic for _, quantizer in quantizers(model) if quantizer.spec is not None}
    assert dynamic == {kind == "dynamic"}
    output, seen = run(model, golden.inputs)
    assert sorted(seen) == sorted(golden.order)
    if flips_at_a_tie(golden.order, seen, golden.tensors(f"{kind}-steps")):
        return
    expected = golden.tensors(kind)
    assert set(expected) <= set(output)
    for name, tensor in expected.items():
        torch.testing.assert_close(output[name], tensor, atol=1e-4, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("kind", ["dynamic", "calibrated"])
def test_quantizing_matters(golden: Golden, kind: str) -> None:
    """Otherwise the tolerance above would test nothing."""
    model = qdq.build(configure(**golden.config)).eval()
    load_weights(model, golden.weights)
    with torch.no_grad():
        output = model(**golden.inputs)
    gap = max(float((output[name] - tensor).abs().max()) for name, tensor in golden.tensors(kind).items())
    assert gap > 2e-3


def test_a_flip_that_is_no_tie_would_be_found() -> None:
    want = {"a": torch.tensor([3, -7], dtype=torch.int8)}
    assert not flips_at_a_tie(["a"], {"a": torch.tensor([3.2, -7.4])}, want)
    assert flips_at_a_tie(["a"], {"a": torch.tensor([3.50001, -7.4])}, want)
    with pytest.raises(AssertionError, match="a: 1 integers differ"):
        flips_at_a_tie(["a"], {"a": torch.tensor([3.52, -7.4])}, want)


def test_quantizers_by_number_and_name(golden: Golden, tmp_path: Path) -> None:
    """Upstream's own: 6 linears x 2, 4 operands of products, 4 of additions a layer, 14 more with cross-attention."""
    model = qdq.load(golden.write(tmp_path / "c"))
    names = {prefix_of(model) + name for name in qdqbert_names(model).values()}
    assert {f"{name}._amax" for name in names} == set(golden.amax)
    assert len(names) == 2 * (34 if golden.config.get("add_cross_attention") else 20)
    quantized = {slot for slot, quantizer in named_slots(model) if quantizer.spec is not None}
    assert quantized == set(qdqbert_names(model))
