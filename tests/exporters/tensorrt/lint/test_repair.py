"""Each repair: what was refused is read, and computes the same within the steps of the new grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.runners import OnnxRuntimeRunner
from exporters.tensorrt.build import build
from exporters.tensorrt.lint.comparison import check_same_results
from exporters.tensorrt.lint.lint import lint
from exporters.tensorrt.lint.repair import repair, repair_model
from exporters.tensorrt.onnx_file import read_onnx_file
from qdq.errors import ConfigError, VerificationError
from tests.exporters.tensorrt import defects

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.tensorrt.backend import Backend
    from tests.exporters.tensorrt.conftest import DefectPlanter

CURED = [
    "scale of 0",
    "negative scale",
    "scale in double",
    "zero point of 3",
    "uint8 weight",
    "uint8 activation",
    "int32 bias",
    "key with a scale of its own",
    "a tensor quantized twice",
]

FEED = {
    "input_ids": np.arange(1, 25).reshape(2, 12),
    "attention_mask": np.ones((2, 12), np.int64),
    "token_type_ids": np.zeros((2, 12), np.int64),
}


def run(path: Path) -> np.ndarray:
    return OnnxRuntimeRunner(path, optimize=False)(FEED)["last_hidden_state"]


@pytest.mark.parametrize("name", CURED)
def test_a_defect_is_cured(defect_planter: DefectPlanter, tmp_path: Path, name: str) -> None:
    defect = next(one for one in defects.DEFECTS if one.name == name)
    source = defect_planter.planted(defect.plant)
    done = repair(source.path, tmp_path / "fixed.onnx")
    assert done
    onnx.checker.check_model(str(tmp_path / "fixed.onnx"), full_check=True)
    assert lint(read_onnx_file(tmp_path / "fixed.onnx")).findings == ()
    assert repair(tmp_path / "fixed.onnx", tmp_path / "again.onnx") == []


@pytest.mark.parametrize("name", ["uint8 weight", "int32 bias", "key with a scale of its own", "scale of 0"])
def test_the_repaired_file_computes_what_the_other_did(
    defect_planter: DefectPlanter, tmp_path: Path, name: str
) -> None:
    defect = next(one for one in defects.DEFECTS if one.name == name)
    source = defect_planter.planted(defect.plant)
    repair(source.path, tmp_path / "fixed.onnx")
    found, expected = run(tmp_path / "fixed.onnx"), run(source.path)
    cosine = (found * expected).sum() / np.sqrt((found**2).sum() * (expected**2).sum())
    assert cosine > 0.99


@pytest.mark.parametrize("name", CURED[:7])
def test_tensorrt_reads_it_then(defect_planter: DefectPlanter, rtx: Backend, tmp_path: Path, name: str) -> None:
    defect = next(one for one in defects.DEFECTS if one.name == name)
    repair(defect_planter.planted(defect.plant).path, tmp_path / "fixed.onnx")
    source = read_onnx_file(tmp_path / "fixed.onnx")
    assert defect_planter.verdict(rtx, source, defect_planter.profiles(source, {}), upto="parse") == "accepts"


def test_a_weight_around_128_keeps_its_integers(defect_planter: DefectPlanter) -> None:
    def plant(model: ir.Model) -> None:
        one = defects.quantizer(model, defects.WEIGHT, "DequantizeLinear")
        stored = one.inputs[0].const_value.numpy()
        one.replace_input_with(0, defects.constant(model, "stored", (stored.astype(np.int16) + 128).astype(np.uint8)))
        one.replace_input_with(2, defects.constant(model, "zero", np.full(64, 128, np.uint8)))

    model = ir.load(defect_planter.path)
    before = model.graph.initializers[f"{defects.ATTENTION}.output.weight_quantized_transposed"].const_value.numpy()
    plant(model)
    repair_model(model)
    one = defects.quantizer(model, defects.WEIGHT, "DequantizeLinear")
    np.testing.assert_array_equal(one.inputs[0].const_value.numpy(), np.maximum(before, -128))
    assert one.inputs[0].dtype is ir.DataType.INT8


def test_a_file_without_defects_stays_as_it_is(small_model: Path, tmp_path: Path) -> None:
    assert repair(small_model, tmp_path / "same.onnx") == []
    np.testing.assert_array_equal(run(tmp_path / "same.onnx"), run(small_model))


def test_nan_has_no_cure(defect_planter: DefectPlanter, tmp_path: Path) -> None:
    defect = next(one for one in defects.DEFECTS if one.name == "scale NaN")
    assert repair(defect_planter.planted(defect.plant).path, tmp_path / "fixed.onnx") == []
    assert not lint(read_onnx_file(tmp_path / "fixed.onnx")).holds()


def test_the_original_and_foreign_files_are_kept(small_model: Path, tmp_path: Path) -> None:
    before = small_model.read_bytes()
    with pytest.raises(ConfigError, match="is read by this command"):
        repair(small_model, small_model)
    assert small_model.read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="cannot be recognized"):
        repair(small_model, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    repair(small_model, tmp_path / "fixed.onnx")
    repair(small_model, tmp_path / "fixed.onnx")  # an earlier copy is replaced


LEAST = float(np.finfo(np.float32).min)


def masked(path: Path, kind: type[np.generic], shape: tuple[int, ...] = (), *, zero: int, stored: int) -> Path:
    """Write a layer whose mask is the least float, quantized: 0 for what is visible, that number for what is not."""
    scale = np.float32(LEAST / (stored - zero))
    arrays = {
        "c": np.full(shape, stored, kind),
        "s": scale,
        "z": kind(zero),  # type: ignore[call-arg]
        "w": np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["c", "s", "z"], ["least"], name="least"),
        helper.make_node("Mul", ["m", "least"], ["bias"], name="bias"),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="dense"),
        helper.make_node("Add", ["h", "bias"], ["y"], name="add"),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in ("x", "m")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 16])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in arrays.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("kind", "shape", "zero", "stored"),
    [
        (np.uint8, (), 255, 0),
        (np.uint8, (1,), 255, 0),
        (np.int8, (), 127, -128),
        (np.int8, (), 0, -127),
        (np.uint16, (), 65535, 0),
    ],
)
def test_the_constant_of_a_mask_is_float_and_finite(
    rtx: Backend, tmp_path: Path, kind: type[np.generic], shape: tuple[int, ...], zero: int, stored: int
) -> None:
    path = masked(tmp_path / "mask.onnx", kind, shape, zero=zero, stored=stored)
    assert not lint(read_onnx_file(path)).holds(strict=True)
    assert repair(path, tmp_path / "fixed.onnx")
    proto = onnx.load(tmp_path / "fixed.onnx")
    assert [node.op_type for node in proto.graph.node] == ["Mul", "MatMul", "Add"]
    (least,) = [numpy_helper.to_array(one) for one in proto.graph.initializer if one.name != "w"]
    assert least.dtype == np.float32
    np.testing.assert_allclose(least, LEAST, rtol=1e-2)
    feed = {"x": np.ones((2, 16), np.float32), "m": np.zeros((2, 16), np.float32)}
    assert np.isfinite(OnnxRuntimeRunner(tmp_path / "fixed.onnx")(feed)["y"]).all()
    source = read_onnx_file(tmp_path / "fixed.onnx")
    assert lint(source).findings == ()
    build(source.path, tmp_path / "model.plan", profiles=None, backend=rtx)


def test_a_constant_that_became_infinite_is_named(tmp_path: Path) -> None:
    path = masked(tmp_path / "mask.onnx", np.int8, (1,), zero=0, stored=-128)
    proto = onnx.load(path)
    for one in proto.graph.initializer:
        if one.name == "s":
            one.CopyFrom(numpy_helper.from_array(np.float32(np.finfo(np.float32).max / 127), "s"))
    onnx.save(proto, path)
    problems = {finding.problem for finding in lint(read_onnx_file(path)).findings if finding.id == "W17"}
    assert problems == {"its constant dequantizes to infinity, and infinity times 0 is NaN"}
    done = repair(path, tmp_path / "fixed.onnx")
    assert done == ["least: its constant is finite now, it was rounded to infinity"]


def test_integers_that_another_operator_reads_stay_as_they_are(tmp_path: Path) -> None:
    arrays = {"s": np.float32(0.1), "z": np.uint8(100), "w": np.full((16, 16), 3, np.int8), "zw": np.int8(0)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "zw"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in ("x", "y")]
    graph = helper.make_graph(
        nodes, "g", value[:1], value[1:], [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "a.onnx")
    assert repair(tmp_path / "a.onnx", tmp_path / "fixed.onnx") == []


def test_a_copy_that_computes_something_else_is_not_written(small_model: Path, tmp_path: Path) -> None:
    proto = onnx.load(small_model)
    (norm,) = [one for one in proto.graph.initializer if one.name == f"{defects.FEED_FORWARD}.norm.weight"]
    weight = numpy_helper.to_array(norm)
    signs = np.where(np.arange(len(weight)) % 2, 1, -1).astype(np.float32)
    for factor, words in ((signs, "last_hidden_state has a cosine of"), (signs * np.nan, "NaN or infinity in")):
        norm.CopyFrom(numpy_helper.from_array(weight * factor, norm.name))
        onnx.save(proto, tmp_path / "other.onnx")
        with pytest.raises(VerificationError, match=words):
            check_same_results(small_model, tmp_path / "other.onnx", name="model.onnx")
    check_same_results(small_model, small_model, name="model.onnx")
