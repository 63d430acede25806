"""The protocol of a runner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Runner"]


class Runner(Protocol):
    """Anything that computes named arrays from named arrays, such as a session of a runtime.

    ``input_ids``, ``attention_mask`` and ``token_type_ids`` are integers ``(batch, seq)``. The outputs depend on the
    task: ``last_hidden_state`` ``(batch, seq, hidden)``, ``logits`` ``(batch, labels)``, and so on.
    """

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that must be given."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name. Inputs that the model does not have are ignored.

        Raises:
            DataError: If an input is missing, or does not have the type and shape that the model declares.
        """
