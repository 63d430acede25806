from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters.onnx.load import load_onnx
from exporters.tensorrt.onnx_file import read_onnx_file
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, width: int, *, beside: bool = False) -> np.ndarray:
    """A model with one weight, which is returned."""
    weight = np.arange(width * width, dtype=np.float32).reshape(width, width)
    value = ir.Value(name="w", shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT))
    value.const_value = ir.Tensor(weight, name="w")
    x = ir.Value(name="x", shape=ir.Shape(["n", width]), type=ir.TensorType(ir.DataType.FLOAT))
    product = ir.node("MatMul", [x, value], name="product")
    product.outputs[0].name = "y"
    product.outputs[0].shape, product.outputs[0].type = ir.Shape(["n", width]), x.type
    graph = ir.Graph([x], product.outputs, nodes=[product], initializers=[value], opset_imports={"": 21})
    ir.save(ir.Model(graph, ir_version=10), path, external_data="model.data" if beside else None)
    return weight


@pytest.mark.parametrize("beside", [False, True], ids=["inside", "beside"])
@pytest.mark.parametrize("width", [4, 300])
def test_everything_is_there_and_weights_are_read_when_asked_for(tmp_path: Path, width: int, beside: bool) -> None:
    path = tmp_path / "model.onnx"
    weight = write(path, width, beside=beside)
    model = load_onnx(path)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), weight)
    proto, whole = ir.to_proto(model), onnx.load(path)
    assert [node.name for node in proto.graph.node] == [node.name for node in whole.graph.node]
    assert proto.graph.input == whole.graph.input
    assert proto.opset_import == whole.opset_import


def test_a_large_file_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weight = write(path, 4000)
    assert path.stat().st_size > 60_000_000
    tracemalloc.start()
    source = read_onnx_file(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    assert source.float_bytes == weight.nbytes
    assert source.onnx_bytes == path.stat().st_size
    assert source.inputs == {"x": ("n", 4000)}


def test_weights_beside_count(tmp_path: Path) -> None:
    write(tmp_path / "model.onnx", 300, beside=True)
    assert read_onnx_file(tmp_path).onnx_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())


@pytest.mark.parametrize("length", [0, 1, 7, 50, 300, 200_000, 359_000])
def test_a_file_that_ends_too_early_is_told(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.onnx"
    write(path, 300)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        load_onnx(path)


@pytest.mark.parametrize("content", [b"xx", b"\x00" * 100, b"{}", b"\xff" * 64, b"PK\x03\x04rest"])
def test_garbage_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        load_onnx(path)


def test_flipped_bytes_give_an_error_of_ours_or_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, 300)
    content, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        head = random.integers(0, 200)
        damaged[head if random.random() < 0.5 else -1 - head] ^= int(random.integers(1, 256))
        path.write_bytes(damaged)
        try:
            load_onnx(path)
        except CheckpointError:
            refused += 1
    assert refused > 10


def test_weights_shorter_than_their_shape_are_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write(path, 300)
    proto = onnx.load(path)
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:100_000]
    onnx.save(proto, path)
    with pytest.raises(CheckpointError, match="w has 100000 bytes of data, its shape needs 360000"):
        load_onnx(path)


def test_missing_weights_are_told(tmp_path: Path) -> None:
    write(tmp_path / "model.onnx", 300, beside=True)
    (tmp_path / "model.data").unlink()
    with pytest.raises(CheckpointError, match=r"w lies in model\.data, which is missing or too short"):
        load_onnx(tmp_path / "model.onnx")


def test_a_folder_without_model_and_a_path_without_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model\.onnx"):
        read_onnx_file(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_onnx_file(tmp_path / "none")
