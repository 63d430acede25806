"""Verify end to end: compare the outputs of the optimized file with those of the checkpoint and of the float model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from exporters.verification.numpy_conversion import to_float32
from exporters.verification.report import OutputComparison
from exporters.verification.similarity import cosine, sqnr_db

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exporters.verification.report import Bounds

__all__ = ["bound_problems", "compare_outputs", "sqnr_spread_db"]

_EXACT_DB = 80.0
"""SQNR to the float model from which on the checkpoint counts as a float model itself."""

_MEASURES = ("sqnr_db", "cosine", "float_sqnr_db", "float_cosine", "expected_float_sqnr_db")

_NARROW = 16
"""Vectors with fewer values, such as logits of classes, can turn around near a boundary: their cosine says nothing."""

_TWO_AXES = ("start_logits", "end_logits", "labels")
"""Outputs ``(batch, seq)``."""


def compare_outputs(
    float_outputs: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> list[OutputComparison]:
    """Compare every output of one batch. Padded positions of outputs ``(batch, seq, ...)`` do not count.

    Args:
        float_outputs: Outputs of the float model, by name.
        expected: Outputs of the checkpoint in torch.
        actual: Outputs of the file.
        inputs: The inputs of the batch.
    """
    rows = []
    tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]
    batch_size, seq_len = tokens.shape[0], tokens.shape[-1]
    visible = inputs["attention_mask"][..., -seq_len:] != 0
    for name, reference in expected.items():
        # One vector per text may happen to be as long as the text, so the shape alone does not decide.
        by_token = reference.ndim > 2 and not name.startswith("present.") and name != "candidate_score"
        padded = reference.shape[:2] == visible.shape and (by_token or name in _TWO_AXES)
        x, a, b = (y[visible] if padded else y for y in map(to_float32, (float_outputs[name], reference, actual[name])))
        if a.dtype.kind in "iu":
            share = float(np.mean(a == b)) if a.size else 1.0
            unknown = dict.fromkeys(_MEASURES, math.nan)
            rows.append(OutputComparison(name, batch_size, seq_len, **unknown, agreement=share))
            continue
        spread = 0.0
        if 0 < a.shape[-1] < _NARROW:  # compared as one long vector
            spread = sqnr_spread_db(a.size // a.shape[-1])
            x, a, b = x.reshape(-1), a.reshape(-1), b.reshape(-1)
        rows.append(
            OutputComparison(
                name,
                batch_size,
                seq_len,
                sqnr_db=sqnr_db(a, b),
                cosine=cosine(a, b),
                float_sqnr_db=sqnr_db(x, b),
                float_cosine=cosine(x, b),
                expected_float_sqnr_db=sqnr_db(x, a),
                sqnr_spread_db=spread,
            )
        )
    return rows


def sqnr_spread_db(errors: int) -> float:
    """Return three standard deviations of the difference of two SQNRs in decibels.

    Args:
        errors: Number of independent, normally distributed errors that each SQNR is made of.
    """
    # The mean of n squared normal numbers has a relative deviation of sqrt(2 / n). In decibels that is 10 / ln(10)
    # times as much, and the difference of two such levels deviates by sqrt(2) times as much again.
    return 3 * 10 / math.log(10) * math.sqrt(2 / errors) * math.sqrt(2)


def bound_problems(row: OutputComparison, bounds: Bounds, runtime: str) -> list[str]:
    """Return what exceeds the bounds, in words.

    Args:
        row: The comparison of one output.
        bounds: The bounds.
        runtime: Name of the runtime, for the words.
    """
    if row.agreement is not None:  # a rounding tie may decide a label, so labels have no bounds
        return []
    where = f"{row.output} at {row.batch_size}x{row.seq_len} in {runtime}"
    problems = []
    sqnr, cosine_ = bounds.least(row.expected_float_sqnr_db)
    if row.sqnr_spread_db:  # narrow vectors, whose cosine can be anything
        sqnr, cosine_ = sqnr - row.sqnr_spread_db, -math.inf
    # The comparisons are this way round so that NaN fails.
    if not (row.sqnr_db >= sqnr and row.cosine >= cosine_):
        problems.append(
            f"{where}: SQNR {row.sqnr_db:.1f} dB and cosine {row.cosine:.4f} to the checkpoint in torch, "
            f"needed {sqnr:.1f} dB{'' if row.sqnr_spread_db else f' and {cosine_:.4f}'}"
        )
    least = row.expected_float_sqnr_db - bounds.float_loss_db - row.sqnr_spread_db
    # Two float models agree to the last digits, so the ratio of their errors is noise.
    if row.expected_float_sqnr_db < _EXACT_DB and not row.float_sqnr_db >= least:
        problems.append(
            f"{where}: SQNR {row.float_sqnr_db:.1f} dB to the float model, "
            f"the checkpoint in torch has {row.expected_float_sqnr_db:.1f} dB"
        )
    return problems
