"""Read the names of tensors as other programs write them: inside wrappers, and with the names of NVIDIA's BERT.

What a wrapper adds to a name is removed only if the names then are those of the family, so that nothing is guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from qdq.errors import CheckpointError
from qdq.models.keymap import name_of
from qdq.models.registry import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from qdq.models.family import Family

__all__ = ["KnownNames", "StoredNames", "read_names"]

# Wrappers that stand anywhere in a name: torch.compile, FSDP, activation checkpointing.
_INNER_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# The names that NVIDIA's BERT gives to the linear layers with an activation.
_DENSE_ACT = re.compile(r"(?<=\.)dense_act(?=\.)")
_UNMERGED = re.compile(r"\.(lora_[A-Za-z_]+|ia3_l|base_layer|modules_to_save)\.")
# Ranges of pytorch-quantization, under either of the names that its releases use.
_RANGE = re.compile(r"_quantizer\.(_amax|clip\.clip_value_(min|max))$")


@dataclass(frozen=True)
class StoredNames:
    """The tensors to read from a file.

    Args:
        names: The family's name by the name in the file.
        notes: What was changed or left out: sentences that go after the name of the file.
    """

    names: Mapping[str, str]
    notes: tuple[str, ...] = ()


class KnownNames:
    """The names that a family gives to its tensors, with ``{}`` for the number of a layer.

    Args:
        family: The family.
    """

    def __init__(self, family: Family) -> None:
        self._prefix = f"{family.prefix}."
        self._foreign = tuple({f"{other.prefix}." for other in FAMILIES.values()} - {self._prefix})
        tables = [family.keys, *(task.keys for task in family.tasks.values())]
        self._encoder: set[str] = set()
        self._others: set[str] = set()
        for table in tables:
            for ours, key in table.items():
                is_other = ours.startswith(("head.", "pooler."))
                (self._others if is_other else self._encoder).add(name_of(key))

    def in_encoder(self, name: str) -> bool:
        """Return whether a name is one of the encoder's or the embeddings'."""
        return self._holds(self._encoder, name)

    def __contains__(self, name: str) -> bool:
        return self._holds(self._encoder | self._others, name)

    def _holds(self, table: set[str], name: str) -> bool:
        short = re.sub(r"(?<=\.)\d+(?=\.)", "{}", name.removeprefix(self._prefix))
        # Entries name modules or single parameters.
        return short in table or short.rpartition(".")[0] in table

    def wrapper_of(self, name: str) -> str | None:
        """Return what stands before a name of the encoder: nothing, or names that end with a dot; None for others."""
        start = 0
        while not self.in_encoder(name[start:]):
            start = name.find(".", start) + 1
            if not start:
                return None
        # The prefix of another family is no wrapper: these are the weights of another model.
        is_foreign = name[:start].endswith(self._foreign)
        return None if is_foreign else name[:start]


def read_names(
    stored: Iterable[str], family: Family, *, ignore_keys: Collection[str] = (), with_ranges: bool = False
) -> StoredNames:
    """Return which tensors of a file to read for a model of ``family``, and under which names.

    Args:
        stored: The names in the file.
        family: The family.
        ignore_keys: Patterns of names to leave out, as they stand in the file or as the family writes them.
        with_ranges: Whether to keep the ranges of pytorch-quantization's quantizers whatever the family is.

    Raises:
        CheckpointError: The file holds an adapter that is not merged, or several models.
    """
    names = {name: name for name in stored}
    used: set[str] = set()
    names = _without(names, ignore_keys, used)
    _check_merged(names)
    known, notes = KnownNames(family), []
    wrappers = {f"{part}." for name in names for part in name.split(".") if part in _INNER_WRAPPERS}
    names = {name: _plain(own) for name, own in names.items()}
    if prefix := _wrapper(names.values(), known):
        names = {name: own.removeprefix(prefix) for name, own in names.items()}
        wrappers.add(prefix)
    if wrappers:
        shown = " and ".join(repr(wrapper) for wrapper in sorted(wrappers))
        notes.append(f"the names of the tensors are read without {shown}, which a wrapper of the model adds")
    notes += _rename_nvidia(names, known)
    if not with_ranges and not family.ignored_keys:
        notes += _drop_ranges(names)
    names = _without(names, ignore_keys, used)
    notes += [f"--ignore-keys {pattern!r} matches no tensor" for pattern in ignore_keys if pattern not in used]
    return StoredNames(names, tuple(notes))


def _without(names: dict[str, str], patterns: Collection[str], used: set[str]) -> dict[str, str]:
    """Return the names that no pattern matches, and add the patterns that match to ``used``."""
    left = {}
    for name, own in names.items():
        found = [pattern for pattern in patterns if fnmatchcase(own, pattern)]
        used.update(found)
        if not found:
            left[name] = own
    return left


def _check_merged(names: Iterable[str]) -> None:
    found = [name for name in names if _UNMERGED.search(name)]
    if found:
        raise CheckpointError(
            f"{len(found)} tensors belong to an adapter that is not merged ({found[0]}, ...): call merge_and_unload() "
            "of the peft model and save what it returns"
        )


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _INNER_WRAPPERS)


def _wrapper(names: Collection[str], known: KnownNames) -> str:
    """Return what a wrapper puts before all names of the encoder; nothing if there is none.

    The encoder decides, since names of heads are so short that something else may be called the same.

    Raises:
        CheckpointError: There are several encoders.
    """
    found = Counter(known.wrapper_of(name) for name in names)
    del found[None]
    if len(found) > 1:
        shown = " and ".join(f"{prefix or 'without a wrapper'!r} ({count})" for prefix, count in found.most_common())
        least = min((prefix for prefix in found if prefix), key=lambda prefix: found[prefix])
        raise CheckpointError(
            f"the tensors of several models, whose names begin with {shown}: leave out all but one, as in "
            f"--ignore-keys '{least}*'"
        )
    return next(iter(found), None) or ""


def _rename_nvidia(names: dict[str, str], known: KnownNames) -> list[str]:
    """Give the linear layers of NVIDIA's BERT their usual names, in place; return what to say about it."""
    changed = {name: _DENSE_ACT.sub("dense", own) for name, own in names.items() if _DENSE_ACT.search(own)}
    if not changed or any(names[name] in known for name in changed):
        return []
    names.update(changed)
    return ["'dense_act', as NVIDIA's BERT calls it, is read as 'dense'"]


def _drop_ranges(names: dict[str, str]) -> list[str]:
    """Leave out the ranges of quantizers, in place; return what to say about it."""
    found = [name for name, own in names.items() if _RANGE.search(own)]
    for name in found:
        del names[name]
    if not found:
        return []
    return [
        f"{len(found)} ranges of pytorch-quantization ({found[0]}, ...) are left out of the float model; "
        "qdq convert --from pytorch-quantization keeps them"
    ]
