"""Channel-wise shifts and scales in front of a quantizer, which the module around it undoes exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Transform"]


class Transform(nn.Module):
    """``y = (x - shift) * smoothing_scale * row_scale``; in real arithmetic the model computes the same.

    1. An activation ``(..., channels)``: ``shift`` centres the values of each channel around zero, ``smoothing_scale``
       brings channels of different magnitude closer together.
    2. A weight ``(out, in)``: ``smoothing_scale`` undoes along its inputs the scale of the activation that it reads.
       ``row_scale`` scales its outputs by the inverse of what their reader multiplies with.

    On disk, and in the state dict, the scales have the names ``factor`` and ``rows``.

    Args:
        shift: float32 ``(channels,)``, subtracted.
        smoothing_scale: float32, positive, one for each index of the last axis.
        row_scale: float32, positive, one for each index of the first axis.

    Source: SmoothQuant (Xiao et al. 2022, arXiv 2211.10438); Outlier Suppression+ (Wei et al. 2023, arXiv 2304.09145).
    """

    shift: Tensor | None
    factor: Tensor | None
    rows: Tensor | None

    def __init__(
        self, *, shift: Tensor | None = None, smoothing_scale: Tensor | None = None, row_scale: Tensor | None = None
    ) -> None:
        super().__init__()
        # Checkpoints and digests of older versions contain these names of buffers.
        for name, value in (("shift", shift), ("factor", smoothing_scale), ("rows", row_scale)):
            self.register_buffer(name, None if value is None else value.detach().to(torch.float32))

    @property
    def smoothing_scale(self) -> Tensor | None:
        """The scale of each index of the last axis; None for 1."""
        return self.factor

    @property
    def row_scale(self) -> Tensor | None:
        """The scale of each index of the first axis; None for 1."""
        return self.rows

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` transformed, in its own type and shape."""
        if self.shift is not None:
            x = x - self.shift.to(x.dtype)
        if self.smoothing_scale is not None:
            x = x * self.smoothing_scale.to(x.dtype)
        if self.row_scale is not None:
            x = x * self.row_scale.to(x.dtype)[:, None]
        return x

    def problems(self, channels: int | None, rows: int | None) -> list[str]:
        """Return what is wrong with the values, under their names on disk.

        Args:
            channels: The length of the tensor's last axis; None if it cannot be scaled along that axis.
            rows: The length of its first axis; None if it cannot be scaled along that axis. A tensor that can is a
                weight, which is never shifted.
        """
        found = []
        for name, size in (("shift", channels if rows is None else None), ("factor", channels), ("rows", rows)):
            value: Tensor | None = getattr(self, name)
            if value is None:
                continue
            if size is None:
                found.append(f"{name} is not possible for this slot")
            elif value.shape != (size,) or not bool(torch.isfinite(value).all()):
                found.append(f"{name} must be {size} finite numbers, is of shape {tuple(value.shape)}")
            elif name != "shift" and not bool((value > 0).all()):
                found.append(f"{name} must be positive")
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transform:
        """Move with the model but stay in float32, because in half precision the inverse would not be exact."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in before.items():
            after = self._buffers[name]
            if value is not None and after is not None and after.dtype != torch.float32:
                self._buffers[name] = value.to(after.device)
        return self
