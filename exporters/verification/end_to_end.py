"""The proof end to end: outputs of the file as it is export_model, against checkpoint and float model."""

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

__all__ = ["compare_end_to_end", "end_to_end_problems", "sqnr_spread_db"]

_EXACT_DB = 80.0

_MEASURES = ("sqnr_db", "cosine", "float_sqnr_db", "float_cosine", "expected_float_sqnr_db")

_NARROW = 16
"""Vectors of fewer values (logits of classes) have no direction to speak of: near a boundary it turns around."""

_TWO_AXES = ("start_logits", "end_logits", "labels")
"""Outputs ``(batch, seq)``."""


def compare_end_to_end(
    in_float: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> list[OutputComparison]:
    """A row for every output; of outputs ``(batch, seq, ...)`` the padded positions do not count.

    Narrow vectors are compared as one, and their number decides how much an SQNR scatters.
    """
    rows = []
    tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]
    batch_size, seq_len = tokens.shape[0], tokens.shape[-1]
    visible = inputs["attention_mask"][..., -seq_len:] != 0
    for name, reference in expected.items():
        # A vector for each text may be as long as the text.
        by_token = reference.ndim > 2 and not name.startswith("present.") and name != "candidate_score"
        padded = reference.shape[:2] == visible.shape and (by_token or name in _TWO_AXES)
        x, a, b = (y[visible] if padded else y for y in map(to_float32, (in_float[name], reference, actual[name])))
        if a.dtype.kind in "iu":
            share = float(np.mean(a == b)) if a.size else 1.0
            unknown = dict.fromkeys(_MEASURES, math.nan)
            rows.append(OutputComparison(name, batch_size, seq_len, **unknown, agreement=share))
            continue
        scatter = 0.0
        if 0 < a.shape[-1] < _NARROW:
            scatter = sqnr_spread_db(a.size // a.shape[-1])
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
                sqnr_spread_db=scatter,
            )
        )
    return rows


def sqnr_spread_db(errors: int) -> float:
    """Three standard deviations of the difference of two SQNRs, each of so many independent normal errors.

    The mean of n squares of normal numbers has a relative deviation of sqrt(2 / n), and so a level in decibels of
    10 / ln(10) times that; of the difference of two it is sqrt(2) times as much.
    """
    return 3 * 10 / math.log(10) * math.sqrt(2 / errors) * math.sqrt(2)


def end_to_end_problems(row: OutputComparison, bounds: Bounds, runtime: str) -> list[str]:
    """What does not hold; written so that NaN does not hold either. Whole numbers are decided by flipped steps."""
    if row.agreement is not None:
        return []
    where = f"{row.output} at {row.batch_size}x{row.seq_len} in {runtime}"
    problems = []
    sqnr, cosine_ = bounds.least(row.expected_float_sqnr_db)
    if row.sqnr_spread_db:  # of narrow vectors, whose cosine can be anything
        sqnr, cosine_ = sqnr - row.sqnr_spread_db, -math.inf
    if not (row.sqnr_db >= sqnr and row.cosine >= cosine_):
        problems.append(
            f"{where}: SQNR {row.sqnr_db:.1f} dB and cosine {row.cosine:.4f} to the checkpoint in torch, "
            f"needed {sqnr:.1f} dB{'' if row.sqnr_spread_db else f' and {cosine_:.4f}'}"
        )
    least = row.expected_float_sqnr_db - bounds.float_loss_db - row.sqnr_spread_db
    # Two float files agree to the last digits: their ratio to one another is noise.
    if row.expected_float_sqnr_db < _EXACT_DB and not row.float_sqnr_db >= least:
        problems.append(
            f"{where}: SQNR {row.float_sqnr_db:.1f} dB to the float model, "
            f"the checkpoint in torch has {row.expected_float_sqnr_db:.1f} dB"
        )
    return problems
