"""What a family file states: configuration defaults, switches, key table, tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.models.config import ModelConfig, Switches
from qdq.models.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from qdq.models.keymap import Keys

__all__ = ["Family", "Task"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One architecture of a family."""

    name: str
    """Upstream's class name, as in ``architectures`` of config.json."""
    model: Callable[..., Model] = Model
    head: Callable[[ModelConfig], nn.Module] | None = None
    pooler: bool = False
    keys: Keys = field(default_factory=dict)
    """Head modules to upstream's modules."""
    prefixed: bool = True
    """Whether upstream nests the base model under the family's prefix."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One ``model_type``."""

    model_type: str
    prefix: str
    keys: Keys
    tasks: Mapping[str, Task]
    switches: Switches = field(default_factory=Switches)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Configuration fields that only this family has, or whose default is not BERT's."""
