"""The description of a family: its configuration, how it is assembled, its key table, and its tasks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from qdq.errors import ConfigError, describe_problems
from qdq.models.assembly import choice_classifier, classifier, pair_classifier
from qdq.models.config import ModelConfig
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Encoder, Layer
from qdq.models.heads import Pooler
from qdq.models.keymap import Keys
from qdq.models.model import EncoderModel, Model
from qdq.models.task_models import MultipleChoice, QuestionAnswering, SequenceClassification, TokenClassification


@dataclass(frozen=True)
class Task:
    """One task of a family, and the model for it.

    Args:
        name: The name of upstream's class, as in ``architectures`` of ``config.json``.
        model: The class of the model.
        head: Makes the head for a configuration. None leaves the head out.
        keys: The key table of the head: our modules to upstream's.
        pooler: Whether the model has a pooler.
        unused: Beginnings of parameters that checkpoints hold but no call reads. They may be missing from a checkpoint.
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
    """Everything that is particular to one ``model_type``.

    Args:
        config: The class of the configuration.
        build: Makes the embeddings and the encoder for a configuration.
        prefix: The name of the encoder in upstream's models with a head.
        keys: The key table of the encoder: our modules to upstream's.
        tasks: The tasks by name.
        ignored_keys: Endings of checkpoint keys that are not weights of the model, and are skipped.
    """

    config: type[ModelConfig]
    build: Callable[[Any], tuple[Embeddings, Encoder]]
    prefix: str
    keys: Keys
    tasks: Mapping[str, Task]
    ignored_keys: tuple[str, ...] = ()

    @property
    def model_type(self) -> str:
        """The name in ``config.json``."""
        return self.config.model_type

    def model(self, config: ModelConfig, task: str) -> Model:
        """Return the model of ``config`` for ``task``."""
        # Semantic similarity (sts) compares the embeddings of the bare encoder.
        entry = self.tasks["feature-extraction" if task == "sts" else task]
        embeddings, encoder = self.build(config)
        _check_built(config, encoder)
        return entry.model(
            config,
            embeddings=embeddings,
            encoder=encoder,
            pooler=Pooler(config.hidden_size) if entry.pooler else None,
            head=None if entry.head is None else entry.head(config),
            task=task,
        )


def _check_built(config: ModelConfig, encoder: Encoder) -> None:
    """Refuse a configuration that ``build`` did not follow: a model would silently compute something else."""
    layers = [cast("Layer", layer) for layer in encoder.layers]
    kind = getattr(config, "position_embedding_type", "absolute")
    problems = []
    if config.add_cross_attention and any(layer.cross_attention is None for layer in layers):
        problems.append(
            "add_cross_attention is set, but its layers have none: its configuration needs supports_decoder = False"
        )
    if kind != "absolute" and all(layer.attention.relative is None for layer in layers):
        problems.append(f"position_embedding_type is {kind!r}, but its layers have no relative positions")
    if problems:
        raise ConfigError(describe_problems(f"model_type '{config.model_type}'", problems))


CLASSIFIER_KEYS: Keys = {"head.classifier": "classifier"}


def standard_tasks(stem: str) -> dict[str, Task]:
    """Return the tasks that most families have.

    Args:
        stem: The beginning of upstream's class names, such as "Bert".
    """
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
