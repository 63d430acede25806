"""Whole models: ranges compared with what plain torch hooks and numpy find in the same tensors."""

from __future__ import annotations

import copy
import hashlib
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration import Max, Percentile, TokenMask, calibrate
from calibration.distributed import ProcessRank
from qdq.errors import CalibrationError
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, quantizers
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from calibration import CalibrationSummary
    from calibration.methods.method import Method
    from qdq.models.model import Model

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
METHODS = [pytest.param(Max(), id="max"), pytest.param(Percentile(99.0), id="percentile")]
Batch = dict[str, Tensor]


def tiny(task: str = "feature-extraction", **fields: Any) -> Model:
    torch.manual_seed(2)
    return build(configure("bert", **{**SMALL, **fields}), task).eval()


def sentences(count: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    lengths = torch.randint(2, 15, (count,), generator=generator)
    return [torch.randint(5, SMALL["vocab_size"], (int(length),), generator=generator) for length in lengths]


def batches(rows: list[Tensor], size: int, *, pad_to: int | None = None) -> list[Batch]:
    result = []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        length = pad_to or max(len(row) for row in group)
        ids, mask = torch.zeros(len(group), length, dtype=torch.long), torch.zeros(len(group), length, dtype=torch.long)
        for index, row in enumerate(group):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        result.append({"input_ids": ids, "attention_mask": mask})
    return result


def calibrated(
    data: Iterable[Batch], method: Method | None = None, preset: str = "qdqbert"
) -> tuple[Model, CalibrationSummary]:
    model = quantize(tiny(), preset)
    return model, calibrate(model, data, method=method)


def ranges(model: nn.Module) -> dict[str, tuple[float, float, float]]:
    return {
        str(slot): tuple(float(getattr(q.range, key)) for key in ("lower", "upper", "amax"))
        for slot, q in named_slots(model)
        if slot.name != "weight" and q.range is not None
    }


def state(model: nn.Module) -> dict[str, Any]:
    """All that calibrate may change, and the modes and observers it has to put back."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modes": [q.mode for _, q in quantizers(model)],
        "observers": [q.observer for _, q in quantizers(model)],
        "ranges": [q.range for _, q in quantizers(model)],
        "training": [module.training for module in model.modules()],
    }


def assert_same_state(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert list(got["tensors"]) == list(want["tensors"])
    for name, tensor in want["tensors"].items():
        torch.testing.assert_close(got["tensors"][name], tensor, rtol=0, atol=0, equal_nan=True)
    assert all(a is b for a, b in zip(got["ranges"], want["ranges"], strict=True))
    for key in ("modes", "observers", "training"):
        assert got[key] == want[key], key


# --- ranges ---


def values_by_hooks(model: Model, data: list[Batch]) -> dict[str, np.ndarray]:
    """What flows into every slot at positions that are no padding, found without any of calibration's code.

    Of rows that are alone in their batch, without padding: nothing has to be left out.
    """
    seen: dict[str, list[np.ndarray]] = {}
    handles = []
    for slot, _ in named_slots(model):
        if slot.name == "weight":
            continue

        def hook(
            _: nn.Module, inputs: tuple[Tensor, ...], name: str = str(slot), index: int = slot.name == "other"
        ) -> None:
            seen.setdefault(name, []).append(inputs[index].numpy().ravel())

        handles.append(model.get_submodule(slot.module).register_forward_pre_hook(hook))
    with torch.no_grad():
        for batch in data:
            model(**batch)
    for handle in handles:
        handle.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def test_max_ranges_are_those_of_the_tensors_themselves() -> None:
    data = batches(sentences(), 1)
    model = quantize(tiny(), "qdqbert")
    values = values_by_hooks(model, data)
    calibrate(model, data)
    got = ranges(model)
    assert got.keys() == values.keys()
    for name, seen in values.items():
        assert got[name] == (seen.min(), seen.max(), np.abs(seen).max()), name
    for slot, quantizer in named_slots(model):
        if quantizer.spec is not None and slot.name != "weight":
            assert float(quantizer.scale) == np.float32(np.abs(values[str(slot)]).max()) / np.float32(127)


@pytest.mark.parametrize("percentile", [99.9, 95.0])
def test_percentile_ranges_are_those_of_numpy(percentile: float) -> None:
    data = batches(sentences(), 1)
    model = quantize(tiny(), "qdqbert")
    values = values_by_hooks(model, data)
    calibrate(model, data, method=Percentile(percentile))
    for name, (lower, upper, amax) in ranges(model).items():
        seen = values[name].astype(np.float64)
        width = np.abs(seen).max() / 1024  # at most: 2048 bins reach less than twice as far
        tail = (100 - percentile) / 2
        for got, sample, q in ((lower, seen, tail), (upper, seen, 100 - tail), (amax, np.abs(seen), percentile)):
            low, high = (np.percentile(sample, q, method=method) for method in ("lower", "higher"))
            assert low - width <= got <= high + width, name


@pytest.mark.parametrize("preset", ["qdqbert", "onnxruntime"])
def test_slots_that_stay_float_are_observed_as_well(preset: str) -> None:
    model, _ = calibrated(batches(sentences(), 4), preset=preset)
    activations = [str(slot) for slot, _ in named_slots(model) if slot.name != "weight"]
    assert list(ranges(model)) == activations
    assert "pooler.dense.input" in activations


@pytest.mark.parametrize("method", METHODS)
def test_padding_never_counts(method: Method) -> None:
    """One sentence to a batch, padded ever longer. Sums of other lengths round differently: to float32's accuracy."""
    rows = sentences()
    want = ranges(calibrated(batches(rows, 1), method)[0])
    for pad_to in (15, 23, 40):
        got = ranges(calibrated(batches(rows, 1, pad_to=pad_to), method)[0])
        assert got.keys() == want.keys()
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_padding_does_not_change_a_bit_where_the_numbers_are_the_same(method: Method) -> None:
    """Garbage in the padding of a model whose arithmetic is exact per position: ranges are equal to the last bit."""

    class PerPosition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            x = input_ids[..., None] * torch.tensor([1.0, -0.5, 0.25])
            return self.linear(x.reshape(*x.shape[:2], 3, 1).sum(-2) * 1.0)

    from qdq.quantization.spec import QuantSpec
    from qdq.recipes.recipe import Recipe, Rule

    recipe = Recipe(name="all", rules=(Rule(module="*", slot="*", spec=QuantSpec()),))
    results = []
    for size, pad_to in ((1, None), (1, 31), (5, None), (12, 40)):
        torch.manual_seed(0)
        model = quantize(PerPosition(), recipe)
        data = batches(sentences(), size, pad_to=pad_to)
        for batch in data:
            batch["input_ids"][batch["attention_mask"] == 0] = 10**6
        calibrate(model, data, method=method)
        results.append((ranges(model), float(model.linear.input_quantizer.scale)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("method", METHODS)
def test_batches_and_order_do_not_matter(method: Method) -> None:
    rows = sorted(sentences(), key=len)
    want = ranges(calibrated(batches(rows, 1), method)[0])
    for other in (batches(rows[::-1], 1), batches(rows, 1)[::2] + batches(rows, 1)[1::2]):
        assert ranges(calibrated(other, method)[0]) == want, "the same tensors in another order: the same to the bit"
    for size in (3, 12):
        got = ranges(calibrated(batches(rows, size), method)[0])
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("method", METHODS)
def test_several_processes_find_what_one_finds(method: Method, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other here, each with what those before it gave; the last one knows all."""
    data = batches(sentences(), 3)
    want, summary = calibrated(data, method)
    given: list[Any] = []

    def gather(_: ProcessRank, value: Any) -> list[Any]:
        given.append(value)
        return given + [(None, {name: fresh(method) for name in value[1]})] * (count - len(given))

    monkeypatch.setattr(ProcessRank, "gather", gather)
    for rank in range(count):
        model = quantize(tiny(), "qdqbert")
        # before the last one, slots of processes without a batch may have seen nothing
        with suppress(CalibrationError):
            got = calibrate(model, data, method=method, process=ProcessRank(rank, count))
    assert ranges(model) == ranges(want)
    assert got == summary


def fresh(method: Method) -> tuple[dict[str, Tensor], list[tuple[int, float]]]:
    return method.collector(TokenMask()).state(), []


def test_second_run_forgets_the_first() -> None:
    rows = sentences()
    model, _ = calibrated(batches(rows, 4))
    calibrate(model, batches(rows[:2], 1))
    assert ranges(model) == ranges(calibrated(batches(rows[:2], 1))[0])


def test_collecting_sees_the_float_model() -> None:
    """Ranges do not depend on what is quantized, nor on whether the quantizers were on before."""
    data = batches(sentences(), 4)
    model, _ = calibrated(data)
    want = ranges(model)
    assert ranges(calibrated(data, preset="linear")[0]) == want
    calibrate(model, data)
    assert ranges(model) == want


# --- what a run leaves behind ---


def test_slots_with_a_spec_quantize_afterwards_and_nothing_observes() -> None:
    model, _ = calibrated(batches(sentences(), 4), preset="onnxruntime")
    for _, quantizer in quantizers(model):
        assert quantizer.mode is (Mode.OFF if quantizer.spec is None else Mode.QUANTIZE)
        assert quantizer.observer is None
    assert all(q.is_calibrated for _, q in quantizers(model))


def test_training_flags_come_back_module_by_module() -> None:
    model = quantize(tiny(hidden_dropout_prob=0.5), "linear").train()
    model.embeddings.eval()
    before = [module.training for module in model.modules()]
    calibrate(model, batches(sentences(), 4))
    assert [module.training for module in model.modules()] == before
    assert ranges(model) == ranges(calibrated(batches(sentences(), 4), preset="linear")[0]), "no dropout meanwhile"


def test_ranges_hold_no_graph_and_the_model_can_train_and_be_copied() -> None:
    model, _ = calibrated(batches(sentences(), 4))
    (batch,) = batches(sentences(3), 3)
    copy.deepcopy(model)(**batch).last_hidden_state.square().mean().backward()
    model(**batch).last_hidden_state.square().mean().backward()
    assert model.encoder.layers[0].attention.query.weight.grad is not None


def test_batches_are_let_go_one_by_one() -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[Batch]:
        nonlocal most
        for _ in range(30):
            (batch,) = batches(sentences(2), 2)
            alive.add(batch["input_ids"])
            most = max(most, len(alive))
            yield batch
            del batch

    calibrated(stream())
    assert most <= 3


def test_progress_counts_batches() -> None:
    model, calls = quantize(tiny(), "linear"), []
    calibrate(model, batches(sentences(), 5), progress=calls.append)
    assert calls == [1, 2, 3]


# --- the record ---


def test_summary_counts_rows_tokens_and_batches() -> None:
    rows = sentences()
    model, summary = calibrated(batches(rows, 5), Percentile(99.0))
    found = summary.to_dict()
    saturated = found.pop("saturated")
    quantized = {str(slot) for slot, q in named_slots(model) if slot.name != "weight" and q.spec is not None}
    assert len(saturated) > len(quantized) / 2
    assert saturated.keys() <= quantized
    assert all(0 < share < 0.02 for share in saturated.values())
    (warning,) = found.pop("warnings")
    assert f"{len(rows)} samples with {sum(len(row) for row in rows)} tokens" in warning
    assert found == {
        "method": {"name": "percentile", "percentile": 99.0},
        "batches": 3,
        "samples": len(rows),
        "tokens": sum(len(row) for row in rows),
        "data_sha256": hashlib.sha256(b"".join(row.numpy().tobytes() + b"|" for row in rows)).hexdigest(),
    }


def test_digest_is_of_the_tokens_however_they_are_batched() -> None:
    rows = sentences()
    digests = {
        calibrated(batches(rows, size, pad_to=pad))[1].data_sha256 for size, pad in ((1, None), (5, None), (4, 40))
    }
    assert len(digests) == 1
    assert calibrated(batches(rows[::-1], 4))[1].data_sha256 not in digests
    assert calibrated(batches(rows[1:], 4))[1].data_sha256 not in digests


def test_without_a_mask_every_position_counts() -> None:
    ids = torch.randint(5, 90, (3, 7))
    _, summary = calibrated([{"input_ids": ids}])
    assert (summary.samples, summary.tokens) == (3, 21)


# --- failures ---


def broken(weight: str, value: float) -> Model:
    """A model in which ``weight`` makes activations what they must not be; its own slot stays float."""
    model = quantize(tiny(), load_recipe("qdqbert"))
    with torch.no_grad():
        model.get_parameter(weight)[0] = value
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_broken_activations_are_named_by_slot(value: float, method: Method) -> None:
    model = broken("encoder.layers.1.feed_forward.up.bias", value)
    before = state(model)
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, batches(sentences(), 4), method=method)
    text = str(caught.value)
    assert "encoder.layers.1.feed_forward.down.input saw NaN or infinite values" in text
    assert "encoder.layers.1.feed_forward.up.input" not in text, "what comes before is sound"
    assert "pooler" not in text, "slots that stay float need no range"
    assert_same_state(state(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_one_broken_batch_among_many_is_noticed(method: Method) -> None:
    model = broken("embeddings.word.weight", 0.0)
    with torch.no_grad():
        model.embeddings.word.weight[77] = float("nan")
    rows = [row.masked_fill(row == 77, 78) for row in sentences()]
    calibrate(model, batches(rows, 3), method=method)
    rows[4][1] = 77
    before = state(model)
    with pytest.raises(CalibrationError, match=r"0.attention.query.input saw NaN or infinite values in batch 1 "):
        calibrate(model, batches(rows, 3), method=method)
    assert_same_state(state(model), before)


def test_slots_without_data_are_named() -> None:
    model = quantize(tiny(), "qdqbert")
    model.set_attn_implementation("sdpa")
    before = state(model)
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, batches(sentences(), 4))
    text = str(caught.value)
    assert "8 problems" in text
    for layer in range(2):
        for slot in ("scores.input", "scores.other", "context.input", "context.other"):
            assert f"encoder.layers.{layer}.attention.{slot} saw no data" in text
    assert_same_state(state(model), before)


def test_float_slot_without_data_is_no_problem_and_keeps_no_old_range() -> None:
    model, _ = calibrated(batches(sentences(), 4), preset="linear")
    assert "encoder.layers.0.attention.scores.input" in ranges(model)
    model.set_attn_implementation("sdpa")
    calibrate(model, batches(sentences(), 4))
    assert "encoder.layers.0.attention.scores.input" not in ranges(model)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param([], "no data: the calibration set has no batch", id="empty"),
        pytest.param([{}], "batch 0 is empty", id="empty-batch"),
        pytest.param(
            [*batches(sentences(4), 4), {"input_ids": torch.ones(0, 3, dtype=torch.long)}],
            "batch 1 is empty",
            id="no-rows",
        ),
        pytest.param(
            [{"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.zeros(2, 3)}],
            "batch 0 is empty: its attention_mask excludes every position",
            id="all-padding",
        ),
        pytest.param(
            [*batches(sentences(4), 4), {"input_ids": torch.ones(1, 3, dtype=torch.long), "pixels": torch.ones(1)}],
            "batch 1: the model has no input pixels",
            id="unknown-input",
        ),
    ],
)
def test_data_that_cannot_be_used(data: list[Batch], words: str) -> None:
    class Strict(nn.Module):
        """A model that names its inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.model = quantize(tiny(), "qdqbert")

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
            return self.model(input_ids, attention_mask)

    model = Strict()
    before = state(model)
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, data)
    assert str(caught.value) == words
    assert_same_state(state(model), before)


def test_float_model_is_refused() -> None:
    with pytest.raises(CalibrationError, match=r"no quantizers: wrap it first with qdq\.quantize"):
        calibrate(tiny(), batches(sentences(), 4))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize("where", ["data", "progress", "model"])
def test_any_exception_leaves_everything_as_it_was(where: str, error: type[BaseException]) -> None:
    model, _ = calibrated(batches(sentences(4), 2))
    model.train()
    model.encoder.eval()
    before = state(model)

    def data() -> Iterator[Batch]:
        yield from batches(sentences(), 4)
        if where == "data":
            raise error("stop")

    def progress(done: int) -> None:
        if where == "progress" and done == 2:
            raise error("stop")

    def hook(*_: object) -> None:
        raise error("stop")

    handle = model.pooler.register_forward_hook(hook) if where == "model" else None
    with pytest.raises(error, match="stop"):
        calibrate(model, data(), progress=progress)
    if handle is not None:
        handle.remove()
    assert_same_state(state(model), before)
    assert {q.mode for _, q in quantizers(model) if q.spec} == {Mode.QUANTIZE}
