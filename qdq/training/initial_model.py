"""The model that a training begins with: a checkpoint as it is, or an encoder with a new head for the data at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from qdq import checkpoint
from qdq.data.labels import Labels, find_labels
from qdq.errors import ConfigError
from qdq.models.huggingface import load_model
from qdq.models.registry import build, task_of
from qdq.source import ModelDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.data.columns import Columns
    from qdq.models.config import ModelConfig
    from qdq.models.model import Model

__all__ = ["TASKS", "Start", "chosen_task", "load_for", "look"]

TASKS = (
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "masked-lm",
    "sts",
)
_PRETRAINED = ("feature-extraction", "sts", "masked-lm", "causal-lm", "next-sentence", "pre-training")
_LABELLED = ("sequence-classification", "token-classification")


@dataclass(frozen=True)
class Start:
    """What to begin with.

    Args:
        path: of the checkpoint.
        task: to train.
        config: of the model that will be trained.
        labels: of its head; None where it has none.
        has_new_head: whether its head is yet to learn everything.
        is_quantized: whether the checkpoint is.
    """

    path: Path
    task: str
    config: ModelConfig
    labels: Labels | None
    has_new_head: bool
    is_quantized: bool

    def load(self, *, seed: int) -> Model:
        """The model, in training mode if it is float; a new head follows from ``seed``.

        Raises:
            CheckpointError: damaged, missing or left over tensors.
        """
        if not self.has_new_head:
            return load_for(self.path, self.task)
        torch.manual_seed(seed)
        model = build(self.config, self.task)
        encoder = load_model(self.path, "feature-extraction", allow_missing=("pooler",))
        model.load_state_dict(
            {name: tensor for name, tensor in encoder.state_dict().items() if name in model.state_dict()}, strict=False
        )
        return model


def load_for(path: Path, task: str) -> Model:
    """The checkpoint as ``task`` trains it: sts trains the bare encoder, and needs no pooler.

    Raises:
        CheckpointError: damaged, missing or left over tensors.
    """
    if task == "sts":
        return checkpoint.load(path, "feature-extraction", allow_missing=("pooler",))
    return checkpoint.load(path, task)


def chosen_task(path: Path | ModelDirectory, task: str | None) -> str:
    """The task that is asked for, or that of the checkpoint's head.

    Raises:
        ConfigError: it is none that can be trained.
    """
    chosen = ModelDirectory.of(path).task if task is None else task
    if chosen not in TASKS:
        asked = f"{path} has no head to go on with (its task is {chosen})" if task is None else f"no task {task!r}"
        raise ConfigError(f"{asked}: give one that can be trained: {', '.join(TASKS)}")
    return chosen


def look(
    path: Path,
    task: str | None,
    data: Any,
    *,
    columns: Columns | None,
    split: str | None,
    new_head: bool = False,
    multi_label: bool = False,
) -> Start:
    """What a training of ``task`` on ``data`` begins with; no weights are read.

    1. A head for the task is trained further, with the labels that it has.
    2. A bare encoder or a language model gets a new head, for the labels that the data holds.
    3. A head for another task is replaced only if ``new_head`` says so.
    4. A quantized checkpoint needs its head: what was calibrated belongs to it.
    5. With ``multi_label`` a text can have any number of labels: a new head is made so, another one must be so.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: the head does not fit the task.
        DataError: the data has no labels for a new head.
    """
    from qdq.tasks.sequence_classification import labels_of

    directory = ModelDirectory.of(path)
    config = directory.config
    if directory.is_export:
        raise ConfigError(f"{path} is an exported directory, which cannot be trained: give the checkpoint")
    task = chosen_task(directory, task)
    quantized, head = directory.is_quantized, directory.task
    fits = task in {head, "sts"} or (task == "masked-lm" and head == "pre-training")
    if multi_label:
        _check_multi_label(path, config, task, is_kept=fits and not new_head)
    if fits and not new_head:
        return Start(path, task, config, labels_of(config) if task in _LABELLED else None, False, quantized)
    if task == "sts":
        raise ConfigError("sts is trained without a head: leave the new head out")
    if quantized:
        what = "no head" if head in _PRETRAINED else f"a head for {head}"
        raise ConfigError(
            f"{path} is quantized and has {what}, it cannot be trained for {task}: train the float model first, then "
            "quantize it"
        )
    if not new_head and head not in _PRETRAINED:
        raise ConfigError(
            f"{path} has a head for {head} ({', '.join(config.architectures)}), which does not fit the task {task}: "
            "choose that task, or ask for a new head"
        )
    task_of(config, task)  # a family may not have it
    labels = None
    if task in _LABELLED:
        labels = find_labels(data, task, columns=columns, split=split, multi_label=multi_label)
    return Start(path, task, _configured(config, task, labels), labels, True, False)


def _check_multi_label(path: Path, config: ModelConfig, task: str, *, is_kept: bool) -> None:
    """Refuse several labels a text where the head is for something else."""
    if task != "sequence-classification":
        raise ConfigError(f"several labels are for sequence-classification, not for {task}")
    if is_kept and config.problem_type != "multi_label_classification":
        kind = config.problem_type or "single_label_classification"
        raise ConfigError(f"{path} has a head for {kind}: ask for a new head to train several labels a text")


def _configured(config: ModelConfig, task: str, labels: Labels | None) -> ModelConfig:
    """The configuration of a model with a new head."""
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
