"""Evaluate a model on a task: its metrics, their confidence intervals, and the comparison with a baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.errors import ConfigError, DataError
from qdq.source import ModelDirectory
from qdq.tasks.bootstrap import CONFIDENCE, compare, intervals
from qdq.tasks.drop import MaxDrop
from qdq.tasks.evaluation_settings import EvaluationSettings
from qdq.tasks.evaluator import Evaluator, silent
from qdq.tasks.example_table import rows_of
from qdq.tasks.model_under_test import TASKS, model_under_test_of, open_model_under_test
from qdq.tasks.sequence_classification import labels_of
from qdq.tasks.token_classification import entities_finder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from exporters.runners import Runner
    from qdq.tasks.bootstrap import Difference, Interval
    from qdq.tasks.drop import Drop
    from qdq.tasks.evaluator import Progress, Scores
    from qdq.tasks.model_under_test import ModelUnderTest

__all__ = ["Comparison", "Evaluation", "empty_notes", "evaluate", "score_model"]


@dataclass(frozen=True)
class Comparison:
    """The figures of a baseline on the same examples.

    Args:
        model: The name of the baseline.
        runtime: The runtime that computed it.
        metrics: Its metrics by name.
        differences: By metric, the model minus the baseline.
    """

    model: str
    runtime: str
    metrics: dict[str, float]
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

    Args:
        task: The task.
        model: The name of the model.
        runtime: The runtime that computed it.
        examples: The number of examples.
        skipped: The number of rows without a label.
        metrics: The metrics by name, as shares and correlations between -1 and 1; NaN for one that is not defined.
        intervals: The 95 % confidence interval of each metric.
        scales: The factor with which each metric is usually quoted: 100, or 1 for perplexity.
        settings: The settings that the figures depend on.
        notes: What a reader of the figures should know.
        against: The baseline, if there is one.
        drop: How far the model is below the baseline, if a limit was given.
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
        """Whether the drop is within its limit; True without a limit."""
        return self.drop is None or self.drop.holds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN becomes None."""
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
    model: str | Path | ModelDirectory | nn.Module | Runner,
    task: str,
    data: Any,
    *,
    against: str | Path | ModelDirectory | None = None,
    max_drop: str | float | None = None,
    metric: str | None = None,
    folder: str | Path | ModelDirectory | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    resamples: int = 1000,
    settings: EvaluationSettings | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Evaluation:
    """Measure the metrics of a model on labeled data.

    Args:
        model: The directory of a float or quantized checkpoint or of an export; or a model in memory, or any runner.
        task: One of ``sts``, ``sequence-classification``, ``token-classification``, ``question-answering``,
            ``multiple-choice``, ``masked-lm`` or ``retrieval``.
        data: Anything that :func:`qdq.data.examples.read_examples` reads; for retrieval see ``qdq.tasks.retrieval``.
        against: The directory of a baseline, which is run on the same examples.
        max_drop: How far the model may be below the baseline: ``"1%"`` of its figure, or ``0.5`` points.
        metric: The metric that ``max_drop`` applies to; by default the first one of the task.
        folder: The directory with the config.json and the tokenizer of a model in memory or a runner.
        runtime: The runtime of exports, ``onnxruntime`` (the default) or ``openvino``.
        threads: The number of threads of that runtime.
        resamples: The number of bootstrap resamples; 0 computes no intervals.
        settings: How to evaluate.
        progress: Called with the number of examples that are done and the number of all examples.
        **options: The fields of :class:`EvaluationSettings`, instead of ``settings``.

    Returns:
        The metrics with their intervals, and the comparison with the baseline.

    Raises:
        CheckpointError: A model cannot be read.
        ConfigError: The options contradict each other, or a model has no head for the task.
        DataError: The data cannot be read or does not fit the model; the message lists all problems.
        VerificationError: A model gives NaN.
        MissingPackageError: The task needs a package that is not installed.
    """
    if settings is None:
        settings = EvaluationSettings(**options)
    elif options:
        raise ConfigError(f"give settings, or {', '.join(options)} by name, not both")
    limit = None if max_drop is None else MaxDrop.parse(max_drop)
    if against is None and limit is not None:
        raise ConfigError("a largest drop (--max-drop) is measured from a baseline: give one with --against")
    if against is None and metric is not None:
        raise ConfigError("the metric (--metric) is that of a comparison: give a baseline with --against")
    if resamples < 0:
        raise ConfigError(f"resamples is {resamples}, must be at least 0")
    if not isinstance(data, str | Path) and against is not None and iter(data) is data:
        data = list(data)  # an iterator could be read only once, and there are two models

    def opened(path: str | Path | ModelDirectory) -> ModelUnderTest:
        return open_model_under_test(path, task, runtime=runtime, threads=threads)

    baseline = None if against is None else opened(against)
    if isinstance(model, str | Path | ModelDirectory):
        candidate = opened(model)
    elif folder is None:
        raise ConfigError("a model in memory needs folder: the directory with its config.json and tokenizer")
    else:
        candidate = model_under_test_of(model, folder, task)
    if runtime is not None and candidate.runtime != runtime and (baseline is None or baseline.runtime != runtime):
        raise ConfigError(
            f"a runtime goes with an exported directory, but {candidate.name} runs in {candidate.runtime}"
        )
    if baseline is not None:
        _check_same_labels(candidate, baseline, task)
    if task == "token-classification":
        entities_finder()  # a missing package is reported before the work, not after it
    scores = score_model(candidate, task, data, settings, progress=progress)
    evaluation = _evaluation(candidate, task, scores, resamples=resamples, seed=settings.seed)
    if baseline is None:
        return evaluation
    theirs = score_model(baseline, task, data, settings, progress=progress)
    return _compared(evaluation, scores, baseline, theirs, limit, metric, resamples=resamples, seed=settings.seed)


