"""From a checkpoint to a trained checkpoint: data, head, calibration, teacher, loop, and what is written."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq import checkpoint
from qdq.data.encoder import load_encoder
from qdq.data.examples import read_examples
from qdq.errors import ConfigError, TrainingError, describe_faults
from qdq.models.huggingface import read_config, save_model
from qdq.recipe import Recipe
from qdq.storage import atomic_directory, write_json, write_text_atomic
from qdq.training.data import EpochLoader
from qdq.training.distillation import Distillation, DistilledLoss, misfits
from qdq.training.launch import launched
from qdq.training.log import Log
from qdq.training.loop import finetune
from qdq.training.objective import model_loss, sts_loss
from qdq.training.quantization import keep_ranges, ready_for_training
from qdq.training.settings import TrainingSettings
from qdq.training.start import look
from qdq.training.state import Position, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from qdq.data.columns import Columns
    from qdq.data.encoder import TextEncoder
    from qdq.models.model import Model
    from qdq.training.loop import TrainingResult
    from qdq.training.objective import Loss
    from qdq.training.start import Start

__all__ = ["Job", "state_folder"]

RECORD_FILE = "training.json"
_LONG_EPOCH = 40  # steps


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training of a checkpoint.

    Args:
        model: directory to begin with, float or quantized.
        output: directory for the best checkpoint.
        train_data: labelled examples, see :func:`qdq.data.examples.read_examples`.
        eval_data: likewise; None: nothing is measured, and the last step is what counts.
        task: None: that of the head.
        settings: of the loop.
        batch_size: rows that a process takes at a time.
        seq_len: longest row in tokens; None: what the model takes.
        columns: of the data, where they are not the usual ones.
        split: of a saved dataset with several, to train on.
        eval_split: likewise, to measure on.
        recipe: to quantize a float model with before training.
        calibration_samples: to find ranges on, when that is done here.
        refine: whether ranges are found with the recipe's transforms.
        metric: that decides which checkpoint is the best; the task's first one when None.
        teacher: directory of a float model to learn from.
        distillation: how.
        new_head: begin with a new head although there is one.
        multi_label: a text can have any number of labels.
        tensorboard: folder for TensorBoard's files.
        resume: go on with what was interrupted.
        say: told what people should know.
        progress: told steps done, steps in all, how it goes.
    """

    model: Path
    output: Path
    train_data: Any
    eval_data: Any = None
    task: str | None = None
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    batch_size: int = 32
    seq_len: int | None = None
    columns: Columns | None = None
    split: str | None = None
    eval_split: str | None = None
    recipe: Recipe | None = None
    calibration_samples: int = 512
    refine: bool = False
    metric: str | None = None
    teacher: Path | None = None
    distillation: Distillation = field(default_factory=Distillation)
    new_head: bool = False
    multi_label: bool = False
    tensorboard: Path | None = None
    resume: bool = False
    say: Callable[[str], None] = print
    progress: Callable[[int, int, str], None] | None = None

    def run(self) -> dict[str, Any]:
        """Train, and write the best checkpoint; what came of it, as plain values.

        Raises:
            QDQError: as the parts say; nothing is written before the data, the models and the output are looked at.
        """
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}, must be at least 1")
        start = look(
            self.model,
            self.task,
            self.train_data,
            columns=self.columns,
            split=self.split,
            new_head=self.new_head,
            multi_label=self.multi_label,
        )
        self._check(start)
        log = Log(self.tensorboard)
        _check_target(self.output)
        encoder = _encoder(start)
        examples = read_examples(
            self.train_data,
            start.task,
            columns=self.columns,
            labels=start.labels,
            need_labels=start.task != "masked-lm",
            split=self.split,
        )
        with launched(self.settings) as launch:
            loader = EpochLoader(
                list(examples),
                encoder,
                start.task,
                batch_size=self.batch_size * launch.num_processes,
                seq_len=self.seq_len,
                seed=self.settings.seed,
            )
            if examples.skipped and launch.is_main_process:
                self.say(f"{examples.skipped} rows without label are left out")
            return self._train(start, loader, log, launch)

    def _train(self, start: Start, loader: EpochLoader, log: Log, launch: Any) -> dict[str, Any]:
        say = self.say if launch.is_main_process else _silent
        _seed(self.settings.seed + launch.process_index)
        model = start.load(seed=self.settings.seed)
        if start.has_new_head:
            names = "" if start.labels is None else f" for {', '.join(start.labels.names[:10])}"
            say(f"a new head{names}")
        recipe, record = self._quantized(model, start, loader, say)
        if recipe is not None:
            for note in ready_for_training(model, learned=self.settings.ranges == "learned"):
                say(note)
        loss = self._loss(start, launch)
        evaluate, better = self._evaluation(start)
        _seed(self.settings.seed + launch.process_index)
        writer = _Writer(self, start, recipe, record)
        result = self._finetuned(
            writer,
            model,
            loader,
            loss=loss,
            evaluate=evaluate,
            better=better,
            settings=self._evaluated_often(loader) if recipe is not None else self.settings,
            state=state_folder(self.output),
            identity=self._identity(start, loader, model),
            resume=self.resume,
            keep_best=False,
            on_best=writer.write,
            evaluate_first=recipe is not None and not start.has_new_head,
            log=log,
            progress=self.progress,
            accelerator=launch.accelerator,
        )
        if launch.is_main_process:
            if evaluate is None:
                keep_ranges(model)
                writer.write(model, Position(step=result.steps))
            writer.finish(result)
            Store(state_folder(self.output), {}).remove()
        launch.wait_for_everyone()
        return {"checkpoint": str(self.output), "quantized": recipe is not None, **writer.record(result)}

    def _evaluated_often(self, loader: EpochLoader) -> TrainingSettings:
        """Settings with four evaluations an epoch, where nothing is said and an epoch is long.

        The weights of a trained model hardly change in QAT, but go to and fro across the borders of its grids: how good
        it is differs from one moment to the next, and the best one is kept.
        """
        per_epoch = -(-len(loader) // self.settings.accumulation)
        if self.settings.eval_steps is not None or self.eval_data is None or per_epoch < _LONG_EPOCH:
            return self.settings
        return replace(self.settings, eval_steps=-(-per_epoch // 4))

    def _finetuned(self, writer: _Writer, *arguments: Any, **options: Any) -> TrainingResult:
        """The loop; where it cannot go on, the error says what there is to go back to."""
        try:
            return finetune(*arguments, **options)
        except TrainingError as error:
            if writer.has_written:
                error.args = (f"{error}. The last good checkpoint is {self.output}",)
            raise

    def _check(self, start: Start) -> None:
        """What does not go together, before anything is loaded."""
        faults = []
        if start.is_quantized and self.recipe is not None:
            faults.append(f"{self.model} is quantized already: leave the recipe out, or give the float model")
        if self.teacher is not None:
            if start.task == "sts":
                faults.append("a teacher is for tasks with a head, sts has none")
            else:
                theirs = read_config(self.teacher)
                wrong = misfits(start.config, theirs, self.distillation)
                if not wrong and _vocabulary(self.teacher) != _vocabulary(self.model):
                    wrong.append("its tokenizer has another vocabulary")
                faults += [f"the teacher {self.teacher}: {fault}" for fault in wrong]
        if faults:
            raise ConfigError(describe_faults("training", faults))

    def _quantized(
        self, model: Model, start: Start, loader: EpochLoader, say: Callable[[str], None]
    ) -> tuple[Recipe | None, dict[str, Any]]:
        """The recipe of the model, which quantizes from here on, and the record of its calibration; None: float."""
        if start.is_quantized:
            if not (self.model / checkpoint.QUANTIZATION_FILE).is_file():
                raise ConfigError(f"{self.model}: a QDQBERT checkpoint is to be calibrated first: qdq calibrate")
            document = checkpoint.read_quantization(self.model)
            return Recipe.from_dict(document["recipe"], source=str(self.model)), dict(document["calibration"])
        if self.recipe is None:
            return None, {}
        import calibration
        from qdq.prepare import quantize

        quantize(model, self.recipe)
        batches = self._calibration_batches(loader)
        kept = self.recipe.refinement if self.refine else type(self.recipe.refinement)()
        kept = replace(kept, rounding="nearest", bias_correction=False)  # the training itself does more
        summary = calibration.calibrate_and_refine(model.eval(), batches, kept)
        say(f"calibrated on {summary.samples} samples, {summary.tokens} tokens")
        return replace(self.recipe, refinement=kept), summary.to_dict()

    def _calibration_batches(self, loader: EpochLoader) -> list[dict[str, Any]]:
        wanted = -(-self.calibration_samples // loader.batch_size)
        batches = []
        for _, batch in zip(range(wanted), loader(0), strict=False):
            inputs = {name: tensor for name, tensor in batch.items() if name in _INPUTS}
            if loader.task == "sts":
                inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
            batches.append(inputs)
        return batches

    def _loss(self, start: Start, launch: Any) -> Loss:
        if start.task == "sts":
            from functools import partial

            from qdq.tasks.pooling import read_pooling

            return partial(sts_loss, pooling=read_pooling(self.model))
        if self.teacher is None:
            return model_loss
        teacher = checkpoint.load(self.teacher, start.task)
        return DistilledLoss(teacher.to(launch.device), self.distillation)

    def _evaluation(self, start: Start) -> tuple[Callable[[Any], Mapping[str, float]] | None, str]:
        """What measures the model, the deciding metric first, and which way that gets better."""
        if self.eval_data is None:
            if self.metric is not None:
                raise ConfigError(f"the metric {self.metric} needs data to be measured on")
            return None, "higher"
        from qdq.tasks.evaluate import evaluate_subject
        from qdq.tasks.settings import Settings
        from qdq.tasks.subject import subject_of

        settings = Settings(
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            columns=self.columns,
            split=self.eval_split,
            seed=self.settings.seed,
        )

        def measured(current: nn.Module) -> list[Any]:
            # a wrapper of accelerate knows neither task nor configuration
            subject = replace(subject_of(current, self.model, start.task), config=start.config)
            scores = evaluate_subject(subject, start.task, self.eval_data, settings)
            found = [(metric, metric.value(scores.table)) for metric in scores.metrics]
            if self.metric is None:
                return found
            chosen = [pair for pair in found if pair[0].name == self.metric]
            if not chosen:
                names = ", ".join(metric.name for metric, _ in found)
                raise ConfigError(f"no metric {self.metric!r} for the task {start.task}: it has {names}")
            return [*chosen, *(pair for pair in found if pair[0].name != self.metric)]

        # read through once, so that its faults come before the work
        examples = read_examples(
            self.eval_data,
            start.task,
            columns=self.columns,
            labels=start.labels,
            need_labels=start.task != "masked-lm",
            split=self.eval_split,
        )
        examples.check()
        better = "lower" if (self.metric or _FIRST_METRIC.get(start.task)) in _LOWER else "higher"
        return (lambda current: {metric.name: value for metric, value in measured(current)}), better

    def _identity(self, start: Start, loader: EpochLoader, model: nn.Module) -> dict[str, str]:
        from calibration.identity import model_digest

        recipe = "none" if self.recipe is None else repr(self.recipe.to_dict())
        teacher = "none" if self.teacher is None else f"{self.teacher} {asdict(self.distillation)}"
        return {
            "task": start.task,
            "data": loader.digest(),
            "model": model_digest(model),
            "recipe": hashlib.sha256(recipe.encode()).hexdigest()[:16] if recipe != "none" else recipe,
            "teacher": teacher,
            "metric": str(self.metric),
            "evaluated": str(self.eval_data is not None),
        }


_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LOWER = ("perplexity", "mse")
_FIRST_METRIC = {"masked-lm": "perplexity"}


def state_folder(output: Path) -> Path:
    """Where the state of a training lies, beside its output."""
    output = Path(output).absolute()
    return output.with_name(f"{output.name}.training")


class _Writer:
    """Writes the checkpoint, each time that a better one comes."""

    def __init__(self, job: Job, start: Start, recipe: Recipe | None, calibration: dict[str, Any]) -> None:
        self.has_written = False
        self._job, self._start, self._recipe, self._calibration = job, start, recipe, calibration

    def write(self, model: Model, position: Position) -> None:
        """The model as it is now, in the place of an earlier one."""
        job = self._job
        record = self._about(position.history, position.step)
        with atomic_directory(job.output, kind="checkpoint") as folder:
            if self._recipe is None:
                save_model(model, folder)
                checkpoint.copy_companions(job.model, folder)
            else:
                checkpoint.write(model, folder, recipe=self._recipe, calibration=self._calibration, source=job.model)
            write_json(folder / RECORD_FILE, record)
        self.has_written = True

    def finish(self, result: TrainingResult) -> None:
        """The log of the whole training, beside the checkpoint."""
        output = self._job.output.absolute()
        write_text_atomic(output.with_name(f"{output.name}.training.csv"), result.log)

    def record(self, result: TrainingResult) -> dict[str, Any]:
        """What came of it, for machines."""
        return {
            **self._about(result.history, result.steps if result.metric is None else result.best_step),
            **result.to_dict(),
        }

    def _about(self, history: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
        job = self._job
        figures = next((dict(row) for row in history if row["step"] == step), {})
        figures.pop("step", None)
        return {
            "task": self._start.task,
            "step": step,
            "metrics": figures,
            "recipe": None if self._recipe is None else self._recipe.name,
            "batch_size": job.batch_size,
            "seq_len": job.seq_len,
            "settings": job.settings.to_dict(),
            "teacher": None if job.teacher is None else {"model": str(job.teacher), **asdict(job.distillation)},
        }


class _Untouched(Exception):  # noqa: N818 (no error)
    """Leaves a directory as it was."""


def _check_target(output: Path) -> None:
    """Refuse an output that cannot be written, before hours of work."""
    with suppress(_Untouched), atomic_directory(output, kind="checkpoint"):
        raise _Untouched


def _encoder(start: Start) -> TextEncoder:
    config = start.config
    first = (config.pad_token_id or 0) + 1 if config.switches.positions_from_padding else 0
    return load_encoder(start.path, max_length=config.max_position_embeddings - first, pad_id=config.pad_token_id)


def _vocabulary(path: Path) -> dict[str, int]:
    from qdq.data.tokenize import load_tokenizer

    return dict(load_tokenizer(path).get_vocab())


def _seed(seed: int) -> None:
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _silent(text: str) -> None:
    """Say nothing."""
