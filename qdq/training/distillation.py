"""Learning from another model: its logits, hidden states and attention (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from qdq.data.features import IGNORED
from qdq.errors import ConfigError, describe_problems
from qdq.training.embeddings import embed, embedding_loss, pairs_loss, texts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Distillation", "DistilledLoss", "attention_loss", "hidden_loss", "logits_loss", "misfits"]

_LOGITS = ("logits", "start_logits", "end_logits", "prediction_logits", "seq_relationship_logits", "sop_logits")
_LABELS = {"labels", "start_positions", "end_positions"}
_SPAN = ("start_logits", "end_logits")  # over positions, padding among them


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How much each part of the loss counts; the loss is their weighted sum.

    Args:
        task: the loss of the labels.
        logits: the divergence of the two distributions of answers, of each label by itself where a text can have
            several; of scores their mean squared difference; of models that embed the distance of the embeddings.
        hidden: the mean squared difference of hidden states, embeddings included.
        attention: the mean squared difference of attention weights.
        temperature: that softens the distributions of answers.

    Raises:
        ConfigError: values out of range, all of them.
    """

    task: float = 1.0
    logits: float = 1.0
    hidden: float = 0.0
    attention: float = 0.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("task", "logits", "hidden", "attention")}
        problems = [f"the weight of {name} is {weight!r}, must be at least 0" for name, weight in weights.items()
                  if not weight >= 0]  # fmt: skip
        if not problems and not any(weights.values()):
            problems.append("all weights are 0: there is nothing to learn")
        if not self.temperature > 0:
            problems.append(f"temperature is {self.temperature!r}, must be above 0")
        if problems:
            raise ConfigError(describe_problems("distillation", problems))


def misfits(student: Any, teacher: Any, wanted: Distillation, *, embeds: bool = False) -> list[str]:
    """Why the model with the configuration ``teacher`` cannot teach that with ``student``; nothing when it can.

    Models that embed have no labels, but embeddings as wide as their hidden states.
    """
    problems = []
    if student.vocab_size != teacher.vocab_size:
        problems.append(f"it has a vocabulary of {teacher.vocab_size}, the model one of {student.vocab_size}")
    if wanted.logits and not embeds:
        problems += _other_labels(student, teacher)
    elif wanted.logits and student.hidden_size != teacher.hidden_size:
        problems.append(f"its embeddings are {teacher.hidden_size} wide, the model's {student.hidden_size}")
    if wanted.hidden and student.hidden_size != teacher.hidden_size:
        problems.append(
            f"its hidden states are {teacher.hidden_size} wide, the model's {student.hidden_size}: they cannot be "
            "compared, give hidden states the weight 0"
        )
    if wanted.attention and student.num_attention_heads != teacher.num_attention_heads:
        problems.append(
            f"it has {teacher.num_attention_heads} attention heads, the model {student.num_attention_heads}: give "
            "attention the weight 0"
        )
    depths = student.num_hidden_layers, teacher.num_hidden_layers
    if (wanted.hidden or wanted.attention) and depths[1] % depths[0]:
        problems.append(
            f"it has {depths[1]} layers, which is no multiple of the model's {depths[0]}: give hidden states and "
            "attention the weight 0"
        )
    return problems


def _other_labels(student: Any, teacher: Any) -> list[str]:
    problems = []
    if student.num_labels != teacher.num_labels:
        problems.append(f"its head has {teacher.num_labels} labels, the model's {student.num_labels}")
    if (names := [dict(c.id2label or {}) for c in (student, teacher)])[0] != names[1] and all(names):
        problems.append("the labels of its head have other names, or another order, than the model's")
    if {student.problem_type, teacher.problem_type} - {None, student.problem_type}:
        problems.append(f"its head is made for {teacher.problem_type}, the model's for {student.problem_type}")
    return problems


