"""How an evaluation is run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, describe_problems
from qdq.source import POOLINGS

if TYPE_CHECKING:
    from qdq.data.examples import Columns

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of an evaluation; the defaults are those of the tasks' reference scripts.

    Args:
        batch_size: rows in a batch.
        seq_len: longest row in tokens; None: what the model takes (384 for question answering).
        num_samples: examples drawn at random, all when None.
        split: of a saved dataset with several.
        columns: names of columns where they are not the usual ones.
        seed: of drawing, masking and resampling.
        pooling: for embeddings; None: what a sentence-transformers folder says, else the mean.
        stride: tokens by which the windows of a long context overlap; None: 128, or a third of ``seq_len``.
        n_best: start and end positions that are considered, the best of each.
        max_answer_length: in tokens.
        null_threshold: "no answer" is given where its score is above the best answer's by more than this; None: by
            more than 0, and never where every question of the data has an answer (SQuAD 1.1).
        always_answer: never say "no answer".
        only_mask: hide tokens behind the mask token alone; False also keeps and exchanges some, as in pretraining.

    Raises:
        ConfigError: values out of range, all of them.
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
        least = {
            "batch_size": 1,
            "seq_len": 3,
            "num_samples": 1,
            "stride": 0,
            "n_best": 1,
            "max_answer_length": 1,
            "seed": 0,
        }
        problems = []
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                problems.append(f"{name} is {value}, must be at least {low}")
        if self.pooling is not None and self.pooling not in POOLINGS:
            problems.append(f"pooling is {self.pooling!r}, must be one of {', '.join(POOLINGS)}")
        if problems:
            raise ConfigError(describe_problems("settings of the evaluation", problems))

    def to_dict(self, *names: str) -> dict[str, Any]:
        """The named ones as plain values."""
        values = asdict(self)
        return {name: values[name] for name in names}
