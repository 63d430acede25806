"""How close outputs of a quantized model are to those of the float model, batch by batch, in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import CalibrationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

__all__ = ["EXACT_DB", "Similarity", "Vectors", "vectors_of"]

EXACT_DB = 200.0
"""The SQNR of outputs that are equal."""

_SCORES = ("start_logits", "end_logits")  # one a token, which their shape alone does not tell


@dataclass(frozen=True)
class Vectors:
    """One output for one batch.

    Args:
        samples: one vector a sample, ``(batch, width)``.
        values: everything that counts, ``(n,)``: of positions that the attention mask excludes nothing.
    """

    samples: Tensor
    values: Tensor


@dataclass(frozen=True)
class Similarity:
    """Sums over what was compared; two of them add up.

    Args:
        signal: sum of squares of the float outputs.
        noise: sum of squares of the differences.
        cosines: sum of the cosines, of one vector a sample and output.
        count: how many cosines there are.
    """

    signal: float = 0.0
    noise: float = 0.0
    cosines: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, expected: Sequence[Vectors], found: Sequence[Vectors]) -> Similarity:
        """Of one batch: all outputs of the float model, and those of the other one."""
        total = cls()
        for want, got in zip(expected, found, strict=True):
            cosine = torch.cosine_similarity(got.samples.double(), want.samples.double(), dim=-1, eps=1e-30)
            # Two vectors of zeros are as close as can be.
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
        """Signal to quantization noise; :data:`EXACT_DB` where there is no noise."""
        if not self.noise:
            return EXACT_DB
        return min(10 * math.log10(self.signal / self.noise), EXACT_DB) if self.signal else -EXACT_DB

    @property
    def cosine(self) -> float:
        """Mean cosine; 1 before anything was compared."""
        return self.cosines / self.count if self.count else 1.0

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return {"sqnr_db": self.sqnr_db, "cosine": self.cosine}


def vectors_of(output: Any, attention_mask: Tensor | None) -> list[Vectors]:
    """What to compare of a model's output: its logits, of every kind, or without head its first field.

    1. ``(batch, seq, width)``: a sample's vector is the mean over its tokens.
    2. ``(batch, seq)``, a score a token: the scores themselves, 0 where the mask excludes the token.
    3. Anything else: as it is, a row a sample.

    Args:
        output: with ``items()``, as those of ``qdq.models``, or a mapping.
        attention_mask: ``(batch, seq)``; None means that all tokens count.

    Raises:
        CalibrationError: for values that are NaN or infinite.
    """
    named: Mapping[str, Tensor] = {n: v for n, v in output.items() if isinstance(v, torch.Tensor) and n != "loss"}
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
            found.append(Vectors(samples, value[mask].flatten()))
        elif name in _SCORES and value.shape == mask.shape:  # case 2
            found.append(Vectors(value.masked_fill(~mask, 0), value[mask]))
        else:  # case 3
            found.append(Vectors(value.flatten(1), value.flatten()))
    return found
