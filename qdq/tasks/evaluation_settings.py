"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, describe_problems
from qdq.source import POOLINGS

if TYPE_CHECKING:
    from qdq.data.examples import Columns

__all__ = ["EvaluationSettings"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Options of an evaluation; the defaults are those of the tasks' reference scripts.

    Args:
        batch_size: The number of rows in a batch.
        seq_len: The longest row in tokens; by default what the model takes (384 for question answering).
        num_samples: The number of examples to draw at random; by default all are used.
        split: The split of a saved data set that has several.
        columns: The names of columns that do not have the usual names.
        seed: The seed of drawing, masking and resampling.
        pooling: How token vectors become an embedding: ``mean``, ``cls`` or ``max``. By default what a
            sentence-transformers folder says, or the mean.
        stride: The tokens by which the windows of a long context overlap; by default 128, or a third of ``seq_len``.
        n_best: How many of the best start and end positions are combined to answers.
        max_answer_length: The longest answer in tokens.
        null_threshold: Give no answer if the score of "no answer" exceeds that of the best answer by more than this. By
            default 0, and always answer if every question of the data has an answer (SQuAD 1.1).
        always_answer: Give an answer to every question.
        only_mask: Replace all chosen tokens by the mask token. False keeps or exchanges some, as in pretraining.

    Raises:
        ConfigError: Values are out of range; the message lists all of them.
    """

    batch_size: int = 32
    seq_len: int | None = None
    num_samples: int | None = None
    split: str | None = None
    columns: Columns | None = None
    seed: int = 0
    pooling: str | None = None
    stride: int | None = None
    n_best: int = 20
    max_answer_length: int = 30
    null_threshold: float | None = None
    always_answer: bool = False
    only_mask: bool = True

    def __post_init__(self) -> None:
        smallest = {
            "batch_size": 1,
            "seq_len": 3,
            "num_samples": 1,
            "stride": 0,
            "n_best": 1,
            "max_answer_length": 1,
            "seed": 0,
        }
        problems = []
        for name, low in smallest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                problems.append(f"{name} is {value}, must be at least {low}")
        if self.pooling is not None and self.pooling not in POOLINGS:
            problems.append(f"pooling is {self.pooling!r}, must be one of {', '.join(POOLINGS)}")
        if problems:
            raise ConfigError(describe_problems("settings of the evaluation", problems))

    def to_dict(self, *names: str) -> dict[str, Any]:
        """Return the named fields as plain values."""
        values = asdict(self)
        return {name: values[name] for name in names}
