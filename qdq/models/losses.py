"""Training losses of the task heads. Labels of -100 are ignored; when all are, the mean of nothing is NaN."""

import torch
from torch import Tensor, nn

from qdq.models.inputs import InputError, check_range, is_tracing

IGNORED = -100


def cross_entropy(logits: Tensor, labels: Tensor, name: str = "labels") -> Tensor:
    """Mean cross entropy of ``logits`` ``(..., classes)`` against ``labels`` ``(...)``."""
    classes = logits.shape[-1]
    if not is_tracing() and labels.numel() * classes != logits.numel():
        raise InputError(f"{name} has shape {list(labels.shape)}, the logits {list(logits.shape)} need one each")
    check_range(name, labels, classes, what="the classes", ignored=IGNORED)
    target = labels.reshape(-1).to(logits.device)
    return nn.functional.cross_entropy(logits.reshape(-1, classes), target, ignore_index=IGNORED)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of each position ``(batch, seq, vocab)`` against the label of the next one."""
    if not is_tracing() and labels.shape != logits.shape[:2]:
        raise InputError(f"labels has shape {list(labels.shape)}, must be {list(logits.shape[:2])}")
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """What the first labelled call of a sequence classifier decides when the configuration does not."""
    whole = labels.dtype in {torch.int64, torch.int32}
    return "regression" if num_labels == 1 else f"{'single' if whole else 'multi'}_label_classification"


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Loss of sequence logits ``(batch, num_labels)``.

    1. ``single_label_classification``: cross entropy with labels ``(batch,)``.
    2. ``regression``: mean squared error with floating labels ``(batch,)`` or ``(batch, num_labels)``.
    3. ``multi_label_classification``: binary cross entropy with floating labels ``(batch, num_labels)``.
    """
    if problem_type == "single_label_classification":
        return cross_entropy(logits, labels)
    labels = labels.to(logits.device)
    if not is_tracing():
        if not labels.is_floating_point():
            raise InputError(f"labels for {problem_type} have dtype {labels.dtype}, must be floating point")
        if labels.numel() != logits.numel():
            raise InputError(f"labels has shape {list(labels.shape)}, must be {list(logits.shape)} for {problem_type}")
    if problem_type == "regression":
        return nn.functional.mse_loss(logits.reshape(labels.shape), labels)
    return nn.functional.binary_cross_entropy_with_logits(logits, labels.reshape(logits.shape))


def span_loss(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Mean of the cross entropies of start and end over the ``seq`` positions of logits ``(batch, seq)``.

    Positions behind the sequence are ignored, negative ones count as the first token.
    """
    batch, length = start_logits.shape
    losses = []
    for name, logits, positions in (("start", start_logits, starts), ("end", end_logits, ends)):
        if not is_tracing() and positions.numel() != batch:
            raise InputError(f"{name}_positions has shape {list(positions.shape)}, must be [{batch}]")
        target = positions.reshape(-1).to(logits.device).clamp(0, length)
        losses.append(nn.functional.cross_entropy(logits, target, ignore_index=length))
    return (losses[0] + losses[1]) / 2
