"""Run a file whose inputs and outputs another program named and shaped, as if it were an export of ours."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.io_names import input_named, output_names_of
from qdq.errors import ConfigError, DataError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from exporters.runners.inputs import TensorInfo
    from exporters.runners.runner import Runner

__all__ = ["AdaptedRunner", "TextFacts", "adapted"]

_LOG = logging.getLogger(__name__)

Arrays = dict[str, "NDArray[Any]"]


@dataclass(frozen=True)
class TextFacts:
    """Hold what a model's configuration says about its texts.

    Args:
        pad_id: The id of padding.
        first_position: The position of the first token. If it is more than 0, padding has the position before it.
        token_types: Number of token types; 0 if the model has none.
    """

    pad_id: int = 0
    first_position: int = 0
    token_types: int = 0


class AdaptedRunner:
    """Give a runner our names, and feed it the shapes that it takes.

    1. Inputs and outputs have our names; the types of inputs are those that the file declares.
    2. ``position_ids`` are counted, as the family of the model counts them.
    3. Texts are padded to the length that the file is fixed to, and its outputs for the padding are cut off again.
    4. A file of a fixed batch size gets its rows in several calls; the last row fills the last one up.
    5. A file without a mask cannot know what is padding: it gets texts of one length at a time.

    Args:
        runner: The runner of the file.
        name: Name of the file, for messages.
        inputs: Our name of each input, by its name in the file.
        outputs: The output in the file, by our name.
        infos: The inputs that the file declares.
        of_tokens: Those of our outputs that have a value, or a vector, for each token.
        facts: What the configuration says.
    """

    def __init__(
        self,
        runner: Runner,
        name: str,
        *,
        inputs: Mapping[str, str],
        outputs: Mapping[str, str],
        infos: Sequence[TensorInfo],
        of_tokens: Sequence[str],
        facts: TextFacts,
    ) -> None:
        self._runner, self._name = runner, name
        self._inputs, self._outputs = dict(inputs), dict(outputs)
        self._infos = {inputs[info.name]: info for info in infos}
        self._of_tokens = frozenset(of_tokens)
        self._facts = facts
        self._told: set[str] = set()
        shape = self._infos["input_ids"].shape
        self._rows, self.length = (size if isinstance(size, int) else None for size in (shape[0], shape[-1]))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Our names of the inputs that must be given."""
        return tuple(name for name in self._infos if name != "position_ids")

    @property
    def output_names(self) -> tuple[str, ...]:
        """Our names of the outputs."""
        return tuple(self._outputs)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Return the outputs by our names; see :class:`~exporters.runners.runner.Runner`."""
        ids = np.asarray(inputs["input_ids"])
        mask = np.asarray(inputs.get("attention_mask", np.ones_like(ids)))
        self._tell_types(inputs)
        length = ids.shape[-1]
        found: dict[str, list[tuple[NDArray[Any], NDArray[Any]]]] = {name: [] for name in self._outputs}
        for rows, width in self._parts(mask):
            part = {name: np.asarray(array)[rows][..., :width] for name, array in inputs.items()}
            part["attention_mask"] = mask[rows][..., :width]
            for name, array in self._run(part, width).items():
                # Other parts have texts of other lengths.
                whole = _padded(array, length, axis=1, value=0) if name in self._of_tokens else array
                found[name].append((rows, whole))
        outputs = {}
        for name, parts in found.items():
            order = np.argsort(np.concatenate([rows for rows, _ in parts]), kind="stable")
            outputs[name] = np.concatenate([array for _, array in parts])[order]
        return outputs

    def _parts(self, mask: NDArray[Any]) -> Iterator[tuple[NDArray[Any], int]]:
        """Yield the numbers of the rows that run together, and their length."""
        length, every = mask.shape[-1], np.arange(len(mask))
        if "attention_mask" in self._infos or mask.all():
            groups = [(every, length)]
        elif self.length is not None or mask.ndim != 2:
            self._tell("it has no attention_mask: padding counts as text, and changes the results of shorter texts")
            groups = [(every, length)]
        else:
            lengths = mask.sum(axis=-1)
            groups = [(every[lengths == width], int(width)) for width in np.unique(lengths)]
        for rows, width in groups:
            step = self._rows or max(1, len(rows))
            yield from ((rows[start : start + step], width) for start in range(0, len(rows), step))

    def _run(self, inputs: Mapping[str, NDArray[Any]], width: int) -> Arrays:
        """Run one call of the file."""
        rows = len(inputs["input_ids"])
        if self.length is not None and width > self.length:
            raise DataError(f"{self._name}: it takes exactly {self.length} tokens, this text has {width}")
        if self.length is not None and inputs["attention_mask"][..., -1].any() and width == self.length:
            self._tell(f"it takes exactly {self.length} tokens: longer texts are cut there")
        length = self.length or width
        padded = {
            name: _padded(array, length, axis=-1, value=self._facts.pad_id if name == "input_ids" else 0)
            for name, array in inputs.items()
        }
        padded["position_ids"] = self._positions(padded["attention_mask"])
        fed = {}
        for name, info in self._infos.items():
            if name not in padded:
                continue  # the runner says what is missing
            array = padded[name]
            if name == "position_ids" and info.shape[0] == 1 and not self._facts.first_position:
                array = array[:1]
            elif self._rows is not None and rows < self._rows:
                array = np.concatenate([array, np.repeat(array[-1:], self._rows - rows, axis=0)])
            fed[info.name] = np.ascontiguousarray(_as_declared(array, info))
        outputs = self._runner(fed)
        return {
            name: outputs[theirs][:rows, :width] if name in self._of_tokens else outputs[theirs][:rows]
            for name, theirs in self._outputs.items()
        }

    def _positions(self, mask: NDArray[Any]) -> NDArray[Any]:
        """Count the tokens, or from a first position those that are not padding, as the embeddings of the model do."""
        first = self._facts.first_position
        if not first:
            return np.broadcast_to(np.arange(mask.shape[-1]), mask.shape)
        counted: NDArray[Any] = np.cumsum(mask != 0, axis=-1) * (mask != 0) + first - 1
        return counted

    def _tell_types(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        types = inputs.get("token_type_ids")
        if types is not None and self._facts.token_types > 1 and "token_type_ids" not in self._infos and types.any():
            self._tell("it has no token_type_ids: both texts of a pair are read as the first")

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _LOG.warning("%s: %s", self._name, what)


def _padded(array: NDArray[Any], length: int, *, axis: int, value: int) -> NDArray[Any]:
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, max(0, length - array.shape[axis]))
    return np.pad(array, widths, constant_values=value)


def _as_declared(array: NDArray[Any], info: TensorInfo) -> NDArray[Any]:
    """Return ids, masks, types and positions in the type that the file declares, unless they do not fit."""
    converted = array.astype(info.dtype)
    return converted if np.array_equal(converted, array) else array


def adapted(
    runner: Any, name: str, *, wanted: Sequence[Sequence[str]], of_tokens: Sequence[str], facts: TextFacts
) -> Any:
    """Return a runner with our names for a runner of a file, the runner itself if it has them already.

    Args:
        runner: A runner with ``inputs`` and ``output_ranks``, those that the file declares.
        name: Name of the file, for messages.
        wanted: The outputs that are needed: any of several sets of our names.
        of_tokens: Those of our outputs that have a value, or a vector, for each token.
        facts: What the configuration says about texts.

    Raises:
        ConfigError: The file has inputs that no text fills. All are listed.
    """
    infos = runner.inputs
    inputs = {info.name: input_named(info.name) for info in infos}
    integers = [info.name for info in infos if info.dtype.kind in "iu"]
    if len(integers) == 1 and inputs[integers[0]] is None and "input_ids" not in inputs.values():
        inputs[integers[0]] = "input_ids"  # there is nothing else that it could be
    problems = [
        f"the input {info.name}, {info.dtype} of shape ({', '.join(map(str, info.shape))}), is none of input_ids, "
        "attention_mask, token_type_ids and position_ids: export the file without it"
        for info in infos
        if inputs[info.name] is None
    ]
    given = [ours for ours in inputs.values() if ours is not None]
    problems += [f"several inputs are {ours}" for ours in dict.fromkeys(given) if given.count(ours) > 1]
    if "input_ids" not in given and not problems:
        problems.append("it has no input_ids")
    if problems:
        raise ConfigError(describe_problems(f"{name} cannot be fed with texts", problems))
    known = {theirs: ours for theirs, ours in inputs.items() if ours is not None}
    outputs = output_names_of(runner.output_ranks, wanted, of_tokens, name)
    shape = next(info.shape for info in infos if known[info.name] == "input_ids")
    is_free = not isinstance(shape[0], int) and not isinstance(shape[-1], int)
    takes_masks = "attention_mask" in given and ("token_type_ids" in given or facts.token_types <= 1)
    plain = all(ours == theirs for mapping in (known, outputs) for theirs, ours in mapping.items())
    types = all(str(info.dtype) in ("int64", "int32") for info in infos)
    if is_free and plain and takes_masks and types and "position_ids" not in given:
        return runner
    return AdaptedRunner(runner, name, inputs=known, outputs=outputs, infos=infos, of_tokens=of_tokens, facts=facts)
