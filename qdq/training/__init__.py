"""Training: float heads, quantized checkpoints with fake quantization (QAT), and distillation.

:func:`finetune` trains a model on any loader, :func:`finetune_checkpoint` goes from a directory to a directory. Names
are imported when they are first used: reading settings loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdq.training.distillation import DistillationLoss
    from qdq.training.finetuning import finetune_checkpoint
    from qdq.training.loop import finetune
    from qdq.training.progress import TrainingProgress, TrainingResult
    from qdq.training.quantization import ready_for_training
    from qdq.training.settings import Distillation, InitialCalibration, TaskSettings, TrainingSettings

_MODULES = {
    "Distillation": "settings",
    "DistillationLoss": "distillation",
    "InitialCalibration": "settings",
    "TaskSettings": "settings",
    "TrainingProgress": "progress",
    "TrainingResult": "progress",
    "TrainingSettings": "settings",
    "finetune": "loop",
    "finetune_checkpoint": "finetuning",
    "ready_for_training": "quantization",
}

__all__ = [
    "Distillation",
    "DistillationLoss",
    "InitialCalibration",
    "TaskSettings",
    "TrainingProgress",
    "TrainingResult",
    "TrainingSettings",
    "finetune",
    "finetune_checkpoint",
    "ready_for_training",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'qdq.training' has no attribute {name!r}")
    value = getattr(import_module(f"qdq.training.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
