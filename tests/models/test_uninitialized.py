"""Weights that are replaced at once are not initialised first, which takes seconds on the meta device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from qdq.models.registry import FAMILIES, configure
from qdq.models.uninitialized import Uninitialized
from qdq.recipes.plan import skeleton

if TYPE_CHECKING:
    from collections.abc import Callable


class Recorded(TorchDispatchMode):
    """Records the names of all operators that are called in the context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "fill", [nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, lambda t: nn.init.normal_(tensor=t)]
)
def test_tensors_stay_as_they_are(fill: Callable[[torch.Tensor], torch.Tensor]) -> None:
    with Uninitialized():
        assert torch.equal(fill(torch.full((3, 3), 7.0)), torch.full((3, 3), 7.0))
    assert not torch.equal(fill(torch.full((3, 3), 7.0)), torch.full((3, 3), 7.0))


@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_skeleton_draws_nothing(kind: str) -> None:
    with Recorded() as recorded:
        skeleton(configure(kind))
    assert recorded.names, "nothing was recorded"
    assert not [name for name in recorded.names if "normal" in name or "uniform" in name or "rand" in name]


def test_what_is_not_an_initialisation_is_done() -> None:
    with Uninitialized():
        assert float(torch.ones(3).mul(2).sum(dim=0)) == 6
