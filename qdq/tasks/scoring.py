"""One evaluation: a model, data, settings; and how all tasks read the one and run the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.batches import make_batches
from qdq.data.examples import read_examples
from qdq.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from qdq.data.batches import Batch
    from qdq.data.encoder import TextEncoder
    from qdq.data.examples import Example, Examples
    from qdq.data.labels import Labels
    from qdq.tasks.metrics import Metric
    from qdq.tasks.model_under_test import Subject
    from qdq.tasks.settings import Settings
    from qdq.tasks.table import Table

__all__ = ["Job", "Progress", "Scores", "silent"]

Progress = Callable[[int, int | None], None]
"""Told how many examples are done, and of how many, where that is known."""


def silent(done: int, total: int | None) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Scores:
    """What a task found.

    Args:
        table: a few numbers for every example, in the order of the data.
        metrics: of the table; the first is the one that the task is known by.
        skipped: rows without label, which do not count.
        settings: what the figures depend on.
        notes: what a reader should know.
    """

    table: Table
    metrics: tuple[Metric, ...]
    skipped: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class Job:
    """A model to evaluate on data.

    Args:
        subject: the model.
        data: as ``read_examples`` takes it.
        settings: how to run.
        progress: told how far it is.
        total: examples there are, known once the data has been read through.
    """

    subject: Subject
    data: Any
    settings: Settings
    progress: Progress = silent
    total: int | None = None

    @property
    def encoder(self) -> TextEncoder:
        """The model's tokenizer."""
        return replace(self.subject.directory.encoder, max_length=self.subject.max_length)

    def examples(self, task: str, labels: Labels | None = None, *, need_labels: bool = True) -> Examples:
        """The examples of ``task`` in the data, which is read through first: its problems come before the work.

        An iterator, which can be read only once, is not.
        """
        settings = self.settings
        examples = read_examples(
            self.data,
            task,
            columns=settings.columns,
            labels=labels,
            num_samples=settings.num_samples,
            seed=settings.seed,
            need_labels=need_labels,
            split=settings.split,
        )
        if not isinstance(self.data, Iterator):
            self.total = examples.check().examples
        return examples

    def batches(self, examples: Iterable[Example], task: str, **options: Any) -> Iterator[Batch]:
        """Batches of rows of about the same length."""
        length = {"max_length": self.settings.seq_len} if self.settings.seq_len is not None else {}
        return make_batches(examples, self.encoder, task, batch_size=self.settings.batch_size, **{**length, **options})

    def run(
        self, batches: Iterable[Batch], *, rows_per_example: int = 1
    ) -> Iterator[tuple[Batch, dict[str, NDArray[Any]]]]:
        """Every batch with the model's outputs for it.

        Raises:
            VerificationError: an output is not a number, of which no metric can be made.
        """
        done = 0
        for batch in batches:
            outputs = self.subject.runner({name: value.numpy() for name, value in batch.inputs.items()})
            _check_numbers(self.subject.name, outputs, batch)
            yield batch, outputs
            done += len(batch.index) if batch.part is None else int((batch.part == 0).sum())
            self.progress(done // rows_per_example, self.total)


def _check_numbers(name: str, outputs: Mapping[str, NDArray[Any]], batch: Batch) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        broken = [output for output, array in outputs.items() if np.isnan(array.sum())]  # NaN survives a sum
    if broken:
        raise VerificationError(f"{name}: {', '.join(broken)} has NaN, in the batch with {batch.examples[0].place}")
