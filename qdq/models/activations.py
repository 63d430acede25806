"""Activation functions by the names that a Hugging Face ``config.json`` uses for them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn


class Activation(nn.Module):
    """A plain function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        """Apply the function element by element."""
        return self.function(input)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _clipped_gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x).clamp(-10.0, 10.0)


def _laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * 2.0**0.5)))


def _relu_squared(x: Tensor) -> Tensor:
    return nn.functional.relu(x).square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    **dict.fromkeys(("gelu", "gelu_python"), nn.GELU),
    # These write the same formula in different ways (gap below 1e-7 in float32).
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
    """A new module for the activation called ``name`` (a key of ``ACTIVATIONS``), or around a given function."""
    return ACTIVATIONS[name]() if isinstance(name, str) else Activation(name)
