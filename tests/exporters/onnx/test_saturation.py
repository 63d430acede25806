from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from exporters.onnx.export import export_onnx
from exporters.onnx.isa import ISAS, host_isa
from exporters.onnx.load import load_onnx
from exporters.onnx.passes.integer_gemm import INT16_MAX, IntegerGemmPass
from exporters.onnx.saturation import RiskyProduct, count_saturated_pairs, pair_sums, risky_products, saturation_note
from exporters.verification.verify import verify
from qdq.errors import ExportError
from qdq.quantization.modules.weight import set_weight_scale

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from tests.exporters.conftest import TinyModels
    from tests.exporters.onnx.conftest import Graphs

UP = "encoder.layers.0.feed_forward.up"


def slow_count(activations: np.ndarray, weight: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Pair by pair: how many are cut, the largest, and the sums of what is left."""
    cut = largest = 0
    result = np.zeros((len(activations), weight.shape[1]), np.int64)
    for row in range(len(activations)):
        for column in range(weight.shape[1]):
            for k in range(0, weight.shape[0], 2):
                pair = sum(
                    int(activations[row, i]) * int(weight[i, column]) for i in range(k, min(k + 2, weight.shape[0]))
                )
                held = min(max(pair, -(2**15)), 2**15 - 1)
                cut += held != pair
                largest = max(largest, abs(pair))
                result[row, column] += held
    return cut, largest, result


def product(weight: np.ndarray) -> RiskyProduct:
    return RiskyProduct("product", "q", weight, 0)


@pytest.mark.parametrize("depth", [8, 7], ids=["pairs", "one left over"])
@pytest.mark.parametrize("signs", [1, -1], ids=["above", "below"])
def test_every_pair_sum_beyond_16_bits_is_counted(depth: int, signs: int) -> None:
    random = np.random.default_rng(depth)
    weight = (signs * random.integers(-20, 128, (depth, 5))).astype(np.int8)
    activations = random.integers(150, 256, (2, 3, depth)).astype(np.uint8)
    cut, largest, _ = slow_count(activations.reshape(6, depth), weight)
    found = count_saturated_pairs(product(weight), activations)
    assert 0 < cut < found.pairs
    assert (found.saturated, found.worst) == (cut, largest)
    assert found.pairs == 6 * 5 * -(-depth // 2)


@pytest.mark.parametrize(("sums", "cut"), [(128, 0), (129, 1), (-128, 0), (-129, 1)])
def test_the_limit_is_that_of_16_bits(sums: int, cut: int) -> None:
    half = sums // 2
    weight = np.array([[half], [sums - half]], np.int8)
    assert count_saturated_pairs(product(weight), np.array([[255, 255]], np.uint8)).saturated == cut


def test_the_kernels_of_this_cpu_are_simulated(graphs: Graphs) -> None:
    """What ONNX Runtime computes here is what the pair sums say, cut or not."""
    random = np.random.default_rng(0)
    activations = random.integers(150, 256, (4, 16)).astype(np.uint8)
    weight = random.integers(60, 128, (16, 16)).astype(np.int8)
    model = graphs.parse(f"""
        g (float[4,16] x) => (float[4,16] y)
        <int8[16,16] w = {{{", ".join(map(str, weight.ravel()))}}}, float s = {{1.0}}, int8 z = {{0}},
         float a = {{1.0}}, uint8 b = {{0}}> {{
            q = QuantizeLinear(x, a, b)
            p = DequantizeLinear(q, a, b)
            d = DequantizeLinear(w, s, z)
            y = MatMul(p, d)
        }}""")
    assert IntegerGemmPass(ISAS["vnni"])(model).modified
    found = graphs.run(model, x=activations.astype(np.float32))["y"]
    cut, _, saturated = slow_count(activations, weight)
    exact = activations.astype(np.int64) @ weight.astype(np.int64)
    (risk,) = risky_products(model.graph)
    assert count_saturated_pairs(risk, activations).saturated == cut > 0
    np.testing.assert_array_equal(found, saturated if host_isa().name in ("avx2", "avx512") else exact)


def exported(tiny_models: TinyModels, path: Path, isa: str) -> tuple[Any, ir.Model, Any]:
    """A model whose weights could saturate, in the form for an instruction set."""
    model = tiny_models.calibrated("linear")
    result = export_onnx(model, path, target="onnxruntime", isa=isa)
    return model, load_onnx(path), result


def types(model: ir.Model) -> set[tuple[str, str]]:
    """Of activations and weights of integer products."""
    nodes = [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"]
    assert len(nodes) == 6
    kinds = set()
    for node in nodes:
        activation, weight = node.inputs[4], node.inputs[1]
        assert activation is not None
        assert activation.const_value is not None
        assert weight is not None
        assert weight.const_value is not None
        kinds.add((str(activation.const_value.dtype), str(weight.const_value.dtype)))
    return kinds


@pytest.mark.parametrize(
    ("isa", "held"),
    [
        ("any", {("UINT8", "UINT8"), ("UINT8", "INT8")}),
        ("avx2", {("UINT8", "UINT8"), ("UINT8", "INT8")}),
        ("vnni", {("UINT8", "INT8")}),
        ("arm", {("INT8", "INT8")}),
    ],
)
def test_each_instruction_set_has_its_form(tiny_models: TinyModels, tmp_path: Path, isa: str, held: Any) -> None:
    model, file, result = exported(tiny_models, tmp_path / "model.onnx", isa)
    assert types(file) <= held
    assert ("UINT8", "UINT8") in types(file) or not ISAS[isa].saturates
    assert file.metadata_props["qdq.isa"] == result.isa == isa
    assert result.to_dict()["isa"] == isa
    assert result.pair_sums
    assert min(result.pair_sums.values()) > INT16_MAX
    (note,) = result.notes
    assert max(result.pair_sums, key=lambda name: result.pair_sums[name]) in note
    assert bool(risky_products(file.graph)) == (isa == "vnni")
    if isa != "vnni" or not host_isa().saturates:
        verification = verify(model, tmp_path / "model.onnx", tiny_models.batches(model), sums_in_16_bits=isa != "vnni")
        assert verification.problems == []
        assert verification.saturation == []


def test_a_file_for_vnni_is_not_for_cpus_without(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.calibrated("linear")
    with_large = model.get_submodule(UP)
    with_large.weight.data.fill_(0.5)  # all the same: every pair is the largest there can be
    set_weight_scale(with_large.weight_quantizer, with_large.weight)
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime", isa="vnni")
    found = verify(model, tmp_path / "model.onnx", tiny_models.batches(model), sums_in_16_bits=True)
    (row,) = [row for row in found.saturation if row.name == UP]
    assert row.possible == 2 * 127 * 255
    assert row.saturated > 0
    assert row.worst > INT16_MAX
    assert any(problem.startswith(f"{UP}: {row.saturated:,} of ") for problem in found.problems)
    assert found.to_dict()["saturation"][0]["pairs"] > 0


def test_weights_that_are_safe_need_no_note(tiny_models: TinyModels) -> None:
    _, path, result = tiny_models.exported("onnxruntime")
    file = load_onnx(path)
    assert pair_sums(file.graph) == {} == result.pair_sums
    assert risky_products(file.graph) == []
    assert saturation_note({}, ISAS["vnni"]) == []


def test_a_note_names_the_worst() -> None:
    sums = {f"layer{n}": INT16_MAX + n for n in range(1, 6)}
    (note,) = saturation_note(sums, ISAS["avx2"])
    assert "layer5 (32772), layer4 (32771), layer3 (32770) and 2 more" in note
    assert "stored in uint8" in note
    assert "elsewhere it may be wrong" in saturation_note(sums, ISAS["vnni"])[0]


@pytest.mark.parametrize("target", ["openvino", "tensorrt", None])
def test_an_instruction_set_is_for_onnxruntime(tiny_models: TinyModels, tmp_path: Path, target: str | None) -> None:
    with pytest.raises(ExportError, match="an instruction set is for the target onnxruntime"):
        export_onnx(tiny_models.model(), tmp_path / "model.onnx", target=target, isa="avx2")
