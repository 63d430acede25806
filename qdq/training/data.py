"""Examples -> the batches of every epoch, in an order that follows from the seed alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdq.data.batches import make_batches
from qdq.data.example_types import TextExample, fingerprint
from qdq.data.features import Masking
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from qdq.data.example_types import Example
    from qdq.data.tokenizer import TextEncoder

__all__ = ["EpochLoader", "part_of"]

_WINDOW = 32  # batches whose examples are sorted by length together


@dataclass
class EpochLoader:
    """The batches of a task for training.

    Examples are shuffled anew for every epoch, and sorted by length within windows of some batches, so that little of a
    batch is padding. Of ``sts``, a batch has ``input_ids`` and its like ``(batch, 2, seq)`` for the two texts of a
    pair, and ``labels`` ``(batch,)``.

    Args:
        examples: all of them, held in memory.
        encoder: the model's tokenizer.
        task: that the examples were read for.
        batch_size: rows of a batch, of all processes together.
        seq_len: longest row in tokens; None: what the model takes (384 for question answering).
        seed: of the order, and of masking.

    Raises:
        DataError: there are no examples.
    """

    examples: Sequence[Example]
    encoder: TextEncoder
    task: str
    batch_size: int = 32
    seq_len: int | None = None
    seed: int = 0
    _count: int | None = None

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError("there is no example to train on")

    def __len__(self) -> int:
        """Batches of the first epoch; where examples have several rows, another may have one more or less."""
        if self._count is None:
            # windows of long contexts and numbers of choices have to be looked at
            is_plain = self.task not in {"question-answering", "multiple-choice"}
            self._count = -(-len(self.examples) // self.batch_size) if is_plain else sum(1 for _ in self(0))
        return self._count

    def __call__(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """The batches of an epoch, 0 the first."""
        seed = _mixed(self.seed, epoch)
        order = np.random.default_rng(seed).permutation(len(self.examples))
        shuffled = [replace(self.examples[place], index=index) for index, place in enumerate(order.tolist())]
        if self.task == "sts":
            return self._pairs(shuffled)
        batches: Iterable[dict[str, Tensor]] = make_batches(
            shuffled,
            self.encoder,
            self.task,
            batch_size=self.batch_size,
            window=_WINDOW * self.batch_size,
            shuffle_seed=seed,
            masking=Masking(seed=seed),
            max_length=self.seq_len,
        )
        return iter(batches)

    def digest(self) -> str:
        """Of all that the batches follow from: equal digests, equal batches."""
        sha = hashlib.sha256()
        for example in self.examples:
            sha.update(fingerprint(example).encode())
        settings = (self.task, self.batch_size, self.seq_len, self.seed)
        return f"{len(self.examples)} examples {hashlib.sha256(repr(settings).encode() + sha.digest()).hexdigest()}"

    def _pairs(self, examples: Sequence[Any]) -> Iterator[dict[str, Tensor]]:
        texts: list[TextExample] = []
        for place, example in enumerate(examples):
            if not isinstance(example, TextExample) or example.text_pair is None:
                raise DataError(f"{example.location}: no second text; the task sts needs pairs with a score")
            for half, text in enumerate((example.text, example.text_pair)):
                texts.append(TextExample(2 * place + half, example.location, text, None, None))
        rows = make_batches(
            texts,
            self.encoder,
            "feature-extraction",
            batch_size=2 * self.batch_size,
            window=None,
            max_length=self.seq_len,
        )
        for number, batch in enumerate(rows):
            first = number * self.batch_size
            scores = [float(example.label) for example in examples[first : first + self.batch_size]]
            pairs = {name: tensor.view(-1, 2, tensor.shape[-1]) for name, tensor in batch.inputs.items()}
            yield pairs | {"labels": torch.tensor(scores)}


def part_of(batch: Mapping[str, Tensor], rank: int, count: int) -> tuple[dict[str, Tensor], bool]:
    """The rows of a batch that are for one of several processes, and whether they count.

    Where there are fewer rows than processes, one gets a row to keep it busy, which does not count.
    """
    if count == 1:
        return dict(batch), True
    part = {name: tensor[rank::count] for name, tensor in batch.items()}
    if len(next(iter(part.values()))):
        return part, True
    return {name: tensor[:1] for name, tensor in batch.items()}, False


def _mixed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch, far from that of any other."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
