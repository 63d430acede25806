from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from exporters.directory import export, verify
from exporters.export_model import wrap_for_export
from exporters.interface import ExportInterface
from exporters.verification.inputs import verification_batches
from qdq.checkpoint import load, save
from qdq.errors import CheckpointError, ConfigError, ExportError, QDQError
from qdq.models.huggingface import read_config, save_model
from qdq.recipes.recipe import load_recipe
from qdq.source import EXPORT_FILE, MODEL_FILE, read_export

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels

COPIED_FILES = {
    "special_tokens_map.json": "{}",
    "modules.json": '[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]',
    "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}',
}


@pytest.fixture(scope="module")
def checkpoints(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``float`` and ``quantized``, by the recipe onnxruntime."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "float").mkdir()
    save_model(tiny_models.model(), folder / "float")
    for name, content in COPIED_FILES.items():
        (folder / "float" / name).parent.mkdir(exist_ok=True)
        (folder / "float" / name).write_text(content)
    model = tiny_models.calibrated("onnxruntime")
    recipe = load_recipe("onnxruntime")
    save(model, folder / "quantized", recipe=recipe, calibration={"name": "max"}, source=folder / "float")
    return folder


@pytest.fixture(scope="module")
def exports(checkpoints: Path) -> Path:
    """``float``, ``onnxruntime`` and ``tensorrt``, which takes another recipe than the checkpoint has."""
    folder = checkpoints / "exports"
    export(checkpoints / "float", folder / "float", target=None)
    export(checkpoints / "quantized", folder / "onnxruntime", target="onnxruntime")
    export(checkpoints / "quantized", folder / "tensorrt", target="tensorrt", opset=19)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["float", "onnxruntime", "tensorrt"])
def test_an_export_holds_model_configuration_and_tokenizer(checkpoints: Path, exports: Path, name: str) -> None:
    found = contents(exports / name)
    assert set(found) == {MODEL_FILE, EXPORT_FILE, "config.json", ".qdq.json", *COPIED_FILES}
    for copied, content in COPIED_FILES.items():
        assert found[copied].decode() == content
    assert read_config(exports / name) == read_config(checkpoints / "float")
    assert json.loads(found["config.json"])["architectures"] == ["BertModel"]


def test_export_json_says_what_was_exported(exports: Path) -> None:
    common = {
        "format": 1,
        "inputs": ["input_ids", "attention_mask", "token_type_ids"],
        "outputs": ["last_hidden_state", "pooler_output"],
        "form": {},
        "isa": "any",
        "pair_sums": {},
    }
    assert read_export(exports / "float") == {
        **common, "target": "float", "recipe": None, "opset": 21, "notes": []
    }  # fmt: skip
    assert read_export(exports / "onnxruntime") == {
        **common, "target": "onnxruntime", "recipe": None, "opset": 23, "notes": []
    }  # fmt: skip
    assert read_export(exports / "tensorrt") == {
        **common,
        "target": "tensorrt",
        "recipe": load_recipe("tensorrt").to_dict(),
        "opset": 19,
        "notes": ["The checkpoint's recipe cannot run on tensorrt: its ranges were used with the preset 'tensorrt'."],
    }
    assert onnx.load(exports / "tensorrt" / MODEL_FILE).opset_import[0].version == 19


@pytest.mark.parametrize("name", ["float", "onnxruntime", "tensorrt"])
def test_exports_are_proven_against_their_checkpoint(checkpoints: Path, exports: Path, name: str) -> None:
    checkpoint = checkpoints / ("float" if name == "float" else "quantized")
    report = verify(checkpoint, exports / name)
    assert report.problems == []
    assert len(report.end_to_end) == 6
    assert {"float": "onnxruntime", "tensorrt": "onnxruntime, optimizations off"}.get(name, name) == report.runtime


def test_a_float_export_of_a_quantized_checkpoint_is_its_float_model(checkpoints: Path, exports: Path) -> None:
    report = verify(checkpoints / "quantized", exports / "float")
    assert report.problems == []
    assert min(row.sqnr_db for row in report.end_to_end) > 100


def test_a_damaged_file_is_found(checkpoints: Path, exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "onnxruntime", tmp_path / "copy")
    proto = onnx.load(tmp_path / "copy" / MODEL_FILE)
    for tensor in proto.graph.initializer:
        if tensor.name == "encoder.layers.0.attention.key.weight_quantized_transposed":
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.roll(array, 1, axis=1), tensor.name))
    onnx.save(proto, tmp_path / "copy" / MODEL_FILE)
    report = verify(checkpoints / "quantized", tmp_path / "copy")
    assert report.problems[0].startswith("encoder.layers.0.attention.output.input_quantizer: ")


