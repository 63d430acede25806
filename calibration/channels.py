"""The smallest and largest value of every channel of an activation, whatever the batches."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from calibration.identity import model_digest, slots_digest
from calibration.journal import damaged
from calibration.passes import Seen, in_eval, run
from calibration.token_mask import TokenMask
from qdq.errors import CalibrationError, describe_faults
from qdq.quantizer import Mode, quantizers, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from torch import Tensor, nn

    from calibration.journal import Entry, Journal
    from calibration.parts import Part
    from qdq.quantizer import Quantizer

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
    journal: Journal | None = None,
) -> dict[Quantizer, tuple[Tensor, Tensor]]:
    """Lowest and highest value of every channel, for the quantizers in ``wanted`` (with their names).

    The model is run in eval mode, without gradients and without rounding; its modes are then what they were. A
    ``journal`` keeps what was found, and gives what an interrupted run had.

    Raises:
        CalibrationError: when there is no data, a slot saw none, values are NaN or infinite, or the journal belongs to
            another model or other data.
    """
    mask = TokenMask()
    watched = {quantizer: Channels(mask) for quantizer in wanted}
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    named = {wanted[quantizer]: channels for quantizer, channels in watched.items()}

    def after(seen: Seen) -> None:
        _check_values(named, f"in batch {seen.batches - 1} (the first is 0)")
        if journal is not None:
            journal.keep(_STAGE, vars(seen), _snapshot(named))
        if progress is not None:
            progress(seen.batches)

    def run_own() -> Seen:
        done = None
        if journal is not None:
            identity = {"model": model_digest(model), "slots": slots_digest(model)}
            entry = journal.begin(_STAGE, identity)
            done = None if entry is None else _restored(named, entry)
        return run(model, batches, (mask,), after, part, done)

    def held() -> list[tuple[Tensor, Tensor] | None]:
        if journal is not None:
            journal.flush()  # the others may take long, or fail
        return [channels.bounds for channels in watched.values()]

    try:
        set_mode(model, Mode.OFF)
        for quantizer, channels in watched.items():
            quantizer.mode, quantizer.observer = Mode.COLLECT, channels
        with in_eval(model), nullcontext() if journal is None else journal.guard():
            _, others = part.together(run_own, held)
            if journal is not None:
                journal.flush()
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
    faults = [f"{wanted[quantizer]} saw no data" for quantizer, bounds in found.items() if bounds is None]
    if faults:
        raise CalibrationError(describe_faults("calibration", faults))
    return {quantizer: bounds for quantizer, bounds in found.items() if bounds is not None}


def _check_values(named: Mapping[str, Channels], where: str) -> None:
    """Refuse to go on with what has no range, while it is known where it came from."""
    faults = [
        f"{name} saw NaN or infinite values {where}"
        for name, channels in named.items()
        if channels.bounds is not None and not all(bool(torch.isfinite(bound).all()) for bound in channels.bounds)
    ]
    if faults:
        raise CalibrationError(describe_faults("calibration", faults))
