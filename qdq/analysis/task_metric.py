"""The metric of a task as a function of the quantizers that are switched on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from calibration.sensitivity.ranking import enable_only
from qdq.errors import ConfigError
from qdq.tasks.evaluate import score_model
from qdq.tasks.evaluator import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from exporters.runners import Runner
    from qdq.quantization.quantizer import Quantizer
    from qdq.tasks.evaluation_settings import EvaluationSettings
    from qdq.tasks.model_under_test import ModelUnderTest

__all__ = ["TaskMetric"]


class TaskMetric:
    """Measure a metric of a model as its quantizers are switched on and off.

    Args:
        model: The model under test, in torch.
        task: The task to evaluate.
        data: Labeled examples.
        settings: How to evaluate.
        metric: Name of the metric; None for the task's first one.

    Attributes:
        name: Name of the metric, once something was measured.
        in_float: The metric of the float model, once :meth:`measured_batches` was called.
    """

    def __init__(
        self, model: ModelUnderTest, task: str, data: Any, settings: EvaluationSettings, metric: str | None
    ) -> None:
        self._model, self._task, self._data, self._settings = model, task, data, settings
        self._module: nn.Module = model.runner.model  # type: ignore[attr-defined]
        self._wanted = metric
        self.name = metric or ""
        self.in_float = float("nan")

    def __call__(self, on: Collection[Quantizer]) -> float:
        """Return the metric with these quantizers on, in the unit that people use (percent, not a share of 1)."""
        return self._evaluate(self._model, on)

    def measured_batches(self, samples: int, progress: Callable[[int, int | None], None]) -> list[dict[str, Tensor]]:
        """Evaluate the float model, and return some of the batches that the task gave it.

        Args:
            samples: Least number of rows in the batches; they are of all lengths.
            progress: Called with the number of examples done and in all.
        """
        recorder = _Recorder(self._model.runner)
        self.in_float = self._evaluate(replace(self._model, runner=recorder), (), progress)
        rows = sum(len(next(iter(batch.values()))) for batch in recorder.batches)
        stride = max(1, rows // samples)  # batches come in the order of their lengths
        return [{n: torch.from_numpy(a) for n, a in batch.items()} for batch in recorder.batches[::stride]]

    def _evaluate(
        self,
        model: ModelUnderTest,
        on: Collection[Quantizer],
        progress: Callable[[int, int | None], None] | None = None,
    ) -> float:
        enable_only(self._module, on)
        scores = score_model(model, self._task, self._data, self._settings, progress=progress or silent)
        metrics = {metric.name: metric for metric in scores.metrics}
        self.name = self._wanted or next(iter(metrics))
        if self.name not in metrics:
            raise ConfigError(f"no metric {self.name!r} for the task {self._task}: it has {', '.join(metrics)}")
        return metrics[self.name].scale * metrics[self.name].value(scores.table)


class _Recorder:
    """A runner that keeps the inputs it was given."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.batches: list[dict[str, NDArray[Any]]] = []

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the runner's inputs."""
        return self._runner.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the runner's outputs."""
        return self._runner.output_names

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model and keep the inputs that it takes."""
        self.batches.append({name: inputs[name] for name in self.input_names})
        return self._runner(inputs)
