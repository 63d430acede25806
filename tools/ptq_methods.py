"""Methods of post-training quantization: each makes a model from a float one and 300 sentences, and runs it."""

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

__all__ = ["OTHERS", "TARGETS", "Job", "Quantized", "is_ours", "method_named"]

TARGETS = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "qdqbert": "tensorrt",
    "linear": "onnxruntime",
    "dynamic": "onnxruntime",
}
"""Our presets, and the target that each is exported for when none is named."""


@dataclass(frozen=True)
class Job:
    """What a method works with.

    Args:
        model_dir: Hugging Face directory of the float model.
        folder: with ``calibration.txt``, and the float file once somebody asked for it.
        output: an empty folder for what the method makes.
        split: the sentences.
        threads: of the runtime.
    """

    model_dir: Path
    folder: Path
    output: Path
    split: ptq_data.Split
    threads: int

    @property
    def float_file(self) -> Path:
        """The float model as ONNX, which the first to ask for it exports."""
        from exporters.directory import export

        if not (self.folder / "float").exists():
            export(self.model_dir, self.folder / "float", target=None)
        return self.folder / "float/model.onnx"

    def calibration_batches(self) -> Iterator[dict[str, NDArray[Any]]]:
        """One sentence each: these methods know nothing of padding."""
        return (arrays for _, arrays in ptq_data.batches(self.split.calibration, self.model_dir, rows=1, longest=128))


@dataclass
class Quantized:
    """A model that can be run, and what it took to make it.

    Args:
        run: arrays in, ``last_hidden_state`` out.
        seconds: of calibration, from a float model on disk; imports do not count.
        peak_mb: largest resident memory of the process until then.
        by_row: whether an output depends on what else is in the batch.
        notes: what a reader should know.
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
    """Whether a method is one of this project."""
    return name.split(maxsplit=1)[0] not in OTHERS


def method_named(name: str) -> Callable[[Job], Quantized]:
    """``onnxruntime``, ``tensorrt@torch --calibrator mse``, ``recipe.yaml@openvino``: ours; else one of OTHERS."""
    first, *options = shlex.split(name)
    if first in OTHERS:
        return lambda job: OTHERS[first](job, *options)
    recipe, _, target = first.partition("@")
    return lambda job: _ours(job, recipe, target or TARGETS.get(recipe, "onnxruntime"), options)


def _ours(job: Job, recipe: str, target: str, options: list[str]) -> Quantized:
    """``qdq calibrate`` with these options, then the file in its runtime; with ``@torch`` the checkpoint."""
    import qdq
    from exporters.directory import export
    from exporters.runners import OnnxRuntimeRunner, OpenVINORunner, TorchRunner
    from qdq.cli.main import main
    from qdq.quantization.quantizer import quantizers

    checkpoint = job.output / "checkpoint"
    request = ["calibrate", "-m", str(job.model_dir), "-o", str(checkpoint), "--recipe", recipe, "--json"]
    if recipe not in {"dynamic", "weight-only-int8", "weight-only-int4"}:
        request += ["--calib-data", str(job.folder / "calibration.txt")]
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
    exported = export(checkpoint, job.output / "export", target=target)
    notes["export"] = list(exported.notes)
    file = job.output / "export/model.onnx"
    runner: Any
    if target == "openvino":
        runner = OpenVINORunner(file, threads=job.threads)
    else:  # TensorRT's file is for a GPU: what counts is what its operators say, without fusions for CPUs
        runner = OnnxRuntimeRunner(file, threads=job.threads, optimize=target != "tensorrt")
    return Quantized(_hidden(runner), **vars(timed), by_row=by_row, notes=notes)


def _float(job: Job) -> Quantized:
    from exporters.runners import OnnxRuntimeRunner

    return Quantized(_hidden(OnnxRuntimeRunner(job.float_file, threads=job.threads)))


def _ort_dynamic(job: Job, *options: str) -> Quantized:
    """ONNX Runtime's ``quantize_dynamic``; ``per-channel`` weights; ``u8`` weights, with which no kernel saturates."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from exporters.runners import OnnxRuntimeRunner

    source, file = job.float_file, job.output / "model.onnx"
    weights = QuantType.QUInt8 if "u8" in options else QuantType.QInt8
    with _timed() as timed:
        quantize_dynamic(source, file, per_channel="per-channel" in options, weight_type=weights)
    return Quantized(_hidden(OnnxRuntimeRunner(file, threads=job.threads)), **vars(timed), by_row=True)


def _ort_static(job: Job, *options: str) -> Quantized:
    """ONNX Runtime's ``quantize_static``: QDQ, MinMax, per channel; ``linear`` for products with weights alone.

    ``exact`` runs the file as it is written, without fusions to integer kernels.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from exporters.runners import OnnxRuntimeRunner

    source = job.float_file
    given = [value.name for value in onnx.load(source).graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = job.calibration_batches()

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._batches, None)
            return batch and {name: batch[name] for name in given}

    prepared, file = job.output / "prepared.onnx", job.output / "model.onnx"
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
    runner = OnnxRuntimeRunner(file, threads=job.threads, optimize="exact" not in options)
    return Quantized(_hidden(runner), **vars(timed))


def _nncf(job: Job, preset: str = "performance", *options: str) -> Quantized:
    """``nncf.quantize`` for transformers, run in OpenVINO; symmetric activations (performance) or affine (mixed).

    ``exact`` runs the model as it is written: without VNNI, OpenVINO's integer kernels saturate.
    """
    import nncf
    import openvino

    source, file = job.float_file, job.output / "model.xml"
    with _timed() as timed:
        core = openvino.Core()
        model = core.read_model(source)
        given = {name for port in model.inputs for name in port.get_names()}
        data = [{n: a for n, a in batch.items() if n in given} for batch in job.calibration_batches()]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(data),
            preset=nncf.QuantizationPreset(preset),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(data),
        )
        openvino.save_model(quantized, file, compress_to_fp16=False)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    settings |= {"INFERENCE_NUM_THREADS": job.threads}
    if "exact" in options:
        settings["LP_TRANSFORMS_MODE"] = "NO"
    compiled = core.compile_model(core.read_model(file), "CPU", settings)

    def run(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(compiled({name: arrays[name] for name in given})["last_hidden_state"])

    return Quantized(run, **vars(timed), notes={"nncf": nncf.__version__})


def _pytorch_quantization(job: Job, method: str = "max") -> Quantized:
    """NVIDIA's pytorch-quantization: every linear layer of transformers' BERT, run in torch (fake-quantized)."""
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
        model = transformers.AutoModel.from_pretrained(job.model_dir, attn_implementation="eager").eval()
        quant_modules.deactivate()
        quantizers = [module for module in model.modules() if isinstance(module, TensorQuantizer)]
        for quantizer in quantizers:
            quantizer.disable_quant()
            quantizer.enable_calib()
        for batch in job.calibration_batches():
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
"""Methods of others, by the first word of their name."""
