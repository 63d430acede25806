"""The smallest and largest value of every channel of an activation, whatever the batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from calibration.passes import run
from calibration.token_mask import TokenMask
from qdq.errors import CalibrationError, describe_faults
from qdq.quantizer import Mode, quantizers, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from torch import Tensor, nn

    from calibration.parts import Part
    from qdq.quantizer import Quantizer

__all__ = ["Channels", "channel_ranges"]


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
        """Take note of ``(batch, seq, channels)``."""
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


def channel_ranges(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    wanted: Mapping[Quantizer, str],
    *,
    part: Part,
    progress: Callable[[int], Any] | None = None,
) -> dict[Quantizer, tuple[Tensor, Tensor]]:
    """Lowest and highest value of every channel, for the quantizers in ``wanted`` (with their names).

    The model is run in eval mode, without gradients and without rounding; its modes are then what they were.

    Raises:
        CalibrationError: when there is no data, a slot saw none, or values are NaN or infinite.
    """
    mask = TokenMask()
    watched = {quantizer: Channels(mask) for quantizer in wanted}
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    training = {module: module.training for module in model.modules()}
    try:
        set_mode(model, Mode.OFF)
        for quantizer, channels in watched.items():
            quantizer.mode, quantizer.observer = Mode.COLLECT, channels
        run(model.eval(), batches, (mask,), lambda seen: progress and progress(seen.batches), part)
    finally:
        for module, flag in training.items():
            module.training = flag
        for quantizer, mode in modes.items():
            quantizer.mode = mode
        for quantizer in watched:
            quantizer.observer = None
    if part.count > 1:
        everybody = part.gather([channels.bounds for channels in watched.values()])
        for held in everybody:
            for channels, bounds in zip(watched.values(), held, strict=True):
                channels.merge(bounds)
    found = {quantizer: channels.bounds for quantizer, channels in watched.items()}
    faults = [f"{wanted[quantizer]} saw no data" for quantizer, bounds in found.items() if bounds is None]
    good = {quantizer: bounds for quantizer, bounds in found.items() if bounds is not None}
    faults += [
        f"{wanted[quantizer]} saw NaN or infinite values"
        for quantizer, bounds in good.items()
        if not all(bool(torch.isfinite(bound).all()) for bound in bounds)
    ]
    if faults:
        raise CalibrationError(describe_faults("calibration", faults))
    return good
