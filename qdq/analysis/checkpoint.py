"""Analyze a checkpoint: rank its slots, search what to keep in float, and measure the metric of a task."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from calibration.sensitivity import ranking
from calibration.sensitivity.exclusions import find_exclusions
from calibration.sensitivity.groups import group_slots
from exporters.runners import TorchRunner
from qdq.analysis.findings import Findings, MetricFigures
from qdq.analysis.settings import AnalysisSettings, TaskMetricSettings
from qdq.analysis.task_metric import TaskMetric
from qdq.checkpoint import load
from qdq.data.batches import make_batches
from qdq.data.examples import Columns, read_examples
from qdq.data.source import draw
from qdq.data.text import encode_batches, read_samples
from qdq.errors import CheckpointError
from qdq.sentence.prompts import with_prompt
from qdq.source import ModelDirectory
from qdq.tasks.evaluation_settings import EvaluationSettings
from qdq.tasks.model_under_test import ModelUnderTest, open_model_under_test

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from calibration.sensitivity.exclusions import SimilarityTarget
    from calibration.sensitivity.groups import Group
    from calibration.sensitivity.similarity import Similarity

    Progress = Callable[[str, int, int | None], None]

__all__ = ["analyze_checkpoint"]


def analyze_checkpoint(
    checkpoint: str | Path | ModelDirectory,
    data: Any,
    *,
    settings: AnalysisSettings | None = None,
    task_metric: TaskMetricSettings | None = None,
    target: SimilarityTarget | None = None,
    top: int | None = None,
    columns: Columns | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Measure how much accuracy each group of quantized slots of a checkpoint costs, and find what to keep in float.

    An interrupt ends the work early. What was measured so far is returned; ``complete`` is then False.

    Args:
        checkpoint: Directory of a quantized checkpoint.
        data: Sample text, best not that of the calibration; with a task labeled examples.
        settings: How to measure. None takes the defaults.
        task_metric: Metric of a task to measure, too. None measures none.
        target: How close to the float model the model is to come; None searches nothing.
        top: Number of groups, the most costly first, whose task metric is measured; None for all.
        columns: Names of the columns of ``data`` where they are not the usual ones.
        progress: Called with the stage in words, steps done, and their number (None if unknown).

    Returns:
        Everything that was found.

    Raises:
        CheckpointError: The directory is not a quantized checkpoint, or it is damaged.
        ConfigError: The model has no head for the task, or the task has no such metric.
        DataError: The data cannot be read.
        RecipeError: A pattern matches no quantized slot.
        KeyboardInterrupt: It was interrupted before anything was measured.
    """
    settings, task_metric = settings or AnalysisSettings(), task_metric or TaskMetricSettings()
    progress = progress or _silent
    directory = _quantized(checkpoint)
    task = task_metric.task
    under_test = _open(directory) if task is None else open_model_under_test(directory, task)
    model: nn.Module = under_test.runner.model  # type: ignore[attr-defined]
    chosen = group_slots(model, settings.by, only=settings.only or [])
    found = Findings(directory.path, settings.by, target)
    evaluator = None
    if task is None:
        batches = _text_batches(under_test, data, settings, columns)
    else:
        evaluator = TaskMetric(
            under_test, task, data, _evaluation_settings(settings, task_metric, under_test, columns), task_metric.metric
        )
        batches = evaluator.measured_batches(settings.num_samples, partial(progress, f"evaluating {task}"))
        found.metric = MetricFigures(evaluator.name, evaluator.in_float)
    batches = batches[: settings.max_batches]
    found.batches_planned = len(batches)
    try:
        measuring = _counter(progress, "measuring", len(batches) * (2 * len(chosen) + 1))
        for found.ranking in ranking.rank(model, batches, chosen, step=measuring):
            pass
        if target is not None:
            _search(model, batches, found, target, _counter(progress, "searching what to keep in float", None))
        if evaluator is not None:
            _measure_groups(
                evaluator, model, found, top, _counter(progress, f"evaluating {task}", 2 * len(found.shown(top)))
            )
        found.complete = True
    except KeyboardInterrupt:
        if found.ranking is None:
            raise
    return found


