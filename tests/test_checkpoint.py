"""Quantized checkpoints: the same numbers after a round trip, and one CheckpointError for every kind of damage."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import calibration
from qdq.checkpoint import load, save
from qdq.errors import CalibrationError, CheckpointError, ConfigError, QDQError, StorageError
from qdq.models.huggingface import save_model
from qdq.models.registry import FAMILIES, build, configure
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.quantization.spec import QuantSpec
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import apply_recipe, quantize
from qdq.recipes.recipe import Recipe, Rule, load_recipe, presets
from qdq.source import ModelDirectory, read_quantization

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qdq.models.model import Model

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
OWN = {"albert": {"embedding_size": 8}}
ENCODERS = [name for name in FAMILIES if name != "realm"]
QUERY = "encoder.layers.0.attention.query"
DOWN = "encoder.layers.1.feed_forward.down"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The tensors here are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


def tiny(model_type: str = "bert", task: str = "feature-extraction") -> Model:
    torch.manual_seed(4)
    return build(configure(model_type, **{**SMALL, **OWN.get(model_type, {})}), task).eval()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(5, SMALL["vocab_size"], (3, 9), generator=torch.Generator().manual_seed(8))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model: Model) -> list[Tensor]:
    with torch.no_grad():
        return [value for value in model(**batch(), return_dict=False) if isinstance(value, Tensor)]


def saved(path: Path, preset: str = "qdqbert", **settings: str) -> Model:
    model = quantize(tiny(**settings), preset)
    summary = calibration.calibrate(model, [batch()])
    save(model, path, recipe=load_recipe(preset), calibration=summary.to_dict())
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint, not to be written to."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint"
    saved(path)
    return path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(whole, tmp_path / "checkpoint")


# --- round trip ---


@pytest.mark.parametrize(
    ("model_type", "task", "preset"),
    [
        *((name, "feature-extraction", "qdqbert") for name in ENCODERS),
        ("albert", "question-answering", "onnxruntime"),
        ("bert", "masked-lm", "onnxruntime"),
        ("bert", "sequence-classification", "tensorrt"),
        ("bert", "token-classification", "openvino"),
        ("roberta-prelayernorm", "sequence-classification", "linear"),
    ],
)
def test_round_trip_is_equal_to_the_bit(model_type: str, task: str, preset: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "c", preset, model_type=model_type, task=task)
    loaded = load(tmp_path / "c")
    for got, want in zip(outputs(loaded), outputs(model), strict=True):
        assert torch.equal(got, want)
    assert loaded.task == task
    assert not loaded.training
    want_state, got_state = model.state_dict(), loaded.state_dict()
    assert list(got_state) == list(want_state)
    assert all(torch.equal(got_state[name], want_state[name]) for name in want_state)
    for (slot, q), (other, expected) in zip(named_slots(loaded), named_slots(model), strict=True):
        assert slot == other
        assert q.spec == expected.spec
        assert q.mode is expected.mode
        if slot.name != "weight":
            assert (q.range.lower, q.range.upper, q.range.amax) == (
                expected.range.lower,
                expected.range.upper,
                expected.range.amax,
            )
    assert len(set(quantizers(loaded))) == len(set(quantizers(model))), "what was shared is shared again"


def test_second_save_is_the_same_file(folder: Path, tmp_path: Path) -> None:
    document = read_quantization(folder)
    again = tmp_path / "again"
    save(load(folder), again, recipe=Recipe.from_dict(document["recipe"]), calibration=document["calibration"])
    for name in ("quantization.json", "quantizers.safetensors", "model.safetensors", "config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_float_part_is_the_float_model_and_transformers_loads_it(whole: Path) -> None:
    want = outputs(tiny())
    theirs, info = transformers.AutoModel.from_pretrained(
        whole, attn_implementation="eager", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        got = theirs.eval()(**batch())
    torch.testing.assert_close(got.last_hidden_state, want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.pooler_output, want[1], rtol=1e-5, atol=1e-5)
    model = load(whole)
    set_mode(model, Mode.OFF)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), want, strict=True)), "to the bit in our own hands"
    set_mode(model, Mode.QUANTIZE)
    assert not torch.equal(outputs(model)[0], want[0])


def test_record_says_recipe_specs_and_data(whole: Path) -> None:
    document = read_quantization(whole)
    assert document["format"] == 3
    assert Recipe.from_dict(document["recipe"]) == load_recipe("qdqbert")
    assert len(document["slots"]) == 40
    assert QuantSpec.from_dict(document["slots"][f"{QUERY}.input"]) == QuantSpec()
    assert document["calibration"]["samples"] == 3
    assert document["calibration"]["method"] == {"name": "max"}


@pytest.mark.parametrize("preset", [name for name in presets() if name != "qdqbert"])
def test_loaded_checkpoint_can_change_its_recipe(whole: Path, preset: str) -> None:
    direct = quantize(tiny(), preset)
    calibration.calibrate(direct, [batch()])
    model = load(whole)
    apply_recipe(model, load_recipe(preset))
    set_mode(model, Mode.QUANTIZE)
    assert torch.equal(outputs(model)[0], outputs(direct)[0])


def test_float_checkpoint_loads_as_it_is(tmp_path: Path) -> None:
    model = tiny()
    save_model(model, tmp_path)
    loaded = load(tmp_path)
    assert not ModelDirectory(tmp_path).is_quantized
    assert not any(quantizers(loaded))
    assert torch.equal(outputs(loaded)[0], outputs(model)[0])
    with pytest.raises(CheckpointError, match=r"has no quantization\.json"):
        read_quantization(tmp_path)


def test_fused_attention_is_for_float_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be eager"):
        load(folder, attn_implementation="sdpa")
    save_model(tiny(), tmp_path)
    eager, fused = (load(tmp_path, attn_implementation=name) for name in ("eager", "sdpa"))
    for a, b in zip(outputs(eager), outputs(fused), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_tokenizer_and_sentence_transformers_files_come_along(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "1_Pooling").mkdir(parents=True)
    for name in ("vocab.txt", "1_Pooling/config.json", "notes.txt"):
        (source / name).write_text("{}")
    (source / "modules.json").write_text('[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]')
    model = quantize(tiny(), "linear")
    calibration.calibrate(model, [batch()])
    save(model, tmp_path / "c", recipe=load_recipe("linear"), calibration={}, source=source)
    copied = {str(path.relative_to(tmp_path / "c")) for path in (tmp_path / "c").rglob("*") if path.is_file()}
    assert {"vocab.txt", "modules.json", "1_Pooling/config.json"} <= copied
    assert "notes.txt" not in copied


def test_model_that_is_not_calibrated_is_not_saved(tmp_path: Path) -> None:
    recipe = load_recipe("linear")
    with pytest.raises(CalibrationError) as caught:
        save(quantize(tiny(), recipe), tmp_path / "c", recipe=recipe, calibration={})
    assert "8 problems" in str(caught.value)
    assert f"{DOWN}.input_quantizer" in str(caught.value)
    with pytest.raises(CalibrationError, match="no quantizers"):
        save(tiny(), tmp_path / "c", recipe=recipe, calibration={})
    assert not (tmp_path / "c").exists()


def test_newer_checkpoint_replaces_the_older(folder: Path) -> None:
    model = quantize(tiny(), "linear")
    calibration.calibrate(model, [batch()])
    save(model, folder, recipe=load_recipe("linear"), calibration={})
    assert len(read_quantization(folder)["slots"]) == 24
    assert torch.equal(outputs(load(folder))[0], outputs(model)[0])


# --- other tasks ---


def everything(task: str) -> tuple[Model, Recipe]:
    """A model whose head is quantized as well."""
    recipe = Recipe(name="all", rules=(Rule(module="*", kind="linear", slot="*", spec=QuantSpec()),))
    model = quantize(tiny(task=task), recipe)
    calibration.calibrate(model, [batch()])
    return model, recipe


def test_encoder_alone_of_a_checkpoint_with_a_head(tmp_path: Path) -> None:
    model, recipe = everything("sequence-classification")
    save(model, tmp_path / "c", recipe=recipe, calibration={})
    encoder = load(tmp_path / "c", "feature-extraction")
    with torch.no_grad():
        want = model(**batch(), output_hidden_states=True).hidden_states[-1]
    assert torch.equal(outputs(encoder)[0], want)
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path / "c", "masked-lm")


def test_fresh_head_on_a_quantized_encoder(whole: Path) -> None:
    model = load(whole, "sequence-classification", allow_missing={"head"})
    assert model.task == "sequence-classification"
    assert model.head.classifier.weight_quantizer.spec is None
    assert model.encoder.layers[0].attention.query.input_quantizer.mode is Mode.QUANTIZE


# --- damage ---


def edit_document(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    file = folder / "quantization.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    edit(document)
    file.write_text(json.dumps(document), encoding="utf-8")


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    file = folder / "quantizers.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def expect_problem(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    for word in words:
        assert word in str(caught.value)


def put(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({name: value})


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(
            lambda tensors: tensors.pop(f"{QUERY}.input_quantizer.scale"),
            [f"{QUERY}.input_quantizer: scale missing"],
            id="missing-scale",
        ),
        pytest.param(
            lambda tensors: [tensors.pop(f"{QUERY}.weight_quantizer.{key}") for key in ("scale", "zero_point")],
            [f"{QUERY}.weight_quantizer: scale and zero_point missing"],
            id="missing-both",
        ),
        pytest.param(
            put("encoder.layers.9.x.scale", torch.ones(())), ["encoder.layers.9.x.scale belongs to no"], id="extra"
        ),
        pytest.param(
            put(f"{QUERY}.input_quantizer.amaxx", torch.ones(())),
            [f"{QUERY}.input_quantizer: unexpected", "'amaxx'"],
            id="extra-in-slot",
        ),
        pytest.param(
            put(f"{QUERY}.weight_quantizer.lower", torch.ones(())), ["unexpected tensor 'lower'"], id="weight-range"
        ),
        pytest.param(
            put("pooler.dense.input_quantizer.scale", torch.ones(())),
            ["unexpected tensor 'scale'"],
            id="float-slot-scale",
        ),
        pytest.param(put("scale", torch.ones(())), ["scale belongs to no slot"], id="no-slot-at-all"),
        pytest.param(
            put(f"{QUERY}.input_quantizer.scale", torch.ones(3)), ["scale (3,)", "expected ()"], id="shape-tensor"
        ),
        pytest.param(
            put(f"{QUERY}.weight_quantizer.scale", torch.ones(3)), ["scale (3,)", "expected (16,)"], id="shape-axis"
        ),
        pytest.param(put(f"{QUERY}.input_quantizer.scale", torch.tensor(NAN)), ["finite and positive"], id="nan"),
        pytest.param(put(f"{QUERY}.input_quantizer.scale", torch.tensor(INF)), ["finite and positive"], id="infinite"),
        pytest.param(put(f"{QUERY}.input_quantizer.scale", torch.tensor(0.0)), ["finite and positive"], id="zero"),
        pytest.param(put(f"{QUERY}.input_quantizer.scale", torch.tensor(-1.0)), ["finite and positive"], id="negative"),
        pytest.param(
            put(f"{QUERY}.input_quantizer.scale", torch.tensor(1.0, dtype=torch.float16)),
            ["scale is torch.float16"],
            id="half-scale",
        ),
        pytest.param(
            put(f"{QUERY}.input_quantizer.zero_point", torch.tensor(300, dtype=torch.int32)),
            ["must be 0"],
            id="zero-point",
        ),
        pytest.param(
            put(f"{QUERY}.input_quantizer.zero_point", torch.tensor(0.5)),
            ["zero_point is torch.float32"],
            id="zero-point-float",
        ),
        pytest.param(
            put(f"{QUERY}.input_quantizer.lower", torch.tensor(NAN)), ["not a range: lower nan"], id="nan-range"
        ),
        pytest.param(
            put(f"{QUERY}.input_quantizer.lower", torch.tensor(1e9)),
            ["not a range: lower 1e+09"],
            id="range-upside-down",
        ),
        pytest.param(put(f"{QUERY}.input_quantizer.amax", torch.tensor(-1.0)), ["amax -1"], id="negative-amax"),
        pytest.param(put(f"{QUERY}.input_quantizer.amax", torch.ones(2)), ["must be three numbers"], id="range-shape"),
        pytest.param(
            lambda tensors: tensors.pop(f"{QUERY}.input_quantizer.upper"),
            ["must be three numbers"],
            id="incomplete-range",
        ),
    ],
)
def test_damaged_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], Any], words: list[str]) -> None:
    edit_tensors(folder, edit)
    expect_problem(folder, "quantizers.safetensors", *words)


def test_zero_point_out_of_the_integers_of_an_affine_slot(tmp_path: Path) -> None:
    saved(tmp_path / "c", "onnxruntime")
    edit_tensors(tmp_path / "c", put(f"{QUERY}.input_quantizer.zero_point", torch.tensor(256, dtype=torch.int32)))
    expect_problem(tmp_path / "c", f"{QUERY}.input_quantizer", "zero_point must lie in [0, 255]")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        pytest.param(
            lambda d: d.update(format=4), ["format 4 is not supported, this version reads 3"], id="newer-format"
        ),
        pytest.param(lambda d: d.pop("format"), ["format None"], id="no-format"),
        pytest.param(
            lambda d: d.clear() or d.update(format=1),
            ["3 problems", "recipe is", "slots is", "calibration is"],
            id="nothing-in-it",
        ),
        pytest.param(lambda d: d.update(slots=[1]), ["slots is missing"], id="slots-is-a-list"),
        pytest.param(
            lambda d: d["slots"].update({"encoder.layers.9.x.input": {}}),
            ["slot 'encoder.layers.9.x.input' does not exist"],
            id="unknown-slot",
        ),
        pytest.param(lambda d: d["slots"].update({"": {}}), ["slot '' does not exist"], id="empty-name"),
        pytest.param(
            lambda d: d["slots"][f"{QUERY}.input"].update(bitz=8),
            [f"slot {QUERY}.input: unknown key 'bitz'"],
            id="unknown-key",
        ),
        pytest.param(lambda d: d["slots"][f"{QUERY}.input"].update(bits=99), ["bits is 99"], id="bits"),
        pytest.param(
            lambda d: d["slots"].update({f"{QUERY}.input": 8}),
            [f"slot {QUERY}.input: its spec is 8"],
            id="spec-is-a-number",
        ),
        pytest.param(
            lambda d: d["slots"][f"{QUERY}.input"].update(granularity="per-axis(0)"),
            [f"{QUERY}.input", "is for weights"],
            id="per-axis-activation",
        ),
        pytest.param(
            lambda d: d["slots"][f"{QUERY}.weight"].update(granularity="per-axis(7)"),
            ["per-axis(7) does not exist"],
            id="no-such-axis",
        ),
        pytest.param(
            lambda d: d["slots"].pop(f"{DOWN}.input"),
            [f"{DOWN}.input_quantizer: unexpected tensor 'scale'"],
            id="slot-removed",
        ),
        pytest.param(
            lambda d: d["slots"][f"{QUERY}.weight"].update(granularity="per-tensor"),
            ["scale (16,)", "expected ()"],
            id="other-granularity",
        ),
        pytest.param(
            lambda d: d["slots"][f"{QUERY}.input"].update(bits=4),
            ["attention.key.input_quantizer: scale and zero_point missing"],
            id="unshared",
        ),
    ],
)
def test_damaged_record(folder: Path, edit: Callable[[dict[str, Any]], Any], words: list[str]) -> None:
    edit_document(folder, edit)
    expect_problem(folder, str(folder), *words)


def test_all_problems_of_the_tensors_come_together(folder: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{QUERY}.input_quantizer.scale"] = torch.tensor(NAN)
        tensors[f"{QUERY}.input_quantizer.amax"] = torch.tensor(INF)
        tensors[f"{DOWN}.weight_quantizer.scale"] = torch.ones(2, 2)
        del tensors[f"{DOWN}.input_quantizer.zero_point"]
        tensors["left.over"] = torch.ones(1)

    edit_tensors(folder, edit)
    expect_problem(
        folder,
        "5 problems",
        "finite and positive",
        "amax inf",
        "(2, 2)",
        f"{DOWN}.input_quantizer: zero_point missing",
        "left.over",
    )


def test_all_problems_of_the_record_come_together(folder: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        slots = document["slots"]
        slots["nowhere.input"] = {}
        slots[f"{QUERY}.input"] = {"bits": 1, "bitz": 2}
        slots[f"{DOWN}.weight"] = None

    edit_document(folder, edit)
    expect_problem(folder, "4 problems", "nowhere.input", "bits is 1", "'bitz'", "its spec is None")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"format": ' + b"1" * 5000 + b"}",
        b"NaN",
        bytes(64),
    ],
    ids=["empty", "cut", "null", "list", "text", "binary", "deep", "long-number", "nan", "zeros"],
)
def test_record_that_is_no_json(folder: Path, content: bytes) -> None:
    (folder / "quantization.json").write_bytes(content)
    expect_problem(folder, "quantization.json")


@pytest.mark.parametrize("name", ["quantization.json", "quantizers.safetensors", "model.safetensors", "config.json"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    words = {"model.safetensors": "no weights"}.get(name, name)
    expect_problem(folder, words)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    expect_problem(tmp_path / "nowhere", "nowhere")


@pytest.mark.parametrize("name", ["quantizers.safetensors", "model.safetensors"])
def test_truncated_tensors(folder: Path, name: str) -> None:
    file = folder / name
    content = file.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        expect_problem(folder, name, "damaged or incomplete")
    file.write_bytes(content + b"\0")
    expect_problem(folder, name)
    file.write_bytes(b"\xff" * 500)
    expect_problem(folder, name)


def test_directory_in_place_of_a_file(folder: Path) -> None:
    (folder / "quantizers.safetensors").unlink()
    (folder / "quantizers.safetensors").mkdir()
    with pytest.raises(StorageError, match=r"quantizers\.safetensors"):
        load(folder)


def test_weights_that_are_not_finite(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.attention.self.query.weight"][0, 0] = NAN
    save_file(tensors, file, metadata={"format": "pt"})
    expect_problem(folder, f"{QUERY}.weight", "NaN or infinite weights")


@pytest.mark.parametrize("name", ["quantization.json", "quantizers.safetensors"])
def test_random_damage_never_ends_in_another_error(folder: Path, name: str) -> None:
    """Bytes of the file, or of its header, replaced at random: it loads, or it is refused with an error of ours."""
    generator = torch.Generator().manual_seed(6)
    file = folder / name
    content = file.read_bytes()
    header = len(content) if name.endswith("json") else int.from_bytes(content[:8], "little") + 8
    errors = []
    for _ in range(60):
        damaged = bytearray(content)
        for position in torch.randint(0, header, (3,), generator=generator).tolist():
            damaged[position] = int(torch.randint(0, 256, (1,), generator=generator))
        file.write_bytes(damaged)
        try:
            load(folder)
        except QDQError as error:
            errors.append(str(error))
    assert len(errors) > 50
    assert all(str(folder) in error for error in errors)
