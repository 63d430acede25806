"""Extremes of channels: what plain torch hooks find in the same tensors, and NaN by slot and batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from calibration import calibrate_and_refine
from calibration.distributed import SINGLE_PROCESS
from calibration.statistics.channels import channel_ranges
from qdq.errors import CalibrationError
from qdq.models.registry import build, configure
from qdq.recipes.apply import quantize
from qdq.recipes.refinement import Refinement

if TYPE_CHECKING:
    from qdq.models.model import Model
    from qdq.quantization.quantizer import Quantizer

SIZES = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
MODULES = ("encoder.layers.0.attention.query", "encoder.layers.1.feed_forward.down")
BAD = 77  # a token


def tiny() -> Model:
    torch.manual_seed(2)
    return quantize(build(configure("bert", **SIZES, initializer_range=0.3)), "linear")


def batches(bad_in: int | None = None) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    found = [{"input_ids": torch.randint(5, BAD, (3, 6), generator=generator)} for _ in range(4)]
    if bad_in is not None:
        found[bad_in]["input_ids"][1, 2] = BAD
    return found


def wanted(model: Model) -> dict[Quantizer, str]:
    return {model.get_submodule(name).input_quantizer: name for name in MODULES}


def test_extremes_are_those_of_the_tensors_themselves() -> None:
    model, seen = tiny(), {name: [] for name in MODULES}

    def watch(name: str) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name].append(inputs[0].flatten(0, 1))

        model.get_submodule(name).register_forward_pre_hook(hook)

    for name in MODULES:
        watch(name)
    found = channel_ranges(model, batches(), wanted(model), process=SINGLE_PROCESS)
    for quantizer, name in wanted(model).items():
        values = torch.cat(seen[name])
        assert torch.equal(found[quantizer][0], values.min(0).values)
        assert torch.equal(found[quantizer][1], values.max(0).values)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_broken_values_are_named_by_slot_and_batch(value: float, batch: int) -> None:
    model = tiny()
    with torch.no_grad():
        model.embeddings.word.weight[BAD] = value
    channel_ranges(model, batches(), wanted(model), process=SINGLE_PROCESS)
    with pytest.raises(CalibrationError) as caught:
        channel_ranges(model, batches(bad_in=batch), wanted(model), process=SINGLE_PROCESS)
    for name in MODULES:
        assert f"{name} saw NaN or infinite values in batch {batch} (the first is 0)" in str(caught.value)
    with pytest.raises(CalibrationError, match=rf"attention\.query saw NaN or infinite values in batch {batch} "):
        calibrate_and_refine(model, lambda: batches(bad_in=batch), Refinement(smoothing=0.5))


def test_slots_without_data_and_no_data() -> None:
    model = tiny()
    other = tiny()
    with pytest.raises(CalibrationError, match=r"attention\.query saw no data"):
        channel_ranges(model, batches(), wanted(other), process=SINGLE_PROCESS)
    with pytest.raises(CalibrationError, match="the calibration set has no batch"):
        channel_ranges(model, [], wanted(model), process=SINGLE_PROCESS)
