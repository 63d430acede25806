"""The ranking of slots against models that were quantized in just these slots."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from calibration import calibrate
from calibration.sensitivity.groups import group_slots
from calibration.sensitivity.ranking import analyze, measure_similarity, rank
from exporters.verification.verify import sqnr_db
from qdq.errors import CalibrationError
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, Range, quantizers, set_mode
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import apply_recipe, quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from torch import Tensor

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


def batches(count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for length in (9, 5, 12)[:count]:
        ids = torch.randint(5, SMALL["vocab_size"], (4, length), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, length // 2 :] = 0
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


@pytest.fixture(params=["onnxruntime", "qdqbert"])
def preset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(preset: str) -> Model:
    torch.manual_seed(2)
    made = build(configure("bert", **SMALL)).eval()
    quantize(made, preset)
    calibrate(made, batches())
    return made


def outputs(model: Model) -> Tensor:
    """All visible token vectors, one after another."""
    with torch.inference_mode():
        return torch.cat([model(**b).last_hidden_state[b["attention_mask"] != 0] for b in batches()])


@pytest.mark.parametrize("by", ["slot", "module", "role"])
def test_alone_and_without_are_the_models_that_a_recipe_makes(model: Model, preset: str, by: str) -> None:
    recipe = load_recipe(preset)
    reference = copy.deepcopy(model)
    set_mode(reference, Mode.OFF)
    in_float = outputs(reference)
    rows = analyze(model, batches(), by=by).rows
    assert len(rows) > 3
    for row in (rows[0], rows[len(rows) // 2]):
        for figure, changes in (
            (row.alone, {"include": row.group.exclude}),
            (row.without, {"exclude": row.group.exclude}),
        ):
            apply_recipe(reference, recipe.restrict(**changes))
            set_mode(reference, Mode.QUANTIZE)
            assert figure.sqnr_db == pytest.approx(sqnr_db(in_float.numpy(), outputs(reference).numpy()), abs=1e-3)


def test_the_whole_model_and_the_shares(model: Model) -> None:
    ranking = analyze(model, batches())
    set_mode(model, Mode.OFF)
    in_float = outputs(model)
    set_mode(model, Mode.QUANTIZE)
    assert ranking.quantized.sqnr_db == pytest.approx(sqnr_db(in_float.numpy(), outputs(model).numpy()), abs=1e-3)
    assert (ranking.batches, ranking.samples, ranking.quantized.count) == (3, 12, 12)
    assert sum(row.share for row in ranking.rows) == pytest.approx(1)
    noises = [row.alone.noise for row in ranking.rows]
    assert noises == sorted(noises, reverse=True)
    total = sum(noises)
    assert [row.share for row in ranking.rows] == pytest.approx([noise / total for noise in noises])


@pytest.mark.parametrize("by", ["slot", "module", "layer", "role"])
def test_a_slot_with_a_bad_range_comes_first(model: Model, by: str) -> None:
    bad = "encoder.layers.1.feed_forward.up.input"
    quantizer = next(quantizer for slot, quantizer in named_slots(model) if str(slot) == bad)
    far = torch.tensor(500.0)
    quantizer.set_range(Range(-far, far, far))
    first = analyze(model, batches(), by=by).rows[0]
    assert bad in map(str, first.group.slots)
    assert first.share > 0.5
    assert first.without.sqnr_db > first.alone.sqnr_db


def test_nothing_is_left_changed(model: Model) -> None:
    model.train()
    changed = next(iter(quantizers(model)))[1]
    changed.mode = Mode.OFF

    def state() -> list[object]:
        modes: list[object] = [quantizer.mode for _, quantizer in quantizers(model)]
        return modes + [module.training for module in model.modules()]

    before = state()
    analyze(model, batches(), by="layer")
    assert state() == before


def test_who_stops_early_has_every_group_on_less(model: Model) -> None:
    chosen = group_slots(model, "layer")
    steps = []
    found = rank(model, batches(), chosen, step=lambda: steps.append(1))
    first = next(found)
    found.close()
    assert len(first.rows) == len(chosen)
    assert (first.batches, first.samples) == (1, 4)
    assert len(steps) == 2 * len(chosen) + 1
    assert all(quantizer.mode is Mode.QUANTIZE for _, quantizer in quantizers(model) if quantizer.spec is not None)
    alone = analyze(model, batches(1), by="layer")
    assert [row.to_dict() for row in first.rows] == [row.to_dict() for row in alone.rows]


def test_only_some_are_measured_and_the_rest_stays_quantized(model: Model) -> None:
    everything = {row.group.name: row for row in analyze(model, batches()).rows}
    (row,) = analyze(model, batches(), only=["encoder.layers.1.feed_forward.down"]).rows
    assert row.without == everything[row.group.name].without
    assert row.alone == everything[row.group.name].alone


def test_no_data_is_refused(model: Model) -> None:
    with pytest.raises(CalibrationError, match="there is no batch"):
        analyze(model, [])


def test_a_model_without_ranges_is_refused(preset: str) -> None:
    made = quantize(build(configure("bert", **SMALL)), preset)
    with pytest.raises(CalibrationError, match="not calibrated"):
        analyze(made, batches())


def test_outputs_that_are_no_numbers_are_named(model: Model) -> None:
    with torch.no_grad():
        model.embeddings.word.weight[int(batches()[1]["input_ids"][0, 0])] = float("nan")
    with pytest.raises(
        CalibrationError, match="last_hidden_state has NaN or infinite values, with the float model, in the batch"
    ):
        analyze(model, batches())


def test_configurations_are_independent_of_their_order(model: Model) -> None:
    (first, second, *_) = group_slots(model, "layer")
    one, other = first.quantizers, second.quantizers
    *_, (_, forward) = measure_similarity(model, batches(), [one, other, ()])
    *_, (_, backward) = measure_similarity(model, batches(), [(), other, one])
    assert forward == backward[::-1]
    assert forward[2].noise == 0