def score_model(
    model: ModelUnderTest, task: str, data: Any, settings: EvaluationSettings, *, progress: Progress = silent
) -> Scores:
    """Run one model on the data and return its scores.

    Raises:
        ConfigError: There is no such task.
        DataError: The data does not fit the task, or has no labeled example.
    """
    if task not in TASKS:
        raise ConfigError(f"no task {task!r} to evaluate; there are {', '.join(TASKS)}")
    # Each task is a module with a function score(), imported only when it is evaluated.
    score: Callable[[Evaluator], Scores] = import_module(f"qdq.tasks.{task.replace('-', '_')}").score
    evaluator = Evaluator(model, data, settings, progress)
    scores = score(evaluator)
    scores = replace(scores, notes=(*evaluator.notes, *scores.notes))
    if not rows_of(scores.table):
        name = data if isinstance(data, str | Path) else "the rows given"
        raise DataError(f"{name}: no labeled example for the task {task}")
    return scores


def _evaluation(model: ModelUnderTest, task: str, scores: Scores, *, resamples: int, seed: int) -> Evaluation:
    return Evaluation(
        task=task,
        model=model.name,
        runtime=model.runtime,
        examples=rows_of(scores.table),
        skipped=scores.skipped,
        metrics={metric.name: metric.value(scores.table) for metric in scores.metrics},
        intervals=intervals(scores.metrics, scores.table, resamples=resamples, seed=seed),
        scales={metric.name: metric.scale for metric in scores.metrics},
        settings={**scores.settings, "resamples": resamples, "seed": seed},
        notes=(*scores.notes, *empty_notes(scores)),
    )


def empty_notes(scores: Scores) -> list[str]:
    """Return notes about metrics that say nothing on these examples: undefined ones, and those that are always 0."""
    table = scores.table
    notes = [
        f"{metric.name} is undefined on these examples: {metric.undefined}"
        for metric in scores.metrics
        if math.isnan(metric.value(table))
    ]
    names = [metric.name for metric in scores.metrics]
    if "matthews" in names and rows_of(table) > 1 and np.ptp(table["label"]) == 0:
        others = " and ".join(name for name in names if name != "accuracy")
        notes.append(f"all examples have the same label: {others} say nothing about the model")
    if {"f1", "true"} <= {*names, *table} and not table["true"].any():
        notes.append("no example has an entity or a label to find: f1, precision and recall are 0 for every model")
    return notes


def _compared(
    evaluation: Evaluation,
    scores: Scores,
    baseline: ModelUnderTest,
    theirs: Scores,
    limit: MaxDrop | None,
    chosen: str | None,
    *,
    resamples: int,
    seed: int,
) -> Evaluation:
    """Return ``evaluation`` with the comparison and the drop."""
    by_name = {metric.name: metric for metric in scores.metrics}
    names, other = list(by_name), [metric.name for metric in theirs.metrics]
    rows, other_rows = rows_of(scores.table), rows_of(theirs.table)
    # The bootstrap resamples both tables by the same row numbers.
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


def _check_same_labels(model: ModelUnderTest, baseline: ModelUnderTest, task: str) -> None:
    """Raise if the labels of the heads differ, since equal class numbers would mean different things."""
    ours, theirs = (labels_of(one.config).names for one in (model, baseline))
    if task in {"sequence-classification", "token-classification"} and ours != theirs:
        raise ConfigError(
            f"{model.name} and {baseline.name} cannot be compared: their heads have other labels, "
            f"{', '.join(ours)} and {', '.join(theirs)}"
        )


def _plain(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
