"""The metrics of a task on labeled data, to evaluate a model while it is trained."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qdq.data.example_types import fingerprint
from qdq.data.examples import read_examples
from qdq.errors import ConfigError
from qdq.processes import Process

if TYPE_CHECKING:
    from torch import nn

    from qdq.data.columns import Columns
    from qdq.data.examples import Examples
    from qdq.training.initial_model import InitialModel
    from qdq.training.settings import TaskSettings

__all__ = ["TaskMetrics"]

_LOG = logging.getLogger(__name__)
_LOWER_IS_BETTER = ("perplexity", "mse")
_FIRST_METRIC = {"masked-lm": "perplexity"}  # of other tasks: one where higher is better


@dataclass(frozen=True, kw_only=True)
class TaskMetrics:
    """Measures a model on labeled data; a :data:`qdq.training.evaluation.Evaluate`.

    Args:
        initial: Task, labels and configuration of the model.
        data: Labeled examples.
        settings: Batch size, longest row, split to evaluate on and the deciding metric.
        columns: Names of the columns where they are not the usual ones.
        seed: Seed of masking.
    """

    initial: InitialModel
    data: Any
    settings: TaskSettings
    columns: Columns | None
    seed: int
    _warned: set[str] = field(default_factory=set, init=False, repr=False)

    @property
    def better(self) -> str:
        """Whether a ``higher`` or a ``lower`` value of the deciding metric is better."""
        metric = self.settings.metric or _FIRST_METRIC.get(self.initial.task)
        return "lower" if metric in _LOWER_IS_BETTER else "higher"

    def check_data(self) -> None:
        """Read the data once, so that its problems are known before the training.

        Raises:
            DataError: If the data does not fit the task; each problem is named with its line.
        """
        self._examples().check()

    @cached_property
    def digest(self) -> str:
        """A digest of the examples and of how they are measured; a resumed training needs the same one."""
        sha, count = hashlib.sha256(), 0
        for example in self._examples():
            sha.update(fingerprint(example).encode())
            count += 1
        return f"{count} examples {sha.hexdigest()}"

    def _warn(self, notes: list[str]) -> None:
        for note in notes:
            if note not in self._warned and Process.current().is_first:
                _LOG.warning("evaluation data: %s", note)
            self._warned.add(note)

    def _examples(self) -> Examples:
        return read_examples(
            self.data,
            self.initial.task,
            columns=self.columns,
            labels=self.initial.labels,
            need_labels=self.initial.task != "masked-lm",
            split=self.settings.eval_split,
        )

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of ``model`` by name, the deciding one first.

        Raises:
            ConfigError: If the task does not have the deciding metric.
        """
        from qdq.tasks.evaluate import empty_notes, score_model
        from qdq.tasks.evaluation_settings import EvaluationSettings
        from qdq.tasks.model_under_test import model_under_test_of

        settings = EvaluationSettings(
            batch_size=self.settings.batch_size,
            seq_len=self.settings.seq_len,
            columns=self.columns,
            split=self.settings.eval_split,
            seed=self.seed,
        )
        # A model that FSDP wrapped has neither task nor configuration.
        opened = model_under_test_of(model, self.initial.directory, self.initial.task)
        model_under_test = replace(opened, config=self.initial.config)
        scores = score_model(model_under_test, self.initial.task, self.data, settings)
        self._warn(empty_notes(scores))
        metrics = {metric.name: metric.value(scores.table) for metric in scores.metrics}
        deciding = self.settings.metric
        if deciding is None:
            return metrics
        if deciding not in metrics:
            raise ConfigError(f"no metric {deciding!r} for the task {self.initial.task}: it has {', '.join(metrics)}")
        return {deciding: metrics[deciding], **metrics}
