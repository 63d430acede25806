"""``qdq analyze``: what each quantized slot costs, and what to switch off first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.analyze_report import Findings, MetricOf
from qdq.cli.processes import set_threads
from qdq.cli.session import INTERRUPTED, JsonOption, QuietOption, SeedOption, Session, VerboseOption, command

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from calibration.sensitivity.groups import Group
    from calibration.sensitivity.similarity import Similarity
    from exporters.runners import Runner
    from qdq.quantization.quantizer import Quantizer
    from qdq.tasks.model_under_test import ModelUnderTest

__all__ = ["analyze"]

_METRIC = "Metric of a task"


@command
def analyze(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A quantized checkpoint.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Sample text, best not what was calibrated on; with --task labelled examples."
        ),
    ],
    by: Annotated[
        str,
        typer.Option(
            metavar="slot|module|layer|role|kind",
            help="What is switched together; role: a module's place, in every layer.",
        ),
    ] = "module",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Measure only modules or slots that match; repeatable."),
    ] = None,
    top: Annotated[int | None, typer.Option(metavar="N", help="Show the N worst; all if not given.", min=1)] = None,
    num_samples: Annotated[int, typer.Option(metavar="N", help="Samples drawn at random.", min=1)] = 64,
    max_batches: Annotated[int | None, typer.Option(metavar="N", help="Stop after so many batches.", min=1)] = None,
    batch_size: Annotated[int, typer.Option(metavar="B", help="Samples in a batch.", min=1)] = 8,
    seq_len: Annotated[int, typer.Option(metavar="L", help="Longest sample in tokens; the rest is cut.", min=3)] = 128,
    text_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column or key of the text.")] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column or key of the second text.")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads of the computation.", min=1)] = None,
    target_cosine: Annotated[
        float | None,
        typer.Option(metavar="X", help="Find the least to exclude for a mean cosine of X.", rich_help_panel="Target"),
    ] = None,
    target_sqnr: Annotated[
        float | None, typer.Option(metavar="DB", help="The same for an SQNR, in decibels.", rich_help_panel="Target")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help="Also its metric, for the groups shown; as for qdq evaluate.", rich_help_panel=_METRIC
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="The task's first one if not given.", rich_help_panel=_METRIC)
    ] = None,
    task_samples: Annotated[
        int, typer.Option(metavar="N", help="Examples for it, drawn at random.", min=1, rich_help_panel=_METRIC)
    ] = 512,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Measure what each quantized slot costs: it alone quantized, and all but it, against the float model.

    Ends with what to switch off first, as --exclude patterns for qdq calibrate. Ctrl-C shows what there is so far.

    Example: qdq analyze quantized/ --data text.txt --target-cosine 0.998
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from calibration.sensitivity.exclusions import Target
    from calibration.sensitivity.groups import BY, groups
    from calibration.sensitivity.ranking import in_use
    from qdq.errors import ConfigError

    if by not in BY:
        raise ConfigError(f"--by {by}: it must be one of {', '.join(BY)}")
    if metric is not None and task is None:
        raise ConfigError("--metric goes with --task")
    aims = target_cosine is not None or target_sqnr is not None
    target = Target(cosine=target_cosine, sqnr_db=target_sqnr) if aims else None
    set_threads(threads)
    under_test = _open(path, task)
    model: nn.Module = under_test.runner.model  # type: ignore[attr-defined]
    chosen = groups(model, by, only=only or [])
    found = Findings(path, by, target)
    evaluator = None
    with session.progress("reading") as advance:
        if task is None:
            batches = _text_batches(
                under_test,
                data,
                columns=(text_column, text_pair_column),
                num_samples=num_samples,
                batch_size=batch_size,
                seq_len=seq_len,
                seed=seed,
            )
        else:
            from qdq.data.examples import Columns
            from qdq.tasks.evaluation_settings import EvaluationSettings

            columns = Columns(text=text_column, text_pair=text_pair_column)
            settings = EvaluationSettings(
                batch_size=batch_size,
                seq_len=min(seq_len, under_test.max_length),
                num_samples=task_samples,
                columns=columns if columns.names else None,
                seed=seed,
            )
            evaluator = _Evaluator(under_test, task, data, settings, metric)
            batches = evaluator.recorded(num_samples, lambda done, total: advance(done, f"evaluating {task}", total))
            found.metric = MetricOf(evaluator.name, evaluator.in_float)
        batches = batches[:max_batches]
    try:
        with session.progress("measuring", total=len(batches) * (2 * len(chosen) + 1)) as advance:
            _rank(model, batches, chosen, found, _counter(advance))
        if target is not None:
            with session.progress("searching what to switch off") as advance:
                _search(model, batches, found, _counter(advance))
        if evaluator is not None and found.metric is not None:
            everything = in_use(model)
            rows = found.shown(top)
            with session.progress(f"evaluating {task}", total=2 * len(rows) + 1) as advance:
                found.metric.quantized = evaluator(everything)
                for index, row in enumerate(rows):
                    advance(2 * index + 1)
                    group = row.group
                    pair = evaluator(group.quantizers), evaluator(everything - group.quantizers)
                    found.metric.groups[group] = pair
        found.complete = True
    except KeyboardInterrupt:
        if found.ranking is None:
            raise
        session.say(f"interrupted; measured on {found.ranking.batches} of {len(batches)} batches:")
    session.result(found.to_dict(top), *found.to_text(top))
    if not found.complete:
        raise typer.Exit(INTERRUPTED)


def _open(path: Path, task: str | None) -> ModelUnderTest:
    """The quantized checkpoint, with a head for the task if one is given."""
    from exporters.runners import TorchRunner
    from qdq.checkpoint import is_quantized, load
    from qdq.errors import CheckpointError
    from qdq.storage import no_directory
    from qdq.tasks.model_under_test import ModelUnderTest, open_model_under_test

    if not path.is_dir():
        raise CheckpointError(no_directory(path, "give a checkpoint that qdq calibrate wrote"))
    if not is_quantized(path):
        raise CheckpointError(
            f"{path} is no quantized checkpoint: there is nothing to switch off in a float model or an export; give "
            "what qdq calibrate wrote"
        )
    if task is not None:
        return open_model_under_test(path, task)
    model = load(path)
    return ModelUnderTest(str(path), path, model.config, TorchRunner(model), "torch")


def _text_batches(
    under_test: ModelUnderTest,
    data: str,
    *,
    columns: tuple[str | None, str | None],
    num_samples: int,
    batch_size: int,
    seq_len: int,
    seed: int,
) -> list[dict[str, Tensor]]:
    from qdq.data.source import draw
    from qdq.data.text import encode_batches, read_samples
    from qdq.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(under_test.folder)
    text, text_pair = columns
    texts = draw(read_samples(data, text_column=text, text_pair_column=text_pair), num_samples, seed)
    texts.sort(key=lambda sample: len(sample.text))  # what is padded is computed in vain
    length = min(seq_len, under_test.max_length)
    pad = under_test.config.pad_token_id or 0
    return list(encode_batches(texts, tokenizer, batch_size=batch_size, seq_len=length, pad_token_id=pad))


class _Recorder:
    """A runner that keeps what it was given."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.batches: list[dict[str, NDArray[Any]]] = []

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the runner."""
        return self._runner.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Of the runner."""
        return self._runner.output_names

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run, and keep the inputs that the model has."""
        self.batches.append({name: inputs[name] for name in self.input_names})
        return self._runner(inputs)


class _Evaluator:
    """The metric of a task for a model as its quantizers are switched."""

    def __init__(self, under_test: ModelUnderTest, task: str, data: str, settings: Any, metric: str | None) -> None:
        self._under_test, self._task, self._data, self._settings = under_test, task, data, settings
        self._model: nn.Module = under_test.runner.model  # type: ignore[attr-defined]
        self._wanted = metric
        self.name = metric or ""
        self.in_float = float("nan")

    def __call__(self, on: Collection[Quantizer]) -> float:
        """In the unit of people, with these quantizers on."""
        return self._evaluate(self._under_test, on)

    def recorded(self, samples: int, progress: Callable[[int, int | None], None]) -> list[dict[str, Tensor]]:
        """Evaluate the float model and return batches that the task gave it, of all lengths, of ``samples`` or more."""
        import torch

        recorder = _Recorder(self._under_test.runner)
        self.in_float = self._evaluate(replace(self._under_test, runner=recorder), (), progress)
        rows = sum(len(next(iter(batch.values()))) for batch in recorder.batches)
        stride = max(1, rows // samples)  # batches come in the order of their lengths
        return [{n: torch.from_numpy(a) for n, a in batch.items()} for batch in recorder.batches[::stride]]

    def _evaluate(
        self,
        under_test: ModelUnderTest,
        on: Collection[Quantizer],
        progress: Callable[[int, int | None], None] | None = None,
    ) -> float:
        from calibration.sensitivity.ranking import switch
        from qdq.errors import ConfigError
        from qdq.tasks.evaluate import score_model
        from qdq.tasks.evaluator import silent

        switch(self._model, on)
        scores = score_model(under_test, self._task, self._data, self._settings, progress=progress or silent)
        metrics = {metric.name: metric for metric in scores.metrics}
        self.name = self._wanted or next(iter(metrics))
        if self.name not in metrics:
            raise ConfigError(f"no metric {self.name!r} for the task {self._task}: it has {', '.join(metrics)}")
        return metrics[self.name].scale * metrics[self.name].value(scores.table)


def _counter(advance: Callable[..., None]) -> Callable[[], None]:
    """A callback that counts its calls."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        advance(done)

    return step


def _rank(
    model: nn.Module,
    batches: Sequence[Mapping[str, Tensor]],
    chosen: Sequence[Group],
    found: Findings,
    step: Callable[[], None],
) -> None:
    from calibration.sensitivity.ranking import rank

    for ranking in rank(model, batches, chosen, step=step):
        found.ranking = ranking


def _search(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]], found: Findings, step: Callable[[], None]
) -> None:
    from calibration.sensitivity.exclusions import switch_off
    from calibration.sensitivity.ranking import in_use, measured

    everything = in_use(model)

    def measure(choices: Sequence[Sequence[Group]]) -> list[Similarity]:
        configurations = [everything.difference(*(group.quantizers for group in choice)) for choice in choices]
        figures: Iterator[tuple[int, list[Similarity]]] = measured(model, batches, configurations, step=step)
        *_, (_, last) = figures
        return last

    assert found.ranking is not None
    assert found.target is not None
    without = {row.group: row.without for row in found.ranking.rows}
    for state in switch_off(measure, without, found.ranking.quantized, found.target):
        found.steps.append(state)
