"""The batches of every epoch from labeled examples, in an order that depends on the seed alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdq.data.batches import make_batches
from qdq.data.example_types import TextExample, fingerprint
from qdq.data.features import Masking
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

    from qdq.data.example_types import Example
    from qdq.data.tokenizer import TextEncoder

__all__ = ["EpochLoader"]

_WINDOW = 32  # batches whose examples are sorted by length together


@dataclass
class EpochLoader:
    """The batches of a task for training.

    Examples are shuffled for every epoch, then sorted by length within windows of 32 batches, so that batches hold
    little padding. A batch of the task ``sts`` holds pairs: ``input_ids`` and the other inputs are ``(batch, 2, seq)``,
    ``labels`` are ``(batch,)``.

    Args:
        examples: All examples, held in memory.
        encoder: Tokenizer of the model.
        task: Task that the examples were read for.
        batch_size: Rows of a batch, in all processes together.
        seq_len: Longest row in tokens; None for the longest that the model takes (384 for question answering).
        seed: Seed of the order and of masking.

    Raises:
        DataError: If there are no examples.
    """

    examples: Sequence[Example]
    encoder: TextEncoder
    task: str
    batch_size: int = 32
    seq_len: int | None = None
    seed: int = 0
    _count: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.examples:
            raise DataError("there is no example to train on")

    def __len__(self) -> int:
        """Return the number of batches of the first epoch; if examples have several rows, others may differ by one."""
        if self._count is None:
            # A long context has several windows, a question several choices: only encoding them counts the rows.
            is_plain = self.task not in {"question-answering", "multiple-choice"}
            self._count = -(-len(self.examples) // self.batch_size) if is_plain else sum(1 for _ in self(0))
        return self._count

    def __call__(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """Return the batches of an epoch, 0 for the first."""
        seed = _seed_of_epoch(self.seed, epoch)
        order = np.random.default_rng(seed).permutation(len(self.examples))
        shuffled = [replace(self.examples[old], index=new) for new, old in enumerate(order.tolist())]
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
        """Return a digest of examples and settings: loaders with equal digests give equal batches."""
        sha = hashlib.sha256()
        for example in self.examples:
            sha.update(fingerprint(example).encode())
        settings = (self.task, self.batch_size, self.seq_len, self.seed)
        return f"{len(self.examples)} examples {hashlib.sha256(repr(settings).encode() + sha.digest()).hexdigest()}"

    def _pairs(self, examples: Sequence[Any]) -> Iterator[dict[str, Tensor]]:
        texts: list[TextExample] = []
        for number, example in enumerate(examples):
            if not isinstance(example, TextExample) or example.text_pair is None:
                raise DataError(f"{example.location}: no second text; the task sts needs pairs with a score")
            for half, text in enumerate((example.text, example.text_pair)):
                texts.append(TextExample(2 * number + half, example.location, text, None, None))
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


def _seed_of_epoch(seed: int, epoch: int) -> int:
    # seed + epoch would give the second epoch of one training the order of the first epoch of another.
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
