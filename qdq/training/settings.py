"""Settings of a training: each is declared once, with its help text, its rule and its option of ``qdq finetune``.

This file loads no torch, so that the command can make its options from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qdq.settings import check, choice, documented, flag, number, setting, whole

__all__ = [
    "FLOAT_LR",
    "QAT_LR",
    "RANGES",
    "TASKS",
    "Distillation",
    "InitialCalibration",
    "TaskSettings",
    "TrainingSettings",
]

FLOAT_LR = 5e-5
#: A trained model is close to where it should be: in QAT, large steps lose more than they gain.
QAT_LR = 5e-6

RANGES = ("fixed", "moving", "learned")
TASKS = (
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "masked-lm",
    "sts",
)

_EVALUATION = "Evaluation"
_QUANTIZERS = "Quantizers in training"
_RESUMING = "Resuming"


@documented
@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """The settings of a training loop.

    The special defaults of ``lr`` and ``eval_steps`` for QAT are those of ``finetune_checkpoint`` and ``qdq finetune``;
    :func:`qdq.finetune` does not ask whether the model quantizes.

    Raises:
        ConfigError: If values are out of range; all of them are named.
    """

    epochs: int = setting(3, "Passes over the training data.", whole(1), metavar="N")
    max_steps: int | None = setting(
        None, "Stop after this many steps, even within an epoch.", whole(1).or_none(), metavar="N"
    )
    lr: float | None = setting(
        None,
        f"Highest learning rate; by default {FLOAT_LR:g} for a float model and {QAT_LR:g} for a quantized one.",
        number(0, above=True).or_none(),
        metavar="X",
    )
    weight_decay: float = setting(
        0.01, "Weight decay of AdamW; biases and norms are not decayed.", number(0), metavar="X"
    )
    schedule: str = setting(
        "linear",
        "Learning rate after the warm-up: linear and cosine fall to 0, constant stays.",
        choice("linear", "cosine", "constant"),
        metavar="linear|cosine|constant",
    )
    warmup: float = setting(
        0.1, "Share of all steps (0 to 1) during which the learning rate rises from 0.", number(0, 1), metavar="SHARE"
    )
    max_grad_norm: float = setting(
        1.0, "Clip the gradient of the weights to this norm; 0 disables clipping.", number(0), metavar="X"
    )
    accumulation: int = setting(
        1, "Number of batches whose gradients are accumulated for one step.", whole(1), metavar="N"
    )
    mixed_precision: str | None = setting(
        None,
        "Precision of the forward and backward pass; by default no, or what accelerate launch sets.",
        choice("no", "bf16", "fp16").or_none(),
        metavar="no|bf16|fp16",
    )
    gradient_checkpointing: bool = setting(
        False, "Save memory by recomputing activations in the backward pass. A step takes about a third longer.", flag()
    )
    seed: int = setting(
        0,
        "Seed of dropout, of the order of the data, and of new heads.",
        whole(0),
        option=None,  # every command has a --seed
    )
    eval_steps: int | None = setting(
        None,
        "Evaluate after every N steps; by default once an epoch, in QAT four times a long epoch.",
        whole(1).or_none(),
        metavar="N",
        panel=_EVALUATION,
    )
    patience: int | None = setting(
        None,
        "Stop after N evaluations in a row without improvement; by default never.",
        whole(1).or_none(),
        metavar="N",
        panel=_EVALUATION,
    )
    save_steps: int | None = setting(
        None,
        "Write the resume file after every N steps; it is also written at each evaluation.",
        whole(1).or_none(),
        metavar="N",
        panel=_RESUMING,
    )
    ranges: str = setting(
        "fixed",
        "How ranges change during training. fixed: activations keep their calibrated ranges; moving: their ranges are "
        "moving averages over the batches; with both, scales of weights follow the weights in every step. learned: all "
        "scales are trained (LSQ).",
        choice(*RANGES),
        metavar="fixed|moving|learned",
        panel=_QUANTIZERS,
    )
    scale_lr: float = setting(
        1e-3,
        "With --ranges learned: learning rate of a scale, as a share of its value.",
        number(0),
        metavar="X",
        panel=_QUANTIZERS,
    )
    momentum: float = setting(
        0.01, "Weight of a batch in the moving average, with ranges='moving'.", number(0, 1, above=True), option=None
    )
    freeze_ranges: float = setting(
        0.8,
        "Share of all steps (0 to 1) after which ranges and scales no longer change.",
        number(0, 1),
        metavar="SHARE",
        panel=_QUANTIZERS,
    )
    activations_from: float = setting(
        0.0,
        "Share of all steps (0 to 1) to train in float before activations are quantized.",
        number(0, 1),
        metavar="SHARE",
        panel=_QUANTIZERS,
    )
    weights_from: float = setting(
        0.0,
        "Share of all steps (0 to 1) to train before weights are quantized; 0 quantizes them together with "
        "activations.",
        number(0, 1),
        metavar="SHARE",
        panel=_QUANTIZERS,
    )

    def __post_init__(self) -> None:
        check(self, "settings of the training", self._conflicts)

    def _conflicts(self) -> list[str]:
        if self.activations_from > self.weights_from > 0:
            return [
                f"weights_from is {self.weights_from:g}, activations_from is {self.activations_from:g}: activations "
                "must be quantized first; 0 quantizes weights together with activations"
            ]
        return []

    @property
    def highest_lr(self) -> float:
        """The learning rate after the warm-up: ``lr``, or its default."""
        return FLOAT_LR if self.lr is None else self.lr

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; ``lr`` is the one that is used."""
        return {**asdict(self), "lr": self.highest_lr}


