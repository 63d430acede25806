"""What a family file states: its configuration, how it is assembled, its key table, its tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qdq.models.assembly import choice_classifier, classifier, pair_classifier
from qdq.models.config import ModelConfig
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Encoder
from qdq.models.heads import Pooler
from qdq.models.keymap import Keys
from qdq.models.model import EncoderModel, Model
from qdq.models.task_models import MultipleChoice, QuestionAnswering, SequenceClassification, TokenClassification


@dataclass(frozen=True)
class Task:
    """One architecture of a family.

    Args:
        name: Upstream's class.
        model: Our class.
        head: Makes the head for a configuration; None for no head.
        keys: Head modules to upstream's modules.
        pooler: Whether the model has a pooler.
        unused: Modules that checkpoints carry but no call reaches; they may be missing.
        prefixed: Whether upstream nests the encoder under the family's prefix.
    """

    name: str
    model: Callable[..., Model] = EncoderModel
    head: Callable[[Any], nn.Module] | None = None
    keys: Keys = field(default_factory=dict)
    pooler: bool = False
    unused: tuple[str, ...] = ()
    prefixed: bool = True


@dataclass(frozen=True, kw_only=True)
class Family:
    """One ``model_type``.

    Args:
        config: The class of its configuration.
        build: Assembles embeddings and layers for a configuration.
        prefix: Where upstream nests the encoder in a model with a head.
        keys: Modules of the encoder to upstream's modules.
        tasks: Its architectures by task.
        beside: Endings of the keys in checkpoints that are no weights.
    """

    config: type[ModelConfig]
    build: Callable[[Any], tuple[Embeddings, Encoder]]
    prefix: str
    keys: Keys
    tasks: Mapping[str, Task]
    beside: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """The name in ``config.json``."""
        return self.config.model_type

    def model(self, config: ModelConfig, task: str) -> Model:
        """Return the model of ``config`` for ``task``."""
        entry = self.tasks["feature-extraction" if task == "sts" else task]
        embeddings, encoder = self.build(config)
        return entry.model(
            config,
            embeddings=embeddings,
            encoder=encoder,
            pooler=Pooler(config.hidden_size) if entry.pooler else None,
            head=None if entry.head is None else entry.head(config),
            task=task,
        )


CLASSIFIER_KEYS: Keys = {"head.classifier": "classifier"}


def standard_tasks(stem: str) -> dict[str, Task]:
    """The tasks that most families share; ``stem`` begins upstream's class names."""
    keys, span_keys = CLASSIFIER_KEYS, {"head.classifier": "qa_outputs"}
    return {
        "feature-extraction": Task(f"{stem}Model", pooler=True, prefixed=False),
        "sequence-classification": Task(
            f"{stem}ForSequenceClassification", SequenceClassification, classifier, keys, pooler=True
        ),
        "multiple-choice": Task(f"{stem}ForMultipleChoice", MultipleChoice, choice_classifier, keys, pooler=True),
        "token-classification": Task(f"{stem}ForTokenClassification", TokenClassification, classifier, keys),
        "question-answering": Task(f"{stem}ForQuestionAnswering", QuestionAnswering, pair_classifier, span_keys),
    }
