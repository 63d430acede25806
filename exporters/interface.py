"""What a file takes and gives besides what the model itself does: inputs of choice, a cache, fused outputs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from qdq.errors import CheckpointError, ExportError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.models.model import Model

__all__ = ["CACHES", "DTYPES", "POOLINGS", "Cache", "DType", "Form", "Pooling", "check_form"]

Pooling = Literal["mean", "cls", "max"]
Cache = Literal["first", "step"]
DType = Literal["fp32", "fp16", "bf16"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
CACHES: tuple[str, ...] = get_args(Cache)
DTYPES: tuple[str, ...] = get_args(DType)

_EMBEDDING_TASKS = ("feature-extraction", "sts")


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of a file; by default the model as it is.

    Args:
        pooling: one vector per text, ``sentence_embedding`` ``(batch, hidden)``, instead of one per token: the mean of
            the visible tokens, the first of them, or the largest value of each component.
        normalize: make it, or the vector of a retriever, one of length 1.
        softmax: ``probabilities`` instead of ``logits``; of a model with several labels per text the sigmoid.
        argmax: ``labels``, int64, instead of ``logits``; with ``softmax`` both.
        token_type_ids: whether the file takes them; without, every token is of type 0.
        int32_ids: ids and masks are int32 instead of int64.
        inputs_embeds: ``inputs_embeds`` ``(batch, seq, width)`` instead of ``input_ids``.
        cache: of a decoder. ``first``: keys and values of every layer are outputs. ``step``: they are inputs, too, of
            any length, 0 included.
        dtype: of the weights that are not quantized and of everything that is computed in float.
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
        """What differs from the default, for ``export.json``."""
        plain = Form()
        return {name: value for name, value in asdict(self).items() if value != getattr(plain, name)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str) -> Form:
        """The inverse of :meth:`to_dict`.

        Raises:
            CheckpointError: for anything that is no form.
        """
        plain, known = Form(), {f.name for f in fields(cls)}
        choices = {"pooling": POOLINGS, "cache": CACHES, "dtype": DTYPES}
        problems = [f"{name} is unknown" for name in values if name not in known]
        for name in known & set(values):
            wanted = choices.get(name, (True, False))
            if values[name] not in wanted and values[name] != getattr(plain, name):
                problems.append(f"{name} is {values[name]!r}, must be one of {', '.join(map(str, wanted))}")
        if problems:
            raise CheckpointError(describe_problems(source, problems))
        return cls(**values)


def check_form(model: Model, form: Form) -> None:
    """Refuse a form that the model cannot have.

    Raises:
        ExportError: with all reasons.
    """
    config, task = model.config, model.task
    returns: tuple[str, ...] = getattr(model, "returns", ())
    has_logits = "logits" in returns or task == "multiple-choice"
    several = config.problem_type == "multi_label_classification"
    regression = config.problem_type == "regression" or config.num_labels == 1
    is_classifier = task == "sequence-classification"
    rules = [
        (
            form.pooling is None or task in _EMBEDDING_TASKS,
            f"pooling makes one vector of the tokens', the task {task!r} gives none: export a feature extractor",
        ),
        (
            not form.normalize or form.pooling is not None or task == "retrieval",
            "normalize is for one vector per text: add a pooling (mean, cls or max)",
        ),
        (
            not (form.softmax or form.argmax) or has_logits,
            f"softmax and argmax are for models that give logits, the task {task!r} gives none",
        ),
        (
            not (form.softmax or form.argmax) or not (is_classifier and regression),
            "softmax and argmax are for labels, this model gives a score",
        ),
        (
            not (form.argmax and is_classifier and several),
            "argmax is for one label per text, this model gives several: softmax gives their probabilities",
        ),
        (
            not form.inputs_embeds or task != "scoring",
            "inputs_embeds is not possible for the task 'scoring', which embeds questions and candidates itself",
        ),
        (
            form.cache is None or config.is_decoder,
            "a cache is for decoders: is_decoder is false in the model's configuration",
        ),
    ]
    if problems := [problem for holds, problem in rules if not holds]:
        raise ExportError(
            describe_problems(f"this {config.model_type} model cannot be exported in this form", problems)
        )
