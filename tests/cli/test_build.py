"""``qdq build`` and ``qdq inspect`` of an engine."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Refused, Run


SHAPES = ["--min-shapes", "1x4", "--opt-shapes", "2x8", "--max-shapes", "4x16"]


@pytest.fixture(scope="session")
def plan(exports: dict[str, Path], root: Path) -> Path:
    """An engine, built once; read only."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'qdq[tensorrt-rtx]'")
    path = root / "model.plan"
    command = [sys.executable, "-m", "qdq", "build", "-m", exports["tensorrt"], "-o", path, *SHAPES, "-q"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "linear layers in 8 bits" in done.stdout
    assert done.stderr == ""
    return path


def test_an_engine_and_its_record(run: Run, exports: dict[str, Path], plan: Path, tmp_path: Path) -> None:
    ended = run("build", "-m", exports["tensorrt"], "-o", tmp_path / "m.plan", *SHAPES, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    assert document["plan_bytes"] == (tmp_path / "m.plan").stat().st_size
    assert document["onnx_bytes"] == (exports["tensorrt"] / "model.onnx").stat().st_size
    assert document["report"]["counts"]["linear"] == {"in_8_bits": 6, "wanted": 6, "all": 7}
    assert document["profiles"][0]["max"]["input_ids"] == [4, 16]
    record = json.loads((tmp_path / "m.plan.json").read_text())
    assert record["report"] == document["report"]
    assert {path.name for path in tmp_path.iterdir()} == {"m.plan", "m.plan.json"}


def test_inspect_shows_what_was_built(run: Run, plan: Path) -> None:
    ended = run("inspect", plan, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    assert document["kind"] == "engine"
    assert document["report"]["counts"]["linear"]["in_8_bits"] == 6
    assert len(document["layers"]) == document["report"]["kernels"]
    shown = run("inspect", plan)
    assert "residual additions fused" in shown.out
    assert "gemm" in run("inspect", plan, "-v").out


def test_a_plan_without_record_or_with_another(refused: Refused, plan: Path, tmp_path: Path) -> None:
    other = tmp_path / "m.plan"
    other.write_bytes(plan.read_bytes())
    assert "m.plan.json, which qdq build writes beside it and which says what it computes, is missing" in refused(
        "inspect", other
    )
    (tmp_path / "m.plan.json").write_text(plan.with_name("model.plan.json").read_text())
    other.write_bytes(plan.read_bytes()[:-1])
    assert "belongs to another engine" in refused("inspect", other)
    (tmp_path / "m.plan.json").write_text("{")
    assert "not valid JSON" in refused("inspect", other)


def test_the_same_build_for_trtexec(run: Run, exports: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["build", "-m", exports["tensorrt"], "-o", tmp_path / "m.plan", *SHAPES, "--workspace", "4096"]
    ended = run(*arguments, "--print-trtexec")
    assert ended.code == 0
    words = shlex.split(ended.out.replace("\\\n", " "))
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    assert words == [
        "trtexec",
        f"--onnx={exports['tensorrt'] / 'model.onnx'}",
        "--stronglyTyped",
        f"--saveEngine={tmp_path / 'm.plan'}",
        "--minShapes=" + ",".join(f"{name}:1x4" for name in inputs),
        "--optShapes=" + ",".join(f"{name}:2x8" for name in inputs),
        "--maxShapes=" + ",".join(f"{name}:4x16" for name in inputs),
        "--memPoolSize=workspace:4096",
        "--noTF32",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={tmp_path / 'm.plan'}.layers.json",
        "--skipInference",
    ]
    assert list(tmp_path.iterdir()) == []


def test_the_same_build_for_polygraphy_is_taken_by_polygraphy(
    run: Run, exports: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("polygraphy", reason="needs polygraphy: pip install polygraphy")
    arguments = ["build", "-m", exports["tensorrt"], "-o", tmp_path / "m.plan", *SHAPES, "--optimization-level", "2"]
    words = run(*arguments, "--workspace", "512", "--version-compatible", "--print-polygraphy", "--json").document
    line = words["polygraphy"]
    assert line[:2] == ["polygraphy", "run"]
    # polygraphy writes a script of what it would run: every option is known to it.
    tool = Path(sys.executable).with_name("polygraphy")
    command = [str(tool), *line[1:], "--gen-script", str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    script = (tmp_path / "script.py").read_text()
    assert "strongly_typed=True" in script
    assert "min=(1, 4), opt=(2, 8), max=(4, 16)" in script.replace("[", "(").replace("]", ")")
    assert "builder_optimization_level=2" in script


def test_problems_are_told_together(refused: Refused, exports: dict[str, Path], tmp_path: Path) -> None:
    shapes = ["--min-shapes", "4x8", "--opt-shapes", "2x8", "--max-shapes", "1x900"]
    message = refused("build", "-m", exports["tensorrt"], "-o", tmp_path / "m.plan", *shapes, "--refit")
    assert "input_ids must grow from min to max" in message
    assert "900 tokens, but the model has 48 positions" in message
    assert "cannot be refitted" in message


def test_what_cannot_be_built(refused: Refused, exports: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"xx")
    assert "not an ONNX file" in refused("build", "-m", tmp_path / "a.onnx", "-o", tmp_path / "m.plan")
    assert "name a file" in refused("build", "-m", exports["tensorrt"], "-o", tmp_path)
    assert "no backend 'cuda'" in refused(
        "build", "-m", exports["tensorrt"], "-o", tmp_path / "m.plan", "--backend", "cuda", *SHAPES
    )


def test_what_tensorrt_refuses_comes_with_what_the_lint_finds(
    refused: Refused, exports: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'qdq[tensorrt-rtx]'")
    message = refused("build", "-m", exports["onnxruntime"], "-o", tmp_path / "m.plan", *SHAPES)
    assert "cannot read" in message
    assert "what qdq lint finds" in message
    assert "E8" in message


def test_full_tensorrt_that_is_not_installed_ends_with_3(
    refused: Refused, exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporters.tensorrt import backend

    monkeypatch.setattr(backend, "_imported", lambda package: None)
    message = refused(
        "build", "-m", exports["tensorrt"], "-o", tmp_path / "m.plan", *SHAPES, code=3, kind="MissingTensorRTError"
    )
    assert "pip install 'qdq[tensorrt-rtx]'" in message
    assert "pip install tensorrt" in message


def test_without_a_gpu_an_engine_can_neither_be_evaluated_nor_timed_nor_proven(
    refused: Refused, exports: dict[str, Path], checkpoint: Path, plan: Path, tmp_path: Path
) -> None:
    from exporters.tensorrt.nvidia_driver import driver_problem

    if driver_problem() is None:
        pytest.skip("there is a GPU")
    (tmp_path / "pairs.tsv").write_text("score\tsentence1\tsentence2\n1\ta man\ta man\n0\ta man\tno\n")
    data = ["--task", "sts", "--data", tmp_path / "pairs.tsv"]
    for arguments in (
        ["evaluate", plan, *data],
        ["benchmark", exports["float"], "--engine", plan],
        ["verify", exports["tensorrt"], "-m", checkpoint, "--engine", plan],
    ):
        assert "needs an NVIDIA GPU, and " in refused(*arguments, kind="BuildError")
