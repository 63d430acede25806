"""The smallest and largest value of every channel of an activation, whatever the batches."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from calibration.digests import model_digest, slots_digest
from calibration.forward import Seen, in_eval, run
from calibration.resume_file import damaged
from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError, describe_problems
from qdq.quantization.quantizer import Mode, quantizers, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from torch import Tensor, nn

    from calibration.distributed import Part
    from calibration.resume_file import Entry, ResumeFile
    from qdq.quantization.quantizer import Quantizer

__all__ = ["Channels", "channel_ranges"]

_STAGE = "channels"


class Channels:
    """Extremes of each channel, the last axis; padding never counts.

    Args:
        mask: of the batch at hand.
    """

    def __init__(self, mask: TokenMask) -> None:
        self.mask = mask
        self.lower: Tensor | None = None
        self.upper: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take note of ``(batch, seq, channels)``, or of ``(batch, heads, seq, size)`` with heads * size channels."""
        if x.dim() == 4:
            x = x.transpose(1, 2).flatten(2)
        values = self.mask.select(x).flatten(0, -2)
        if len(values):
            self.merge((values.amin(0).float(), values.amax(0).float()))

    def merge(self, bounds: tuple[Tensor, Tensor] | None) -> None:
        """Add what another one saw."""
        if bounds is None:
            return
        lower, upper = bounds
        self.lower = lower if self.lower is None else torch.minimum(self.lower, lower)
        self.upper = upper if self.upper is None else torch.maximum(self.upper, upper)

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """Lowest and highest ``(channels,)``; None when nothing was seen."""
        return None if self.lower is None or self.upper is None else (self.lower, self.upper)


def _snapshot(named: Mapping[str, Channels]) -> Callable[[], dict[str, Tensor]]:
    """The bounds of this moment, to be asked for at any later one: lower and upper in one, ``(2, channels)``."""
    held = {name: channels.bounds for name, channels in named.items()}
    return lambda: {name: torch.stack(bounds) for name, bounds in held.items() if bounds is not None}


def _restored(named: Mapping[str, Channels], entry: Entry) -> Seen:
    """Give fresh channels what an entry holds, and say what data that was."""
    try:
        for name, bounds in entry.tensors.items():
            lower, upper = bounds
            named[name].merge((lower, upper))
        return Seen(**entry.seen)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(entry, error) from error


def channel_ranges(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    wanted: Mapping[Quantizer, str],
    *,
    part: Part,
    progress: Callable[[int], Any] | None = None,
    resume_file: ResumeFile | None = None,
) -> dict[Quantizer, tuple[Tensor, Tensor]]:
    """Lowest and highest value of every channel, for the quantizers in ``wanted`` (with their names).

    The model is run in eval mode, without gradients and without rounding; its modes are then what they were. A
    ``resume_file`` keeps what was found, and gives what an interrupted run had.

    Raises:
        CalibrationError: when there is no data, a slot saw none, values are NaN or infinite, or the resume file belongs
            to another model or other data.
    """
    mask = TokenMask()
    watched = {quantizer: Channels(mask) for quantizer in wanted}
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    named = {wanted[quantizer]: channels for quantizer, channels in watched.items()}

    def after(seen: Seen) -> None:
        _check_values(named, f"in batch {seen.batches - 1} (the first is 0)")
        if resume_file is not None:
            resume_file.keep(_STAGE, vars(seen), _snapshot(named))
        if progress is not None:
            progress(seen.batches)

    def run_own() -> Seen:
        done = None
        if resume_file is not None:
            identity = {"model": model_digest(model), "slots": slots_digest(model)}
            entry = resume_file.begin(_STAGE, identity)
            done = None if entry is None else _restored(named, entry)
        return run(model, batches, (mask,), after, part, done)

    def held() -> list[tuple[Tensor, Tensor] | None]:
        if resume_file is not None:
            resume_file.flush()  # the others may take long, or fail
        return [channels.bounds for channels in watched.values()]

    try:
        set_mode(model, Mode.OFF)
        for quantizer, channels in watched.items():
            quantizer.mode, quantizer.observer = Mode.COLLECT, channels
        with in_eval(model), nullcontext() if resume_file is None else resume_file.guard():
            _, others = part.together(run_own, held)
            if resume_file is not None:
                resume_file.flush()
    finally:
        for quantizer, mode in modes.items():
            quantizer.mode = mode
        for quantizer in watched:
            quantizer.observer = None
    for theirs in others.values():
        for channels, bounds in zip(watched.values(), theirs, strict=True):
            channels.merge(bounds)
    found = {quantizer: channels.bounds for quantizer, channels in watched.items()}
    _check_values(named, "in the part of another process")
    problems = [f"{wanted[quantizer]} saw no data" for quantizer, bounds in found.items() if bounds is None]
    if problems:
        raise CalibrationError(describe_problems("calibration", problems))
    return {quantizer: bounds for quantizer, bounds in found.items() if bounds is not None}


def _check_values(named: Mapping[str, Channels], where: str) -> None:
    """Refuse to go on with what has no range, while it is known where it came from."""
    problems = [
        f"{name} saw NaN or infinite values {where}"
        for name, channels in named.items()
        if channels.bounds is not None and not all(bool(torch.isfinite(bound).all()) for bound in channels.bounds)
    ]
    if problems:
        raise CalibrationError(describe_problems("calibration", problems))
