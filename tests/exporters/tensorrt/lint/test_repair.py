"""Each repair: what was refused is read, and computes the same within the steps of the new grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters.runners import OnnxRuntimeRunner
from exporters.tensorrt.lint.lint import lint
from exporters.tensorrt.lint.repair import repair, repair_model
from exporters.tensorrt.onnx_file import read_onnx_file
from qdq.errors import ConfigError
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


def test_the_original_is_kept(small_model: Path) -> None:
    with pytest.raises(ConfigError, match="name another file"):
        repair(small_model, small_model)
