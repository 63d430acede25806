"""Ranges are judged by what they do to the outputs: figures equal those of plain torch, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from calibration import Entropy, Max, Method, Mse, Percentile, calibrate, calibrate_and_refine
from calibration.clipping_harm import HARM_SAMPLES, Harm
from calibration.methods.auto import Auto
from calibration.range_warnings import harm_warnings
from calibration.sensitivity.similarity import Similarity
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, set_mode
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from calibration import CalibrationSummary
    from qdq.models.model import Model

WIDTH, VOCABULARY, RARE = 32, 64, 3
Batch = dict[str, Tensor]


def model_with_outlier(size: float = 40.0) -> Model:
    """A BERT in which one rare token has a channel that is far larger than all others, as trained encoders have."""
    torch.manual_seed(1)
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    }
    model = build(configure("bert", **fields), "feature-extraction").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "embeddings.word.weight":
                parameter[RARE] *= 0.2
                parameter[RARE, 7] = size
            elif name.endswith("norm.weight"):
                parameter[7] = 12.0
    return model


def batches(count: int = 8, rows: int = 8) -> list[Batch]:
    """Rows that begin with the rare token."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        ids = torch.randint(5, VOCABULARY, (rows, 24), generator=generator)
        ids[:, 0] = RARE
        mask = torch.ones_like(ids)
        mask[1, 15:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def calibrated(method: Method, preset: str = "onnxruntime") -> tuple[Model, CalibrationSummary]:
    model = quantize(model_with_outlier(), preset)
    return model, calibrate(model, batches(), method=method)


def mean_cosine(model: Model) -> float:
    """What the record says, computed another way."""
    (batch, *_), mask = batches(), batches()[0]["attention_mask"][..., None]

    def vectors() -> Tensor:
        with torch.no_grad():
            hidden = model(**batch).last_hidden_state.double()
        pooled: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return pooled

    found = vectors()
    set_mode(model, Mode.OFF)
    return float(nn.functional.cosine_similarity(found, vectors()).mean())


def test_a_clip_that_ruins_the_outputs_is_told_with_its_figure() -> None:
    model, summary = calibrated(Percentile(99.0))
    (line,) = [line for line in summary.warnings if "clips values that matter" in line]
    expected = mean_cosine(model)
    assert expected < 0.98
    assert summary.harm["final"]["cosine"] == pytest.approx(expected, abs=1e-3)
    assert summary.harm["samples"] == HARM_SAMPLES
    assert f"on {HARM_SAMPLES} samples the outputs have a mean cosine of {summary.harm['final']['cosine']:.3f}" in line
    assert line.endswith("give --calibrator max")
    assert all(name in line for name in summary.harm["power_lost"])
    assert summary.to_dict()["harm"] == summary.harm


def test_its_comparison_is_what_other_ranges_give() -> None:
    model, summary = calibrated(Percentile(99.0))
    whole, plain = calibrated(Max())
    assert plain.harm == {}
    assert summary.harm["without_clipping"]["cosine"] == pytest.approx(mean_cosine(whole), abs=1e-3)
    slots = {str(slot) for slot, _ in named_slots(model)}
    assert set(summary.harm["power_lost"]) <= slots
    assert all(0 < share < 1 for share in summary.harm["power_lost"].values())


@pytest.mark.parametrize("method", [Max(), Percentile(99.9), Mse(), Auto()], ids=lambda method: method.name)
@pytest.mark.parametrize("preset", ["onnxruntime", "tensorrt", "qdqbert"])
def test_nothing_is_told_of_what_does_no_harm(method: Method, preset: str) -> None:
    torch.manual_seed(3)
    fields = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = build(configure("bert", **fields, intermediate_size=64, initializer_range=0.3), "masked-lm").eval()
    quantize(model, preset)
    summary = calibrate(model, batches(), method=method)
    assert summary.harm == {}
    assert not [line for line in summary.warnings if "clips" in line or "cosine" in line]


def test_a_method_that_clips_more_than_a_hundredth_without_harm_is_quiet() -> None:
    torch.manual_seed(3)
    fields = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = build(configure("bert", **fields, intermediate_size=64, initializer_range=0.3), "feature-extraction")
    quantize(model, "onnxruntime")
    summary = calibrate(model, batches(), method=Percentile(98.5))
    assert max(summary.saturated.values()) > 0.01
    assert summary.harm == {}
    assert not [line for line in summary.warnings if "clips" in line]


def test_refinement_that_adapts_to_clipped_values_is_told() -> None:
    model = quantize(model_with_outlier(), "onnxruntime")
    refinement = load_recipe("onnxruntime").refinement
    summary = calibrate_and_refine(model, batches(), refinement, method=Percentile(97.0))
    assert {"final", "without_clipping", "without_refinement"} <= summary.harm.keys()
    assert summary.harm["final"]["cosine"] == pytest.approx(mean_cosine(model), abs=1e-3)


def similarity(cosine: float, sqnr_db: float) -> Similarity:
    return Similarity(signal=1.0, noise=10 ** (-sqnr_db / 10), cosines=8 * cosine, count=8)


@pytest.mark.parametrize(
    ("final", "whole", "told"),
    [
        ((0.90, 6), None, "find the slots that cost most with qdq analyze"),
        ((0.90, 6), (0.91, 7), "find the slots that cost most with qdq analyze"),
        ((0.90, 6), (0.99, 18), "percentile clips values that matter"),
        ((0.97, 12), (0.99, 18), "percentile clips values that matter"),
        ((0.97, 12), (0.98, 14), None),
        ((0.985, 14), (0.999, 28), None),
        ((0.90, 14), None, None),
        ((1.0, 200), None, None),
    ],
)
def test_what_is_worth_a_warning(
    final: tuple[float, float], whole: tuple[float, float] | None, told: str | None
) -> None:
    harm = Harm(8, similarity(*final), None if whole is None else similarity(*whole), lost={"a.input": 0.1})
    lines = harm_warnings(harm, "percentile")
    assert [told in line for line in lines if told] == ([True] if told else [])
    assert bool(lines) is harm.is_notable is (told is not None)


@pytest.mark.parametrize("method", [Percentile(99.0), Entropy()], ids=lambda method: method.name)
def test_the_comparison_leaves_ranges_and_modes_alone(method: Method) -> None:
    model, summary = calibrated(method)
    for slot, quantizer in named_slots(model):
        expected = Mode.OFF if quantizer.spec is None else Mode.QUANTIZE
        assert quantizer.mode is expected, slot
        if quantizer.spec is not None and quantizer.range is not None and slot.name != "weight":
            scale, zero_point = quantizer.scale.clone(), quantizer.zero_point.clone()
            quantizer.set_range(quantizer.range)
            assert torch.equal(scale, quantizer.scale)
            assert torch.equal(zero_point, quantizer.zero_point)
    assert summary.saturated


def test_recipes_without_static_ranges_are_not_judged() -> None:
    model, summary = calibrated(Percentile(99.0), "weight-only-int4")
    assert mean_cosine(model) < 1
    assert summary.harm == {}


class Doubled(nn.Module):
    """A module of the user's own, which returns a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.encoder(x) * 2
        return result


def test_a_module_of_the_users_own_is_judged_too() -> None:
    torch.manual_seed(0)
    recipe = load_recipe("linear")
    model = quantize(Doubled(), recipe)
    x = torch.randn(16, 4)
    x[:, 0] = 100.0
    summary = calibrate(model, [{"x": x}], method=Percentile(70.0))
    assert summary.harm["samples"] == HARM_SAMPLES
    assert summary.harm["final"]["sqnr_db"] < summary.harm["without_clipping"]["sqnr_db"]