def logits_loss(
    student: Tensor, teacher: Tensor, temperature: float, counts: Tensor | None = None, *, independent: bool = False
) -> Tensor:
    """``T**2`` times the divergence of softmax(teacher / T) and softmax(student / T), a mean over the rows.

    With a single output, a score, the mean squared difference.

    Args:
        student: ``(..., classes)``.
        teacher: the same shape.
        temperature: T.
        counts: ``(...)``, which rows count; all when None.
        independent: every class is there or not: the divergences of their sigmoids, a mean over the classes.
    """
    student, teacher = student.to(torch.float32), teacher.to(torch.float32)
    if independent:
        softened = [logits / temperature for logits in (teacher, student)]
        present, absent = ([logsigmoid(sign * logits) for logits in softened] for sign in (1, -1))
        parts = [of_teacher.exp() * (of_teacher - of_student) for of_teacher, of_student in (present, absent)]
        each = (parts[0] + parts[1]).mean(-1) * temperature**2
    elif student.shape[-1] == 1:
        each = (student - teacher).square().squeeze(-1)
    else:
        log_p, log_q = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
        each = (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2
    return each.mean() if counts is None else _mean(each, counts)


def hidden_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """The mean squared difference of hidden states ``(batch, seq, hidden)`` at tokens; a mean over the layers.

    A deeper teacher's are taken at even steps, the first and the last among them.
    """
    step = (len(teacher) - 1) // (len(student) - 1)
    pairs = zip(student, teacher[::step], strict=True)
    return torch.stack([_mean((a.float() - b.float()).square().mean(-1), mask) for a, b in pairs]).mean()


def attention_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """The squared difference of attention weights ``(batch, heads, seq, keys)``: a sum over keys, a mean over the rest.

    Padding asks nothing. Of a deeper teacher the last layer of each group is taken.
    """
    step = len(teacher) // len(student)
    pairs = zip(student, teacher[step - 1 :: step], strict=True)
    return torch.stack([_mean((a.float() - b.float()).square().sum(-1).mean(1), mask) for a, b in pairs]).mean()


class DistilledLoss:
    """The loss of a model that also learns from a teacher.

    Args:
        teacher: on the model's device; it is never trained.
        wanted: weights and temperature.
        pooling: of models that embed, which learn from pairs of texts (:mod:`qdq.training.embeddings`); None: of models
            with a head.
    """

    def __init__(self, teacher: nn.Module, wanted: Distillation, *, pooling: str | None = None) -> None:
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)
        self.wanted = wanted
        self._pooling = pooling
        kind = getattr(getattr(teacher, "config", None), "problem_type", None)
        self._independent = kind == "multi_label_classification"

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Their weighted sum, ``()``."""
        wanted = self.wanted
        more = {"output_hidden_states": bool(wanted.hidden), "output_attentions": bool(wanted.attention)}
        given = batch if self._pooling is None else texts_of(batch)
        inputs = {name: tensor for name, tensor in given.items() if name not in _LABELS}
        device = next(iter(inputs.values())).device
        if next(self.teacher.parameters()).device != device:
            self.teacher.to(device)
        with torch.no_grad():
            theirs = self.teacher(**inputs, **more)
        ours = model(**given, **more)
        mask = batch["attention_mask"].flatten(0, -2) != 0
        parts: list[tuple[float, Tensor]] = []
        if wanted.task:
            parts.append((wanted.task, self._of_task(ours, batch)))
        if wanted.logits:
            parts.append((wanted.logits, self._of_logits(ours, theirs, batch, mask)))
        if wanted.hidden:
            parts.append((wanted.hidden, hidden_loss(ours.hidden_states, theirs.hidden_states, mask)))
        if wanted.attention:
            parts.append((wanted.attention, attention_loss(ours.attentions, theirs.attentions, mask)))
        return torch.stack([weight * part for weight, part in parts]).sum()

    def _of_task(self, ours: Any, batch: Mapping[str, Tensor]) -> Tensor:
        if self._pooling is not None:
            return pairs_loss(self._embedded(ours, batch), batch["labels"])
        if ours.loss is None:
            raise ConfigError("batches have no labels: give the task the weight 0 to learn from the teacher alone")
        loss: Tensor = ours.loss
        return loss

    def _of_logits(self, ours: Any, theirs: Any, batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        if self._pooling is not None:
            return embedding_loss(self._embedded(ours, batch), self._embedded(theirs, batch))
        names = [name for name in _LOGITS if getattr(ours, name, None) is not None]
        losses = []
        for name in names:
            a, b = getattr(ours, name), getattr(theirs, name)
            counts = None
            if name in _SPAN:  # what no text has is no place for an answer
                a, b = (logits.masked_fill(~mask, torch.finfo(logits.dtype).min) for logits in (a, b))
            elif a.dim() == 3:
                labels = batch.get("labels")
                counts = mask if labels is None or labels.shape != mask.shape else labels != IGNORED
            losses.append(logits_loss(a, b, self.wanted.temperature, counts, independent=self._independent))
        return torch.stack(losses).mean()

    def _embedded(self, output: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return embed(output.last_hidden_state, batch["attention_mask"].flatten(0, 1), str(self._pooling))


def _mean(each: Tensor, counts: Tensor) -> Tensor:
    """The mean of those values that count, 0 where none does."""
    weights = counts.to(each.dtype)
    return (each * weights).sum() / weights.sum().clamp_min(1)