def _silent(*_: object) -> None:
    """Say nothing."""


def _quantized(checkpoint: str | Path | ModelDirectory) -> ModelDirectory:
    directory = ModelDirectory.of(checkpoint)
    if not directory.is_quantized:
        raise CheckpointError(
            f"{directory} is not a quantized checkpoint: a float model or an export has no quantizers to switch; give "
            "the directory that qdq calibrate wrote"
        )
    return directory


def _open(directory: ModelDirectory) -> ModelUnderTest:
    """Open the checkpoint with the head that it has."""
    model = load(directory)
    return ModelUnderTest(str(directory), directory, model.config, TorchRunner(model), "torch")


def _text_batches(
    under_test: ModelUnderTest, data: Any, settings: AnalysisSettings, columns: Columns | None
) -> list[dict[str, Tensor]]:
    columns = columns or Columns()
    length = min(settings.seq_len, under_test.max_length)
    if under_test.directory.task == "multiple-choice":
        # The scores of one choice alone cannot be compared: a batch has all choices of its questions.
        questions = draw(read_examples(data, "multiple-choice", columns=columns), settings.num_samples, settings.seed)
        encoder = under_test.directory.encoder
        batches = make_batches(questions, encoder, "multiple-choice", batch_size=settings.batch_size, max_length=length)
        return [batch.inputs for batch in batches]
    samples = read_samples(data, text_column=columns.text, text_pair_column=columns.text_pair)
    texts = draw(samples, settings.num_samples, settings.seed)
    directory, longest = under_test.directory, under_test.max_length
    if directory.sentence.modules is not None:
        texts, longest = list(with_prompt(texts, directory.sentence.default_prompt)), directory.max_length
    texts.sort(key=lambda sample: len(sample.text))  # texts of one length in a batch need little padding
    return list(
        encode_batches(
            texts,
            directory.encoder,
            batch_size=settings.batch_size,
            seq_len=min(settings.seq_len, longest),
            pad_token_id=under_test.config.pad_token_id or 0,
        )
    )


def _evaluation_settings(
    settings: AnalysisSettings, task_metric: TaskMetricSettings, under_test: ModelUnderTest, columns: Columns | None
) -> EvaluationSettings:
    return EvaluationSettings(
        batch_size=settings.batch_size,
        seq_len=min(settings.seq_len, under_test.max_length),
        num_samples=task_metric.task_samples,
        columns=columns,
        seed=settings.seed,
    )


def _counter(progress: Progress, stage: str, total: int | None) -> Callable[[], None]:
    """Return a function that reports one more step each time that it is called."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(stage, done, total)

    return step


def _search(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    found: Findings,
    target: SimilarityTarget,
    step: Callable[[], None],
) -> None:
    """Search the fewest groups to keep in float for the target; every state of the search is kept in ``found``."""
    everything = ranking.active_quantizers(model)

    def measure(choices: Sequence[Sequence[Group]]) -> list[Similarity]:
        configurations = [everything.difference(*(group.quantizers for group in choice)) for choice in choices]
        *_, (_, last) = ranking.measure_similarity(model, batches, configurations, step=step)
        return last

    assert found.ranking is not None
    without = {row.group: row.without for row in found.ranking.rows}
    for state in find_exclusions(measure, without, found.ranking.quantized, target):
        found.steps.append(state)


def _measure_groups(
    evaluator: TaskMetric, model: nn.Module, found: Findings, top: int | None, step: Callable[[], None]
) -> None:
    """Measure the metric of the whole model, of each shown group alone, and of all but it."""
    assert found.metric is not None
    everything = ranking.active_quantizers(model)
    found.metric.quantized = evaluator(everything)
    for row in found.shown(top):
        alone = evaluator(row.group.quantizers)
        step()
        without = evaluator(everything - row.group.quantizers)
        step()
        found.metric.groups[row.group] = alone, without
