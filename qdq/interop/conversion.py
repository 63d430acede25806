"""Report what became of every tensor of a foreign checkpoint: where its values went, or why it was skipped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, describe_problems
from qdq.models.huggingface import load_weights, parameter_keys
from qdq.models.keymap import name_of
from qdq.models.model import EncoderModel
from qdq.models.registry import construct, family_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from qdq.models.config import ModelConfig
    from qdq.models.family import Family
    from qdq.models.model import Model

__all__ = ["Conversion", "Converted", "Mapped", "Skipped", "build_model"]


@dataclass(frozen=True)
class Mapped:
    """A tensor of the source whose values are in the result.

    Args:
        name: The name of the tensor in the source.
        shape: Its shape.
        targets: The names that its values have in the result.
        how: What was done with the values, such as ``transposed``; empty if they were copied.
    """

    name: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    how: str = ""


@dataclass(frozen=True)
class Skipped:
    """A tensor of the source that the result does not have.

    Args:
        name: The name of the tensor in the source.
        reason: Why it was skipped.
        shape: Its shape; None for an entry that is not a tensor.
    """

    name: str
    reason: str
    shape: tuple[int, ...] | None = None


@dataclass
class Conversion:
    """The report of a conversion, which is filled step by step.

    Args:
        source: The name of the source, for messages.
        format: ``megatron-lm``, ``tensorflow`` or ``pytorch-quantization``.
        mapped: The tensors that are in the result.
        skipped: The tensors that are not.
        problems: What prevents the conversion.
        notes: What a reader of the report should know.
    """

    source: str
    format: str
    mapped: list[Mapped] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise if there are problems.

        Raises:
            CheckpointError: There are problems; the message lists all of them.
        """
        if self.problems:
            raise CheckpointError(
                describe_problems(f"{self.source}: not a known {self.format} checkpoint", self.problems)
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON; it lists every tensor once."""
        mapped = [
            {"name": m.name, "shape": list(m.shape), "targets": list(m.targets), **({"how": m.how} if m.how else {})}
            for m in self.mapped
        ]
        skipped = [
            {"name": s.name, **({} if s.shape is None else {"shape": list(s.shape)}), "reason": s.reason}
            for s in self.skipped
        ]
        return {"source": self.source, "format": self.format, "mapped": mapped, "skipped": skipped, "notes": self.notes}

    def reasons(self) -> Counter[str]:
        """Count the skipped tensors of each reason."""
        return Counter(entry.reason for entry in self.skipped)


@dataclass(frozen=True)
class Converted:
    """A converted model, and the report about the tensors it was made of.

    Args:
        model: The model.
        report: What became of every tensor.
        folders: The directories in which its tokenizer may lie, the nearest one first.
        lowercase: Whether the training lowercased text; None if the checkpoint does not say it.
    """

    model: Model
    report: Conversion
    folders: tuple[Path, ...] = ()
    lowercase: bool | None = None


def build_model(config: ModelConfig, task: str, tensors: dict[str, Tensor], report: Conversion) -> Model:
    """Build the model of a task from tensors under the keys of transformers.

    A feature extractor is complete without a pooler.

    Args:
        config: The configuration of the model.
        task: The task of the model.
        tensors: The tensors by key; those of other heads are reported as skipped.
        report: The report, whose mapped tensors name the keys of their values.

    Raises:
        CheckpointError: A tensor belongs to no model of the family, or a tensor of this model is missing or has another
            shape.
    """
    model = construct(config, task)
    if isinstance(model, EncoderModel) and task == "feature-extraction" and model.pooler is not None:
        pooler = {name_of(key) for name, keys in parameter_keys(model).items() for key in keys if "pooler." in name}
        if not any(key in pooler or key.partition(".")[2] in pooler for key in tensors):
            model.pooler = None
            report.notes.append("there is no pooler: the model has none, and no pooler_output")
    needed = {name_of(key) for keys in parameter_keys(model).values() for key in keys}

    def is_needed(key: str) -> bool:
        # Keys may or may not have the prefix of the encoder.
        return key in needed or key.partition(".")[2] in needed

    kept = []
    for entry in report.mapped:
        if any(map(is_needed, entry.targets)):
            kept.append(entry)
        elif any(_is_of_family(key, family_of(config.model_type)) for key in entry.targets):
            reason = f"a model of the task {task} does not have it"
            report.skipped.append(Skipped(entry.name, reason, entry.shape))
        else:
            report.problems.append(f"{entry.name} is unknown")
    report.check()
    report.mapped = kept
    load_weights(model, {key: tensor for key, tensor in tensors.items() if is_needed(key)}, source=report.source)
    return model.eval()


def _is_of_family(key: str, family: Family) -> bool:
    """Return whether some model of the family has this key in some layer."""
    tables = [family.keys, *(task.keys for task in family.tasks.values())]
    known = {name_of(key) for keys in tables for key in keys.values()}
    names = key.removeprefix(f"{family.prefix}.").split(".")
    template = ".".join("{}" if name.isdigit() else name for name in names)
    # The bias of a language model's head is under its own name and under that of its linear layer.
    return template in known or template.rpartition(".")[0] in known
