"""The smallest and the largest value of every channel of an activation."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch

from calibration.batches import DataCount, eval_mode, run_batches
from calibration.digests import model_digest, slots_digest
from calibration.resume_file import damaged
from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError, describe_problems
from qdq.quantization.quantizer import Mode, quantizers, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from torch import Tensor, nn

    from calibration.distributed import ProcessRank
    from calibration.resume_file import ResumeFile, StageProgress
    from qdq.quantization.quantizer import Quantizer

__all__ = ["ChannelRanges", "channel_ranges"]

_STAGE = "channels"


class ChannelRanges:
    """The extremes of each channel, the last axis. Padding does not count.

    Args:
        mask: The mask of the current batch.
    """

    def __init__(self, mask: TokenMask) -> None:
        self.mask = mask
        self.lower: Tensor | None = None
        self.upper: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Add ``(batch, seq, channels)``, or ``(batch, heads, seq, size)`` with ``heads * size`` channels."""
        # Heads are channels too: attention concatenates them before its output projection.
        if x.dim() == 4:
            x = x.transpose(1, 2).flatten(2)
        values = self.mask.select(x).flatten(0, -2)
        if len(values):
            self.merge((values.amin(0).float(), values.amax(0).float()))

    def merge(self, bounds: tuple[Tensor, Tensor] | None) -> None:
        """Add the :attr:`bounds` of another one."""
        if bounds is None:
            return
        lower, upper = bounds
        self.lower = lower if self.lower is None else torch.minimum(self.lower, lower)
        self.upper = upper if self.upper is None else torch.maximum(self.upper, upper)

    @property
    def bounds(self) -> tuple[Tensor, Tensor] | None:
        """The lowest and the highest values, ``(channels,)`` each; None before the first value."""
        return None if self.lower is None or self.upper is None else (self.lower, self.upper)


def channel_ranges(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    wanted: Mapping[Quantizer, str],
    *,
    process: ProcessRank,
    progress: Callable[[int], Any] | None = None,
    resume_file: ResumeFile | None = None,
) -> dict[Quantizer, tuple[Tensor, Tensor]]:
    """Return the lowest and the highest value of every channel of the tensors that quantizers see.

    The model runs in eval mode, without gradients and without rounding. Its modes are restored afterwards.

    Args:
        model: A wrapped model.
        batches: Keyword arguments of the model, tensors ``(batch, seq)``.
        wanted: The quantizers with their names.
        process: Which of several processes this is.
        progress: Called with the number of batches done.
        resume_file: Keeps what was found on disk, and gives what an interrupted run had found.

    Returns:
        For each quantizer two tensors ``(channels,)``.

    Raises:
        CalibrationError: There is no data, a slot saw none, values are NaN or infinite, or the resume file belongs to
            another model or other data.
    """
    mask = TokenMask()
    ranges = {quantizer: ChannelRanges(mask) for quantizer in wanted}
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    named = {wanted[quantizer]: channels for quantizer, channels in ranges.items()}

    def after_batch(count: DataCount) -> None:
        _check_finite(named, f"in batch {count.batches - 1} (the first is 0)")
        if resume_file is not None:
            resume_file.keep(_STAGE, vars(count), _capture(named))
        if progress is not None:
            progress(count.batches)

    def run_own() -> DataCount:
        done = None
        if resume_file is not None:
            identity = {"model": model_digest(model), "slots": slots_digest(model)}
            interrupted = resume_file.begin(_STAGE, identity)
            done = None if interrupted is None else _restore(named, interrupted)
        return run_batches(model, batches, (mask,), after_batch, process, done)

    def collected() -> list[tuple[Tensor, Tensor] | None]:
        if resume_file is not None:
            resume_file.flush()  # Waiting for the other processes may take long or fail.
        return [channels.bounds for channels in ranges.values()]

    try:
        # All other quantizers are off, so that channels are those of the float model.
        set_mode(model, Mode.OFF)
        for quantizer, channels in ranges.items():
            quantizer.mode, quantizer.observer = Mode.COLLECT, channels
        with eval_mode(model), nullcontext() if resume_file is None else resume_file.guard():
            _, others = process.run_and_exchange(run_own, collected)
            if resume_file is not None:
                resume_file.flush()
    finally:
        for quantizer, mode in modes.items():
            quantizer.mode = mode
        for quantizer in ranges:
            quantizer.observer = None
    for other in others.values():
        for channels, bounds in zip(ranges.values(), other, strict=True):
            channels.merge(bounds)
    found = {quantizer: channels.bounds for quantizer, channels in ranges.items()}
    _check_finite(named, "in another process")
    problems = [f"{wanted[quantizer]} saw no data" for quantizer, bounds in found.items() if bounds is None]
    if problems:
        raise CalibrationError(describe_problems("calibration", problems))
    return {quantizer: bounds for quantizer, bounds in found.items() if bounds is not None}


def _capture(named: Mapping[str, ChannelRanges]) -> Callable[[], dict[str, Tensor]]:
    """Capture the present bounds; the tensors, lower and upper as ``(2, channels)``, are made when they are needed."""
    captured = {name: channels.bounds for name, channels in named.items()}
    return lambda: {name: torch.stack(bounds) for name, bounds in captured.items() if bounds is not None}


def _restore(named: Mapping[str, ChannelRanges], progress: StageProgress) -> DataCount:
    """Give the bounds of an interrupted run to new channels, and return the data that they are from."""
    try:
        for name, bounds in progress.tensors.items():
            lower, upper = bounds
            named[name].merge((lower, upper))
        return DataCount(**progress.data_count)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(progress, error) from error


def _check_finite(named: Mapping[str, ChannelRanges], where: str) -> None:
    """Raise if values are NaN or infinite; called after each batch, so that the message can name the batch."""
    problems = [
        f"{name} saw NaN or infinite values {where}"
        for name, channels in named.items()
        if channels.bounds is not None and not all(bool(torch.isfinite(bound).all()) for bound in channels.bounds)
    ]
    if problems:
        raise CalibrationError(describe_problems("calibration", problems))
