"""Learn from a teacher's logits, hidden states and attention (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from qdq.data.features import IGNORED
from qdq.errors import ConfigError
from qdq.training.embedding_loss import embed, embedding_loss, pairs_loss, texts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.models.config import ModelConfig
    from qdq.training.embedding_loss import Embedder
    from qdq.training.settings import Distillation

__all__ = ["DistillationLoss", "attention_loss", "hidden_loss", "logits_loss", "teacher_problems"]

# All outputs that are logits, in every family and task.
_LOGITS = ("logits", "start_logits", "end_logits", "prediction_logits", "seq_relationship_logits", "sop_logits")
_LABELS = {"labels", "start_positions", "end_positions"}
_SPAN = ("start_logits", "end_logits")


def teacher_problems(
    student: ModelConfig, teacher: ModelConfig, weights: Distillation, *, embeds: bool = False
) -> list[str]:
    """Return why one model cannot teach another, a line each; an empty list if it can.

    Args:
        student: Configuration of the model that learns.
        teacher: Configuration of the model to learn from.
        weights: Weights of the terms of the loss; what has the weight 0 need not fit.
        embeds: Whether the models embed texts: their embeddings must then be equally wide, labels do not matter.
    """
    problems = []
    if student.vocab_size != teacher.vocab_size:
        problems.append(f"it has a vocabulary of {teacher.vocab_size}, the model one of {student.vocab_size}")
    if weights.logits and not embeds:
        problems += _label_problems(student, teacher)
    elif weights.logits and student.hidden_size != teacher.hidden_size:
        problems.append(f"its embeddings are {teacher.hidden_size} wide, the model's {student.hidden_size}")
    if weights.hidden and student.hidden_size != teacher.hidden_size:
        problems.append(
            f"its hidden states are {teacher.hidden_size} wide, the model's {student.hidden_size}: they cannot be "
            "compared; give hidden states the weight 0"
        )
    if weights.attention and student.num_attention_heads != teacher.num_attention_heads:
        problems.append(
            f"it has {teacher.num_attention_heads} attention heads, the model {student.num_attention_heads}: give "
            "attention the weight 0"
        )
    layers, teacher_layers = student.num_hidden_layers, teacher.num_hidden_layers
    if (weights.hidden or weights.attention) and teacher_layers % layers:
        problems.append(
            f"it has {teacher_layers} layers, which is no multiple of the model's {layers}: give hidden states and "
            "attention the weight 0"
        )
    return problems


def _label_problems(student: ModelConfig, teacher: ModelConfig) -> list[str]:
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
    """Return the divergence of the student's answers from the teacher's, a mean over the rows.

    1. Several classes: ``T**2`` times the KL divergence of softmax(student / T) from softmax(teacher / T).
    2. One class, which is a score: the squared difference.
    3. With ``independent``: ``T**2`` times the KL divergence of the sigmoids of each class, a mean over the classes.

    Args:
        student: ``(..., classes)``.
        teacher: ``(..., classes)``.
        temperature: T.
        counts: Which rows count, ``(...)``; None for all.
        independent: Whether a row can have any number of classes.
    """
    student, teacher = student.to(torch.float32), teacher.to(torch.float32)
    if independent:
        softened = [logits / temperature for logits in (teacher, student)]
        present, absent = ([logsigmoid(sign * logits) for logits in softened] for sign in (1, -1))
        terms = [of_teacher.exp() * (of_teacher - of_student) for of_teacher, of_student in (present, absent)]
        each = (terms[0] + terms[1]).mean(-1) * temperature**2
    elif student.shape[-1] == 1:
        each = (student - teacher).square().squeeze(-1)
    else:
        log_p, log_q = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
        # Softening divides gradients by about T**2; multiplying by it keeps the weights of the terms comparable.
        each = (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2
    return each.mean() if counts is None else _mean(each, counts)


def hidden_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """Return the mean squared difference of hidden states, a mean over the layers, padding left out.

    Of a deeper teacher every second (third, ...) hidden state is taken, the first and the last among them.

    Args:
        student: ``(batch, seq, hidden)`` of the embeddings and of each layer.
        teacher: ``(batch, seq, hidden)`` of the embeddings and of each layer.
        mask: ``(batch, seq)``, True at tokens.
    """
    step = (len(teacher) - 1) // (len(student) - 1)
    pairs = zip(student, teacher[::step], strict=True)
    return torch.stack([_mean((a.float() - b.float()).square().mean(-1), mask) for a, b in pairs]).mean()


def attention_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """Return the squared difference of attention weights: a sum over keys, a mean over everything else.

    Rows of padding are left out. Of a deeper teacher the last layer of each group is taken.

    Args:
        student: ``(batch, heads, seq, keys)`` of each layer.
        teacher: ``(batch, heads, seq, keys)`` of each layer.
        mask: ``(batch, seq)``, True at tokens.
    """
    step = len(teacher) // len(student)
    pairs = zip(student, teacher[step - 1 :: step], strict=True)
    return torch.stack([_mean((a.float() - b.float()).square().sum(-1).mean(1), mask) for a, b in pairs]).mean()


class DistillationLoss:
    """The loss of a model that learns from labels and from a teacher.

    Args:
        teacher: The model to learn from; it is never trained.
        weights: Weights of the terms, and the temperature.
        pooling: How token vectors become one vector, for models that embed pairs of texts
            (:mod:`qdq.training.embedding_loss`); None for models with a head.
        teacher_pooling: The same for the teacher, if it is another.
    """

    def __init__(
        self,
        teacher: nn.Module,
        weights: Distillation,
        *,
        pooling: Embedder | None = None,
        teacher_pooling: Embedder | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)
        self.weights = weights
        self._pooling = pooling
        self._teacher_pooling = pooling if teacher_pooling is None else teacher_pooling
        kind = getattr(getattr(teacher, "config", None), "problem_type", None)
        self._independent = kind == "multi_label_classification"

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms, ``()``.

        Raises:
            ConfigError: If the labels have a weight and the batch has no labels.
        """
        weights = self.weights
        more = {"output_hidden_states": bool(weights.hidden), "output_attentions": bool(weights.attention)}
        given = batch if self._pooling is None else texts_of(batch)
        inputs = {name: tensor for name, tensor in given.items() if name not in _LABELS}
        # accelerate moves the model, but knows nothing of its teacher.
        device = next(iter(inputs.values())).device
        if next(self.teacher.parameters()).device != device:
            self.teacher.to(device)
        with torch.no_grad():
            teacher = self.teacher(**inputs, **more)
        student = model(**given, **more)
        # Pairs and choices have an axis more than (batch, seq), which the model sees as rows.
        mask = batch["attention_mask"].flatten(0, -2) != 0
        terms: list[tuple[float, Tensor]] = []
        if weights.task:
            terms.append((weights.task, self._task_loss(student, batch)))
        if weights.logits:
            terms.append((weights.logits, self._logits_loss(student, teacher, batch, mask)))
        if weights.hidden:
            terms.append((weights.hidden, hidden_loss(student.hidden_states, teacher.hidden_states, mask)))
        if weights.attention:
            terms.append((weights.attention, attention_loss(student.attentions, teacher.attentions, mask)))
        return torch.stack([weight * term for weight, term in terms]).sum()

    def _task_loss(self, student: Any, batch: Mapping[str, Tensor]) -> Tensor:
        if self._pooling is not None:
            return pairs_loss(_embed(student, batch, self._pooling), batch["labels"])
        if student.loss is None:
            raise ConfigError("batches have no labels: give the task the weight 0 to learn from the teacher alone")
        loss: Tensor = student.loss
        return loss

    def _logits_loss(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        if self._pooling is not None and self._teacher_pooling is not None:
            vectors = _embed(student, batch, self._pooling), _embed(teacher, batch, self._teacher_pooling)
            return embedding_loss(*vectors)
        names = [name for name in _LOGITS if getattr(student, name, None) is not None]
        losses = []
        for name in names:
            a, b = getattr(student, name), getattr(teacher, name)
            counts = None
            if name in _SPAN:
                # The classes are the tokens of the row: no answer begins or ends at padding.
                a, b = (logits.masked_fill(~mask, torch.finfo(logits.dtype).min) for logits in (a, b))
            elif a.dim() == 3:
                # Logits of tokens: where tokens have labels, the same ones count as in the loss of the task.
                labels = batch.get("labels")
                counts = mask if labels is None or labels.shape != mask.shape else labels != IGNORED
            losses.append(logits_loss(a, b, self.weights.temperature, counts, independent=self._independent))
        return torch.stack(losses).mean()


def _embed(output: Any, batch: Mapping[str, Tensor], pooling: Embedder) -> Tensor:
    return embed(output.last_hidden_state, batch["attention_mask"].flatten(0, 1), pooling)


def _mean(each: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the values that count, 0 if none does."""
    weights = counts.to(each.dtype)
    return (each * weights).sum() / weights.sum().clamp_min(1)
