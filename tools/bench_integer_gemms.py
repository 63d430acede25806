"""Measure how fast ONNX Runtime multiplies integers of each type on this CPU, which bounds the speed of an encoder.

    python tools/bench_integer_gemms.py [--threads 2] [--rows 1024]

Times one linear layer of the usual shapes in float and with every integer kernel: uint8 x int8 (which the target
onnxruntime writes), uint8 x uint8, int8 x int8, dynamically quantized activations, and 8-bit blocks (MatMulNBits).
"bound" is the speed-up of a whole encoder that spends 80 % of its float time in GEMM, if nothing else gets faster.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from exporters.benchmark import Machine

SHAPES = [(384, 384), (384, 1536), (1536, 384), (768, 768), (768, 3072)]
KINDS = ["float", "u8 x s8", "u8 x u8", "s8 x s8", "dynamic", "8-bit blocks"]
GEMM_SHARE = 0.8


def build(kind: str, k: int, n: int) -> ModelProto:
    rng = np.random.default_rng(0)
    weight = rng.integers(-63, 64, (k, n)).astype(np.int8)  # small enough that no kernel saturates
    constants = {
        "bias": np.zeros(n, np.float32),
        "w_scale": np.full(n, 0.01, np.float32),
        "x_scale": np.float32(0.02),
    }
    element = TensorProto.FLOAT
    if kind == "float":
        constants["w"] = weight * np.float32(0.01)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "bias"], ["y"])]
    elif kind == "dynamic":
        constants["w"] = weight
        inputs = ["x", "w", "w_scale", "", "bias"]
        nodes = [helper.make_node("DynamicQuantizeMatMul", inputs, ["y"], domain="com.microsoft")]
    elif kind == "8-bit blocks":
        block = 128
        blocks = (weight.T.astype(np.int16) + 128).astype(np.uint8).reshape(n, k // block, block)
        constants["w"], constants["w_scale"] = blocks, np.full(n * k // block, 0.01, np.float32)
        settings = {"K": k, "N": n, "bits": 8, "block_size": block, "accuracy_level": 4}
        nodes = [helper.make_node("MatMulNBits", ["x", "w", "w_scale"], ["y"], domain="com.microsoft", **settings)]
    else:
        x_type, w_type = kind.split(" x ")
        element = TensorProto.UINT8 if x_type == "u8" else TensorProto.INT8
        constants["x_zero"] = np.array(120, np.uint8) if x_type == "u8" else np.array(0, np.int8)
        constants["w"] = weight if w_type == "s8" else (weight.astype(np.int16) + 128).astype(np.uint8)
        constants["w_zero"] = np.zeros(n, np.int8) if w_type == "s8" else np.full(n, 128, np.uint8)
        inputs = ["x", "w", "x_scale", "w_scale", "x_zero", "w_zero", "bias"]
        nodes = [helper.make_node("MatMulIntegerToFloat", inputs, ["y"], domain="com.microsoft")]
    graph = helper.make_graph(
        nodes,
        "gemm",
        [helper.make_tensor_value_info("x", element, ["rows", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", n])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def seconds(kind: str, k: int, n: int, *, rows: int, threads: int) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = ort.InferenceSession(build(kind, k, n).SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).integers(0, 120, (rows, k))
    dtype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}
    feed = {"x": x.astype(dtype[session.get_inputs()[0].type])}
    times = []
    for _ in range(25):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1024)
    options = parser.parse_args()
    machine = Machine.this()
    print(
        f"{machine.cpu}, int8: {', '.join(machine.int8_instructions)}, {options.threads} threads, {options.rows} rows"
    )
    print(f"{'K x N':>12s}" + "".join(f"{kind:>22s}" for kind in KINDS))
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for k, n in SHAPES:
        line, base = f"{k:>5d} x {n:<4d}", 0.0
        for kind in KINDS:
            took = seconds(kind, k, n, rows=options.rows, threads=options.threads)
            base = base or took
            ratios[kind].append(base / took)
            line += f"{2 * options.rows * k * n / took / 1e9:9.0f} GOPS {base / took:5.2f}x"
        print(line)
    for kind in KINDS[1:]:
        ratio = statistics.geometric_mean(ratios[kind])
        print(f"{kind:14s} {ratio:5.2f}x, bound {1 / (1 - GEMM_SHARE + GEMM_SHARE / ratio):5.2f}x")


if __name__ == "__main__":
    main()
