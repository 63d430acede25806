"""Layer by layer through an encoder, with the hidden states of a few samples in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from qdq.models.encoder import Call, Encoder
    from qdq.quantization.modules import QuantLinear

__all__ = ["Stream"]


class _Reached(Exception):  # noqa: N818 (no error)
    """The module that was waited for was called."""


class Stream:
    """The hidden states in front of one layer, one for each batch, that move on to the next layer when asked.

    Args:
        model: that holds ``encoder``; it is run up to the encoder.
        encoder: to go through.
        batches: keyword arguments of the model.

    Raises:
        CalibrationError: when there is no batch.
    """

    def __init__(self, model: nn.Module, encoder: Encoder, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self._encoder = encoder
        self._depth = 0
        self._hidden: list[Tensor] = []
        self._calls: list[Call] = []
        self._masks: list[TokenMask] = []

        def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
            hidden, call = given
            self._hidden.append(hidden)
            self._calls.append(call)
            raise _Reached

        hook = encoder.register_forward_pre_hook(keep)
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
            for arguments, mask in zip(self._arguments(), self._masks, strict=True):  # noqa: B007 (the hooks read it)
                _run(layer, arguments, {})
        finally:
            for hook in hooks:
                hook.remove()
        return [torch.cat(parts) for parts in found]

    def advance(self, layer: nn.Module) -> None:
        """Go through ``layer``, to what the next one gets."""
        self._hidden = [layer(*arguments)[0] for arguments in self._arguments()]
        self._depth += 1

    def _arguments(self) -> Iterator[tuple[Any, ...]]:
        """What the layer gets for each batch. The encoder says it, since layers may differ in their masks."""
        for hidden, call in zip(self._hidden, self._calls, strict=True):
            yield hidden, *self._encoder.arguments(call, self._depth)


def _run(module: nn.Module, args: Sequence[Any], inputs: Mapping[str, Any]) -> None:
    try:
        module(*args, **inputs)
    except _Reached:
        return
