"""What a family file states: configuration defaults, switches, key table, tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qdq.models.config import ModelConfig, Switches
from qdq.models.heads import Classifier, choice_head, pair_head
from qdq.models.keymap import Keys
from qdq.models.model import EncoderModel, Model
from qdq.models.task_models import MultipleChoice, QuestionAnswering, SequenceClassification, TokenClassification


@dataclass(frozen=True)
class Task:
    """One architecture of a family: upstream's class name, our class, its head."""

    name: str
    model: Callable[..., Model] = EncoderModel
    head: Callable[[ModelConfig], nn.Module] | None = None
    keys: Keys = field(default_factory=dict)  # head modules to upstream's modules
    pooler: bool = False
    unused: tuple[str, ...] = ()  # modules that checkpoints carry but no call reaches; they may be missing
    prefixed: bool = True  # upstream nests the base model under the family's prefix


@dataclass(frozen=True, kw_only=True)
class Family:
    """One ``model_type``."""

    model_type: str
    prefix: str
    keys: Keys
    tasks: Mapping[str, Task]
    switches: Switches = field(default_factory=Switches)
    own: tuple[str, ...] = ()  # fields that only the families which name them here have
    beside: tuple[str, ...] = ()  # endings of the keys in checkpoints that are no weights
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where they are not BERT's


CLASSIFIER_KEYS = {"head.classifier": "classifier"}


def standard_tasks(stem: str) -> dict[str, Task]:
    """The tasks that most families share; ``stem`` begins upstream's class names."""
    keys, span_keys = CLASSIFIER_KEYS, {"head.classifier": "qa_outputs"}
    return {
        "feature-extraction": Task(f"{stem}Model", pooler=True, prefixed=False),
        "sequence-classification": Task(
            f"{stem}ForSequenceClassification", SequenceClassification, Classifier, keys, pooler=True
        ),
        "multiple-choice": Task(f"{stem}ForMultipleChoice", MultipleChoice, choice_head, keys, pooler=True),
        "token-classification": Task(f"{stem}ForTokenClassification", TokenClassification, Classifier, keys),
        "question-answering": Task(f"{stem}ForQuestionAnswering", QuestionAnswering, pair_head, span_keys),
    }
