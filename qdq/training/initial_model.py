"""The model that a training begins with: a checkpoint as it is, or its encoder with a new head for the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from qdq import checkpoint
from qdq.data.labels import Labels, find_labels
from qdq.errors import ConfigError
from qdq.models.registry import build, task_of
from qdq.training.settings import TASKS

if TYPE_CHECKING:
    from qdq.data.columns import Columns
    from qdq.models.config import ModelConfig
    from qdq.models.model import Model
    from qdq.source import ModelDirectory
    from qdq.training.settings import TaskSettings

__all__ = ["InitialModel", "choose_initial_model", "choose_task", "load_for_task"]

_PRETRAINED = ("feature-extraction", "sts", "masked-lm", "causal-lm", "next-sentence", "pre-training")
_LABELLED = ("sequence-classification", "token-classification")


@dataclass(frozen=True, kw_only=True)
class InitialModel:
    """What a training begins with, known before any weights are read.

    Args:
        directory: The checkpoint.
        task: Task to train.
        config: Configuration of the model to train.
        labels: Labels of its head; None for a task without labels.
        has_new_head: Whether the head is new, with random weights.
        is_quantized: Whether the checkpoint is quantized.
    """

    directory: ModelDirectory
    task: str
    config: ModelConfig
    labels: Labels | None
    has_new_head: bool
    is_quantized: bool

    def load(self, *, seed: int) -> Model:
        """Return the model; ``seed`` decides the weights of a new head.

        Raises:
            CheckpointError: If tensors are damaged, missing or unexpected.
        """
        if not self.has_new_head:
            return load_for_task(self.directory, self.task)
        torch.manual_seed(seed)
        model = build(self.config, self.task)
        # Many pretrained checkpoints have no pooler: that of a new classifier is then new as well.
        encoder = checkpoint.load_float(self.directory, "feature-extraction")
        model.load_state_dict(
            {name: tensor for name, tensor in encoder.state_dict().items() if name in model.state_dict()}, strict=False
        )
        return model


def load_for_task(directory: ModelDirectory, task: str) -> Model:
    """Return the checkpoint as a model for ``task``; for sts that is the encoder alone, which needs no pooler.

    Raises:
        CheckpointError: If tensors are damaged, missing or unexpected.
    """
    if task == "sts":
        return checkpoint.load(directory, "feature-extraction")
    return checkpoint.load(directory, task)


def choose_task(directory: ModelDirectory, task: str | None) -> str:
    """Return ``task``, or the task of the checkpoint's head when it is None.

    Raises:
        ConfigError: If the task cannot be trained.
    """
    chosen = directory.task if task is None else task
    if chosen not in TASKS:
        problem = f"{directory} has no head to train (its task is {chosen})" if task is None else f"no task {task!r}"
        raise ConfigError(f"{problem}: choose one of {', '.join(TASKS)}")
    return chosen


def choose_initial_model(
    directory: ModelDirectory, data: Any, settings: TaskSettings, *, columns: Columns | None = None
) -> InitialModel:
    """Return what a training of a checkpoint on labeled data begins with; no weights are read.

    1. A head for the task is trained further, with the labels that it has.
    2. An encoder without head, or with a head for pretraining, gets a new head for the labels in the data.
    3. A head for another task is replaced only if the settings ask for a new head.
    4. A quantized checkpoint keeps its head, because its calibration belongs to that head.
    5. For several labels per text, a new head is made so, and a head that is kept must have been made so.

    Args:
        directory: The checkpoint.
        data: Labeled examples, for the labels of a new head.
        settings: Task, new head, several labels per text, and the split to train on.
        columns: Names of the columns where they are not the usual ones.

    Raises:
        CheckpointError: If there is no such model.
        ConfigError: If the head does not fit the task.
        DataError: If the data has no labels for a new head.
    """
    from qdq.tasks.sequence_classification import labels_of

    config = directory.config
    if directory.is_export:
        raise ConfigError(f"{directory} is an exported directory, which cannot be trained: give its checkpoint")
    task = choose_task(directory, settings.task)
    is_quantized, head = directory.is_quantized, directory.task
    # sts needs the encoder alone, whatever the head is; a head for pre-training contains one for masked-lm.
    fits = task in {head, "sts"} or (task == "masked-lm" and head == "pre-training")
    is_kept = fits and not settings.new_head
    if settings.multi_label:
        _check_multi_label(directory, config, task, is_kept=is_kept)
    if is_kept:
        return InitialModel(
            directory=directory,
            task=task,
            config=config,
            labels=labels_of(config) if task in _LABELLED else None,
            has_new_head=False,
            is_quantized=is_quantized,
        )
    _check_new_head(directory, config, task, head, is_quantized=is_quantized, is_asked=settings.new_head)
    labels = None
    if task in _LABELLED:
        labels = find_labels(data, task, columns=columns, split=settings.split, multi_label=settings.multi_label)
    return InitialModel(
        directory=directory,
        task=task,
        config=_config_of_new_head(config, task, labels),
        labels=labels,
        has_new_head=True,
        is_quantized=False,
    )


def _check_new_head(
    directory: ModelDirectory, config: ModelConfig, task: str, head: str, *, is_quantized: bool, is_asked: bool
) -> None:
    if task == "sts":
        raise ConfigError("sts is trained without a head: leave the new head out")
    if is_quantized:
        what = "no head" if head in _PRETRAINED else f"a head for {head}"
        raise ConfigError(
            f"{directory} is quantized and has {what}, it cannot be trained for {task}: train the float model first, "
            "then quantize it"
        )
    if not is_asked and head not in _PRETRAINED:
        raise ConfigError(
            f"{directory} has a head for {head} ({', '.join(config.architectures)}), which does not fit the task "
            f"{task}: choose that task, or give --new-head (new_head=True)"
        )
    task_of(config, task)  # raises for a family that does not have the task


def _check_multi_label(directory: ModelDirectory, config: ModelConfig, task: str, *, is_kept: bool) -> None:
    if task != "sequence-classification":
        raise ConfigError(f"only sequence-classification allows several labels per text, not {task}")
    if is_kept and config.problem_type != "multi_label_classification":
        kind = config.problem_type or "single_label_classification"
        raise ConfigError(
            f"{directory} has a head for {kind}: give --new-head (new_head=True) to train several labels per text",
        )


def _config_of_new_head(config: ModelConfig, task: str, labels: Labels | None) -> ModelConfig:
    config = replace(config, architectures=(task_of(config, task)[1].name,))
    if labels is None:
        return config
    kind = "regression" if labels.is_regression else "single_label_classification"
    if labels.multi_label:
        kind = "multi_label_classification"
    return replace(
        config,
        num_labels=len(labels.names),
        id2label=dict(enumerate(labels.names)),
        label2id={name: index for index, name in enumerate(labels.names)},
        problem_type=kind if task == "sequence-classification" else None,
    )
