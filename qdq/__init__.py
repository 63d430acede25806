"""BERT-family encoders from a Hugging Face checkpoint to int8.

Models in memory:

    model = qdq.load("checkpoint")                              the float reference
    recipe = qdq.load_recipe("onnxruntime")
    qdq.quantize(model, recipe)                                 quantizers in the slots that the recipe names
    summary = qdq.calibrate_and_refine(model, batches, recipe.refinement)
    qdq.analyze(model, batches)                                 what each quantized slot costs
    qdq.save(model, "quantized", recipe=recipe, calibration=summary.to_dict(), source="checkpoint")

Directories, each step from one to the next as the command of the same name does it:

    qdq.open("checkpoint")                                      what it holds: kind, task, tokenizer, records
    qdq.calibrate_checkpoint("checkpoint", "quantized", "sentences.txt")
    qdq.finetune_checkpoint("quantized", "trained", "train.tsv")
    qdq.analyze_checkpoint("quantized", "sentences.txt")
    qdq.export("quantized", "exported", target="onnxruntime")
    qdq.verify("quantized", "exported")
    qdq.lint("exported")
    qdq.build_engine("exported", "model.plan")
    qdq.evaluate("exported", "sts", "sts.tsv", against="checkpoint")

``qdq.calibration``, ``qdq.exporters`` and ``qdq.training`` offer the parts: calibration methods, runners, losses.
Everything is imported when it is first used: ``import qdq`` alone loads neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

from qdq.processes import shadowing_problem

if TYPE_CHECKING:
    from calibration.checkpoint import calibrate_checkpoint
    from calibration.pipeline import calibrate_and_refine
    from calibration.ranges import calibrate
    from calibration.sensitivity.ranking import analyze
    from calibration.settings import CalibrationSettings, RangeAdjustments
    from exporters.benchmark import benchmark
    from exporters.directory import export, verify
    from exporters.interface import ExportInterface
    from exporters.tensorrt.build_options import BuildOptions
    from exporters.tensorrt.engine import build_engine, lint
    from qdq import calibration, exporters, training
    from qdq.analysis.checkpoint import analyze_checkpoint
    from qdq.analysis.settings import AnalysisSettings, TaskMetricSettings
    from qdq.checkpoint import load, save
    from qdq.conversion import convert
    from qdq.data.text import encode_batches, read_samples
    from qdq.data.tokenizer import load_tokenizer
    from qdq.errors import QDQError
    from qdq.generation import GenerationSettings, generate
    from qdq.interop.transformers import from_transformers, to_transformers
    from qdq.models.registry import build
    from qdq.quantization.spec import PerAxis, PerTensor, QuantSpec
    from qdq.recipes.apply import apply_recipe, quantize
    from qdq.recipes.recipe import Recipe, load_recipe
    from qdq.source import ModelDirectory, open  # noqa: A004 (it is read as qdq.open)
    from qdq.tasks.evaluate import evaluate
    from qdq.tasks.evaluation_settings import EvaluationSettings
    from qdq.training.finetuning import finetune_checkpoint
    from qdq.training.loop import finetune
    from qdq.training.settings import Distillation, InitialCalibration, TaskSettings, TrainingSettings

__version__ = "0.1.0"

_HOMES = {
    "AnalysisSettings": "qdq.analysis.settings",
    "BuildOptions": "exporters.tensorrt.build_options",
    "CalibrationSettings": "calibration.settings",
    "Distillation": "qdq.training.settings",
    "EvaluationSettings": "qdq.tasks.evaluation_settings",
    "ExportInterface": "exporters.interface",
    "GenerationSettings": "qdq.generation",
    "InitialCalibration": "qdq.training.settings",
    "ModelDirectory": "qdq.source",
    "PerAxis": "qdq.quantization.spec",
    "PerTensor": "qdq.quantization.spec",
    "QDQError": "qdq.errors",
    "QuantSpec": "qdq.quantization.spec",
    "RangeAdjustments": "calibration.settings",
    "Recipe": "qdq.recipes.recipe",
    "TaskMetricSettings": "qdq.analysis.settings",
    "TaskSettings": "qdq.training.settings",
    "TrainingSettings": "qdq.training.settings",
    "analyze": "calibration.sensitivity.ranking",
    "analyze_checkpoint": "qdq.analysis.checkpoint",
    "apply_recipe": "qdq.recipes.apply",
    "benchmark": "exporters.benchmark",
    "build": "qdq.models.registry",
    "build_engine": "exporters.tensorrt.engine",
    "calibrate": "calibration.ranges",
    "calibrate_and_refine": "calibration.pipeline",
    "calibrate_checkpoint": "calibration.checkpoint",
    "convert": "qdq.conversion",
    "encode_batches": "qdq.data.text",
    "evaluate": "qdq.tasks.evaluate",
    "export": "exporters.directory",
    "finetune": "qdq.training.loop",
    "finetune_checkpoint": "qdq.training.finetuning",
    "from_transformers": "qdq.interop.transformers",
    "generate": "qdq.generation",
    "lint": "exporters.tensorrt.engine",
    "load": "qdq.checkpoint",
    "load_recipe": "qdq.recipes.recipe",
    "load_tokenizer": "qdq.data.tokenizer",
    "open": "qdq.source",
    "quantize": "qdq.recipes.apply",
    "read_samples": "qdq.data.text",
    "save": "qdq.checkpoint",
    "to_transformers": "qdq.interop.transformers",
    "verify": "exporters.directory",
}

_SUBPACKAGES = ("calibration", "exporters", "training")

_DEPRECATED = {"Form": "ExportInterface"}  # former name -> name

__all__ = [
    "AnalysisSettings",
    "BuildOptions",
    "CalibrationSettings",
    "Distillation",
    "EvaluationSettings",
    "ExportInterface",
    "GenerationSettings",
    "InitialCalibration",
    "ModelDirectory",
    "PerAxis",
    "PerTensor",
    "QDQError",
    "QuantSpec",
    "RangeAdjustments",
    "Recipe",
    "TaskMetricSettings",
    "TaskSettings",
    "TrainingSettings",
    "analyze",
    "analyze_checkpoint",
    "apply_recipe",
    "benchmark",
    "build",
    "build_engine",
    "calibrate",
    "calibrate_and_refine",
    "calibrate_checkpoint",
    "calibration",
    "convert",
    "encode_batches",
    "evaluate",
    "export",
    "exporters",
    "finetune",
    "finetune_checkpoint",
    "from_transformers",
    "generate",
    "lint",
    "load",
    "load_recipe",
    "load_tokenizer",
    "open",
    "quantize",
    "read_samples",
    "save",
    "to_transformers",
    "training",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED:
        warn(f"qdq.{name} is named qdq.{_DEPRECATED[name]} now", DeprecationWarning, stacklevel=2)
        name = _DEPRECATED[name]
    if name in _SUBPACKAGES:
        return import_module(f"qdq.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'qdq' has no attribute {name!r}")
    if problem := shadowing_problem(_HOMES[name].partition(".")[0]):
        raise ImportError(problem)
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
