"""Which slots of a whole model get quantizers, for every family and head, and what sharing does to their number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import calibration
import qdq
from qdq.errors import RecipeError
from qdq.models.registry import FAMILIES
from qdq.quantization.modules import WRAPPED
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.quantization.wrap import named_slots, wrap
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from qdq.models.model import Model
    from tests.quantization.conftest import QuantizedModels

ATTENTION = [
    *(f"{name}.{slot}" for name in ("query", "key", "value", "output") for slot in ("input", "weight")),
    *(f"{name}.{slot}" for name in ("scores", "context", "add") for slot in ("input", "other")),
]
FEED_FORWARD = ["up.input", "up.weight", "down.input", "down.weight", "add.input", "add.other"]
LAYER = [*(f"attention.{slot}" for slot in ATTENTION), *(f"feed_forward.{slot}" for slot in FEED_FORWARD)]
CROSS = [f"cross_attention.{slot}" for slot in ATTENTION]

EVERY = [pytest.param(name, task, id=f"{name}/{task}") for name, family in FAMILIES.items() for task in family.tasks]
IDLE: dict[str, tuple[str, ...]] = {  # what REALM's checkpoints carry and its calls never reach
    "realm/retrieval": ("head.predictions",),
    "realm/scoring": ("embedder.head.predictions",),
    "realm/masked-lm": ("pooler",),
    "realm/question-answering": ("pooler", "head.predictions"),
}
DECODERS = [name for name, family in FAMILIES.items() if family.config.supports_decoder]


def quantized_slots(model: nn.Module) -> set[str]:
    return {str(slot) for slot, quantizer in named_slots(model) if quantizer.spec is not None}


def active(model: nn.Module, inside: str = "") -> int:
    """Quantizers with a spec, each once."""
    return sum(q.spec is not None and name.startswith(inside) for name, q in quantizers(model))


def test_a_layer_has_twenty_slots_and_cross_attention_fourteen_more() -> None:
    assert len(LAYER) == 20
    assert len(CROSS) == 14


@pytest.mark.parametrize(("model_type", "task"), EVERY)
def test_exact_slots_of_the_preset_qdqbert(model_type: str, task: str, quantized_models: QuantizedModels) -> None:
    model = quantized_models.model(model_type, task)
    encoder = "embedder.encoder" if task == "scoring" else "encoder"
    quantize(model, "qdqbert")
    want = {f"{encoder}.layers.{depth}.{slot}" for depth in range(2) for slot in LAYER}
    assert quantized_slots(model) == want, "heads, pooler, embeddings and norms stay float"
    for depth in range(2):
        assert active(model, f"{encoder}.layers.{depth}.") == 18, "query, key and value share the one of their input"


@pytest.mark.parametrize("model_type", DECODERS)
def test_exact_slots_with_cross_attention(model_type: str, quantized_models: QuantizedModels) -> None:
    model = quantized_models.model(model_type, is_decoder=True, add_cross_attention=True)
    quantize(model, "qdqbert")
    assert quantized_slots(model) == {
        f"encoder.layers.{depth}.{slot}" for depth in range(2) for slot in [*LAYER, *CROSS]
    }
    assert active(model, "encoder.layers.1.cross_attention.") == 13, "key and value share the one of their input"
    assert active(model) == 2 * (18 + 13)
    attention = model.encoder.layers[1].cross_attention
    assert attention.key.input_quantizer is attention.value.input_quantizer
    assert attention.key.input_quantizer is not attention.query.input_quantizer


@pytest.mark.parametrize(("model_type", "task"), EVERY)
def test_wrapping_goes_by_type_alone(model_type: str, task: str, quantized_models: QuantizedModels) -> None:
    model = quantized_models.model(model_type, task)
    before = {name: type(module) for name, module in model.named_modules()}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wrap(model)
    idle = IDLE.get(f"{model_type}/{task}", ())
    for name, kind in before.items():
        expected = kind if name.startswith(idle) else WRAPPED.get(kind, kind)
        assert type(model.get_submodule(name)) is expected, name
    added = {name for name, _ in model.named_modules()} - set(before)
    assert all(name.endswith("_quantizer") for name in added)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(parameters)
    assert all(after[name] is parameter for name, parameter in parameters.items())


@pytest.mark.parametrize("preset", ["qdqbert", "tensorrt"])
def test_fused_attention_has_no_slots_for_its_products(preset: str, quantized_models: QuantizedModels) -> None:
    model = quantized_models.model()
    model.set_attn_implementation("sdpa")
    with pytest.raises(RecipeError, match="fused attention has no modules") as caught:
        quantize(model, preset)
    assert "encoder.layers.1.attention.context.other" in str(caught.value)
    assert not any(quantizers(model))
    model.set_attn_implementation("eager")
    assert len(quantized_slots(quantize(model, preset))) >= 2 * 18


# --- ALBERT: layers that are repeated ---


def repeated(quantized_models: QuantizedModels) -> Model:
    """Four depths, two of which repeat each of two layers."""
    return quantized_models.model("albert", "masked-lm", num_hidden_layers=4, num_hidden_groups=2)


def test_albert_has_ranges_for_every_depth_and_each_weight_once(quantized_models: QuantizedModels) -> None:
    model = quantize(repeated(quantized_models), "qdqbert")
    assert quantized_slots(model) == {f"encoder.layers.{depth}.{slot}" for depth in range(4) for slot in LAYER}
    assert active(model) == 4 * 12 + 2 * 6, "twelve activations in every depth, six weights in every distinct layer"
    layers = model.encoder.layers
    for name in ("attention.query", "attention.output", "feed_forward.up", "feed_forward.down"):
        first, again, other = (layers[depth].get_submodule(name) for depth in (0, 1, 2))
        assert first.weight is again.weight
        assert first.weight_quantizer is again.weight_quantizer
        assert first.weight_quantizer is not other.weight_quantizer
        assert len({id(layer.get_submodule(name).input_quantizer) for layer in layers}) == 4
    calibration.calibrate(model, [quantized_models.unlabelled(quantized_models.inputs("albert"))])
    scales = {float(layer.feed_forward.up.input_quantizer.scale) for layer in layers}
    assert len(scales) == 4, "each depth has seen its own activations"


def test_albert_stores_the_scales_of_a_repeated_weight_once(quantized_models: QuantizedModels, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = quantize(repeated(quantized_models), "qdqbert")
    inputs = quantized_models.unlabelled(quantized_models.inputs("albert"))
    summary = calibration.calibrate(model, [inputs])
    set_mode(model, Mode.QUANTIZE)
    qdq.save(model, tmp_path / "c", recipe=load_recipe("qdqbert"), calibration=summary.to_dict())
    stored = load_file(tmp_path / "c" / "quantizers.safetensors")
    weights = [name for name in stored if name.endswith("weight_quantizer.scale")]
    assert len(weights) == 2 * 6
    assert len([name for name in stored if name.endswith("input_quantizer.scale")]) == 4 * 8
    loaded = qdq.load(tmp_path / "c")
    assert active(loaded) == active(model)
    first, again = (loaded.encoder.layers[depth].attention.query for depth in (0, 1))
    assert first.weight_quantizer is again.weight_quantizer
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
