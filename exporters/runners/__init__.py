"""Runners: compute named arrays from named arrays, in any runtime.

Evaluation, verification and timing use a :class:`Runner` and know nothing about its runtime. All runners follow
the same rules:

1. An input that the model does not have is ignored, so one batch serves every model.
2. A missing input, a wrong type, rank or fixed length raises :class:`~qdq.errors.DataError`, which lists all of them.
   A model that declares int32 takes ids in int64.
3. Errors of the runtime become errors of this package that name the file.
"""

from __future__ import annotations

from exporters.runners.evaluator import EvaluatorRunner
from exporters.runners.inputs import TensorInfo
from exporters.runners.onnxruntime import OnnxRuntimeRunner
from exporters.runners.openvino import OpenVINORunner
from exporters.runners.runner import Runner
from exporters.runners.torch import TorchRunner

__all__ = ["EvaluatorRunner", "OnnxRuntimeRunner", "OpenVINORunner", "Runner", "TensorInfo", "TorchRunner"]
