"""Settings of an analysis. Importing this module loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from qdq.errors import ConfigError
from qdq.settings import anything, check, choice, documented, setting, whole

__all__ = ["GROUPING_NAMES", "AnalysisSettings", "TaskMetricSettings"]

GROUPING_NAMES = ("slot", "module", "layer", "role", "kind")
"""What can be switched together; how is in :mod:`calibration.sensitivity.groups`."""


@documented
@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """The settings of an analysis: which slots are measured together, and on how much text.

    Raises:
        ConfigError: Settings break their rules; all of them are listed.
    """

    by: str = setting(
        "module",
        "Groups of slots to measure: each slot, module or layer; role: the same module of all layers; kind: the same "
        "slot of all modules of a type.",
        choice(*GROUPING_NAMES),
        metavar="|".join(GROUPING_NAMES),
    )
    only: list[str] | None = setting(  # noqa: RUF009 (its default is None)
        None, "Measure only modules or slots whose names match this pattern. Repeatable.", anything(), metavar="GLOB"
    )
    num_samples: int = setting(
        64, "Largest number of samples to use. If the data has more, they are drawn at random.", whole(1), metavar="N"
    )
    max_batches: int | None = setting(
        None, "Stop after N batches; by default all are used.", whole(1).or_none(), metavar="N"
    )
    batch_size: int = setting(8, "Number of samples in a batch.", whole(1), metavar="B")
    seq_len: int = setting(128, "Longest input in tokens. Longer ones are cut.", whole(3), metavar="L")
    seed: int = setting(0, "Seed of the choice of samples and examples.", whole(0), option=None)

    def __post_init__(self) -> None:
        check(self, "settings of the analysis")


@documented
@dataclass(frozen=True, kw_only=True)
class TaskMetricSettings:
    """The metric of a task that an analysis measures besides the distance to the float model.

    Raises:
        ConfigError: Settings break their rules; all of them are listed.
    """

    task: str | None = setting(
        None, "Task whose metric is measured too, for the groups that are shown; see qdq evaluate.", metavar="TASK"
    )
    metric: str | None = setting(None, "Metric to measure; by default the task's first one.", metavar="NAME")
    task_samples: int = setting(
        512,
        "Largest number of examples for the metric. If the data has more, they are drawn at random.",
        whole(1),
        metavar="N",
    )

    def __post_init__(self) -> None:
        def between() -> list[str]:
            return ["--metric goes with --task"] if self.metric is not None and self.task is None else []

        check(self, "metric of a task", between, ConfigError)
