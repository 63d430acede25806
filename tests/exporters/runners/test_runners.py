"""Runners against plain numpy: the same arrays out, the same manners in every runtime."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters.runners import EvaluatorRunner, OnnxRuntimeRunner, OpenVINORunner, TensorInfo, TorchRunner
from qdq.errors import CheckpointError, DataError, ExportError, MissingPackageError

if TYPE_CHECKING:
    from pathlib import Path

Arrays = dict[str, np.ndarray]
"""Inputs or outputs by name."""

VOCABULARY, HIDDEN = 40, 8
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
ONNX_RUNNERS = pytest.mark.parametrize(
    "runner_class",
    [OnnxRuntimeRunner, OpenVINORunner, EvaluatorRunner],
    ids=["onnxruntime", "openvino", "evaluator"],
)


def encoder() -> onnx.ModelProto:
    """Looks ids up and sums them over the unmasked tokens; its first output is not the first tensor computed."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "axis"], ["weights"]),
        helper.make_node("Mul", ["embedded", "weights"], ["last_hidden_state"]),
        helper.make_node("ReduceSum", ["last_hidden_state", "middle"], ["pooler_output"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "seq"])
            for n in ("input_ids", "attention_mask")
        ],
        [
            helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["batch", HIDDEN]),
            helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "seq", HIDDEN]),
        ],
        [
            numpy_helper.from_array(TABLE, "table"),
            numpy_helper.from_array(np.array([-1]), "axis"),
            numpy_helper.from_array(np.array([1]), "middle"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(encoder(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def inputs() -> Arrays:
    return {
        "input_ids": np.array([[1, 2, 3], [4, 5, 6]]),
        "attention_mask": np.array([[1, 1, 1], [1, 1, 0]]),
        "token_type_ids": np.zeros((2, 3), dtype=np.int64),
    }


@ONNX_RUNNERS
def test_outputs_equal_numpy_by_name(runner_class: type, path: Path, inputs: Arrays) -> None:
    runner = runner_class(path)
    outputs = runner(inputs)

    hidden = TABLE[inputs["input_ids"]] * inputs["attention_mask"][..., None]
    assert runner.input_names == ("input_ids", "attention_mask")
    assert runner.output_names == tuple(outputs) == ("pooler_output", "last_hidden_state")
    np.testing.assert_array_equal(outputs["last_hidden_state"], hidden)
    np.testing.assert_allclose(outputs["pooler_output"], hidden.sum(axis=1), rtol=1e-5, atol=1e-6)


@ONNX_RUNNERS
def test_declared_inputs(runner_class: type, path: Path) -> None:
    (ids, mask) = runner_class(path).inputs
    assert (ids.name, mask.name) == ("input_ids", "attention_mask")
    assert ids.dtype == np.int64
    assert not any(isinstance(size, int) for size in ids.shape)
    assert len(ids.shape) == 2


def test_onnxruntime_knows_the_names_of_free_dimensions(path: Path) -> None:
    assert OnnxRuntimeRunner(path).inputs[0] == TensorInfo("input_ids", np.dtype("int64"), ("batch", "seq"))


@ONNX_RUNNERS
def test_every_problem_of_the_inputs_is_named_at_once(runner_class: type, path: Path) -> None:
    with pytest.raises(DataError) as caught:
        runner_class(path)({"input_ids": np.zeros((2, 3, 1), dtype=np.int32), "positions": np.zeros(3)})
    message = str(caught.value)
    assert str(path) in message
    assert "attention_mask is missing (given: input_ids, positions)" in message
    assert "input_ids is int32, the model takes int64" in message
    assert "input_ids has the shape (2, 3, 1), the model takes (" in message


def test_onnxruntime_leaves_nothing_in_the_temporary_folder(path: Path, tmp_path: Path) -> None:
    """Where it would keep the number of a session for its telemetry."""
    (tmp_path / "temporary").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = f"from pathlib import Path\nfrom exporters.runners import OnnxRuntimeRunner as R\nR(Path({str(path)!r}))"
    environment["TMPDIR"] = str(tmp_path / "temporary")
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=300)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_ids_are_narrowed_for_a_model_that_declares_int32(tmp_path: Path, inputs: Arrays) -> None:
    model = encoder()
    for value in model.graph.input:
        value.type.tensor_type.elem_type = TensorProto.INT32
    onnx.save(model, tmp_path / "narrow.onnx")
    runner = OnnxRuntimeRunner(tmp_path / "narrow.onnx")
    wide, narrow = runner(inputs), runner({name: array.astype(np.int32) for name, array in inputs.items()})
    np.testing.assert_array_equal(wide["pooler_output"], narrow["pooler_output"])
    with pytest.raises(DataError, match="input_ids is int64, the model takes int32"):
        runner({**inputs, "input_ids": inputs["input_ids"] + 2**40})


def test_the_evaluator_computes_in_bfloat16(tmp_path: Path) -> None:
    kind = TensorProto.BFLOAT16
    values = [helper.make_tensor_value_info(name, kind, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "twice.onnx")
    runner = EvaluatorRunner(tmp_path / "twice.onnx")
    x = np.array([1.0, 2.5], dtype=runner.inputs[0].dtype)
    assert str(x.dtype) == "bfloat16"
    assert runner({"x": x})["y"].astype(np.float32).tolist() == [2.0, 5.0]


def test_the_evaluator_names_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match=r"damaged\.onnx: not an ONNX file"):
        EvaluatorRunner(tmp_path / "damaged.onnx")


@ONNX_RUNNERS
def test_a_fixed_length_is_checked(runner_class: type, tmp_path: Path, inputs: Arrays) -> None:
    model = encoder()
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "one.onnx")
    runner = runner_class(tmp_path / "one.onnx")
    assert runner({name: array[:1] for name, array in inputs.items()})["pooler_output"].shape == (1, HIDDEN)
    with pytest.raises(DataError, match=r"input_ids has the shape \(2, 3\), the model takes \(1, "):
        runner(inputs)


@ONNX_RUNNERS
def test_a_missing_file_is_named(runner_class: type, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.onnx: no such model file"):
        runner_class(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("content", [b"", b"no model at all"], ids=["empty", "foreign"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "damaged.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged\.onnx: ONNX Runtime cannot read it: ") as caught:
        OnnxRuntimeRunner(tmp_path / "damaged.onnx")
    assert caught.value.__cause__ is not None


def test_lost_external_data_is_a_damaged_model(tmp_path: Path) -> None:
    onnx.save(
        encoder(), tmp_path / "model.onnx", save_as_external_data=True, size_threshold=1024, location="model.onnx.data"
    )
    (tmp_path / "model.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"model\.onnx\.data"):
        OnnxRuntimeRunner(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("runner_class", "error"),
    [(OnnxRuntimeRunner, ExportError), (OpenVINORunner, CheckpointError)],
    ids=["onnxruntime", "openvino"],
)
def test_an_unknown_operator_is_named(runner_class: type, error: type[Exception], tmp_path: Path) -> None:
    model = encoder()
    model.graph.node[3].op_type = "Mulch"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(error, match=r"model\.onnx: .*Mulch") as caught:
        runner_class(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


@ONNX_RUNNERS
def test_failing_while_running_is_translated(runner_class: type, path: Path, inputs: Arrays) -> None:
    with pytest.raises(ExportError, match=r"model\.onnx: (ONNX Runtime|OpenVINO|onnx's evaluator) failed: ") as caught:
        runner_class(path)({**inputs, "attention_mask": np.ones((2, 5), dtype=np.int64)})  # does not broadcast with 3
    assert caught.value.__cause__ is not None


def test_the_model_may_come_as_bytes(inputs: Arrays) -> None:
    runner = OnnxRuntimeRunner(encoder().SerializeToString())
    assert runner(inputs)["pooler_output"].shape == (2, HIDDEN)
    with pytest.raises(DataError, match="the model in memory"):
        runner({})


def test_a_wrong_session_entry_is_translated(path: Path) -> None:
    with pytest.raises(ExportError, match=r"model\.onnx"):
        OnnxRuntimeRunner(path, session_config={"": "1"})


def test_without_optimization_every_node_runs_as_written() -> None:
    """Two Q/DQ pairs in a row: the optimizer makes one of them, which changes the numbers."""

    def pair(source: str, target: str, scale: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("QuantizeLinear", [source, scale, "zero"], [f"{target}_q"]),
            helper.make_node("DequantizeLinear", [f"{target}_q", scale, "zero"], [target]),
        ]

    scales = np.array([0.1, 0.3], dtype=np.float32)
    graph = helper.make_graph(
        [*pair("x", "once", "first"), *pair("once", "twice", "second")],
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(scales[0], "first"),
            numpy_helper.from_array(scales[1], "second"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10).SerializeToString()
    x = np.linspace(-20, 20, 401, dtype=np.float32)
    expected = x
    for scale in scales:
        expected = np.clip(np.rint(expected / scale), -128, 127).astype(np.float32) * scale

    np.testing.assert_array_equal(OnnxRuntimeRunner(model, optimize=False)({"x": x})["twice"], expected)
    assert not np.array_equal(OnnxRuntimeRunner(model)({"x": x})["twice"], expected)


def test_openvino_missing_gives_the_pip_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what `import` sees when there is no such package
    with pytest.raises(
        MissingPackageError, match=r"running a model in OpenVINO needs .* pip install 'qdq\[openvino\]'"
    ):
        OpenVINORunner(path)


class Encoder(torch.nn.Module):
    """The ONNX model above in torch, with dropout, so that training mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.from_numpy(TABLE))
        self.dropout = torch.nn.Dropout(0.5)
        self.frozen = torch.nn.Dropout(0.5).eval()

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.frozen(self.dropout(self.table(input_ids))) * mask[..., None]
        return {"last_hidden_state": hidden, "pooler_output": hidden.sum(1), "hidden_states": (hidden,)}


def test_torch_and_onnxruntime_agree(inputs: Arrays) -> None:
    runner = TorchRunner(Encoder().train())
    reference = OnnxRuntimeRunner(encoder().SerializeToString())(inputs)

    assert runner.input_names == ("input_ids", "attention_mask")
    assert runner.output_names == ()
    outputs = runner(inputs)
    assert runner.output_names == tuple(outputs) == ("last_hidden_state", "pooler_output")
    for name, array in outputs.items():
        np.testing.assert_allclose(array, reference[name], rtol=1e-5, atol=1e-6)


def test_torch_leaves_each_module_in_its_mode(inputs: Arrays) -> None:
    model = Encoder()
    model.dropout.train()
    TorchRunner(model)(inputs)
    assert [module.training for module in (model, model.dropout, model.frozen)] == [True, True, False]


def test_torch_gives_the_asked_outputs_in_the_asked_order(inputs: Arrays) -> None:
    names = ("pooler_output", "last_hidden_state")
    runner = TorchRunner(Encoder(), output_names=names)
    assert runner.output_names == names == tuple(runner(inputs))
    with pytest.raises(ExportError, match="Encoder gives no tensor logits, hidden_states; it gives last_hidden_state"):
        TorchRunner(Encoder(), output_names=("logits", "hidden_states"))(inputs)


def test_torch_names_missing_inputs_and_takes_read_only_arrays(inputs: Arrays) -> None:
    ids = inputs["input_ids"]
    ids.flags.writeable = False
    with pytest.raises(DataError, match="Encoder: the input attention_mask is missing"):
        TorchRunner(Encoder())({"input_ids": ids})
    outputs = TorchRunner(Encoder(), input_names=["input_ids"])({"input_ids": ids})
    np.testing.assert_array_equal(outputs["last_hidden_state"], TABLE[ids])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "float32")],
    ids=["fp32", "fp16", "bf16"],
)
def test_torch_dtypes_that_numpy_has_stay(dtype: torch.dtype, expected: str, inputs: Arrays) -> None:
    assert TorchRunner(Encoder().to(dtype))(inputs)["last_hidden_state"].dtype == expected
