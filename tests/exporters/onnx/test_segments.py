from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters.onnx.segments import cut_at_quantizers
from exporters.runners import OnnxRuntimeRunner
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels
    from tests.exporters.onnx.conftest import Graphs

CHAIN = """
    g (float[1,2,3] x) => (float[1,2,3] y)
    <float s = {0.5}, int8 z = {3}, float t = {0.1}, uint8 o = {128}, uint8 low = {120}, uint8 high = {136},
     float[3,3] w = {1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 3.0}, int8 zero = {0}> {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        stored = QuantizeLinear(w, s, zero)
        weight = DequantizeLinear(stored, s, zero)
        m = MatMul(d, weight)
        r = QuantizeLinear(m, t, o)
        c = Clip(r, low, high)
        y = DequantizeLinear(c, t, o)
    }"""
X = np.float32([[[1, -2, 3], [0.3, 0.2, 9]]])


@pytest.fixture
def chain(graphs: Graphs, tmp_path: Path) -> Path:
    model = graphs.parse(CHAIN)
    for node, slot in zip(model.graph, ("a.first", "a.first", "w", "w", "m", "b.second", "b.second", "b"), strict=True):
        node.name = f"{slot}/{node.op_type}"
    onnx.save(onnx.shape_inference.infer_shapes(ir.to_proto(model)), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    return tmp_path / "pieces.onnx"


def test_one_cut_for_each_quantizer_of_a_computed_tensor(chain: Path, pieces: Path) -> None:
    cuts = cut_at_quantizers(chain, pieces)
    assert [(piece.slot, piece.output, piece.zero_point, piece.dtype, piece.perm) for piece in cuts] == [
        ("a.first", "q", 3, np.int8, None),
        ("b.second", "c", 128, np.uint8, None),  # behind the Clip
    ]
    proto = onnx.load(pieces)
    onnx.checker.check_model(proto, full_check=True)
    assert [value.name for value in proto.graph.input] == ["x", "q__fed", "c__fed"]
    assert [value.name for value in proto.graph.output] == ["y", "q", "c"]


def test_every_piece_is_on_its_own(chain: Path, pieces: Path) -> None:
    cut_at_quantizers(chain, pieces)
    run = OnnxRuntimeRunner(pieces, optimize=False)
    nothing = {"q__fed": np.full(X.shape, 3, np.int8), "c__fed": np.full(X.shape, 128, np.uint8)}
    found = run({"x": X, **nothing})
    np.testing.assert_array_equal(found["q"], np.int8([[[5, -1, 9], [4, 3, 21]]]))  # of x
    assert (found["c"] == 128).all()  # of zeros, not of x
    assert (found["y"] == 0).all()
    found = run({"x": X, **nothing, "c__fed": np.full(X.shape, 130, np.uint8)})
    np.testing.assert_allclose(found["y"], 0.2, rtol=1e-6)


def test_fed_with_its_own_integers_it_computes_what_it_did(chain: Path, pieces: Path) -> None:
    cuts = cut_at_quantizers(chain, pieces)
    run = OnnxRuntimeRunner(pieces, optimize=False)
    fed = {"q__fed": np.zeros(X.shape, np.int8), "c__fed": np.zeros(X.shape, np.uint8)}
    for _ in cuts:  # each round carries the integers one piece further
        found = run({"x": X, **fed})
        fed = {"q__fed": found["q"], "c__fed": found["c"]}
    expected = OnnxRuntimeRunner(chain, optimize=False)({"x": X})["y"]
    np.testing.assert_array_equal(run({"x": X, **fed})["y"], expected)


def test_a_tensor_that_is_transposed_before_it_is_quantized_says_how(tiny_models: TinyModels, pieces: Path) -> None:
    _, path, _ = tiny_models.exported("tensorrt")
    moved = {piece.slot: piece.perm for piece in cut_at_quantizers(path, pieces) if piece.perm is not None}
    assert moved == {"encoder.layers.0.attention.scores.other_quantizer": (0, 1, 3, 2)}


def test_a_float_file_has_no_cuts(tiny_models: TinyModels, pieces: Path) -> None:
    assert cut_at_quantizers(tiny_models.exported(None)[1], pieces) == ()


@pytest.mark.parametrize("damage", ["garbage", "missing"])
def test_what_is_no_onnx_file_is_said_in_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.onnx"
    if damage == "garbage":
        path.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        cut_at_quantizers(path, tmp_path / "pieces.onnx")


def test_a_quantizer_that_is_not_of_our_making_is_named(graphs: Graphs, tmp_path: Path) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y) <float s = {0.5}> {
            [foreign] q = QuantizeLinear(x, s)
            y = DequantizeLinear(q, s)
        }""")
    ir.save(model, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match="foreign has no constant zero point"):
        cut_at_quantizers(tmp_path / "model.onnx", tmp_path / "pieces.onnx")
