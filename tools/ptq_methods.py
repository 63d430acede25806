"""Methods of post-training quantization. Each makes a model from a float one and 300 sentences, and runs it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ptq_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["OTHERS", "TARGETS", "MethodInputs", "Quantized", "is_ours", "method_named"]

TARGETS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "qdqbert": "tensorrt",
    "linear": "onnxruntime",
    "dynamic": "onnxruntime",
}
"""The presets of qdq, and the target that each is exported for by default."""


@dataclass(frozen=True)
class MethodInputs:
    """Hold what a method works with.

    Args:
        model_dir: Hugging Face directory of the float model.
        folder: Directory with ``calibration.txt``, and with the float file once a method needs it.
        output: Empty directory for the files of the method.
        split: The sentences.
        threads: Threads of the runtime.
    """

    model_dir: Path
    folder: Path
    output: Path
    split: ptq_data.Split
    threads: int

    @property
    def float_file(self) -> Path:
        """Return the float model as ONNX, exporting it if necessary."""
        from exporters.directory import export

        if not (self.folder / "float").exists():
            export(self.model_dir, self.folder / "float", target=None)
        return self.folder / "float/model.onnx"

    def calibration_batches(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield batches of one sentence each, because these methods do not leave out padding."""
        return (arrays for _, arrays in ptq_data.batches(self.split.calibration, self.model_dir, rows=1, longest=128))


@dataclass
class Quantized:
    """Hold a quantized model, and what it cost to make it.

    Args:
        run: Function from arrays to ``last_hidden_state``.
        seconds: Seconds of the calibration, from a float model on disk, without imports.
        peak_mb: Largest resident memory of the process until then.
        by_row: Whether an output depends on the other rows of a batch.
        notes: What a reader should know.
    """

    run: Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]
    seconds: float = 0.0
    peak_mb: float = 0.0
    by_row: bool = False
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Timed:
    seconds: float = 0.0
    peak_mb: float = 0.0


@contextlib.contextmanager
def _timed() -> Iterator[_Timed]:
    timed, started = _Timed(), time.perf_counter()
    yield timed
    timed.seconds = time.perf_counter() - started
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    timed.peak_mb = int(status["VmHWM"].split()[0]) / 1024


def _hidden(runner: Any) -> Callable[[Mapping[str, NDArray[Any]]], NDArray[Any]]:
    return lambda arrays: runner(arrays)["last_hidden_state"]  # type: ignore[no-any-return]


def is_ours(name: str) -> bool:
    """Return whether a method is one of qdq."""
    return name.split(maxsplit=1)[0] not in OTHERS


def method_named(name: str) -> Callable[[MethodInputs], Quantized]:
    """Return the method of that name: one of OTHERS, or one of qdq such as ``tensorrt@torch --calibrator mse``."""
    first, *options = shlex.split(name)
    if first in OTHERS:
        return lambda inputs: OTHERS[first](inputs, *options)
    recipe, _, target = first.partition("@")
    return lambda inputs: _ours(inputs, recipe, target or TARGETS.get(recipe, "onnxruntime"), options)


def _ours(inputs: MethodInputs, recipe: str, target: str, options: list[str]) -> Quantized:
    """Run ``qdq calibrate`` with these options, then the file in its runtime, or with ``@torch`` the checkpoint."""
    import qdq
    from exporters.directory import export
    from exporters.runners import OnnxRuntimeRunner, OpenVINORunner, TorchRunner
    from qdq.cli.main import main
    from qdq.quantization.quantizer import quantizers

    checkpoint = inputs.output / "checkpoint"
    request = ["calibrate", "-m", str(inputs.model_dir), "-o", str(checkpoint), "--recipe", recipe, "--json"]
    if recipe not in {"dynamic", "weight-only-int8", "weight-only-int4"}:
        request += ["--calib-data", str(inputs.folder / "calibration.txt")]
    said = io.StringIO()
    with _timed() as timed, contextlib.redirect_stdout(said):
        try:
            main([*request, *options])
        except SystemExit as end:
            if end.code:
                raise SystemExit(f"qdq {' '.join(request + options)}: exit code {end.code}") from end
    record = json.loads(said.getvalue())
    notes = {"slots": record["slots"], "warnings": record["calibration"].get("warnings", [])}
    model = qdq.load(checkpoint)
    by_row = any(quantizer.spec is not None and quantizer.spec.dynamic for _, quantizer in quantizers(model))
    if target == "torch":
        return Quantized(_hidden(TorchRunner(model)), **vars(timed), by_row=by_row, notes=notes)
    exported = export(checkpoint, inputs.output / "export", target=target)
    notes["export"] = list(exported.notes)
    file = inputs.output / "export/model.onnx"
    runner: Any
    if target == "openvino":
        runner = OpenVINORunner(file, threads=inputs.threads)
    else:  # TensorRT's file is for a GPU: what counts is what its operators say, without fusions for CPUs
        runner = OnnxRuntimeRunner(file, threads=inputs.threads, optimize=target != "tensorrt")
    return Quantized(_hidden(runner), **vars(timed), by_row=by_row, notes=notes)


