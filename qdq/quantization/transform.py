"""What is done to a tensor before it is quantized, so that it loses less; the module around it undoes it exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Transform"]


class Transform(nn.Module):
    """``y = (x - shift) * factor * rows``: channel-wise, neutral for the model in real arithmetic.

    Of an activation ``(..., channels)``: ``shift`` moves each channel's values around zero, ``factor`` brings channels
    of very different size closer together. Of a weight ``(out, in)``: ``factor`` undoes along its inputs what was done
    to the activation, ``rows`` does along its outputs what the reader of the result undoes.

    Args:
        shift: float32 ``(channels,)``, subtracted.
        factor: float32, positive, one for each index of the last axis.
        rows: float32, positive, one for each index of the first axis.

    Source: SmoothQuant (Xiao et al. 2022, arXiv 2211.10438); Outlier Suppression+ (Wei et al. 2023, arXiv 2304.09145).
    """

    shift: Tensor | None
    factor: Tensor | None
    rows: Tensor | None

    def __init__(
        self, *, shift: Tensor | None = None, factor: Tensor | None = None, rows: Tensor | None = None
    ) -> None:
        super().__init__()
        for name, value in (("shift", shift), ("factor", factor), ("rows", rows)):
            self.register_buffer(name, None if value is None else value.detach().to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` in its own type and shape."""
        if self.shift is not None:
            x = x - self.shift.to(x.dtype)
        if self.factor is not None:
            x = x * self.factor.to(x.dtype)
        if self.rows is not None:
            x = x * self.rows.to(x.dtype)[:, None]
        return x

    @property
    def is_neutral(self) -> bool:
        """Whether nothing is done."""
        return self.shift is None and self.factor is None and self.rows is None

    def problems(self, channels: int | None, rows: int | None) -> list[str]:
        """What is wrong with its values, for a tensor of so many channels and rows; None: it cannot have that part."""
        found = []
        for name, size in (("shift", channels if rows is None else None), ("factor", channels), ("rows", rows)):
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            if size is None:
                found.append(f"{name} has no place here")
            elif value.shape != (size,) or not bool(torch.isfinite(value).all()):
                found.append(f"{name} must be {size} finite numbers, is of shape {tuple(value.shape)}")
            elif name != "shift" and not bool((value > 0).all()):
                found.append(f"{name} must be positive")
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transform:
        """Move with the model, but stay in float32: half precision would undo something else than was done."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            after = self._buffers[name]
            if value is not None and after is not None and after.dtype != torch.float32:
                self._buffers[name] = value.to(after.device)
        return self
