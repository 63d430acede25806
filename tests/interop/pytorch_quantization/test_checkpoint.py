"""Ranges in QDQBERT checkpoints: read as upstream reads them, written as it writes them, every kind of damage named."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qdq
from qdq.errors import CheckpointError, ConfigError, ExportError, RecipeError
from qdq.interop.pytorch_quantization import ACTIVATION, WEIGHT, amax_tensors, load_amax, save
from qdq.models.huggingface import load_model, load_weights
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.quantization.spec import PerAxis, PerTensor, QuantSpec
from qdq.quantization.wrap import named_slots, unshared_slots
from qdq.source import ModelDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qdq.models.model import Model
    from tests.interop.pytorch_quantization.conftest import Golden

LAYER = "encoder.layer.0"
QUERY, KEY, VALUE = (f"{LAYER}.attention.self.{name}._input_quantizer._amax" for name in ("query", "key", "value"))
WEIGHT_KEY = f"{LAYER}.intermediate.dense._weight_quantizer._amax"
SOFTMAX = f"{LAYER}.attention.self.matmul_a_input_quantizer._amax"


def outputs(model: Model, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [value for value in model(**inputs, return_dict=False) if isinstance(value, Tensor)]


def assert_same_outputs(left: Model, right: Model, inputs: dict[str, Tensor]) -> None:
    for got, want in zip(outputs(left, inputs), outputs(right, inputs), strict=True):
        assert torch.equal(got, want)


def float_model(golden: Golden, **changes: Any) -> Model:
    model = build(configure(**golden.config | changes)).eval()
    load_weights(model, golden.weights)
    return model


def spec_of(model: Model, address: str) -> QuantSpec | None:
    return {str(slot): quantizer.spec for slot, quantizer in named_slots(model)}[address]


# --- in ---


@pytest.mark.parametrize("prefixed", [False, True], ids=["bare", "prefixed"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_files_and_prefixes(file: str, prefixed: bool, golden_encoder: Golden, tmp_path: Path) -> None:
    folder = golden_encoder.write(
        tmp_path / "c", {f"bert.{k}" if prefixed else k: value for k, value in golden_encoder.state.items()}
    )
    if file.endswith(".bin"):
        torch.save(load_file(folder / "model.safetensors"), folder / file)
        (folder / "model.safetensors").unlink()
    model = qdq.load(folder)
    assert ModelDirectory(folder).is_quantized
    assert not model.training
    assert_same_outputs(model, qdq.load(golden_encoder.write(tmp_path / "plain")), golden_encoder.inputs)
    assert all(q.mode is (Mode.OFF if q.spec is None else Mode.QUANTIZE) for _, q in quantizers(model))
    assert amax_tensors(model).keys() == golden_encoder.amax.keys()


def test_what_is_there_is_static_and_what_is_not_is_dynamic(golden_encoder: Golden, tmp_path: Path) -> None:
    gone = {QUERY, WEIGHT_KEY}
    model = qdq.load(
        golden_encoder.write(tmp_path / "c", {k: value for k, value in golden_encoder.state.items() if k not in gone})
    )
    expected = {
        "encoder.layers.0.attention.query.input": QuantSpec(arithmetic="pytorch-quantization", dynamic=True),
        "encoder.layers.0.attention.key.input": ACTIVATION,
        "encoder.layers.0.feed_forward.up.input": ACTIVATION,
        "encoder.layers.0.feed_forward.up.weight": QuantSpec(
            arithmetic="pytorch-quantization", dynamic=True, granularity=PerAxis(0)
        ),
        "encoder.layers.0.feed_forward.down.weight": WEIGHT,
        "pooler.dense.input": None,
        "embeddings.word.weight": None,
    }
    assert {address: spec_of(model, address) for address in expected} == expected


def test_a_float_checkpoint_of_bert_stays_float(
    golden_encoder: Golden, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = golden_encoder.write(
        tmp_path / "c", golden_encoder.weights, model_type="bert", architectures=["BertModel"]
    )
    assert not ModelDirectory(folder).is_quantized
    assert not list(quantizers(qdq.load(folder)))
    assert not caplog.messages
    folder = golden_encoder.write(tmp_path / "d", model_type="bert", architectures=["BertModel"])
    assert not list(quantizers(qdq.load(folder)))
    assert "40 ranges of pytorch-quantization" in caplog.text
    assert "qdq convert --from pytorch-quantization keeps them" in caplog.text


def test_calibration_gets_the_float_model(golden_encoder: Golden, tmp_path: Path) -> None:
    model = load_model(golden_encoder.write(tmp_path / "c"))
    assert not list(quantizers(model))
    assert_same_outputs(model, float_model(golden_encoder), golden_encoder.inputs)


@pytest.mark.parametrize(
    ("key", "shape", "granularity"),
    [
        (SOFTMAX, (), PerTensor()),
        (SOFTMAX, (1,), PerTensor()),
        (SOFTMAX, (1, 1, 1, 1), PerTensor()),
        (WEIGHT_KEY, (20, 1), PerAxis(0)),
        (WEIGHT_KEY, (20,), PerAxis(0)),
        (WEIGHT_KEY, (1, 16), PerAxis(1)),
        (WEIGHT_KEY, (), PerTensor()),
        (WEIGHT_KEY, (1,), PerTensor()),
        (WEIGHT_KEY, (1, 1), PerTensor()),
    ],
    ids=str,
)
def test_shapes(key: str, shape: tuple[int, ...], granularity: PerTensor | PerAxis, golden_encoder: Golden) -> None:
    model = float_model(golden_encoder)
    amax = torch.rand(shape) + 0.5
    load_amax(model, {**golden_encoder.amax, key: amax})
    name = "encoder.layers.0." + ("attention.context.input" if key == SOFTMAX else "feed_forward.up.weight")
    assert spec_of(model, name) == QuantSpec(arithmetic="pytorch-quantization", granularity=granularity)
    quantizer = model.get_submodule(f"{name}_quantizer")
    assert torch.equal(quantizer.amax.flatten(), amax.flatten())  # type: ignore[operator]
    written = amax_tensors(model)[key]
    assert torch.equal(written.flatten(), amax.flatten())
    assert written.shape == {PerTensor(): (), PerAxis(0): (20, 1), PerAxis(1): (1, 16)}[granularity]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
def test_ranges_of_another_type(dtype: torch.dtype, golden_encoder: Golden) -> None:
    model = float_model(golden_encoder)
    load_amax(model, {key: value.to(dtype) for key, value in golden_encoder.amax.items()})
    for key, value in amax_tensors(model).items():
        assert torch.equal(value, golden_encoder.amax[key].to(dtype).float())


def test_what_the_file_does_not_tell(golden_encoder: Golden) -> None:
    four = {"bits": 4, "narrow_range": True, "arithmetic": "pytorch-quantization"}
    activation, weight = QuantSpec(**four), QuantSpec(**four, granularity=PerAxis(0))
    model = float_model(golden_encoder)
    load_amax(model, golden_encoder.amax, activation=activation, weight=weight)
    assert {q.spec for _, q in quantizers(model)} == {None, activation, weight}
    assert amax_tensors(model, activation=activation, weight=weight).keys() == golden_encoder.amax.keys()
    with pytest.raises(ExportError, match="40 problems"):
        amax_tensors(model)


DAMAGE: dict[str, tuple[str, Tensor, str]] = {
    "unknown-place": (f"{LAYER}.attention.self.matmul_x_input_quantizer._amax", torch.tensor(1.0), "no such quantizer"),
    "unknown-layer": (QUERY.replace("layer.0", "layer.7"), torch.tensor(1.0), "no such quantizer"),
    "unknown-leaf": (QUERY.replace("_amax", "_scale"), torch.tensor(1.0), "unexpected"),
    "pooler": ("pooler.dense._input_quantizer._amax", torch.tensor(1.0), "no such quantizer"),
    "learned": (QUERY.replace("_amax", "clip.clip_value_max"), torch.tensor(1.0), "learned range"),
    "several-numbers": (QUERY, torch.ones(16), r"shape \[16\], the range of an activation is one number"),
    "rows-of-another-weight": (WEIGHT_KEY, torch.ones(7, 1), r"shape \[7, 1\], the range of this weight is \[20, 1\]"),
    "negative": (QUERY, torch.tensor(-1.0), r"negative range \(-1\)"),
    "one-negative": (WEIGHT_KEY, torch.ones(20, 1).index_fill(0, torch.tensor(3), -2.0), "negative range"),
    "nan": (QUERY, torch.tensor(torch.nan), "NaN or infinite"),
    "infinite": (WEIGHT_KEY, torch.full((20, 1), torch.inf), "NaN or infinite"),
    "integers": (QUERY, torch.tensor(3), "int64, must be floating point"),
}


@pytest.mark.parametrize(("key", "value", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(key: str, value: Tensor, message: str, golden_encoder: Golden, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        qdq.load(golden_encoder.write(tmp_path / "c", {**golden_encoder.state, key: value}))
    assert key in str(caught.value)
    assert str(tmp_path / "c") in str(caught.value)


def test_all_problems_arrive_together_and_leave_the_model_alone(golden_encoder: Golden) -> None:
    model = float_model(golden_encoder)
    damage = {key: value for name, (key, value, _) in DAMAGE.items() if name in ("nan", "pooler", "one-negative")}
    with pytest.raises(CheckpointError) as caught:
        load_amax(model, {**golden_encoder.amax, **damage}, source="mine")
    assert str(caught.value).startswith("mine: 3 problems")
    assert all(key in str(caught.value) for key in damage)
    assert not list(quantizers(model))
    assert_same_outputs(model, float_model(golden_encoder), golden_encoder.inputs)


def test_refusals(golden_encoder: Golden, tmp_path: Path) -> None:
    model = float_model(golden_encoder)
    load_amax(model, golden_encoder.amax)
    with pytest.raises(RecipeError, match="quantized already"):
        load_amax(model, golden_encoder.amax)
    albert = build(configure("albert", num_hidden_layers=1, hidden_size=8, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ConfigError, match="'albert'"):
        load_amax(albert, {})
    with pytest.raises(ConfigError, match="must be eager"):
        qdq.load(golden_encoder.write(tmp_path / "c"), attn_implementation="sdpa")
    broken = {**golden_encoder.state, f"{LAYER}.output.dense.weight": torch.full((16, 20), torch.nan)}
    with pytest.raises(CheckpointError, match="NaN or infinite weights"):
        qdq.load(golden_encoder.write(tmp_path / "d", broken))


def test_a_directory_that_cannot_be_read_is_not_quantized(tmp_path: Path) -> None:
    assert not ModelDirectory(tmp_path / "nowhere").is_quantized
    (tmp_path / "config.json").write_text("{")
    assert not ModelDirectory(tmp_path).is_quantized


# --- query, key and value ---


def test_equal_ranges_are_shared(golden_encoder: Golden, caplog: pytest.LogCaptureFixture) -> None:
    model = float_model(golden_encoder)
    load_amax(model, golden_encoder.amax)
    attention = model.encoder.layers[0].attention  # type: ignore[union-attr]
    assert attention.query.input_quantizer is attention.key.input_quantizer is attention.value.input_quantizer
    assert attention.query.input_quantizer.readers == 3
    assert not caplog.records


def test_unequal_ranges_are_not(golden_encoder: Golden, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {**golden_encoder.state, KEY: golden_encoder.amax[KEY] * 0.5, VALUE: golden_encoder.amax[VALUE] * 0.25}
    with caplog.at_level(logging.WARNING):
        model = qdq.load(golden_encoder.write(tmp_path / "c", state))
    (record,) = caplog.records
    assert "1 tensors" in record.getMessage()
    assert "3 different ranges" in record.getMessage()
    names = [f"encoder.layers.0.attention.{name}" for name in ("query", "key", "value")]
    assert [str(slot) for slot in unshared_slots(model)] == [f"{name}.input" for name in names]
    for name, key in zip(names, (QUERY, KEY, VALUE), strict=True):
        assert torch.equal(model.get_submodule(f"{name}.input_quantizer").amax, state[key])  # type: ignore[arg-type]
    other = model.encoder.layers[1].attention  # type: ignore[union-attr]
    assert other.query.input_quantizer is other.key.input_quantizer, "the layer beside is as it was"

    qdq.save(model, tmp_path / "q", recipe=qdq.load_recipe("qdqbert"), calibration={})
    again = qdq.load(tmp_path / "q")
    assert_same_outputs(again, model, golden_encoder.inputs)
    assert unshared_slots(again) == unshared_slots(model)
    assert torch.equal(amax_tensors(again)[KEY], state[KEY])


# --- out ---


@pytest.mark.parametrize("kind", ["dynamic", "calibrated", "mixed"])
def test_our_checkpoint_keeps_every_bit(kind: str, golden: Golden, tmp_path: Path) -> None:
    keep = {"dynamic": lambda n: False, "calibrated": lambda n: True, "mixed": lambda n: n % 3 != 0}[kind]
    amax = {key: value for n, (key, value) in enumerate(golden.amax.items()) if keep(n)}
    model = qdq.load(golden.write(tmp_path / "theirs", {**golden.weights, **amax}))
    qdq.save(model, tmp_path / "ours", recipe=qdq.load_recipe("qdqbert"), calibration={})
    again = qdq.load(tmp_path / "ours")
    assert_same_outputs(again, model, golden.inputs)
    back = amax_tensors(again)
    assert back.keys() == amax.keys()
    assert all(torch.equal(back[key], amax[key]) and back[key].shape == amax[key].shape for key in amax)


def test_the_way_back_is_the_way_here(golden: Golden, tmp_path: Path) -> None:
    model = qdq.load(golden.write(tmp_path / "theirs"))
    save(model, tmp_path / "again")
    written = load_file(tmp_path / "again" / "model.safetensors")
    # upstream gives a tied table twice
    assert golden.state.keys() - written.keys() <= {"cls.predictions.decoder.weight"}
    assert written.keys() <= golden.state.keys()
    for key, tensor in written.items():
        assert torch.equal(tensor, golden.state[key]), key
        assert tensor.shape == golden.state[key].shape, key
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qdqbert", golden.config["architectures"])
    assert_same_outputs(qdq.load(tmp_path / "again"), model, golden.inputs)


def test_a_model_calibrated_here_goes_over(golden_classifier: Golden, tmp_path: Path) -> None:
    """The same keys as after upstream's own calibration, and the same ranges of the weights, which need no data."""
    model = load_model(golden_classifier.write(tmp_path / "c"))
    recipe = qdq.load_recipe("qdqbert")
    qdq.quantize(model, recipe)
    qdq.calibrate(model, [golden_classifier.inputs])
    set_mode(model, Mode.QUANTIZE)
    save(model, tmp_path / "over")
    loaded = qdq.load(tmp_path / "over")
    found = amax_tensors(loaded)
    assert found.keys() == golden_classifier.amax.keys()
    for key in found:
        if "_weight_quantizer" in key:
            torch.testing.assert_close(found[key], golden_classifier.amax[key], rtol=2e-7, atol=0)
    for got, want in zip(
        outputs(loaded, golden_classifier.inputs), outputs(model, golden_classifier.inputs), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-3)