def _float(inputs: MethodInputs) -> Quantized:
    from exporters.runners import OnnxRuntimeRunner

    return Quantized(_hidden(OnnxRuntimeRunner(inputs.float_file, threads=inputs.threads)))


def _ort_dynamic(inputs: MethodInputs, *options: str) -> Quantized:
    """Run ONNX Runtime's ``quantize_dynamic``, with ``per-channel`` weights, or ``u8`` weights that never saturate."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from exporters.runners import OnnxRuntimeRunner

    source, file = inputs.float_file, inputs.output / "model.onnx"
    weights = QuantType.QUInt8 if "u8" in options else QuantType.QInt8
    with _timed() as timed:
        quantize_dynamic(source, file, per_channel="per-channel" in options, weight_type=weights)
    return Quantized(_hidden(OnnxRuntimeRunner(file, threads=inputs.threads)), **vars(timed), by_row=True)


def _ort_static(inputs: MethodInputs, *options: str) -> Quantized:
    """Run ONNX Runtime's ``quantize_static``: QDQ, MinMax, per channel; ``linear`` quantizes only linear layers.

    ``exact`` runs the file as it is written, without fusions to integer kernels.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from exporters.runners import OnnxRuntimeRunner

    source = inputs.float_file
    given = [value.name for value in onnx.load(source).graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = inputs.calibration_batches()

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._batches, None)
            return batch and {name: batch[name] for name in given}

    prepared, file = inputs.output / "prepared.onnx", inputs.output / "model.onnx"
    settings: dict[str, Any] = {}
    if "linear" in options:
        settings = {"op_types_to_quantize": ["MatMul", "Gemm"], "extra_options": {"MatMulConstBOnly": True}}
    with _timed() as timed:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            prepared,
            file,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            **settings,
        )
    runner = OnnxRuntimeRunner(file, threads=inputs.threads, optimize="exact" not in options)
    return Quantized(_hidden(runner), **vars(timed))


def _nncf(inputs: MethodInputs, preset: str = "performance", *options: str) -> Quantized:
    """Run ``nncf.quantize`` for transformers in OpenVINO, with symmetric (performance) or affine (mixed) activations.

    ``exact`` runs the model as it is written: without VNNI, OpenVINO's integer kernels saturate.
    """
    import nncf
    import openvino

    source, file = inputs.float_file, inputs.output / "model.xml"
    with _timed() as timed:
        core = openvino.Core()
        model = core.read_model(source)
        given = {name for port in model.inputs for name in port.get_names()}
        data = [{n: a for n, a in batch.items() if n in given} for batch in inputs.calibration_batches()]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(data),
            preset=nncf.QuantizationPreset(preset),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(data),
        )
        openvino.save_model(quantized, file, compress_to_fp16=False)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"INFERENCE_NUM_THREADS": inputs.threads}
    if "exact" in options:
        settings["LP_TRANSFORMS_MODE"] = "NO"
    compiled = core.compile_model(core.read_model(file), "CPU", settings)

    def run(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(compiled({name: arrays[name] for name in given})["last_hidden_state"])

    return Quantized(run, **vars(timed), notes={"nncf": nncf.__version__})


def _pytorch_quantization(inputs: MethodInputs, method: str = "max") -> Quantized:
    """Fake-quantize every linear layer of transformers' BERT with NVIDIA's pytorch-quantization, run in torch."""
    import torch
    from pytorch_quantization import calib, quant_modules
    from pytorch_quantization.nn import QuantLinear, TensorQuantizer
    from pytorch_quantization.tensor_quant import QuantDescriptor

    logging.getLogger().setLevel(logging.ERROR)
    import transformers

    descriptor = QuantDescriptor(num_bits=8, calib_method="max" if method == "max" else "histogram")
    QuantLinear.set_default_quant_desc_input(descriptor)
    with _timed() as timed, torch.inference_mode():
        quant_modules.initialize()
        model = transformers.AutoModel.from_pretrained(inputs.model_dir, attn_implementation="eager").eval()
        quant_modules.deactivate()
        quantizers = [module for module in model.modules() if isinstance(module, TensorQuantizer)]
        for quantizer in quantizers:
            quantizer.disable_quant()
            quantizer.enable_calib()
        for batch in inputs.calibration_batches():
            model(**{name: torch.from_numpy(array) for name, array in batch.items()})
        for quantizer in quantizers:
            if isinstance(quantizer._calibrator, calib.MaxCalibrator):
                quantizer.load_calib_amax()
            elif method == "percentile":
                quantizer.load_calib_amax("percentile", percentile=99.99)
            else:
                quantizer.load_calib_amax(method)
            quantizer.enable_quant()
            quantizer.disable_calib()

    def run(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        with torch.inference_mode():
            hidden = model(**{n: torch.from_numpy(a) for n, a in arrays.items()}).last_hidden_state
        return np.asarray(hidden)

    return Quantized(run, **vars(timed), notes={"quantizers": len(quantizers)})


OTHERS: dict[str, Callable[..., Quantized]] = {
    "float": _float,
    "ort-dynamic": _ort_dynamic,
    "ort-static": _ort_static,
    "nncf": _nncf,
    "pytorch-quantization": _pytorch_quantization,
}
"""The methods of other tools, by the first word of their name."""
