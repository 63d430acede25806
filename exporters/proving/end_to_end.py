"""The proof end to end: outputs of the file as it is deployed, against checkpoint and float model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from exporters.proving.arrays import wide
from exporters.proving.measures import cosine, sqnr_db
from exporters.proving.report import EndToEnd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exporters.proving.report import Bounds

__all__ = ["compare_end_to_end", "end_to_end_faults"]

_EXACT_DB = 80.0

_MEASURES = ("sqnr_db", "cosine", "float_sqnr_db", "float_cosine", "expected_float_sqnr_db")

_TWO_AXES = ("start_logits", "end_logits", "labels")
"""Outputs ``(batch, seq)``."""


def compare_end_to_end(
    in_float: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> list[EndToEnd]:
    """A row for every output; of outputs ``(batch, seq, ...)`` the padded positions do not count."""
    rows = []
    tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]
    batch_size, seq_len = tokens.shape[0], tokens.shape[-1]
    visible = inputs["attention_mask"][..., -seq_len:] != 0
    for name, reference in expected.items():
        # A vector for each text may be as long as the text.
        by_token = reference.ndim > 2 and not name.startswith("present.") and name != "candidate_score"
        padded = reference.shape[:2] == visible.shape and (by_token or name in _TWO_AXES)
        x, a, b = (y[visible] if padded else y for y in map(wide, (in_float[name], reference, actual[name])))
        if a.dtype.kind in "iu":
            share = float(np.mean(a == b)) if a.size else 1.0
            unknown = dict.fromkeys(_MEASURES, math.nan)
            rows.append(EndToEnd(name, batch_size, seq_len, **unknown, agreement=share))
            continue
        rows.append(
            EndToEnd(
                name,
                batch_size,
                seq_len,
                sqnr_db=sqnr_db(a, b),
                cosine=cosine(a, b),
                float_sqnr_db=sqnr_db(x, b),
                float_cosine=cosine(x, b),
                expected_float_sqnr_db=sqnr_db(x, a),
            )
        )
    return rows


def end_to_end_faults(row: EndToEnd, bounds: Bounds, runtime: str) -> list[str]:
    """What does not hold; written so that NaN does not hold either. Whole numbers are decided by flipped steps."""
    if row.agreement is not None:
        return []
    where = f"{row.output} at {row.batch_size}x{row.seq_len} in {runtime}"
    faults = []
    sqnr, cosine_ = bounds.least(row.expected_float_sqnr_db)
    if not (row.sqnr_db >= sqnr and row.cosine >= cosine_):
        faults.append(
            f"{where}: SQNR {row.sqnr_db:.1f} dB and cosine {row.cosine:.4f} to the checkpoint in torch, "
            f"needed {sqnr:.1f} dB and {cosine_:.4f}"
        )
    least = row.expected_float_sqnr_db - bounds.float_loss_db
    # Two float files agree to the last digits: their ratio to one another is noise.
    if row.expected_float_sqnr_db < _EXACT_DB and not row.float_sqnr_db >= least:
        faults.append(
            f"{where}: SQNR {row.float_sqnr_db:.1f} dB to the float model, "
            f"the checkpoint in torch has {row.expected_float_sqnr_db:.1f} dB"
        )
    return faults
