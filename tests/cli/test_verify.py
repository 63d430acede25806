"""``qdq verify``: what holds is shown with its figures, what does not ends with 1 and the first bad slot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Refused, Run, RunInProcess

NAMES = ["float", "onnxruntime", "openvino", "tensorrt"]


@pytest.mark.parametrize("name", NAMES)
def test_every_export_is_what_the_checkpoint_computes(
    run: Run, checkpoint: Path, exports: dict[str, Path], name: str
) -> None:
    ended = run("verify", "-m", checkpoint, exports[name], "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    assert document["holds"] is True
    assert document["faults"] == []
    assert {row["output"] for row in document["end_to_end"]} == {"last_hidden_state", "pooler_output"}
    assert {row["batch_size"] for row in document["end_to_end"]} == {1, 3, 8}
    assert sum(row["wrong"] for row in document["segments"]) == 0
    slots = {row["name"] for row in document["segments"]}
    assert ("encoder.layers.0.attention.query.input_quantizer" in slots) == (name != "float")
    assert {"last_hidden_state", "pooler_output"} <= slots


def test_what_people_see(run: Run, checkpoint: Path, exports: dict[str, Path]) -> None:
    ended = run("verify", "-m", checkpoint, exports["onnxruntime"], "-v")
    assert (ended.code, ended.err) == (0, "")
    by_segment, end_to_end = ended.out.split("End to end, in onnxruntime\n")
    lines = {line.split()[0]: line.split()[1:] for line in by_segment.splitlines() if line.strip()}
    document = run("verify", "-m", checkpoint, exports["onnxruntime"], "--json").document
    for row in document["segments"]:
        assert lines[row["name"].removesuffix("_quantizer")][:3] == [f"{row['values']:,}", str(row["ties"]), "0"]
    values = sum(row["values"] for row in document["segments"])
    assert lines["all"] == [str(len(document["segments"])), "segments", f"{values:,}", "0", "0"]
    rows = [line.split() for line in end_to_end.splitlines() if line.startswith(("last_hidden_state", "pooler_output"))]
    assert [(row[0], *row[1:4], row[5]) for row in rows] == [
        (row["output"], str(row["batch_size"]), "x", str(row["seq_len"]), f"{row['cosine']:.4f}")
        for row in document["end_to_end"]
    ]
    assert "-v shows all" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "-v shows all" in run("verify", "-m", checkpoint, exports["onnxruntime"]).out


def test_instruction_sets_are_simulated(run: Run, refused: Refused, checkpoint: Path, exports: dict[str, Path]) -> None:
    """These weights are overflow-safe: nothing of them can saturate."""
    ended = run("verify", "-m", checkpoint, exports["onnxruntime"], "--isa", "avx2", "--json")
    assert (ended.code, ended.document["saturation"]) == (0, [])
    assert "'sse'" in refused("verify", "-m", checkpoint, exports["onnxruntime"], "--isa", "sse", kind="ExportError")


class TestWhatDoesNotHold:
    @pytest.fixture
    def tampered(self, model_folders: ModelFolders, exports: dict[str, Path], tmp_path: Path) -> Path:
        """The scale that the last two linear layers' input is quantized with is 20 % off."""
        folder: Path = model_folders.copy(exports["openvino"], tmp_path / "tampered")
        model = onnx.load(folder / "model.onnx")
        (node,) = [
            node
            for node in model.graph.node
            if node.op_type == "QuantizeLinear" and "feed_forward.down.input" in node.name
        ]
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == node.input[1]]
        scale = numpy_helper.to_array(tensor) * np.float32(1.2)
        tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
        onnx.save(model, folder / "model.onnx")
        return folder

    def test_for_people(self, run: Run, checkpoint: Path, tampered: Path) -> None:
        ended = run("verify", "-m", checkpoint, tampered)
        assert ended.code == 1
        assert ended.err.startswith(f"error: {tampered} is not what {checkpoint} computes: ")
        assert "Traceback" not in ended.err
        assert "encoder.layers.0.feed_forward.down.input" in ended.err
        # The table shows what is wrong, and nothing else.
        by_segment = ended.out.split("End to end")[0].splitlines()[4:-5]
        assert [line.split()[0] for line in by_segment] == [
            "encoder.layers.0.feed_forward.down.input",
            "last_hidden_state",
            "pooler_output",
        ]

    def test_in_json(self, run: Run, checkpoint: Path, tampered: Path) -> None:
        ended = run("verify", "-m", checkpoint, tampered, "--json")
        assert ended.code == 1
        document = ended.document
        assert (document["holds"], document["kind"], document["exit_code"]) == (False, "VerificationError", 1)
        assert ended.err == f"error: {document['error']}\n"
        assert document["faults"][0].startswith("encoder.layers.0.feed_forward.down.input")
        wrong = [row["name"] for row in document["segments"] if row["wrong"]]
        # What follows is fed the right integers, and takes them for other values.
        assert wrong == ["encoder.layers.0.feed_forward.down.input_quantizer", "last_hidden_state", "pooler_output"]

    def test_in_a_process(self, process: RunInProcess, checkpoint: Path, tampered: Path) -> None:
        assert process("verify", "-m", checkpoint, tampered, "-q").code == 1

    def test_another_checkpoint(
        self, run: Run, exports: dict[str, Path], text: Path, model_folders: ModelFolders, tmp_path: Path
    ) -> None:
        other = model_folders.model(tmp_path / "other", initializer_range=0.3)
        arguments = ["-m", other, "-o", tmp_path / "quantized", "--calib-data", text, "-q"]
        assert run("calibrate", *arguments).code == 0
        ended = run("verify", "-m", tmp_path / "quantized", exports["onnxruntime"], "--json")
        assert ended.code == 1
        assert ended.document["faults"]


