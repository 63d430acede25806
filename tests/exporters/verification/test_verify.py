from __future__ import annotations

import copy
import json
import math
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from calibration import calibrate
from exporters.onnx.export import export_onnx
from exporters.onnx.passes import integer_gemm
from exporters.verification.recording import TIE
from exporters.verification.similarity import EQUAL_DB
from exporters.verification.verify import Bounds, cosine, sqnr_db, verify
from qdq.errors import CheckpointError, DataError, ExportError
from qdq.models.outputs import BaseOutput
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.recipes.apply import apply_recipe, quantize
from qdq.recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from exporters.verification.report import VerificationReport
    from tests.exporters.conftest import TinyModels

LAYER = "encoder.layers.0"
RUNTIMES = {None: "onnxruntime", "onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "reference"}


def initializer(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def change(proto: onnx.ModelProto, name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = initializer(proto, name)
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(function(old.copy()).astype(old.dtype), name))


def node(proto: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(one for one in proto.graph.node if one.name == name)


Damage: TypeAlias = "Callable[[onnx.ModelProto], None]"
VerifyDamaged: TypeAlias = "Callable[[str, Damage], VerificationReport]"


@pytest.fixture
def verify_damaged(tiny_models: TinyModels, tmp_path: Path) -> VerifyDamaged:
    """Return a function that damages the file of a target and verifies it, with optimizations off."""

    def run(target: str, defect: Damage) -> VerificationReport:
        model, path, _ = tiny_models.exported(target)
        proto = onnx.load(path)
        defect(proto)
        onnx.save(proto, tmp_path / "damaged.onnx")
        return verify(model, tmp_path / "damaged.onnx", tiny_models.batches(model)[:2], runtime="reference")

    return run


# Good files


@pytest.mark.parametrize("target", RUNTIMES)
def test_good_exports_hold(tiny_models: TinyModels, target: str | None) -> None:
    model, path, _ = tiny_models.exported(target)
    batches = tiny_models.batches(model)
    report = verify(model, path, batches, runtime=RUNTIMES[target])
    assert report.problems == []
    assert report.holds
    inputs = [row.name for row in report.segments if row.unit == "steps"]
    assert len(inputs) == {None: 0, "onnxruntime": 4, "openvino": 4, "tensorrt": 8}[target]
    assert [row.name for row in report.segments[len(inputs) :]] == ["last_hidden_state", "pooler_output"]
    positions = sum(batch["input_ids"].numel() for batch in batches)
    assert report.segments[0].values == positions * 32
    assert all(row.wrong == 0 and row.ties <= row.values / 1000 for row in report.segments)
    shapes = [(row.output, row.batch_size, row.seq_len) for row in report.end_to_end]
    assert shapes == [(name, *b["input_ids"].shape) for b in batches for name in ("last_hidden_state", "pooler_output")]
    if target is not None:
        assert all(20 < row.expected_float_sqnr_db < 60 for row in report.end_to_end)


def test_the_report_is_plain_json(tiny_models: TinyModels) -> None:
    for target in (None, "onnxruntime"):
        model, path, _ = tiny_models.exported(target)
        document = verify(model, path, tiny_models.batches(model)[:1]).to_dict()
        assert json.loads(json.dumps(document, allow_nan=False)) == document
        assert document["holds"] is True
        assert set(document) == {
            *("holds", "first_wrong", "segments", "end_to_end", "bounds", "runtime", "faults", "saturation"),
        }


def test_the_model_is_left_as_it_was(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported("onnxruntime")
    before = [(name, one.mode, one.recorder) for name, one in quantizers(model)]
    verify(model, path, tiny_models.batches(model)[:1])
    assert [(name, one.mode, one.recorder) for name, one in quantizers(model)] == before


def test_without_openvino_the_report_says_what_ran(tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    model, path, _ = tiny_models.exported("openvino")
    report = verify(model, path, tiny_models.batches(model)[:1], runtime="openvino")
    assert report.runtime == "onnxruntime (openvino is not installed)"
    assert report.holds


# Planted defects: the first problem names the first place where the file differs


def scale(proto: onnx.ModelProto) -> None:
    change(proto, f"{LAYER}.feed_forward.up.input_quantizer.scale", lambda x: x * 1.01)


def weight_scale(proto: onnx.ModelProto) -> None:
    change(proto, f"{LAYER}.attention.value.weight_quantizer.scale", lambda x: x * 1.05)


def swapped_rows(proto: onnx.ModelProto) -> None:
    change(proto, f"{LAYER}.attention.query.weight_quantized_transposed", lambda x: x[:, [1, 0, *range(2, 32)]])


def bias(proto: onnx.ModelProto) -> None:
    change(proto, f"{LAYER}.feed_forward.up.bias", lambda x: x * 1.01)


def epsilon(proto: onnx.ModelProto) -> None:
    (attribute,) = (
        a for a in node(proto, f"{LAYER}.attention.norm/LayerNormalization").attribute if a.name == "epsilon"
    )
    attribute.f = 0.1


def not_a_number(proto: onnx.ModelProto) -> None:
    change(proto, f"{LAYER}.feed_forward.up.bias", lambda x: np.where(np.arange(48) == 7, np.nan, x))


def removed_pair(proto: onnx.ModelProto) -> None:
    slot = f"{LAYER}.feed_forward.down.input_quantizer"
    first, last = node(proto, f"{slot}/QuantizeLinear"), node(proto, f"{slot}/DequantizeLinear")
    for other in proto.graph.node:
        for index, name in enumerate(other.input):
            if name == last.output[0]:
                other.input[index] = first.input[0]
    proto.graph.node.remove(first)
    proto.graph.node.remove(last)


def output_bias(proto: onnx.ModelProto) -> None:
    change(proto, "pooler.dense.bias", lambda x: x * 1.01)


@pytest.mark.parametrize(
    ("defect", "first"),
    [
        (scale, "feed_forward.up.input_quantizer"),
        (weight_scale, "attention.context.other_quantizer"),
        (swapped_rows, "attention.scores.input_quantizer"),
        (bias, "feed_forward.down.input_quantizer"),
        (epsilon, "feed_forward.up.input_quantizer"),
        (not_a_number, "feed_forward.down.input_quantizer"),
    ],
)
def test_a_defect_in_a_segment(verify_damaged: VerifyDamaged, defect: Damage, first: str) -> None:
    report = verify_damaged("tensorrt", defect)
    assert not report.holds
    assert re.match(rf"{LAYER}\.{re.escape(first)}: \d+ of \d+ values are wrong", report.problems[0])
    wrong = [row for row in report.segments if row.wrong]
    assert wrong[0].name == f"{LAYER}.{first}"
    assert wrong[0].largest > 0
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_defect_does_not_hide_behind_others_or_spread(verify_damaged: VerifyDamaged) -> None:
    report = verify_damaged("tensorrt", bias)
    assert [row.name for row in report.segments if row.wrong] == [f"{LAYER}.feed_forward.down.input_quantizer"]


def test_a_defect_behind_the_last_quantizer(verify_damaged: VerifyDamaged) -> None:
    report = verify_damaged("tensorrt", output_bias)
    assert report.problems[0].startswith("pooler_output: ")
    assert "of the largest magnitude" in report.problems[0]


def test_not_a_number_in_an_output_is_wrong(verify_damaged: VerifyDamaged) -> None:
    report = verify_damaged("onnxruntime", lambda proto: change(proto, "pooler.dense.bias", lambda x: x * np.nan))
    assert not report.holds
    row = next(row for row in report.segments if row.name == "pooler_output")
    assert row.wrong == row.values
    assert math.isnan(row.largest)
    assert any("pooler_output at 2x8" in problem and "SQNR nan dB" in problem for problem in report.problems)
    document = report.to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_quantizer_that_is_missing_in_the_file(verify_damaged: VerifyDamaged) -> None:
    report = verify_damaged("tensorrt", removed_pair)
    assert report.problems == [
        f"{LAYER}.feed_forward.down.input_quantizer: the checkpoint quantizes here, the file does not"
    ]


def test_all_quantizers_are_missing_in_the_file(tiny_models: TinyModels) -> None:
    model, _, _ = tiny_models.exported("tensorrt")
    report = verify(model, tiny_models.exported(None)[1], tiny_models.batches(model)[:1])
    assert report.problems == ["the checkpoint is quantized, but the file has no quantizers"]


def test_quantizers_that_are_missing_in_the_checkpoint(tiny_models: TinyModels) -> None:
    _, path, _ = tiny_models.exported("tensorrt")
    model = copy.deepcopy(tiny_models.exported("tensorrt")[0])
    apply_recipe(model, load_recipe("linear"))
    set_mode(model, Mode.QUANTIZE)
    report = verify(model, path, tiny_models.batches(model)[:1], runtime="reference")
    names = ("scores.input", "scores.other", "context.input", "context.other")
    assert report.problems == [
        f"{LAYER}.attention.{name}_quantizer: the file quantizes here, the checkpoint does not" for name in names
    ]


def test_a_quantized_file_of_a_float_model(tiny_models: TinyModels) -> None:
    model, path = tiny_models.model(), tiny_models.exported("onnxruntime")[1]
    report = verify(model, path, tiny_models.batches(model)[:1])
    assert len(report.problems) == 4
    assert (
        report.problems[0]
        == f"{LAYER}.attention.query.input_quantizer: the file quantizes here, the checkpoint does not"
    )


def test_another_zero_point(verify_damaged: VerifyDamaged) -> None:
    slot = f"{LAYER}.feed_forward.down.input_quantizer"

    def shift(proto: onnx.ModelProto) -> None:
        quantize_node = node(proto, f"{slot}/QuantizeLinear")
        zero = numpy_helper.to_array(initializer(proto, quantize_node.input[2]))
        proto.graph.initializer.append(numpy_helper.from_array(np.array(zero + 1, zero.dtype), "moved"))
        for one in proto.graph.node:
            if one.name.startswith(slot):
                one.input[2] = "moved"

    report = verify_damaged("openvino", shift)
    assert len(report.problems) == 1
    assert re.fullmatch(rf"{slot}: the zero point is \d+ in the file, \d+ in the checkpoint", report.problems[0])


def test_int8_that_is_held_as_uint8_has_the_same_zero_point(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported("onnxruntime", "qdqbert")
    assert verify(model, path, tiny_models.batches(model)[:1]).holds


# Files of other checkpoints


def test_a_file_of_other_weights(tiny_models: TinyModels) -> None:
    model = tiny_models.model()
    with torch.no_grad():
        model.embeddings.word.weight.mul_(1.01)
    quantize(model, "tensorrt")
    calibrate(model, tiny_models.batches(model))
    report = verify(model, tiny_models.exported("tensorrt")[1], tiny_models.batches(model)[:1], runtime="reference")
    assert report.problems[0].startswith(f"{LAYER}.attention.query.input_quantizer: ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 2}, "encoder.layers.1.attention.query.input_quantizer: the checkpoint quantizes here"),
        ({"hidden_size": 16}, r"last_hidden_state: the shape is \(2, 8, 32\) in the file, \(2, 8, 16\) in the check"),
        ({"intermediate_size": 24}, "the file cannot be run with the checkpoint's tensors"),
        ({"task": "sequence-classification"}, r"logits: the shape is None in the file, \(2, 2\) in the checkpoint"),
    ],
    ids=["layers", "width", "inner width", "task"],
)
def test_a_file_of_another_architecture(tiny_models: TinyModels, changes: dict[str, Any], words: str) -> None:
    model = tiny_models.calibrated("tensorrt", **changes)
    report = verify(model, tiny_models.exported("tensorrt")[1], tiny_models.batches(model)[:1], runtime="reference")
    assert not report.holds
    assert any(re.search(words, problem) for problem in report.problems), report.problems


def test_a_vocabulary_that_the_file_does_not_have(tiny_models: TinyModels) -> None:
    model = tiny_models.model(vocab_size=120)
    batch = dict(tiny_models.batches(model)[0])
    batch["input_ids"] = torch.full_like(batch["input_ids"], 119)
    report = verify(model, tiny_models.exported(None)[1], [batch])
    assert len(report.problems) == 1
    assert "cannot be run with the checkpoint's tensors" in report.problems[0]


def test_a_kernel_that_saturates(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_gemm, "may_saturate", lambda weight: False)
    model = tiny_models.calibrated("linear")
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime")
    report = verify(model, tmp_path / "model.onnx", tiny_models.batches(model))
    if report.holds:
        pytest.skip("this CPU adds products of uint8 and int8 in 32 bits (VNNI)")
    assert any(problem.startswith(f"{LAYER}.") and "values are wrong" in problem for problem in report.problems)
    assert any("to the float model, the checkpoint in torch has" in problem for problem in report.problems)


# Ties


class Scaled(nn.Module):
    """A table whose rows meet a quantizer of scale 1/4, then a linear layer."""

    def __init__(self, distance: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=32)
        self.table = nn.Embedding(32, 4)
        self.dense = nn.Linear(4, 4)
        steps = torch.arange(128).reshape(32, 4) - 63 + torch.where(torch.arange(4) == 0, 0.5 - distance, 0.0)
        self.table.weight.data.copy_(steps * 0.25)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseOutput:
        return BaseOutput(last_hidden_state=self.dense(self.table(input_ids)) * attention_mask[..., None])


@pytest.mark.parametrize(("distance", "tie"), [(0.5 * TIE, True), (10 * TIE, False)], ids=["tie", "no tie"])
def test_values_at_a_tie_are_counted_and_do_not_fail(distance: float, tie: bool, tmp_path: Path) -> None:
    rule = {"module": "dense", "slot": "input", "spec": {"bits": 8}}
    model = Scaled(distance).eval()
    quantize(model, Recipe.from_dict({"name": "ties", "rules": [rule]}))
    batch = {"input_ids": torch.arange(32).reshape(2, 16), "attention_mask": torch.ones(2, 16, dtype=torch.int64)}
    calibrate(model, [batch])
    model.dense.input_quantizer.set_scale(torch.tensor(0.25), torch.tensor(0, dtype=torch.int32))
    path = tmp_path / "model.onnx"
    export_onnx(model, path, target="tensorrt")
    assert verify(model, path, [batch]).segments[0].ties == 0

    proto = onnx.load(path)
    change(proto, "table.weight", lambda x: np.where(np.arange(4) == 0, x + 2 * distance * 0.25, x))
    onnx.save(proto, path)  # the first of four values lies as far on the other side of its tie
    report = verify(model, path, [batch])
    row = report.segments[0]
    assert (row.name, row.values, row.largest) == ("dense.input_quantizer", 128, 1.0)
    assert (row.ties, row.wrong) == ((32, 0) if tie else (0, 32))
    assert report.holds is tie


# Wrong use


def test_nothing_compared_proves_nothing(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported("onnxruntime")
    report = verify(model, path, [])
    assert not report.holds
    assert report.problems == ["nothing was compared: there is no batch"]


def test_bounds_can_be_set(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported("onnxruntime")
    report = verify(model, path, tiny_models.batches(model)[:1], bounds=Bounds(sqnr_db=EQUAL_DB + 1))
    assert len(report.problems) == 2
    assert all("needed 201.0 dB" in problem for problem in report.problems)


def test_a_batch_that_lacks_an_input_is_the_callers_mistake(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported("onnxruntime")
    batch = {name: value for name, value in tiny_models.batches(model)[0].items() if name != "token_type_ids"}
    with pytest.raises(DataError, match="token_type_ids is missing"):
        verify(model, path, [batch])


def test_an_unknown_runtime_is_refused(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported("onnxruntime")
    with pytest.raises(ExportError, match="no runtime 'tensorrt' to verify in"):
        verify(model, path, tiny_models.batches(model)[:1], runtime="tensorrt")


def test_a_file_that_cannot_be_read(tiny_models: TinyModels, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        verify(tiny_models.model(), tmp_path / "model.onnx", [])


# Measures


def test_sqnr_is_in_decibels() -> None:
    signal = np.float32([3, -4])
    assert sqnr_db(signal, signal) == EQUAL_DB
    assert sqnr_db(signal, signal + np.float32([0.3, 0.4])) == pytest.approx(20)
    assert sqnr_db(signal, np.zeros_like(signal)) == 0
    assert math.isnan(sqnr_db(signal, np.float32([3, np.nan])))
    assert sqnr_db(np.zeros(2, np.float32), signal) < -1000


def test_cosine_is_the_mean_over_vectors() -> None:
    rows = np.float32([[1, 0], [0, 2]])
    assert cosine(rows, rows) == pytest.approx(1)
    assert cosine(rows, np.float32([[0, 1], [0, 5]])) == pytest.approx(0.5)
    assert cosine(rows, -rows) == pytest.approx(-1)
    assert cosine(rows, np.zeros_like(rows)) == 0