def without_softmax(model: Model) -> None:
    qdq.apply_recipe(model, qdq.load_recipe("qdqbert").restrict(exclude=["*.attention.context.input"]))


def affine(model: Model) -> None:
    qdq.apply_recipe(model, qdq.load_recipe("onnxruntime"))


def uncalibrated(model: Model) -> None:
    for _, quantizer in quantizers(model):
        if quantizer.spec is not None and hasattr(quantizer, "scale"):
            quantizer.scale.fill_(torch.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without_softmax,
            r"2 problems\n.*encoder.layers.0.attention.context.input: is float, but QDQBERT quantizes it",
        ),
        (affine, "embeddings.word.weight: is quantized, but is float in QDQBERT"),
        (uncalibrated, "encoder.layers.0.attention.query.input: is not calibrated"),
    ],
    ids=["float-there", "affine-and-more", "uncalibrated"],
)
def test_what_upstream_could_not_compute(
    change: Callable[[Model], None], message: str, golden_encoder: Golden, tmp_path: Path
) -> None:
    model = float_model(golden_encoder)
    load_amax(model, golden_encoder.amax)
    change(model)
    with pytest.raises(ExportError, match=message):
        save(model, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_other_families_are_not_written(golden_encoder: Golden, tmp_path: Path) -> None:
    model = float_model(golden_encoder, model_type="bert", architectures=["BertModel"])
    with pytest.raises(ExportError, match="the model has no slots"):
        amax_tensors(model)
    load_amax(model, golden_encoder.amax)
    assert amax_tensors(model).keys() == golden_encoder.amax.keys()
    with pytest.raises(ConfigError, match="'bert'"):
        save(model, tmp_path / "c")


def test_the_package_is_not_needed(golden_encoder: Golden, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pytorch_quantization'] = None\n"
        "import qdq, qdq.interop.pytorch_quantization as way\n"
        "model = qdq.load(sys.argv[1]); way.save(model, sys.argv[1] + '-again')\n"
        "try: way.from_live(model)\n"
        "except qdq.QDQError as error: print(error.exit_code, error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(golden_encoder.write(tmp_path / "c"))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("3 converting modules of pytorch-quantization needs")
    assert "pip install 'qdq[pytorch-quantization]'" in result.stdout
