"""The export interface: which inputs an exported file takes, which outputs it gives, and in which float type."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from qdq.errors import CheckpointError, ExportError, describe_problems
from qdq.source import POOLINGS, Pooling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.models.model import Model
    from qdq.source import ModelDirectory

__all__ = ["CACHES", "DTYPES", "Cache", "DType", "ExportInterface", "check_interface", "with_pooling_of"]

Cache = Literal["first", "step"]
DType = Literal["fp32", "fp16", "bf16"]
CACHES: tuple[str, ...] = get_args(Cache)
DTYPES: tuple[str, ...] = get_args(DType)

_EMBEDDING_TASKS = ("feature-extraction", "sts")


@dataclass(frozen=True, kw_only=True)
class ExportInterface:
    """The inputs, outputs and float type of an exported file.

    The default keeps the inputs and outputs of the model as they are.

    Args:
        pooling: Return one vector per text, ``sentence_embedding`` ``(batch, hidden)``, instead of one per token: the
            mean of the visible tokens, the first visible token (``cls``), the maximum of each component, or another
            pooling of :func:`qdq.sentence.pooling.pool`.
        normalize: Scale the pooled vector, or the vector of a retriever, to length 1.
        softmax: Return ``probabilities`` instead of ``logits``. A model with several labels per text gets the sigmoid.
        argmax: Return ``labels`` (int64) instead of ``logits``. Together with ``softmax``, return both.
        token_type_ids: Whether the file takes ``token_type_ids``. Without them every token is of type 0.
        int32_ids: Take ids and masks in int32 instead of int64.
        inputs_embeds: Take ``inputs_embeds`` ``(batch, seq, width)`` instead of ``input_ids``.
        cache: For decoders. ``first`` returns the keys and values of every layer. ``step`` takes them as inputs, too,
            of any length, including 0.
        dtype: Type of the weights that are not quantized and of everything that is computed in float.
    """

    pooling: Pooling | None = None
    normalize: bool = False
    softmax: bool = False
    argmax: bool = False
    token_type_ids: bool = True
    int32_ids: bool = False
    inputs_embeds: bool = False
    cache: Cache | None = None
    dtype: DType = "fp32"

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the default, for ``export.json``."""
        default = ExportInterface()
        return {name: value for name, value in asdict(self).items() if value != getattr(default, name)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str) -> ExportInterface:
        """Read what :meth:`to_dict` returned.

        Args:
            values: The values that differ from the default.
            source: Where they come from, for the error message.

        Raises:
            CheckpointError: If a name or a value is unknown. All problems are listed.
        """
        default, known = ExportInterface(), {f.name for f in fields(cls)}
        choices = {"pooling": POOLINGS, "cache": CACHES, "dtype": DTYPES}
        problems = [f"{name} is unknown" for name in values if name not in known]
        for name in known & set(values):
            allowed = choices.get(name, (True, False))
            if values[name] not in allowed and values[name] != getattr(default, name):
                problems.append(f"{name} is {values[name]!r}, must be one of {', '.join(map(str, allowed))}")
        if problems:
            raise CheckpointError(describe_problems(source, problems))
        return cls(**values)


def with_pooling_of(directory: ModelDirectory, interface: ExportInterface) -> ExportInterface:
    """Return the interface with the pooling that the files of sentence-transformers ask for, as ``auto`` means it.

    The vectors get length 1 if ``modules.json`` names ``Normalize``.

    Args:
        directory: The checkpoint's directory.
        interface: The other inputs and outputs.

    Raises:
        ConfigError: One pooling alone does not make the vectors of this directory.
    """
    normalize = interface.normalize or directory.sentence.normalizes
    return replace(interface, pooling=directory.pooling, normalize=normalize)


def check_interface(model: Model, interface: ExportInterface) -> None:
    """Check that ``model`` can be exported with ``interface``.

    Raises:
        ExportError: If it cannot. All reasons are listed.
    """
    config, task = model.config, model.task
    logits: tuple[str, ...] = getattr(model, "logits_fields", ())
    has_logits = "logits" in logits or task == "multiple-choice"
    several = config.problem_type == "multi_label_classification"
    regression = config.problem_type == "regression" or config.num_labels == 1
    is_classifier = task == "sequence-classification"
    rules = [
        (
            interface.pooling is None or task in _EMBEDDING_TASKS,
            f"pooling turns the vectors of the tokens into one, and the task {task!r} has none: export a feature "
            "extractor",
        ),
        (
            not interface.normalize or interface.pooling is not None or task == "retrieval",
            "normalize is for one vector per text: add a pooling (mean, cls, max, ...)",
        ),
        (
            not (interface.softmax or interface.argmax) or has_logits,
            f"softmax and argmax need a model with logits, the task {task!r} gives none",
        ),
        (
            not (interface.softmax or interface.argmax) or not (is_classifier and regression),
            "softmax and argmax are for labels, this model gives a score",
        ),
        (
            not (interface.argmax and is_classifier and several),
            "argmax is for one label per text, this model gives several: softmax gives their probabilities",
        ),
        (
            not interface.inputs_embeds or task != "scoring",
            "inputs_embeds is not possible for the task 'scoring', which embeds questions and candidates itself",
        ),
        (
            interface.cache is None or config.is_decoder,
            "a cache is for decoders: is_decoder is false in the model's configuration",
        ),
    ]
    if problems := [problem for holds, problem in rules if not holds]:
        raise ExportError(
            describe_problems(f"this {config.model_type} model cannot be exported with this interface", problems)
        )
