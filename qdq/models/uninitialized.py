"""Modules without first weights, where others take their place at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Uninitialized"]


class Uninitialized(TorchFunctionMode):
    """While it lasts, ``torch.nn.init`` leaves tensors as they are.

    For modules on the meta device, which has nothing to fill: there torch draws random numbers in Python, and loads its
    compiler to do so, which takes longer than all else that a short command does.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``function``, unless it is one that fills a tensor, which is then given back."""
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
