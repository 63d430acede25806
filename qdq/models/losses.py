"""Training losses of the task heads.

Labels of -100 are ignored. If all labels are, the loss is NaN, the mean of no values, as upstream.
"""

import torch
from torch import Tensor, nn

from qdq.models.inputs import InputError, check_range, is_tracing

IGNORED = -100


def cross_entropy(logits: Tensor, labels: Tensor, name: str = "labels") -> Tensor:
    """Return the mean cross entropy.

    Args:
        logits: ``(..., classes)``.
        labels: ``(...)``.
        name: The name of the labels in messages.
    """
    classes = logits.shape[-1]
    if not is_tracing() and labels.numel() * classes != logits.numel():
        raise InputError(f"{name} has shape {list(labels.shape)}, the logits {list(logits.shape)} need one each")
    check_range(name, labels, classes, what="the classes", ignored=IGNORED)
    target = labels.reshape(-1).to(logits.device)
    return nn.functional.cross_entropy(logits.reshape(-1, classes), target, ignore_index=IGNORED)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of each position's logits and the label of the next position.

    Args:
        logits: ``(batch, seq, vocab)``.
        labels: ``(batch, seq)``, not shifted.
    """
    if not is_tracing() and labels.shape != logits.shape[:2]:
        raise InputError(f"labels has shape {list(labels.shape)}, must be {list(logits.shape[:2])}")
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """Return the problem type that the labels of a sequence classifier suggest, as upstream infers it."""
    whole = labels.dtype in {torch.int64, torch.int32}
    return "regression" if num_labels == 1 else f"{'single' if whole else 'multi'}_label_classification"


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """Return the loss of sequence logits ``(batch, num_labels)``.

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
    """Return the mean of the cross entropies of start and end.

    Args:
        start_logits: ``(batch, seq)``.
        end_logits: ``(batch, seq)``.
        starts: Start positions ``(batch,)``. Those beyond the sequence are ignored, negative ones count as 0.
        ends: End positions, likewise.
    """
    batch, length = start_logits.shape
    losses = []
    for name, logits, positions in (("start", start_logits, starts), ("end", end_logits, ends)):
        if not is_tracing() and positions.numel() != batch:
            raise InputError(f"{name}_positions has shape {list(positions.shape)}, must be [{batch}]")
        # The clamp moves every position beyond the sequence to the one index that is ignored.
        target = positions.reshape(-1).to(logits.device).clamp(0, length)
        losses.append(nn.functional.cross_entropy(logits, target, ignore_index=length))
    return (losses[0] + losses[1]) / 2
