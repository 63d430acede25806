"""Compare the outputs of a quantized model with those of the float model, batch by batch, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["EXACT_DB", "OutputVectors", "Similarity", "output_vectors"]

EXACT_DB = 200.0
"""The SQNR that equal outputs get, because infinity cannot be written as JSON."""

_TOKEN_SCORES = ("start_logits", "end_logits")  # scores of tokens, which their shape (batch, seq) does not tell


@dataclass(frozen=True)
class OutputVectors:
    """One output of the model for one batch.

    Args:
        samples: One vector for each sample, ``(batch, width)``, for the cosine.
        values: All values of tokens, ``(n,)``, for the SQNR.
    """

    samples: Tensor
    values: Tensor


@dataclass(frozen=True)
class Similarity:
    """Sums over the outputs that were compared. The sums of several batches can be added.

    Args:
        signal: The sum of squares of the float outputs.
        noise: The sum of squares of the differences.
        cosines: The sum of the cosines, one for each sample and output.
        count: The number of cosines.
    """

    signal: float = 0.0
    noise: float = 0.0
    cosines: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, expected: Sequence[OutputVectors], found: Sequence[OutputVectors]) -> Similarity:
        """Compare the outputs for one batch.

        Args:
            expected: The outputs of the float model.
            found: The outputs of the quantized model.
        """
        total = cls()
        for want, got in zip(expected, found, strict=True):
            cosine = torch.cosine_similarity(got.samples.double(), want.samples.double(), dim=-1, eps=1e-30)
            # The cosine of two zero vectors is undefined, but they are equal.
            cosine = torch.where((got.samples == want.samples).all(dim=-1), 1.0, cosine)
            wanted, difference = want.values.double(), got.values.double() - want.values.double()
            total += cls(
                float(wanted.square().sum()), float(difference.square().sum()), float(cosine.sum()), len(cosine)
            )
        return total

    def __add__(self, other: Similarity) -> Similarity:
        return Similarity(
            self.signal + other.signal,
            self.noise + other.noise,
            self.cosines + other.cosines,
            self.count + other.count,
        )

    @property
    def sqnr_db(self) -> float:
        """The signal-to-quantization-noise ratio in decibels; :data:`EXACT_DB` without noise."""
        if not self.noise:
            return EXACT_DB
        return min(10 * math.log10(self.signal / self.noise), EXACT_DB) if self.signal else -EXACT_DB

    @property
    def cosine(self) -> float:
        """The mean cosine; 1 before anything was compared."""
        return self.cosines / self.count if self.count else 1.0

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return {"sqnr_db": self.sqnr_db, "cosine": self.cosine}


def output_vectors(output: Any, attention_mask: Tensor | None) -> list[OutputVectors]:
    """Return what is compared of a model's output: all its logits, or its first field of numbers if it has none.

    1. ``(batch, seq, width)``: the vector of a sample is the mean over its tokens.
    2. ``(batch, seq)``, scores of tokens: the scores themselves, with 0 where the mask excludes the token.
    3. Anything else: unchanged, one row for each sample.

    Args:
        output: A mapping, or an output of ``qdq.models``, which has ``items()`` too.
        attention_mask: ``(batch, seq)``; None if all positions are tokens.

    Raises:
        CalibrationError: Values are NaN or infinite.
    """
    # Positions and other choices say nothing about the size of an error.
    named: Mapping[str, Tensor] = {
        name: value
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim and name != "loss"
    }
    names = [name for name in named if name.endswith("logits")] or list(named)[:1]
    found = []
    for name in names:
        value = named[name].detach()
        if not bool(torch.isfinite(value).all()):
            raise CalibrationError(f"the output {name} has NaN or infinite values")
        mask = torch.ones(value.shape[:2], device=value.device) if attention_mask is None else attention_mask
        mask = mask != 0
        if value.ndim == 3 and value.shape[:2] == mask.shape:  # case 1
            weights = mask[..., None].to(value.dtype)
            samples = (value * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
            found.append(OutputVectors(samples, value[mask].flatten()))
        elif name in _TOKEN_SCORES and value.shape == mask.shape:  # case 2
            found.append(OutputVectors(value.masked_fill(~mask, 0), value[mask]))
        else:  # case 3
            found.append(OutputVectors(value.flatten(1), value.flatten()))
    return found
