"""The settings of an evaluation, from which the options of ``qdq evaluate`` are made. This file loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.settings import check, choice, documented, flag, number, setting, whole
from qdq.source import POOLINGS

if TYPE_CHECKING:
    from qdq.data.examples import Columns

__all__ = ["EvaluationSettings"]

_QUESTION_ANSWERING = "Question answering"


@documented
@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of an evaluation. The defaults are those of the reference scripts of the tasks.

    Raises:
        ConfigError: Values are out of range; the message lists all of them.
    """

    batch_size: int = setting(32, "Number of inputs in a batch.", whole(1), metavar="B")
    seq_len: int | None = setting(
        None,
        "Longest input in tokens; by default 384 for question-answering, otherwise the longest that the model accepts.",
        whole(3).or_none(),
        metavar="L",
    )
    num_samples: int | None = setting(
        None, "Largest number of examples to use, drawn at random; by default all.", whole(1).or_none(), metavar="N"
    )
    split: str | None = setting(None, "Split to evaluate on, for a directory that datasets saved.", metavar="NAME")
    columns: Columns | None = setting(  # noqa: RUF009 (a field)
        None, "Names of columns that do not have the usual names.", option=None
    )
    seed: int = setting(0, "Seed of drawing, masking and resampling.", whole(0), option=None)
    pooling: str | None = setting(
        None,
        "Pooling of token vectors for sts and retrieval; by default that of the model's directory, or mean.",
        choice(*POOLINGS).or_none(),
        metavar="|".join(POOLINGS),
    )
    stride: int | None = setting(
        None,
        "Number of tokens that neighboring windows of a long context share; by default 128, or a third of --seq-len if "
        "that is less.",
        whole(0).or_none(),
        metavar="N",
        panel=_QUESTION_ANSWERING,
    )
    n_best: int = setting(
        20,
        "Number of best start and end positions to combine into answers.",
        whole(1),
        metavar="N",
        panel=_QUESTION_ANSWERING,
    )
    max_answer_length: int = setting(30, "Longest answer in tokens.", whole(1), metavar="N", panel=_QUESTION_ANSWERING)
    null_threshold: float | None = setting(
        None,
        'Answer "no answer" if its score exceeds that of the best answer by more than X. By default 0; data in which '
        "every question has an answer (SQuAD 1.1) is never answered so.",
        number().or_none(),
        metavar="X",
        panel=_QUESTION_ANSWERING,
    )
    always_answer: bool = setting(
        False, 'Never answer "no answer", whatever its score.', flag(), panel=_QUESTION_ANSWERING
    )
    only_mask: bool = setting(
        True,
        "Replace all chosen tokens by the mask token. False keeps or exchanges some, as in pretraining.",
        flag(),
        option=None,
    )

    def __post_init__(self) -> None:
        check(self, "settings of the evaluation")

    def to_dict(self, *names: str) -> dict[str, Any]:
        """Return the named fields as plain values."""
        values = asdict(self)
        return {name: values[name] for name in names}
