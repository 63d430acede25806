"""``qdq lint``: exit codes, the document, and repaired copies."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Refused, Run


@pytest.fixture
def broken(exports: dict[str, Path], tmp_path: Path) -> Path:
    """An export in which one weight has a scale of 0, and one a scale of its own type."""
    folder = tmp_path / "broken"
    shutil.copytree(exports["tensorrt"], folder)
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "encoder.layers.0.attention.output.weight_quantizer.scale":
            scale = onnx.numpy_helper.to_array(tensor).copy()
            scale[3] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(scale, tensor.name))
    onnx.save(model, folder / "model.onnx")
    return folder


def test_a_clean_export(run: Run, exports: dict[str, Path]) -> None:
    ended = run("lint", exports["tensorrt"], "--target", "tensorrt:10.16", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["counts"]["error"] == 0
    assert ended.document["version"] == "10.16"


def test_errors_end_with_1_and_are_told_with_node_rule_and_cure(run: Run, broken: Path) -> None:
    ended = run("lint", broken, "--json")
    assert ended.code == 1
    finding = next(f for f in ended.document["findings"] if f["id"] == "E1")
    assert finding["severity"] == "error"
    assert finding["node"].startswith("encoder.layers.0.attention.output.weight_quantizer")
    assert finding["cure"]
    assert finding["source"]
    assert ended.document["kind"] == "VerificationError"
    shown = run("lint", broken)
    assert shown.code == 1
    assert "E1" in shown.out
    assert "scales are constants above 0" in shown.out
    assert shown.err.startswith(f"error: {broken} is not ready for tensorrt: ")


def test_strict_ends_with_1_on_warnings(run: Run, exports: dict[str, Path]) -> None:
    arguments = ["lint", exports["tensorrt"], "--min-shapes", "1x8", "--opt-shapes", "1x8", "--max-shapes", "1x9"]
    loose, strict = run(*arguments), run(*arguments, "--strict")
    warned = run(*arguments, "--json").document["counts"]["warning"] > 0
    assert loose.code == 0
    assert strict.code == int(warned)


def test_a_repaired_copy_is_clean_and_the_original_stays(run: Run, broken: Path, tmp_path: Path) -> None:
    before = (broken / "model.onnx").read_bytes()
    ended = run("lint", broken, "--fix", tmp_path / "fixed.onnx", "--json")
    assert ended.code == 0
    (line,) = ended.document["repairs"]
    assert line.endswith("1 of 32 scales are above 0 now")
    assert (broken / "model.onnx").read_bytes() == before
    model = onnx.load(tmp_path / "fixed.onnx")
    onnx.checker.check_model(model, full_check=True)
    scales = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if "quantizer.scale" in t.name]
    assert all((scale > 0).all() for scale in scales)
    assert run("lint", tmp_path / "fixed.onnx").code == 0


def test_the_original_is_not_written_over(refused: Refused, exports: dict[str, Path]) -> None:
    path = exports["tensorrt"] / "model.onnx"
    assert "choose another name" in refused("lint", path, "--fix", path)


def test_the_installed_parser_is_asked(run: Run, broken: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'qdq[tensorrt-rtx]'")
    ended = run("lint", broken, "--parse", "--json")
    told = [f for f in ended.document["findings"] if f["id"] == "I3"]
    assert "Scale coefficients must all be positive" in told[0]["fault"]


def test_garbage_and_nothing(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"xx")
    assert "not an ONNX file" in refused("lint", tmp_path / "a.onnx")
    assert "no such file" in refused("lint", tmp_path / "none")
    assert "tensorrt:12" not in refused("lint", tmp_path / "a.onnx", "--target", "tensorrt:12.0")


def test_shapes_that_cannot_be_read(refused: Refused, exports: dict[str, Path]) -> None:
    message = refused("lint", exports["tensorrt"], "--min-shapes", "1xa")
    assert "is not of the form input_ids:8x128" in message
    assert "profile 0 has no --opt-shapes" in message


def test_another_targets_export_is_refused_with_the_reason(run: Run, exports: dict[str, Path]) -> None:
    ended = run("lint", exports["onnxruntime"], "--json")
    assert ended.code == 1
    assert {"E8"} <= {finding["id"] for finding in ended.document["findings"]}


def test_zeros_of_a_repaired_weight_are_still_zeros(run: Run, broken: Path, tmp_path: Path) -> None:
    run("lint", broken, "--fix", tmp_path / "fixed.onnx")
    scale = next(
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "fixed.onnx").graph.initializer
        if tensor.name.startswith("encoder.layers.0.attention.output.weight_quantizer.scale")
    )
    assert np.float16(scale.min()) > 0
    assert scale.min() * 128 < 1e-4
