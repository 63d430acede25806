"""Construct modules without initialising their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Uninitialized"]


class Uninitialized(TorchFunctionMode):
    """A context in which the functions of ``torch.nn.init`` return tensors unchanged.

    It is for modules on the meta device, whose tensors have no values. On that device torch draws random numbers with
    Python code of its compiler, and importing the compiler takes longer than everything else in a short command.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``function``, unless it is one of ``torch.nn.init``; then return its tensor."""
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
