"""Masked language modelling: which tokens a model has to guess, by a seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from qdq.data.features import IGNORED, Feature, Row
from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from qdq.data.encoder import TextEncoder

__all__ = ["Masking", "mask_tokens"]


@dataclass(frozen=True)
class Masking:
    """How tokens are masked (Devlin et al. 2018).

    Of each row the share ``probability`` of its ordinary tokens is to be guessed, rounded, and one at least. 80 % of
    these read as the mask token, 10 % as a random one, 10 % as themselves; with ``only_mask`` all read as the mask
    token. The choice follows from ``seed`` and the example's index alone, so batches may be made in any way.

    Raises:
        ConfigError: ``probability`` is not in (0, 1], or ``seed`` is negative.
    """

    seed: int = 0
    probability: float = 0.15
    only_mask: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.probability <= 1:
            problems.append(f"the probability must be above 0 and at most 1, not {self.probability}")
        if self.seed < 0:
            problems.append(f"the seed must be 0 or more, not {self.seed}")
        if problems:
            raise ConfigError(describe_problems("masking", problems))


def mask_tokens(feature: Feature, encoder: TextEncoder, masking: Masking) -> Feature:
    """The feature with masked tokens, and as its targets what they were (:data:`IGNORED` elsewhere).

    Raises:
        ConfigError: The vocabulary has no mask token.
    """
    if encoder.mask_id is None:
        raise ConfigError("masked-lm needs a mask token, and the tokenizer has none")
    (row,) = feature.rows
    labels = np.full(len(row), IGNORED, dtype=np.int32)
    (ordinary,) = np.nonzero(~np.isin(row.ids, encoder.special_ids))
    if not len(ordinary):
        return replace(feature, targets={"labels": labels})
    generator = np.random.default_rng((masking.seed, feature.example.index))
    count = max(1, round(masking.probability * len(ordinary)))
    chosen = generator.permutation(ordinary)[:count]
    lot = np.zeros(count) if masking.only_mask else generator.random(count)
    random_ids = generator.choice(encoder.ordinary_ids, count)
    ids = row.ids.copy()
    labels[chosen] = ids[chosen]
    ids[chosen] = np.select([lot < 0.8, lot < 0.9], [encoder.mask_id, random_ids], ids[chosen])
    return replace(feature, rows=(Row(ids, row.types, row.mask),), targets={"labels": labels})
