"""What becomes of every tensor of a foreign checkpoint: where it went, or why it was left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, describe_problems
from qdq.models.huggingface import load_weights, parameter_keys
from qdq.models.keymap import name_of
from qdq.models.registry import construct, family_of

if TYPE_CHECKING:
    from torch import Tensor

    from qdq.models.config import ModelConfig
    from qdq.models.family import Family
    from qdq.models.model import Model

__all__ = ["Conversion", "Converted", "Mapped", "Skipped", "build_model"]


@dataclass(frozen=True)
class Mapped:
    """A tensor of the source, and the names under which its values are in the result."""

    name: str
    shape: tuple[int, ...]
    targets: tuple[str, ...]
    how: str = ""


@dataclass(frozen=True)
class Skipped:
    """A tensor of the source that the result has not, and why."""

    name: str
    reason: str
    shape: tuple[int, ...] | None = None


@dataclass
class Conversion:
    """The report of a conversion, filled while it goes on.

    Args:
        source: what was converted, for messages.
        format: ``megatron-lm``, ``tensorflow`` or ``pytorch-quantization``.
    """

    source: str
    format: str
    mapped: list[Mapped] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise CheckpointError with all problems, if there are any."""
        if self.problems:
            raise CheckpointError(
                describe_problems(f"{self.source}: no {self.format} checkpoint we know", self.problems)
            )

    def to_dict(self) -> dict[str, Any]:
        """The report for machines: every tensor once."""
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
        """How many tensors were left out for each reason."""
        return Counter(entry.reason for entry in self.skipped)


@dataclass(frozen=True)
class Converted:
    """A model of ours, and the report about the tensors it was made of."""

    model: Model
    report: Conversion


def build_model(config: ModelConfig, task: str, tensors: dict[str, Tensor], report: Conversion) -> Model:
    """The model of a task with ``tensors`` under upstream's keys; those of other heads are reported as skipped.

    Raises:
        CheckpointError: tensors that no model of the family has; or that this one needs and that are missing, or have
            another shape.
    """
    model = construct(config, task)
    needed = {name_of(key) for keys in parameter_keys(model).values() for key in keys}

    def is_needed(key: str) -> bool:
        return key in needed or key.partition(".")[2] in needed

    kept = []
    for entry in report.mapped:
        if any(map(is_needed, entry.targets)):
            kept.append(entry)
        elif any(_is_of_family(key, family_of(config.model_type)) for key in entry.targets):
            reason = f"a model of the task {task} has no place for it"
            report.skipped.append(Skipped(entry.name, reason, entry.shape))
        else:
            report.problems.append(f"{entry.name} is unknown")
    report.check()
    report.mapped = kept
    load_weights(model, {key: tensor for key, tensor in tensors.items() if is_needed(key)}, source=report.source)
    return model.eval()


def _is_of_family(key: str, family: Family) -> bool:
    """Whether some model of the family has this key, in some layer."""
    tables = [family.keys, *(task.keys for task in family.tasks.values())]
    known = {name_of(key) for keys in tables for key in keys.values()}
    parts = key.removeprefix(f"{family.prefix}.").split(".")
    template = ".".join("{}" if part.isdigit() else part for part in parts)
    # The bias of a language model's head is under its own name and under that of its linear layer.
    return template in known or template.rpartition(".")[0] in known