@documented
@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The settings of a training task: the task and its head, the batches, and the metric that chooses a checkpoint.

    Raises:
        ConfigError: If values are out of range; all of them are named.
    """

    task: str | None = setting(
        None, f"Task to train: {', '.join(TASKS)}; by default that of the model's head.", metavar="TASK"
    )
    new_head: bool = setting(False, "Replace the head of the model by a new, randomly initialized one.", flag())
    multi_label: bool = setting(False, "Allow each text any number of labels, with sequence-classification.", flag())
    batch_size: int = setting(32, "Number of inputs in a batch of each process.", whole(1), metavar="B")
    seq_len: int | None = setting(
        None, "Longest input in tokens; by default the longest that the model accepts.", whole(3).or_none(), metavar="L"
    )
    split: str | None = setting(None, "Split to train on, for a directory that datasets saved.", metavar="NAME")
    eval_split: str | None = setting(None, "Split to evaluate on, for a directory that datasets saved.", metavar="NAME")
    metric: str | None = setting(
        None,
        "Metric that chooses the best checkpoint; by default the first one that qdq evaluate prints.",
        metavar="NAME",
        panel=_EVALUATION,
    )

    def __post_init__(self) -> None:
        check(self, "settings of the task")


@documented
@dataclass(frozen=True, kw_only=True)
class InitialCalibration:
    """The settings of the calibration of a float model that is quantized before training.

    Raises:
        ConfigError: If values are out of range; all of them are named.
    """

    samples: int = setting(
        512,
        "With --recipe: number of training examples to calibrate on.",
        whole(1),
        option="--calibration-samples",
        metavar="N",
    )
    refine: bool = setting(
        False, "With --recipe: also apply the smoothing and shifts of the recipe. Steps become slower.", flag()
    )

    def __post_init__(self) -> None:
        check(self, "settings of the calibration")


@documented
@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The weights of the terms of the loss when a model learns from a teacher; the loss is their weighted sum.

    1. ``task``: the loss of the labels.
    2. ``logits``: the divergence of the two distributions of answers, label by label where a text can have several
       labels. For scores it is their mean squared difference, for models that embed the distance of the embeddings.
    3. ``hidden``: the mean squared difference of hidden states, the output of the embeddings included.
    4. ``attention``: the squared difference of attention weights.

    Raises:
        ConfigError: If values are out of range; all of them are named.
    """

    task: float = setting(1.0, "Weight of the loss of the labels.", number(0), option="--task-weight", metavar="X")
    logits: float = setting(
        1.0,
        "Weight of the loss against the teacher's logits, or embeddings with sts.",
        number(0),
        option="--logits-weight",
        metavar="X",
    )
    hidden: float = setting(
        0.0, "Weight of the loss against the teacher's hidden states.", number(0), option="--hidden-weight", metavar="X"
    )
    attention: float = setting(
        0.0,
        "Weight of the loss against the teacher's attention weights.",
        number(0),
        option="--attention-weight",
        metavar="X",
    )
    temperature: float = setting(
        2.0, "Temperature by which the logits of both models are divided.", number(0, above=True), metavar="T"
    )

    def __post_init__(self) -> None:
        check(self, "distillation", self._conflicts)

    def _conflicts(self) -> list[str]:
        if any((self.task, self.logits, self.hidden, self.attention)):
            return []
        return ["all weights are 0: there is nothing to learn"]
