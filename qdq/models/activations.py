"""Activation functions under the names that a Hugging Face ``config.json`` gives them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class Activation(nn.Module):
    """Wrap a function as a module.

    Args:
        function: The function to apply, element by element.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Return the function of every element, in the shape of ``input``."""
        return self.function(input)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _clipped_gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x).clamp(-10.0, 10.0)


def _laplace(x: Tensor) -> Tensor:
    # The rounded constants 1 / sqrt(2) and sqrt(1 / (4 * pi)) are those of upstream; exact ones change the output.
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * 2.0**0.5)))


def _relu_squared(x: Tensor) -> Tensor:
    return nn.functional.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    **dict.fromkeys(("gelu", "gelu_python"), nn.GELU),
    # Upstream writes the tanh formula in several ways, which differ by less than 1e-7 in float32.
    **dict.fromkeys(
        ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"), partial(nn.GELU, approximate="tanh")
    ),
    "quick_gelu": partial(Activation, _quick_gelu),
    "gelu_10": partial(Activation, _clipped_gelu),
    **dict.fromkeys(("silu", "swish"), nn.SiLU),
    "mish": nn.Mish,
    "laplace": partial(Activation, _laplace),
    "relu2": partial(Activation, _relu_squared),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "linear": nn.Identity,
}


def activation(name: str | Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a new module for an activation.

    Args:
        name: A key of ``ACTIVATIONS``, or a function to wrap.
    """
    return ACTIVATIONS[name]() if isinstance(name, str) else Activation(name)
