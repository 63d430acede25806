"""BERT-family encoders from a Hugging Face checkpoint to int8.

    import qdq

    model = qdq.load("checkpoint")                           the float reference
    recipe = qdq.load_recipe("onnxruntime")
    qdq.quantize(model, recipe)                              quantizers in the slots that the recipe names
    summary = qdq.calibrate_and_refine(model, batches, recipe.refinement)
    qdq.save(model, "quantized", recipe=recipe, calibration=summary.to_dict(), source="checkpoint")
    qdq.export("quantized", "exported", target="onnxruntime")
    qdq.verify("quantized", "exported")

Everything is imported when it is first used: ``import qdq`` alone loads neither torch nor onnx.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any
from warnings import warn

if TYPE_CHECKING:
    from calibration.pipeline import calibrate_and_refine
    from calibration.ranges import calibrate
    from exporters.benchmark import benchmark
    from exporters.directory import export, verify
    from exporters.interface import ExportInterface
    from qdq.checkpoint import load, save
    from qdq.data.text import encode_batches, read_samples
    from qdq.data.tokenizer import load_tokenizer
    from qdq.errors import QDQError
    from qdq.interop.transformers import from_transformers, to_transformers
    from qdq.models.registry import build
    from qdq.quantization.spec import PerAxis, PerTensor, QuantSpec
    from qdq.recipes.apply import apply_recipe, quantize
    from qdq.recipes.recipe import Recipe, load_recipe
    from qdq.source import open  # noqa: A004 (it is read as qdq.open)
    from qdq.tasks.evaluate import evaluate
    from qdq.training.loop import finetune

__version__ = "0.1.0"

_HOMES = {
    "ExportInterface": "exporters.interface",
    "PerAxis": "qdq.quantization.spec",
    "PerTensor": "qdq.quantization.spec",
    "QDQError": "qdq.errors",
    "QuantSpec": "qdq.quantization.spec",
    "Recipe": "qdq.recipes.recipe",
    "apply_recipe": "qdq.recipes.apply",
    "benchmark": "exporters.benchmark",
    "build": "qdq.models.registry",
    "calibrate": "calibration",
    "calibrate_and_refine": "calibration",
    "encode_batches": "qdq.data.text",
    "evaluate": "qdq.tasks.evaluate",
    "export": "exporters.directory",
    "finetune": "qdq.training.loop",
    "from_transformers": "qdq.interop.transformers",
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

__all__ = [
    "ExportInterface",
    "PerAxis",
    "PerTensor",
    "QDQError",
    "QuantSpec",
    "Recipe",
    "apply_recipe",
    "benchmark",
    "build",
    "calibrate",
    "calibrate_and_refine",
    "encode_batches",
    "evaluate",
    "export",
    "finetune",
    "from_transformers",
    "load",
    "load_recipe",
    "load_tokenizer",
    "open",
    "quantize",
    "read_samples",
    "save",
    "to_transformers",
    "verify",
]


_DEPRECATED = {"Form": "ExportInterface"}  # former name -> name


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED:
        warn(f"qdq.{name} is named qdq.{_DEPRECATED[name]} now", DeprecationWarning, stacklevel=2)
        name = _DEPRECATED[name]
    if name not in _HOMES:
        raise AttributeError(f"module 'qdq' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
