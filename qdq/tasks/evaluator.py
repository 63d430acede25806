"""Run one model on one data set: what all tasks need to read examples, make batches and get the model's outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.batches import make_batches
from qdq.data.examples import read_examples
from qdq.data.source import log
from qdq.errors import VerificationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from qdq.data.batches import Batch
    from qdq.data.examples import Example, Examples
    from qdq.data.labels import Labels
    from qdq.data.tokenizer import TextEncoder
    from qdq.tasks.evaluation_settings import EvaluationSettings
    from qdq.tasks.example_table import Table
    from qdq.tasks.metrics import Metric
    from qdq.tasks.model_under_test import ModelUnderTest

__all__ = ["Evaluator", "Progress", "Scores", "silent"]

_LOG = logging.getLogger(__name__)

#: Called with the number of examples that are done and the number of all examples, or None if it is unknown.
Progress = Callable[[int, int | None], None]


def silent(done: int, total: int | None) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Scores:
    """The result of a task for one model.

    Args:
        table: A few numbers for every example, in the order of the data.
        metrics: The metrics of the table; the first one is the task's main metric.
        skipped: The number of rows without a label, which do not count.
        settings: The settings that the figures depend on.
        notes: What a reader of the figures should know.
    """

    table: Table
    metrics: tuple[Metric, ...]
    skipped: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class Evaluator:
    """Runs one model on one data set.

    Args:
        model: The model under test.
        data: The data, as ``read_examples`` takes it.
        settings: How to evaluate.
        progress: Called after every batch.
        total: The number of examples, which is known after :meth:`examples`.
        notes: What was decided about the data that a reader of the figures should know.
    """

    model: ModelUnderTest
    data: Any
    settings: EvaluationSettings
    progress: Progress = silent
    total: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def encoder(self) -> TextEncoder:
        """The tokenizer of the model with its special ids."""
        model = self.model
        return replace(model.directory.encoder, max_length=model.max_length)

    def examples(self, task: str, labels: Labels | None = None, *, need_labels: bool = True) -> Examples:
        """Read the examples of a task.

        The data is read once before the work begins, so that its problems are reported first. An iterator is not, since
        it can be read only once.

        Args:
            task: The task.
            labels: The labels of the head; None keeps numbers as they are.
            need_labels: Skip rows without a label.
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
            say=self._say,
        )
        # Checking reads all the data, which would use up an iterator.
        if not isinstance(self.data, Iterator):
            self.total = examples.check().examples
        return examples

    def _say(self, level: int, text: str) -> None:
        """Keep a note that matters to the figures with them; log one that only tells how the data is read."""
        if level < logging.WARNING:
            log(level, text)
        else:
            self.notes.append(text)

    def batches(self, examples: Iterable[Example], task: str, **options: Any) -> Iterator[Batch]:
        """Make batches of rows of similar length; the options are those of ``make_batches``."""
        length = {"max_length": self.settings.seq_len} if self.settings.seq_len is not None else {}
        return make_batches(examples, self.encoder, task, batch_size=self.settings.batch_size, **{**length, **options})

    def outputs(
        self, batches: Iterable[Batch], *, rows_per_example: int = 1
    ) -> Iterator[tuple[Batch, dict[str, NDArray[Any]]]]:
        """Run the model and yield every batch with its outputs.

        Args:
            batches: The batches.
            rows_per_example: Rows that make one example, for the progress.

        Raises:
            VerificationError: An output has NaN, of which no metric can be computed.
        """
        done = 0
        lacks_types = "token_type_ids" not in getattr(self.model.runner, "input_names", ("token_type_ids",))
        for batch in batches:
            if lacks_types and bool(batch["token_type_ids"].any()):
                _LOG.warning(
                    "%s takes no token_type_ids: the second text of a pair has type 0, where the tokenizer gives 1",
                    self.model.name,
                )
                lacks_types = False
            outputs = self.model.runner({name: value.numpy() for name, value in batch.inputs.items()})
            _check_numbers(self.model.name, outputs, batch)
            yield batch, outputs
            # The windows of one question count as one example.
            done += len(batch.index) if batch.window_index is None else int((batch.window_index == 0).sum())
            self.progress(done // rows_per_example, self.total)


def _check_numbers(name: str, outputs: Mapping[str, NDArray[Any]], batch: Batch) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        broken = [output for output, array in outputs.items() if np.isnan(array.sum())]  # a sum with NaN is NaN
    if broken:
        raise VerificationError(f"{name}: {', '.join(broken)} has NaN, in the batch with {batch.examples[0].location}")
