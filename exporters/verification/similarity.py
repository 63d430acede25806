"""Measure how similar two arrays are."""

from __future__ import annotations

import numpy as np

__all__ = ["EQUAL_DB", "cosine", "ratio_db", "sqnr_db"]

EQUAL_DB = 200.0
"""The SQNR of equal arrays."""


def sqnr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """Return the signal to quantization noise ratio in decibels.

    It is 10 log10 of the power of the signal over that of the error. 200 dB, far beyond float32, stands for equal
    arrays, because JSON has no infinity.
    """
    with np.errstate(all="ignore"):  # values that are not finite give NaN
        signal = np.square(reference, dtype=np.float64).sum()
        noise = np.square(np.subtract(reference, actual, dtype=np.float64)).sum()
        return ratio_db(signal, noise)


def ratio_db(signal: float, noise: float) -> float:
    """Return the ratio of two sums of squares in decibels."""
    if noise == 0:
        return EQUAL_DB
    ratio = 10 * np.log10(np.maximum(signal, np.finfo(np.float64).tiny) / noise)
    return float(np.minimum(ratio, EQUAL_DB))  # unlike min(), this keeps NaN


def cosine(reference: np.ndarray, actual: np.ndarray) -> float:
    """Return the mean cosine between the vectors on the last axis."""
    a, b = reference.astype(np.float64), actual.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.mean((a * b).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)))
