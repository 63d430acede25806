"""``qdq export``: every target from one checkpoint, and everything that it refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Refused, Run

FILES = {".qdq.json", "config.json", "export.json", "model.onnx", "vocab.txt"}
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
OUTPUTS = ["last_hidden_state", "pooler_output"]


@pytest.mark.parametrize("name", ["float", "onnxruntime", "openvino", "tensorrt"])
def test_the_files(exports: dict[str, Path], checkpoint: Path, name: str) -> None:
    folder = exports[name]
    assert {path.name for path in folder.iterdir()} == FILES
    record = json.loads((folder / "export.json").read_text())
    assert (record["target"], record["opset"]) == (name, 23 if name == "onnxruntime" else 21)
    assert (record["inputs"], record["outputs"]) == (INPUTS, OUTPUTS)
    assert (folder / "vocab.txt").read_bytes() == (checkpoint / "vocab.txt").read_bytes()
    model = onnx.load(folder / "model.onnx")
    assert [value.name for value in model.graph.input] == INPUTS
    assert [value.name for value in model.graph.output] == OUTPUTS
    stored = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    assert ("INT8" in stored) == (name != "float")


def test_the_document(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["-m", checkpoint, "-o", tmp_path / "out", "--target", "onnxruntime", "--opset", 20, "--json"]
    ended = run("export", *arguments)
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    assert document["output"] == str(tmp_path / "out")
    assert document["bytes"] == (tmp_path / "out" / "model.onnx").stat().st_size
    assert (document["target"], document["opset"], document["recipe"]) == ("onnxruntime", 20, None)
    assert (document["inputs"], document["outputs"]) == (INPUTS, OUTPUTS)
    domains = {entry.domain: entry.version for entry in onnx.load(tmp_path / "out" / "model.onnx").opset_import}
    assert domains[""] == 20
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_people_see_when_the_recipe_changes(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    ended = run("export", "-m", checkpoint, "-o", tmp_path / "out", "--target", "tensorrt")
    assert ended.code == 0
    assert f"{tmp_path / 'out' / 'model.onnx'}: " in ended.out
    assert "opset 21" in ended.out
    assert "input_ids, attention_mask, token_type_ids -> last_hidden_state, pooler_output" in ended.out
    assert "tensorrt" in ended.err  # the note: the checkpoint's own recipe does not run there
    assert json.loads((tmp_path / "out" / "export.json").read_text())["recipe"]["name"] == "tensorrt"


CHOICES: dict[str, tuple[list[object], tuple[str, ...]]] = {
    "unknown target": (["--target", "tflite"], ("'tflite'", "onnxruntime", "openvino", "tensorrt")),
    "opset too old": (["--target", "onnxruntime", "--opset", 17], ("opset 17", "18", "25")),
    "opset too new": (["--target", "onnxruntime", "--opset", 26], ("opset 26", "18", "25")),
    "float and a target": (["--float", "--target", "openvino"], ("--target", "--float")),
    "neither float nor a target": ([], ("--target", "onnxruntime|tensorrt|openvino", "--float")),
    "float with a recipe": (["--float", "--recipe", "linear"], ("--recipe", "--float")),
    "a pooling that is none": (["--float", "--pooling", "middle"], ("--pooling middle", "auto, mean, cls, max")),
    "a cache of an encoder": (["--float", "--cache", "step"], ("a cache is for decoders",)),
    "a type that the target has not": (["--target", "onnxruntime", "--dtype", "fp16"], ("onnxruntime has no fp16",)),
    "unknown recipe": (["--target", "openvino", "--recipe", "int4"], ("'int4'", "qdqbert")),
    "an instruction set that is none": (["--target", "onnxruntime", "--isa", "sse"], ("'sse'", "avx2", "vnni", "auto")),
    "an instruction set elsewhere": (["--target", "openvino", "--isa", "arm"], ("is for the target onnxruntime",)),
    "tuned for another target": (["--target", "openvino", "--tune"], ("--tune", "--target onnxruntime")),
    "a shape that is none": (["--target", "onnxruntime", "--tune", "--shape", "8"], ("--shape 8", "8x128")),
    "a cosine that is none": (["--target", "onnxruntime", "--tune", "--min-cosine", 2], ("2, must be from -1 to 1",)),
    "a recipe that the target cannot run": (
        ["--target", "tensorrt", "--recipe", "onnxruntime"],
        ("tensorrt cannot run this recipe", "encoder.layers.0.attention.query.input", "symmetric int8"),
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choices_that_do_not_exist(case: str, refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
    options, phrases = CHOICES[case]
    message = refused("export", "-m", checkpoint, "-o", tmp_path / "new" / "out", *options)
    assert [phrase for phrase in phrases if phrase not in message] == [], message


def test_a_float_checkpoint_has_nothing_to_quantize_with(refused: Refused, model: Path, tmp_path: Path) -> None:
    message = refused("export", "-m", model, "-o", tmp_path / "out", "--target", "onnxruntime", kind="ExportError")
    assert "quantize" in message
    assert "calibrate" in message


@pytest.mark.parametrize("name", ["quantization.json", "quantizers.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}"], ids=["missing", "empty", "braces"])
def test_damaged_checkpoints(
    name: str, content: bytes | None, refused: Refused, model_folders: ModelFolders, checkpoint: Path, tmp_path: Path
) -> None:
    damaged = model_folders.copy(checkpoint, tmp_path / "damaged")
    (damaged / name).unlink()
    if content is not None:
        (damaged / name).write_bytes(content)
    arguments = ["-m", damaged, "-o", tmp_path / "out", "--target", "onnxruntime"]
    assert name in refused("export", *arguments, kind="CheckpointError")


class TestOutputThatIsNotOurs:
    """What is in the way stays as it was; ``refused`` compares the whole folder."""

    def test_a_file(self, refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_text("precious")
        assert "is a file" in refused("export", "-m", checkpoint, "-o", tmp_path / "model.onnx", "--float")

    def test_the_checkpoint(
        self, refused: Refused, model_folders: ModelFolders, checkpoint: Path, tmp_path: Path
    ) -> None:
        folder = model_folders.copy(checkpoint, tmp_path / "checkpoint")
        assert "another kind" in refused("export", "-m", folder, "-o", folder, "--float")

    def test_an_export_to_which_files_were_added(
        self, refused: Refused, model_folders: ModelFolders, checkpoint: Path, exports: dict[str, Path], tmp_path: Path
    ) -> None:
        folder = model_folders.copy(exports["float"], tmp_path / "out")
        (folder / "engine.plan").write_text("precious")
        assert "engine.plan" in refused("export", "-m", checkpoint, "-o", folder, "--float")


def test_a_form_of_choice_is_exported_and_proven(run: Run, model: Path, tmp_path: Path) -> None:
    form = ["--pooling", "auto", "--normalize", "--no-token-type-ids", "--int32-ids", "--dtype", "fp16"]
    ended = run("export", "-m", model, "-o", tmp_path / "out", "--float", *form)
    assert ended.code == 0, ended.err
    assert "input_ids, attention_mask -> sentence_embedding" in ended.out
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["form"] == {
        "pooling": "mean", "normalize": True, "token_type_ids": False, "int32_ids": True, "dtype": "fp16"
    }  # fmt: skip
    types = {value.type.tensor_type.elem_type for value in onnx.load(tmp_path / "out" / "model.onnx").graph.input}
    assert types == {onnx.TensorProto.INT32}
    proven = run("verify", "-m", model, tmp_path / "out", "--json")
    assert (proven.code, proven.document["faults"]) == (0, [])
    assert {row["output"] for row in proven.document["end_to_end"]} == {"sentence_embedding"}


@pytest.mark.slow
def test_tuned_for_this_machine(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    """Both forms are timed beside the float file, and the faster one that is close enough is written."""
    arguments = ["-m", checkpoint, "-o", tmp_path / "out", "--target", "onnxruntime", "--isa", "auto"]
    ended = run("export", *arguments, "--tune", "--rounds", 1, "--shape", "1x8", "--min-cosine", 0.5, "--threads", 1)
    assert ended.code == 0, ended.err
    tuning = json.loads((tmp_path / "out" / "export.json").read_text())["tuning"]
    rows = {row["name"]: row for row in tuning["rows"]}
    assert list(rows) == ["float", "as calibrated", "dynamic"]
    assert all(row["median_s"] > 0 and row["cosine"] > 0.5 for row in rows.values())
    fastest = max(("as calibrated", "dynamic"), key=lambda name: rows[name]["speedup"])
    assert tuning["chosen"] == fastest
    operators = {node.op_type for node in onnx.load(tmp_path / "out" / "model.onnx").graph.node}
    assert ("DynamicQuantizeLinear" in operators) == (fastest == "dynamic")
    assert f"chosen: {fastest}, the fastest of 2 at 1 x 8 with 1 threads" in ended.out
    assert max(map(len, ended.out.splitlines()[:-1])) <= 100
    shown = run("inspect", tmp_path / "out")
    assert "integer products for: " in shown.out
    message = run("export", *arguments, "--tune", "--rounds", 1, "--shape", "1x8", "--min-cosine", 1)
    assert message.code == 1
    assert "no recipe reaches a cosine of 1: 2 problems" in message.err