def test_other_inputs_can_be_given(checkpoints: Path, exports: Path) -> None:
    ids = torch.arange(1, 7).reshape(2, 3)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    report = verify(checkpoints / "quantized", exports / "onnxruntime", [batch])
    assert report.holds
    assert {(row.batch_size, row.seq_len) for row in report.end_to_end} == {(2, 3)}


def test_without_a_tokenizer_verification_uses_random_tokens_with_padding(checkpoints: Path) -> None:
    names = ("input_ids", "attention_mask")
    export_model = wrap_for_export(load(checkpoints / "float"), ExportInterface(token_type_ids=False))
    first, again = (verification_batches(checkpoints / "float", export_model) for _ in range(2))
    assert [tuple(batch["input_ids"].shape) for batch in first] == [(1, 40), (8, 32), (3, 40)]  # 40 positions
    assert all(tuple(batch) == names for batch in first)
    assert not all(batch["attention_mask"].all() for batch in first)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])


# What is in the way, and what cannot be


def test_an_older_export_is_replaced(checkpoints: Path, exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "onnxruntime", tmp_path / "out")
    export(checkpoints / "float", tmp_path / "out", target=None)
    assert read_export(tmp_path / "out")["target"] == "float"
    assert contents(tmp_path / "out")[MODEL_FILE] == contents(exports / "float")[MODEL_FILE]


def test_what_is_not_ours_stays(checkpoints: Path, tmp_path: Path) -> None:
    foreign, checkpoint = tmp_path / "foreign", tmp_path / "checkpoint"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    shutil.copytree(checkpoints / "quantized", checkpoint)
    for output in (foreign, checkpoint):
        before = contents(output)
        with pytest.raises(ConfigError, match=str(output)):
            export(checkpoints / "quantized", output, target="onnxruntime")
        assert contents(output) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "foreign"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"target": "tvm"}, "no target 'tvm'"),
        ({"target": "tensorrt", "opset": 17}, "opset 17 is not supported"),
        ({"target": "tensorrt", "opset": 0}, "opset 0 is not supported"),
        ({"target": "tensorrt", "recipe": "onnxruntime"}, "target tensorrt cannot run this recipe: 9 problems"),
        ({"target": "tensorrt", "recipe": "nonsense"}, "no recipe 'nonsense'"),
        ({"target": None, "recipe": "linear"}, "a recipe needs a target"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_nothing_is_written_when_it_cannot_be(
    checkpoints: Path, tmp_path: Path, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(QDQError, match=error):
        export(checkpoints / "quantized", tmp_path / "new" / "out", **options)
    assert not list(tmp_path.iterdir())


def test_targets_are_checked_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no target"):
        export(tmp_path / "missing", tmp_path / "out", target="tvm")
    with pytest.raises(CheckpointError, match="missing"):
        export(tmp_path / "missing", tmp_path / "out", target="tensorrt")


def test_a_failure_leaves_the_older_export_as_it_was(checkpoints: Path, exports: Path, tmp_path: Path) -> None:
    shutil.copytree(exports / "onnxruntime", tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ExportError, match="not quantized"):
        export(checkpoints / "float", tmp_path / "out", target="onnxruntime")
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_float_checkpoint_does_not_prove_a_quantized_export(checkpoints: Path, exports: Path) -> None:
    with pytest.raises(ExportError, match=r"exported for onnxruntime, but .*float is not quantized"):
        verify(checkpoints / "float", exports / "onnxruntime")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not an export of qdq"),
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object, not a list"),
        ('{"format": 2}', "not a format that this version reads"),
        ('{"format": 1, "target": "float"}', "2 problems\n  - recipe is missing\n  - inputs is missing"),
    ],
)
def test_what_is_no_export_of_ours_is_said(tmp_path: Path, content: str | None, words: str) -> None:
    (tmp_path / MODEL_FILE).touch()
    if content is not None:
        (tmp_path / EXPORT_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        read_export(tmp_path)


def test_an_export_that_is_nowhere_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory; give the directory of a"):
        read_export(tmp_path / "nowhere")
    (tmp_path / MODEL_FILE).touch()
    with pytest.raises(CheckpointError, match=f"{MODEL_FILE}: is a file, not a directory"):
        read_export(tmp_path / MODEL_FILE)


def test_an_export_without_its_model_is_incomplete(exports: Path, tmp_path: Path) -> None:
    shutil.copy(exports / "float" / EXPORT_FILE, tmp_path)
    with pytest.raises(CheckpointError, match=f"{MODEL_FILE} is missing"):
        read_export(tmp_path)


def test_the_former_name_of_the_interface_still_works(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="the argument form is named interface now"):
        export(checkpoints / "float", tmp_path / "out", target=None, form=ExportInterface(int32_ids=True))
    assert read_export(tmp_path / "out")["form"] == {"int32_ids": True}
