"""Layer by layer through an encoder, with the hidden states of a few samples in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from qdq.models.encoder import Encoder
    from qdq.quantization.modules import QuantLinear

__all__ = ["Stream"]


class _Reached(Exception):  # noqa: N818 (no error)
    """The module that was waited for was called."""


class Stream:
    """The calls of one layer, one for each batch, that move on to the next layer when asked.

    Args:
        model: that holds ``encoder``; it is run up to the first layer.
        encoder: to go through.
        batches: keyword arguments of the model.

    Raises:
        CalibrationError: when there is no batch.
    """

    def __init__(self, model: nn.Module, encoder: Encoder, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self._calls: list[tuple[Any, ...]] = []
        self._masks: list[TokenMask] = []

        def keep(_: nn.Module, call: tuple[Any, ...]) -> None:
            self._calls.append(call)
            raise _Reached

        hook = encoder.layers[0].register_forward_pre_hook(keep)
        device = next(model.parameters()).device
        try:
            for batch in batches:
                mask = TokenMask()
                mask.set(batch.get("attention_mask"))
                self._masks.append(mask)
                _run(model, (), {name: value.to(device) for name, value in batch.items()})
        finally:
            hook.remove()
        if not self._calls:
            raise CalibrationError("no data: the calibration set has no batch")
        if len(self._calls) != len(self._masks):
            raise CalibrationError("this model runs its encoder never or more than once for a batch")

    def inputs(self, layer: nn.Module, linears: Sequence[QuantLinear]) -> list[Tensor]:
        """What each of ``linears`` in ``layer`` reads, ``(tokens, in)``, padding left out; later ones wait for it.

        The layer runs no further than the last of them.
        """
        found: list[list[Tensor]] = [[] for _ in linears]
        mask = self._masks[0]

        def hook_for(index: int) -> Any:
            def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                found[index].append(mask.select(args[0]).flatten(0, -2))
                if index == len(linears) - 1:
                    raise _Reached

            return keep

        hooks = [linear.register_forward_pre_hook(hook_for(index)) for index, linear in enumerate(linears)]
        try:
            for call, mask in zip(self._calls, self._masks, strict=True):  # noqa: B007 (the hooks read it)
                _run(layer, call, {})
        finally:
            for hook in hooks:
                hook.remove()
        return [torch.cat(parts) for parts in found]

    def advance(self, layer: nn.Module) -> None:
        """Go through ``layer``: the calls are those of the next one."""
        self._calls = [(layer(*call)[0], *call[1:]) for call in self._calls]


def _run(module: nn.Module, args: Sequence[Any], inputs: Mapping[str, Any]) -> None:
    try:
        module(*args, **inputs)
    except _Reached:
        return
