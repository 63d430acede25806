"""From a checkpoint to a trained checkpoint: data, head, calibration, teacher, loop, and what is written."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.data.examples import read_examples
from qdq.data.tokenizer import load_encoder
from qdq.errors import ConfigError, TrainingError, describe_problems
from qdq.models.huggingface import read_config
from qdq.tasks.pooling import read_pooling
from qdq.training.calibrated import calibrate_on, recorded
from qdq.training.data import EpochLoader
from qdq.training.distillation import Distillation, DistilledLoss, misfits
from qdq.training.embeddings import sts_loss
from qdq.training.initial_model import load_for, look
from qdq.training.launch import launched
from qdq.training.log import Log
from qdq.training.loop import finetune
from qdq.training.measurement import Measurement
from qdq.training.objective import model_loss
from qdq.training.quantization import keep_ranges, ready_for_training
from qdq.training.resume_file import Position, Store
from qdq.training.settings import TrainingSettings
from qdq.training.writer import Writer, check_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from qdq.data.columns import Columns
    from qdq.data.tokenizer import TextEncoder
    from qdq.models.model import Model
    from qdq.recipes.recipe import Recipe
    from qdq.training.initial_model import Start
    from qdq.training.objective import Loss
    from qdq.training.result import TrainingResult

__all__ = ["Job", "state_folder"]

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
        measurement = self._measurement(start)
        log = Log(self.tensorboard)
        check_target(self.output)
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
            return self._train(start, loader, measurement, log, launch)

    def _train(
        self, start: Start, loader: EpochLoader, measurement: Measurement | None, log: Log, launch: Any
    ) -> dict[str, Any]:
        say = self.say if launch.is_main_process else _silent
        _seed(self.settings.seed + launch.process_index)
        model = start.load(seed=self.settings.seed)
        if start.has_new_head:
            names = "" if start.labels is None else f" for {', '.join(start.labels.names[:10])}"
            say(f"a new head{names}")
        if measurement is not None and self.metric is not None:
            measurement(model.to(launch.device).eval())  # a metric that the task has not is better told now
            model.cpu()
        recipe, record = self._quantized(model, start, loader, say)
        if recipe is not None:
            for note in ready_for_training(model, learned=self.settings.ranges == "learned"):
                say(note)
        loss = self._loss(start, launch)
        _seed(self.settings.seed + launch.process_index)
        writer = Writer(self, start, recipe, record)
        result = self._finetuned(
            writer,
            model,
            loader,
            loss=loss,
            evaluate=measurement,
            better="higher" if measurement is None else measurement.better,
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
            if measurement is None:
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

    def _finetuned(self, writer: Writer, *arguments: Any, **options: Any) -> TrainingResult:
        """The loop; where it cannot go on, the error says what there is to go back to."""
        try:
            return finetune(*arguments, **options)
        except TrainingError as error:
            if writer.has_written:
                error.args = (f"{error}. The last good checkpoint is {self.output}",)
            raise

    def _check(self, start: Start) -> None:
        """What does not go together, before anything is loaded."""
        problems = []
        if start.is_quantized and self.recipe is not None:
            problems.append(f"{self.model} is quantized already: leave the recipe out, or give the float model")
        if self.teacher is not None:
            embeds = start.task == "sts"
            wrong = misfits(start.config, read_config(self.teacher), self.distillation, embeds=embeds)
            if embeds and (theirs := read_pooling(self.teacher)) != (ours := read_pooling(self.model)):
                wrong.append(f"its pooling is {theirs}, the model's {ours}")
            if not wrong and _vocabulary(self.teacher) != _vocabulary(self.model):
                wrong.append("its tokenizer has another vocabulary")
            problems += [f"the teacher {self.teacher}: {problem}" for problem in wrong]
        if problems:
            raise ConfigError(describe_problems("training", problems))

    def _quantized(
        self, model: Model, start: Start, loader: EpochLoader, say: Callable[[str], None]
    ) -> tuple[Recipe | None, dict[str, Any]]:
        """The recipe of the model, which quantizes from here on, and the record of its calibration; None: float."""
        if start.is_quantized:
            return recorded(self.model)
        if self.recipe is None:
            return None, {}
        return calibrate_on(loader, model, self.recipe, samples=self.calibration_samples, refine=self.refine, say=say)

    def _loss(self, start: Start, launch: Any) -> Loss:
        pooling = read_pooling(self.model) if start.task == "sts" else None
        if self.teacher is None:
            return model_loss if pooling is None else partial(sts_loss, pooling=pooling)
        teacher = load_for(self.teacher, start.task)
        return DistilledLoss(teacher.to(launch.device), self.distillation, pooling=pooling)

    def _measurement(self, start: Start) -> Measurement | None:
        """What measures the model; None: nothing does."""
        if self.eval_data is None:
            if self.metric is not None:
                raise ConfigError(f"the metric {self.metric} needs data to be measured on")
            return None
        measurement = Measurement(
            start=start,
            data=self.eval_data,
            metric=self.metric,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            columns=self.columns,
            split=self.eval_split,
            seed=self.settings.seed,
        )
        measurement.check()
        return measurement

    def _identity(self, start: Start, loader: EpochLoader, model: nn.Module) -> dict[str, str]:
        from calibration.digests import model_digest

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


def state_folder(output: Path) -> Path:
    """Where the state of a training lies, beside its output."""
    output = Path(output).absolute()
    return output.with_name(f"{output.name}.training")


def _encoder(start: Start) -> TextEncoder:
    return load_encoder(start.path, max_length=start.config.max_length, pad_id=start.config.pad_token_id)


def _vocabulary(path: Path) -> dict[str, int]:
    from qdq.data.tokenizer import load_tokenizer

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
