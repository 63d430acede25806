"""Evaluate a model on a task: its metrics, how sure they are, and what they are against another model's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, DataError
from qdq.tasks.bootstrap import CONFIDENCE, compare, intervals
from qdq.tasks.drop import MaxDrop
from qdq.tasks.metrics import torchmetrics_functions
from qdq.tasks.model_under_test import TASKS, open_subject, subject_of
from qdq.tasks.scoring import Job, silent
from qdq.tasks.sequence_classification import labels_of
from qdq.tasks.settings import Settings
from qdq.tasks.table import rows_of
from qdq.tasks.token_classification import entities_finder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from exporters.runners import Runner
    from qdq.tasks.bootstrap import Difference, Interval
    from qdq.tasks.drop import Drop
    from qdq.tasks.model_under_test import Subject
    from qdq.tasks.scoring import Progress, Scores

__all__ = ["Comparison", "Evaluation", "evaluate", "evaluate_subject"]


_PACKAGES: dict[str, Callable[[], object]] = {
    "sts": torchmetrics_functions,
    "sequence-classification": torchmetrics_functions,
    "token-classification": entities_finder,
}
"""What a task cannot do without."""


@dataclass(frozen=True)
class Comparison:
    """Another model on the same examples, and the differences: the model minus this one."""

    model: str
    runtime: str
    metrics: dict[str, float]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

    Args:
        task: that was measured.
        model: that was evaluated, by name.
        runtime: that computed it.
        examples: that counted.
        skipped: rows without label.
        metrics: by name; NaN where one is not defined. Shares and correlations, not hundredths.
        intervals: of each metric, at 95 %.
        scales: what people multiply a metric with: 100, or 1 for perplexity.
        settings: what the figures depend on.
        notes: what a reader should know.
        against: the other model.
        drop: whether the loss is within the limit, where one was given.
    """

    task: str
    model: str
    runtime: str
    examples: int
    skipped: int
    metrics: dict[str, float]
    intervals: dict[str, Interval | None]
    scales: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    against: Comparison | None = None
    drop: Drop | None = None

    @property
    def holds(self) -> bool:
        """False where the drop exceeds its limit."""
        return self.drop is None or self.drop.holds

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is not a number is None."""
        document: dict[str, Any] = {
            "task": self.task,
            "model": self.model,
            "runtime": self.runtime,
            "examples": self.examples,
            "skipped": self.skipped,
            "metrics": _plain(self.metrics),
            "intervals": {name: interval and list(interval) for name, interval in self.intervals.items()},
            "confidence": CONFIDENCE,
            "settings": self.settings,
            "notes": list(self.notes),
        }
        if self.against is not None:
            document["against"] = {
                "model": self.against.model,
                "runtime": self.against.runtime,
                "metrics": _plain(self.against.metrics),
                "differences": {
                    name: {
                        "difference": _number(difference.value),
                        "interval": difference.interval and list(difference.interval),
                        "p_value": difference.p_value,
                    }
                    for name, difference in self.against.differences.items()
                },
            }
        if self.drop is not None:
            document["drop"] = self.drop.to_dict()
        return document


def evaluate(
    model: str | Path | nn.Module | Runner,
    task: str,
    data: Any,
    *,
    against: str | Path | None = None,
    max_drop: str | float | None = None,
    metric: str | None = None,
    folder: str | Path | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    resamples: int = 1000,
    settings: Settings | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Evaluation:
    """The metrics of a model on labelled data.

    Args:
        model: directory of a checkpoint, float or quantized, or of an export; or a model in memory, or any runner.
        task: ``sts``, ``sequence-classification``, ``token-classification``, ``question-answering``,
            ``multiple-choice``, ``masked-lm`` or ``retrieval``.
        data: anything that :func:`qdq.data.examples.read_examples` reads; for retrieval see ``qdq.tasks.retrieval``.
        against: directory of another model, the baseline, which is run on the same examples.
        max_drop: the loss against the baseline that is accepted, ``"1%"`` of its figure or ``0.5`` points.
        metric: that ``max_drop`` is about; the task's first one when None.
        folder: of a model in memory or a runner: the directory with its config.json and tokenizer.
        runtime: for exports, ``onnxruntime`` (when None) or ``openvino``.
        threads: of that runtime.
        resamples: of the bootstrap; 0 leaves the intervals out.
        settings: how to run; or its fields by name.
        progress: told how many examples are done, and of how many.
        **options: fields of ``Settings``.

    Raises:
        CheckpointError: for a model that cannot be read.
        ConfigError: for options that do not go together, or a model that has no head for the task.
        DataError: for data that cannot be read or does not fit the model; all problems at once.
        VerificationError: for a model that gives NaN.
        MissingPackageError: for metrics whose package is not installed.
    """
    if settings is None:
        settings = Settings(**options)
    elif options:
        raise ConfigError(f"give settings, or {', '.join(options)} by name, not both")
    limit = None if max_drop is None else MaxDrop.parse(max_drop)
    if against is None and limit is not None:
        raise ConfigError("a largest drop needs a model to drop from: give the baseline (--against), too")
    if against is None and metric is not None:
        raise ConfigError("a metric is chosen for a comparison: give the baseline (--against), too")
    if resamples < 0:
        raise ConfigError(f"resamples is {resamples}, must be at least 0")
    if not isinstance(data, str | Path) and against is not None and iter(data) is data:
        data = list(data)  # it is read twice

    def opened(path: str | Path) -> Subject:
        return open_subject(path, task, runtime=runtime, threads=threads)

    baseline = None if against is None else opened(against)
    if isinstance(model, str | Path):
        subject = opened(model)
    elif folder is None:
        raise ConfigError("a model in memory needs folder: the directory with its config.json and tokenizer")
    else:
        subject = subject_of(model, folder, task)
    if runtime is not None and subject.runtime != runtime and (baseline is None or baseline.runtime != runtime):
        raise ConfigError(f"a runtime goes with an exported directory, {subject.name} runs in {subject.runtime}")
    if baseline is not None:
        _check_same_labels(subject, baseline, task)
    if task in _PACKAGES:
        _PACKAGES[task]()  # before the work, not after it
    scores = evaluate_subject(subject, task, data, settings, progress=progress)
    evaluation = _evaluation(subject, task, scores, resamples=resamples, seed=settings.seed)
    if baseline is None:
        return evaluation
    theirs = evaluate_subject(baseline, task, data, settings, progress=progress)
    return _compared(evaluation, scores, baseline, theirs, limit, metric, resamples=resamples, seed=settings.seed)


def evaluate_subject(
    subject: Subject, task: str, data: Any, settings: Settings, *, progress: Progress = silent
) -> Scores:
    """The table and the metrics of one model.

    Raises:
        ConfigError: there is no such task.
        DataError: the data does not serve the task, or holds no labelled example.
    """
    if task not in TASKS:
        raise ConfigError(f"no task {task!r} to evaluate; there are {', '.join(TASKS)}")
    score: Callable[[Job], Scores] = import_module(f"qdq.tasks.{task.replace('-', '_')}").score
    scores = score(Job(subject, data, settings, progress))
    if not rows_of(scores.table):
        name = data if isinstance(data, str | Path) else "the rows given"
        raise DataError(f"{name}: no labelled example for the task {task}")
    return scores


def _evaluation(subject: Subject, task: str, scores: Scores, *, resamples: int, seed: int) -> Evaluation:
    return Evaluation(
        task=task,
        model=subject.name,
        runtime=subject.runtime,
        examples=rows_of(scores.table),
        skipped=scores.skipped,
        metrics={metric.name: metric.value(scores.table) for metric in scores.metrics},
        intervals=intervals(scores.metrics, scores.table, resamples=resamples, seed=seed),
        scales={metric.name: metric.scale for metric in scores.metrics},
        settings={**scores.settings, "resamples": resamples, "seed": seed},
        notes=scores.notes,
    )


def _compared(
    evaluation: Evaluation,
    scores: Scores,
    baseline: Subject,
    theirs: Scores,
    limit: MaxDrop | None,
    chosen: str | None,
    *,
    resamples: int,
    seed: int,
) -> Evaluation:
    """``evaluation`` with its comparison and its drop."""
    by_name = {metric.name: metric for metric in scores.metrics}
    names, other = list(by_name), [metric.name for metric in theirs.metrics]
    rows, other_rows = rows_of(scores.table), rows_of(theirs.table)
    if names != other or rows != other_rows:
        raise ConfigError(
            f"{evaluation.model} and {baseline.name} cannot be compared: {', '.join(names)} of {rows} examples here, "
            f"{', '.join(other)} of {other_rows} there"
        )
    if chosen is not None and chosen not in by_name:
        raise ConfigError(f"no metric {chosen!r} for the task {evaluation.task}: it has {', '.join(names)}")
    against = Comparison(
        model=baseline.name,
        runtime=baseline.runtime,
        metrics={metric.name: metric.value(theirs.table) for metric in theirs.metrics},
        differences=compare(scores.metrics, scores.table, theirs.table, resamples=resamples, seed=seed),
    )
    name = chosen or names[0]
    drop = None
    if limit is not None:
        drop = limit.judge(by_name[name], evaluation.metrics[name], against.metrics[name])
    notes = tuple(dict.fromkeys((*evaluation.notes, *theirs.notes)))
    return replace(evaluation, against=against, drop=drop, notes=notes)


def _check_same_labels(subject: Subject, baseline: Subject, task: str) -> None:
    """Class numbers of two heads can be compared only when they mean the same."""
    ours, theirs = (labels_of(one.config).names for one in (subject, baseline))
    if task in {"sequence-classification", "token-classification"} and ours != theirs:
        raise ConfigError(
            f"{subject.name} and {baseline.name} cannot be compared: their heads have other labels, "
            f"{', '.join(ours)} and {', '.join(theirs)}"
        )


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