def test_a_float_checkpoint_has_no_int8_export(refused: Refused, model: Path, exports: dict[str, Path]) -> None:
    message = refused("verify", "-m", model, exports["onnxruntime"], kind="ExportError")
    assert "is not quantized" in message


EXPORTS: dict[str, tuple[str, bytes | None, tuple[str, ...]]] = {
    "no export.json": ("export.json", None, ("is not an export", "export.json")),
    "export.json is no JSON": ("export.json", b"{", ("export.json", "not valid JSON")),
    "export.json of another version": ("export.json", b'{"format": 99}', ("export.json", "format")),
    "no model.onnx": ("model.onnx", None, ("model.onnx", "missing")),
    "model.onnx is empty": ("model.onnx", b"", ("model.onnx",)),
    "model.onnx is no ONNX file": ("model.onnx", b"hello, I am no model\n" * 10, ("model.onnx",)),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_damaged_exports(
    case: str, refused: Refused, model_folders: ModelFolders, checkpoint: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    name, content, phrases = EXPORTS[case]
    damaged = model_folders.copy(exports["openvino"], tmp_path / "damaged")
    (damaged / name).unlink()
    if content is not None:
        (damaged / name).write_bytes(content)
    message = refused("verify", "-m", checkpoint, damaged, kind="CheckpointError")
    assert [phrase for phrase in phrases if phrase not in message] == [], message


def test_export_json_that_lacks_what_it_should_say(
    refused: Refused, model_folders: ModelFolders, checkpoint: Path, exports: dict[str, Path], tmp_path: Path
) -> None:
    damaged = model_folders.copy(exports["openvino"], tmp_path / "damaged")
    (damaged / "export.json").write_text(json.dumps({"format": 1}))
    message = refused("verify", "-m", checkpoint, damaged, kind="CheckpointError")
    assert [key for key in ("export.json", "target", "recipe", "inputs") if key not in message] == []


def test_a_folder_that_is_none(refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
    assert "nothing: no such directory" in refused("verify", "-m", checkpoint, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "is not an export" in refused("verify", "-m", checkpoint, tmp_path / "empty")
