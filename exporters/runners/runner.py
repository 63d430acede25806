"""What a runner is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Runner"]


class Runner(Protocol):
    """Computes named arrays from named arrays.

    ``input_ids``, ``attention_mask`` and ``token_type_ids`` are integers ``(batch, seq)``; what comes back depends on
    the task: ``last_hidden_state`` ``(batch, seq, hidden)``, ``logits`` ``(batch, labels)``, and so on.
    """

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that must be given."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Inputs that the model does not have are ignored.

        Raises:
            DataError: An input is missing or is not of the dtype and shape the model declares.
        """
