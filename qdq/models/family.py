"""What a family file states: configuration defaults, switches, key table, tasks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.models.config import ModelConfig, Switches
from qdq.models.heads import choice_head, label_head, pair_head
from qdq.models.task_models import (
    FeatureExtraction,
    MultipleChoice,
    QuestionAnswering,
    SequenceClassification,
    TokenClassification,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from qdq.models.keymap import Keys
    from qdq.models.model import Model

__all__ = ["Family", "Task", "standard_tasks"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One architecture of a family."""

    name: str
    """Upstream's class name, as in ``architectures`` of config.json."""
    model: Callable[..., Model] = FeatureExtraction
    head: Callable[[ModelConfig], nn.Module] | None = None
    pooler: bool = False
    keys: Keys = field(default_factory=dict)
    """Head modules to upstream's modules."""
    unused: tuple[str, ...] = ()
    """Modules that checkpoints carry but no call reaches; they may be missing."""
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


_CLASSIFIER_KEYS = {"head.classifier": "classifier"}


def standard_tasks(stem: str) -> dict[str, Task]:
    """The tasks that most families share; ``stem`` begins upstream's class names."""
    return {
        "feature-extraction": Task(name=f"{stem}Model", pooler=True, prefixed=False),
        "sequence-classification": Task(
            name=f"{stem}ForSequenceClassification",
            model=SequenceClassification,
            head=label_head,
            pooler=True,
            keys=_CLASSIFIER_KEYS,
        ),
        "multiple-choice": Task(
            name=f"{stem}ForMultipleChoice",
            model=MultipleChoice,
            head=choice_head,
            pooler=True,
            keys=_CLASSIFIER_KEYS,
        ),
        "token-classification": Task(
            name=f"{stem}ForTokenClassification",
            model=TokenClassification,
            head=label_head,
            keys=_CLASSIFIER_KEYS,
        ),
        "question-answering": Task(
            name=f"{stem}ForQuestionAnswering",
            model=QuestionAnswering,
            head=pair_head,
            keys={"head.classifier": "qa_outputs"},
        ),
    }
