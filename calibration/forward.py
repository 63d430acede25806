"""Batches through the model, one by one, and what is to be known about them."""

from __future__ import annotations

import hashlib
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calibration.distributed import WHOLE
from qdq.errors import CalibrationError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from calibration.distributed import Part
    from calibration.statistics.token_mask import TokenMask

__all__ = ["Seen", "in_eval", "run"]


@dataclass
class Seen:
    """The data so far; see :class:`calibration.CalibrationSummary`."""

    batches: int = 0
    samples: int = 0
    tokens: int = 0
    data_sha256: str = hashlib.sha256().hexdigest()


@contextmanager
def in_eval(model: nn.Module) -> Iterator[None]:
    """Eval mode for as long as the context lasts; then every module is in the mode that it was in."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def run(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    masks: Sequence[TokenMask],
    after: Callable[[Seen], None],
    part: Part = WHOLE,
    done: Seen | None = None,
) -> Seen:
    """Show every batch to the model, after its mask was set; ``after`` each, say what was seen so far.

    Batches that are not for this ``part`` count as seen, too: other processes run them. Those that are ``done`` are
    only looked at, for what they are: nothing comes ``after`` them.

    Raises:
        CalibrationError: for a batch without data or with inputs that the model does not take, when there is none, and
            when the first ones are not those that were done.
    """
    device = next(model.parameters()).device
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    digest = hashlib.sha256()
    seen = Seen()
    done = done or seen
    with torch.no_grad():
        for batch in batches:
            _check(batch, seen.batches, () if takes_all else parameters)
            inputs = {name: value.to(device) for name, value in batch.items()}
            attention_mask = inputs.get("attention_mask")
            if part.takes(seen.batches) and seen.batches >= done.batches:
                for mask in masks:
                    mask.set(attention_mask)
                model(**inputs)
            rows = next(iter(batch.values()))
            for index, row in enumerate(batch.get("input_ids", ())):
                kept = row if attention_mask is None else row[attention_mask[index].to(row.device) != 0]
                digest.update(kept.cpu().contiguous().numpy().tobytes() + b"|")
            tokens = int(rows.numel() if attention_mask is None else (attention_mask != 0).sum())
            seen = Seen(seen.batches + 1, seen.samples + rows.shape[0], seen.tokens + tokens, digest.hexdigest())
            if seen.batches > done.batches:
                after(seen)
            elif seen.batches == done.batches:
                _check_same(seen, done)
    if not seen.batches:
        raise CalibrationError("no data: the calibration set has no batch")
    if seen.batches < done.batches:
        _check_same(seen, done)
    return seen


def _check_same(seen: Seen, done: Seen) -> None:
    """Refuse to go on after batches that were others."""
    problems = [
        f"{name}: {was} there, {value} here"
        for (name, was), value in zip(vars(done).items(), vars(seen).values(), strict=True)
        if was != value
    ]
    if problems:
        what = "the batches that were done before the interruption are not those of this run"
        raise CalibrationError(describe_problems(what, problems))


def _check(batch: Mapping[str, Tensor], index: int, known: Iterable[str]) -> None:
    if not batch or not next(iter(batch.values())).numel():
        raise CalibrationError(f"batch {index} is empty")
    known = list(known)
    unknown = [name for name in batch if known and name not in known]
    if unknown:
        raise CalibrationError(f"batch {index}: the model takes no {', '.join(unknown)}")
    mask = batch.get("attention_mask")
    if mask is not None and not bool((mask != 0).any()):
        raise CalibrationError(f"batch {index} is empty: its attention_mask excludes every position")
