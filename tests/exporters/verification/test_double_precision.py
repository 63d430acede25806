"""Compute in float64 what a model computes in float32; the difference says what a rounding tie is."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch

from exporters.export_model import wrap_for_export
from exporters.verification.double_precision import DoublePrecision
from exporters.verification.recording import TIE, RecordedTensor, run_and_record
from qdq.quantization.operators import fake_quantize
from qdq.quantization.quantizer import Mode, Quantizer, set_mode
from qdq.quantization.transform import Transform

if TYPE_CHECKING:
    from tests.exporters.conftest import TinyModels


def test_a_model_computes_what_its_copy_in_float64_computes(tiny_models: TinyModels) -> None:
    model = tiny_models.calibrated("linear")
    set_mode(model, Mode.OFF)
    batch = tiny_models.batches(model)[0]
    with DoublePrecision():
        found = wrap_for_export(model).run(batch)
    with torch.inference_mode():
        expected = copy.deepcopy(model).double()(**batch)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-13, atol=1e-13)


def test_a_row_without_visible_tokens_has_uniform_weights_as_in_float32(tiny_models: TinyModels) -> None:
    model = tiny_models.model()
    batch = tiny_models.batches(model)[0]
    batch["attention_mask"] = torch.zeros_like(batch["attention_mask"])
    expected = wrap_for_export(model).run(batch)
    with DoublePrecision():
        found = wrap_for_export(model).run(batch)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=1e-4, atol=1e-5)


def test_the_integers_are_those_of_float32_and_the_rest_is_exact(tiny_models: TinyModels) -> None:
    """A tensor in float64 lies within a few units in the last place of the one in float32, given the same integers."""
    model = tiny_models.calibrated("onnxruntime")
    export_model, batch = wrap_for_export(model), tiny_models.batches(model)[0]
    seen: dict[Quantizer, np.ndarray] = {}

    def recorder(quantizer: Quantizer) -> None:
        def note(x: torch.Tensor, q: torch.Tensor) -> None:
            seen[quantizer] = (x / quantizer.grid(x)[0]).numpy()

        quantizer.recorder = note

    records, _ = run_and_record(export_model, batch)
    assert records
    for quantizer, _ in records:
        recorder(quantizer)
    export_model.run(batch)
    for (quantizer, _), record in records.items():
        difference = np.abs(record.steps - seen[quantizer])
        assert difference.max() < 2e-3, "float16 holds what rounding changed"
        assert record.rounding_error.dtype == np.float16
        assert np.all(record.noise >= TIE)


def test_the_integers_of_a_looked_up_row_are_those_of_float32() -> None:
    """At a tie, a scale in float64 would round to other integers."""
    scale = torch.rand(64, generator=torch.Generator().manual_seed(0)) * 0.01
    table = (torch.arange(-50, 50) + 0.5) * scale[:, None]
    ids = torch.arange(64)

    def looked_up() -> torch.Tensor:
        zero_point = torch.zeros(64, 1, dtype=torch.int32)
        return fake_quantize(table[ids], scale[ids].unsqueeze(-1), zero_point, qmin=-128, qmax=127)

    expected = looked_up()
    with DoublePrecision():
        found = looked_up()
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0)


def test_each_channel_has_the_tolerance_of_its_own_rounding_errors() -> None:
    """Channel 1 was smoothed by 100: its rounding errors are a hundred times as large."""
    exact = np.float64([[3.2, 7.0], [-1.1, 50.0]])
    error = np.float64([[1e-5, 1e-3], [1e-5, 2e-3]])
    steps = (exact + error).astype(np.float32)
    record = RecordedTensor.of(steps, np.rint(steps), np.float32(0.5), np.int32(0))
    found = record.with_exact(exact, 0.0)
    np.testing.assert_allclose(found.noise, [TIE, 8 * 2e-3], rtol=0.05)
    np.testing.assert_allclose(found.steps, exact, atol=2.5e-4)


def test_channels_that_happen_to_be_exact_get_the_tolerance_of_the_others() -> None:
    exact = np.full((1, 10), 2.0)
    steps = exact + np.where(np.arange(10) == 0, 0, 4e-4)
    record = RecordedTensor.of(steps.astype(np.float32), np.full((1, 10), 2.0), np.float32(1), np.int32(0))
    found = record.with_exact(exact, 0.0)
    np.testing.assert_allclose(found.noise, 8 * 4e-4, rtol=1e-2)


def test_a_channel_that_was_shifted_is_as_exact_as_what_it_was_before() -> None:
    """Channel 0 loses 1000 steps by its shift: what is left has the rounding errors of 1000 steps."""
    exact = np.full((1, 11), 1.0)
    steps = exact + np.where(np.arange(11) == 0, 0, 1e-5)
    record = RecordedTensor.of(steps.astype(np.float32), np.ones((1, 11)), np.float32(1), np.int32(0))
    noise = np.asarray(record.with_exact(exact, np.where(np.arange(11) == 0, 999.0, 0.0)).noise)
    np.testing.assert_allclose(noise, [8 * 1e-2, *[TIE] * 10], rtol=1e-2)


def test_a_transposed_record_keeps_the_tolerance_of_its_channels() -> None:
    record = RecordedTensor(
        np.zeros((2, 3), np.int8), np.zeros((2, 3)), np.float32(1), np.int32(0), noise=np.float32([1, 2, 3])
    )
    moved = record.transposed((1, 0))
    assert np.asarray(moved.noise).tolist() == [[1, 1], [2, 2], [3, 3]]


def test_a_smoothed_quantizer_is_measured_with_its_smoothing_scale(tiny_models: TinyModels) -> None:
    model = tiny_models.calibrated("linear")
    name = "encoder.layers.0.feed_forward.down"
    quantizer = model.get_submodule(name).get_submodule("input_quantizer")
    assert isinstance(quantizer, Quantizer)
    width = model.get_submodule(name).in_features
    factor = torch.ones(width)
    factor[0] = 1e4
    quantizer.transform = Transform(smoothing_scale=factor)
    records, _ = run_and_record(wrap_for_export(model), tiny_models.batches(model)[0])
    noise = np.asarray(records[quantizer, 0].noise)
    assert noise.shape == (width,)
    assert noise[0] > 10 * np.median(noise)
