"""Run models in torch."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.runners.inputs import missing_inputs, raise_problems
from qdq.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

__all__ = ["TorchRunner"]

_STANDARD_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TorchRunner:
    """Run a torch model without gradients, in eval mode, on the device of its parameters.

    Args:
        model: A model that is called with tensors by name and returns a mapping, or an output with ``items()`` as the
            models of ``qdq.models`` do. Modules in training mode are in training mode again after each call.
        input_names: Names of the inputs. By default those of input_ids, attention_mask and token_type_ids that its
            ``forward`` takes.
        output_names: Names of the outputs, in order. By default every tensor of the output; :attr:`output_names` is
            then empty until the first call.
    """

    def __init__(
        self, model: nn.Module, *, input_names: Sequence[str] | None = None, output_names: Sequence[str] | None = None
    ) -> None:
        self.model = model
        self._input_names = tuple(input_names) if input_names is not None else _standard_inputs(model)
        self._wanted = None if output_names is None else tuple(output_names)
        self._output_names = self._wanted or ()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs the model is given."""
        return self._input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self._output_names

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; see :class:`Runner`. bfloat16, which numpy lacks, becomes float32."""
        import torch

        name = type(self.model).__name__
        raise_problems(name, missing_inputs(self._input_names, inputs))
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        tensors = {n: torch.tensor(np.asarray(inputs[n]), device=device) for n in self._input_names}
        with torch.inference_mode(), _evaluating(self.model):
            output = dict(self.model(**tensors).items())

        if self._wanted is None:
            self._output_names = tuple(n for n, value in output.items() if isinstance(value, torch.Tensor))
        elif absent := [n for n in self._wanted if not isinstance(output.get(n), torch.Tensor)]:
            raise ExportError(f"{name} gives no tensor {', '.join(absent)}; it gives {', '.join(output) or 'nothing'}")
        return {n: _to_numpy(output[n]) for n in self._output_names}


def _standard_inputs(model: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return tuple(name for name in _STANDARD_INPUTS if takes_all or name in parameters)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode inside; afterwards restore the training mode of each module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _to_numpy(tensor: Any) -> NDArray[Any]:
    import torch

    tensor = tensor.detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array
