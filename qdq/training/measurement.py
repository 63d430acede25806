"""What measures a model while it is trained: the metrics of its task on data, the deciding one first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qdq.data.examples import read_examples
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from qdq.data.columns import Columns
    from qdq.training.initial_model import Start

__all__ = ["Measurement"]

_LOWER = ("perplexity", "mse")
_FIRST_METRIC = {"masked-lm": "perplexity"}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Measures a model on data.

    Args:
        start: task, labels and configuration of the model.
        data: labelled examples.
        metric: that decides; the task's first one when None.
        batch_size: rows.
        seq_len: longest row in tokens; None: what the model takes.
        columns: of the data, where they are not the usual ones.
        split: of a saved dataset with several.
        seed: of masking.
    """

    start: Start
    data: Any
    metric: str | None
    batch_size: int
    seq_len: int | None
    columns: Columns | None
    split: str | None
    seed: int

    @property
    def better(self) -> str:
        """Which way the deciding metric gets better: ``higher`` or ``lower``."""
        return "lower" if (self.metric or _FIRST_METRIC.get(self.start.task)) in _LOWER else "higher"

    def check(self) -> None:
        """Read the data through once, so that its problems come before the work.

        Raises:
            DataError: it does not fit the task, every problem with its place.
        """
        examples = read_examples(
            self.data,
            self.start.task,
            columns=self.columns,
            labels=self.start.labels,
            need_labels=self.start.task != "masked-lm",
            split=self.split,
        )
        examples.check()

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """The metrics of ``model`` by name, the deciding one first.

        Raises:
            ConfigError: the task has no such metric.
        """
        from qdq.tasks.evaluate import score_model
        from qdq.tasks.evaluation_settings import EvaluationSettings
        from qdq.tasks.model_under_test import model_under_test_of

        settings = EvaluationSettings(
            batch_size=self.batch_size, seq_len=self.seq_len, columns=self.columns, split=self.split, seed=self.seed
        )
        # a wrapper of accelerate knows neither task nor configuration
        under_test = replace(model_under_test_of(model, self.start.path, self.start.task), config=self.start.config)
        scores = score_model(under_test, self.start.task, self.data, settings)
        found = {metric.name: metric.value(scores.table) for metric in scores.metrics}
        if self.metric is None:
            return found
        if self.metric not in found:
            raise ConfigError(f"no metric {self.metric!r} for the task {self.start.task}: it has {', '.join(found)}")
        return {self.metric: found[self.metric], **found}
