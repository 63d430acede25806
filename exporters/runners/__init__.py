"""Runners: arrays in, arrays out, whatever computes in between.

Evaluation, verification and timing see a :class:`Runner` and nothing of its runtime. All runners have the same manners:

1. an input the model does not have is ignored, so one batch serves every model;
2. a missing input, a wrong dtype, rank or fixed length is a :class:`~qdq.errors.DataError`, all of them at once; ids
   in int64 are taken by a model that declares int32;
3. what the runtime itself refuses arrives as an error of this package that names the file.
"""

from __future__ import annotations

from exporters.runners.evaluator import EvaluatorRunner
from exporters.runners.inputs import TensorInfo
from exporters.runners.onnxruntime import OnnxRuntimeRunner
from exporters.runners.openvino import OpenVINORunner
from exporters.runners.runner import Runner
from exporters.runners.torch import TorchRunner

__all__ = ["EvaluatorRunner", "OnnxRuntimeRunner", "OpenVINORunner", "Runner", "TensorInfo", "TorchRunner"]
