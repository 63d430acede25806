"""The settings of an evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.settings import check, choice, flag, setting, whole
from qdq.source import POOLINGS

if TYPE_CHECKING:
    from qdq.data.examples import Columns

__all__ = ["EvaluationSettings"]

_QA = "Question answering"


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

    batch_size: int = setting(32, "Rows in a batch.", whole(1), metavar="B")
    seq_len: int | None = setting(
        None, "Longest row in tokens; by default the longest that the model takes.", whole(3).or_none(), metavar="L"
    )
    num_samples: int | None = setting(
        None, "Number of examples to draw at random; by default all.", whole(1).or_none(), metavar="N"
    )
    split: str | None = setting(None, "Split of a saved dataset to evaluate on.", metavar="NAME")
    columns: Columns | None = None
    seed: int = setting(0, "Seed of drawing, masking and resampling.", whole(0), option=None)
    pooling: str | None = setting(
        None,
        "Pooling of token vectors for sts and retrieval; by default that of the model's directory, or mean.",
        choice(*POOLINGS).or_none(),
        metavar="|".join(POOLINGS),
    )
    stride: int | None = setting(
        None,
        "Tokens that neighbouring windows of a long context share; by default 128.",
        whole(0).or_none(),
        metavar="N",
        panel=_QA,
    )
    n_best: int = setting(20, "Number of best start and end positions to combine.", whole(1), metavar="N", panel=_QA)
    max_answer_length: int = setting(30, "Longest answer in tokens.", whole(1), metavar="N", panel=_QA)
    null_threshold: float | None = setting(
        None,
        'Answer "no answer" if it scores higher than the best answer by more than this; by default 0, but never if '
        "every question of the data has an answer.",
        metavar="X",
        panel=_QA,
    )
    always_answer: bool = setting(False, 'Never answer "no answer".', flag(), panel=_QA)
    only_mask: bool = setting(True, "Replace all chosen tokens by the mask token.", flag(), option=None)

    def __post_init__(self) -> None:
        check(self, "settings of the evaluation")

    def to_dict(self, *names: str) -> dict[str, Any]:
        """Return the named fields as plain values."""
        values = asdict(self)
        return {name: values[name] for name in names}
