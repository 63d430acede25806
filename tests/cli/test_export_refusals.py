"""``qdq export`` where it cannot end well: one error, every culprit, and nothing half written."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

import qdq
from exporters.onnx import write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Refused, Run, RunInProcess

COMBINATIONS: dict[str, tuple[list[object], list[str]]] = {
    "half precision before opset 19": (["--float", "--dtype", "fp16", "--opset", 18], ["fp16 needs opset 19"]),
    "half precision for openvino": (["--target", "openvino", "--dtype", "bf16"], ["target openvino has no bf16"]),
    "a type that is none": (["--target", "tensorrt", "--dtype", "int8"], ["no type 'int8'", "fp32, fp16, bf16"]),
    "blocks before opset 21": (
        ["--target", "onnxruntime", "--recipe", "weight-only-int4", "--opset", 20],
        ["scales per group need opset 21 or above, this is 20"],
    ),
    "float8 for a target without": (["--target", "openvino", "--recipe", "fp8"], ["target openvino cannot run"]),
    "float8 before opset 19": (["--target", "tensorrt", "--recipe", "fp8", "--opset", 18], ["float8 needs opset 19"]),
    "everything at once": (
        ["--target", "onnxruntime", "--dtype", "fp16", "--opset", 17, "--isa", "sse"],
        ["3 problems", "opset 17", "onnxruntime has no fp16", "no instruction set 'sse'"],
    ),
}


@pytest.mark.parametrize("case", COMBINATIONS)
def test_combinations_that_do_not_exist(case: str, refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
    options, phrases = COMBINATIONS[case]
    message = refused("export", "-m", checkpoint, "-o", tmp_path / "new" / "out", *options, kind="ExportError")
    assert [phrase for phrase in phrases if phrase not in message] == [], message


def test_slots_without_range_are_all_named(refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
    """Ranges that the checkpoint's own recipe does not need, but the target's."""
    model, recipe = qdq.load(checkpoint), qdq.load_recipe("onnxruntime")
    attention = model.get_submodule("encoder.layers.0.attention")
    for name in ("scores.input", "scores.other", "context.other"):
        attention.get_submodule(f"{name}_quantizer").range = None  # type: ignore[assignment]
    qdq.save(model, tmp_path / "partly", recipe=recipe, calibration={}, source=checkpoint)
    arguments = ["-m", tmp_path / "partly", "-o", tmp_path / "out", "--target", "tensorrt"]
    message = refused("export", *arguments, kind="CalibrationError")
    named = [line for line in message.splitlines() if "no range for" in line]
    assert named == [
        f"  - no range for encoder.layers.0.attention.{name}_quantizer"
        for name in ("scores.input", "scores.other", "context.other")
    ]


def test_a_folder_of_somebody_else(refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    message = refused("export", "-m", checkpoint, "-o", tmp_path / "out", "--float", kind="ConfigError")
    assert message == f"{tmp_path / 'out'}: exists and was not made by qdq; choose another folder or remove it"


class TestAFullDisk:
    @pytest.mark.parametrize("external", [False, True], ids=["one file", "weights beside it"])
    def test_an_older_export_stays_and_nothing_else(
        self,
        external: bool,
        run: Run,
        model_folders: ModelFolders,
        checkpoint: Path,
        exports: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Of the folder around it, too, in which something hidden could be left."""
        out = model_folders.copy(exports["float"], tmp_path / "out")
        before = model_folders.contents(tmp_path)
        if external:
            monkeypatch.setattr(write, "EXTERNAL_ABOVE", 1000)
        with model_folders.files_of_at_most(20_000):
            ended = run("export", "-m", checkpoint, "-o", out, "--target", "onnxruntime", "--json")
        assert model_folders.contents(tmp_path) == before
        assert ended.code == 4
        assert ended.document == {"error": f"{out}: File too large", "kind": "StorageError", "exit_code": 4}

    @pytest.mark.slow
    def test_a_small_disk(self, process: RunInProcess, checkpoint: Path, tmp_path: Path) -> None:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a small disk here")
        try:
            ended = process("export", "-m", checkpoint, "-o", tmp_path / "new" / "out", "--float")
            assert ended.code == 4, ended.err
            assert ended.err == f"error: {tmp_path / 'new' / 'out'}: No space left on device\n"
            assert list(tmp_path.iterdir()) == []
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_proof_writes_nothing(
    run: Run,
    model_folders: ModelFolders,
    checkpoint: Path,
    exports: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither into its folders nor into the one that it is called in."""
    folders = (checkpoint, exports["onnxruntime"], tmp_path)
    before = [model_folders.contents(folder) for folder in folders]
    monkeypatch.chdir(tmp_path)
    ended = run("verify", "-m", checkpoint, exports["onnxruntime"], "--json")
    assert [model_folders.contents(folder) for folder in folders] == before
    assert ended.code == 0, ended.err
