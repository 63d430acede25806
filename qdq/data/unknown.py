"""How much of a text the vocabulary does not know."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import models

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["UnknownTokens"]

_LOG = logging.getLogger(__name__)


class UnknownTokens:
    """A count over many texts, and a warning at their end when most of it is unknown."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._id = _unknown_id(tokenizer)
        self._unknown = self._total = 0

    def count(self, ids: np.ndarray, special: np.ndarray) -> None:
        """Count ids of any shape, and 1 (or True) where a token was added around the text."""
        if self._id is not None:  # a byte-level vocabulary knows every text
            self._unknown += int(np.count_nonzero(ids == self._id))
            self._total += ids.size - int(special.sum())

    def warn(self) -> None:
        """Log the figure, where more than half is unknown."""
        if self._unknown * 2 > self._total:
            _LOG.warning(
                "%.0f %% of the tokens (%d of %d) are unknown to the tokenizer's vocabulary: "
                "is this text in the language of the model?",
                100 * self._unknown / self._total,
                self._unknown,
                self._total,
            )


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    if isinstance(tokenizer.model, models.Unigram):  # which tells it nowhere else
        found = json.loads(tokenizer.to_str())["model"]["unk_id"]
        return found if isinstance(found, int) else None
    token = tokenizer.model.unk_token
    return tokenizer.token_to_id(token) if token else None
