"""Run an encoder layer by layer, with the hidden states of a few samples in memory."""

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

__all__ = ["LayerInputs"]


class _Reached(Exception):  # noqa: N818 (no error)
    """The module whose input is wanted has been called, so the forward pass can stop."""


class LayerInputs:
    """The hidden states before one layer of an encoder, for every batch. They can be advanced to the next layer.

    Args:
        model: The model that holds ``encoder``. It is run up to the encoder, once for each batch.
        encoder: The encoder.
        batches: Keyword arguments of the model.

    Raises:
        CalibrationError: There is no batch, or the model does not call the encoder exactly once for each.
    """

    def __init__(self, model: nn.Module, encoder: Encoder, batches: Iterable[Mapping[str, Tensor]]) -> None:
        self._encoder = encoder
        self._depth = 0
        self._hidden: list[Tensor] = []
        self._calls: list[Call] = []
        self._masks: list[TokenMask] = []

        # The embeddings and masks are computed by the model itself. An exception stops it before the first layer.
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
            raise CalibrationError(
                "the model does not run its encoder exactly once for each batch, so its layers cannot be run one by one"
            )

    def inputs(self, layer: nn.Module, linears: Sequence[QuantLinear]) -> list[Tensor]:
        """Return the inputs of linear layers, ``(tokens, in)``, without padding.

        Args:
            layer: The layer before which the hidden states are.
            linears: Linear layers of ``layer``, in the order of the computation. It is run up to the last of them.
        """
        found: list[list[Tensor]] = [[] for _ in linears]
        mask = self._masks[0]

        def hook_for(index: int) -> Any:
            def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
                found[index].append(mask.select(args[0]).flatten(0, -2))
                if index == len(linears) - 1:  # what follows is not needed
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
        """Run ``layer`` on all batches, and keep the hidden states before the next one."""
        self._hidden = [layer(*arguments)[0] for arguments in self._arguments()]
        self._depth += 1

    def _arguments(self) -> Iterator[tuple[Any, ...]]:
        """Yield the arguments of the layer for each batch. The encoder knows them, since layers may differ in masks."""
        for hidden, call in zip(self._hidden, self._calls, strict=True):
            yield hidden, *self._encoder.arguments(call, self._depth)


def _run(module: nn.Module, args: Sequence[Any], inputs: Mapping[str, Any]) -> None:
    try:
        module(*args, **inputs)
    except _Reached:
        return
