"""Where to clip: the rules of pytorch-quantization, as pure functions on a histogram of magnitudes.

Each function takes ``counts`` (n,) of ``|x|`` and their ``edges`` (n + 1,), evenly spaced from zero on. It returns one
of the edges, or for the mean squared error the middle of a bin. On the same histogram it chooses what
pytorch-quantization chooses, with one exception: a cut that leaves no counts at all is never chosen.

All cuts are evaluated at once. A cut assigns the bins to quantization levels. Sums over a level are differences of
running sums at the bins in :func:`_level_starts`, which are the same for all slots. Running sums round differently from
plain ones, so the cuts that come close to the best are evaluated again one by one, exactly.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["FIRST_CUT", "entropy_amax", "mse_amax", "percentile_amax"]

FIRST_CUT = 128  # cuts below this bin are not tried, as in pytorch-quantization

_CLOSE = 1e-9  # relative; far above the rounding error of running sums in float64
_TINY = 1e-300


def percentile_amax(counts: NDArray[Any], edges: NDArray[Any], percentile: float) -> float:
    """Return the lower edge of the bin in which the percentile of the counts is reached.

    Args:
        counts: ``(n,)``, of ``|x|``.
        edges: ``(n + 1,)``, evenly spaced from zero on.
        percentile: 0 to 100.

    Raises:
        ValueError: There are no counts, or the shapes do not match.
    """
    counts = _checked(counts, edges)
    reached = np.searchsorted(np.cumsum(counts / counts.sum()), percentile / 100)
    return float(edges[min(int(reached), len(counts))])


def mse_amax(
    counts: NDArray[Any], edges: NDArray[Any], *, bits: int = 8, unsigned: bool = False, start: int = FIRST_CUT
) -> float:
    """Return the middle of the bin that, as amax, gives the least squared error; of equally good ones, the first.

    Each value counts as the middle of its bin.

    Args:
        counts: ``(n,)``, of ``|x|``.
        edges: ``(n + 1,)``, evenly spaced from zero on.
        bits: The bits of the integers.
        unsigned: Whether no bit is needed for the sign, so that there are twice as many levels.
        start: The first bin to try. With fewer bins, only the last one is tried.

    Raises:
        ValueError: There are no counts, or the shapes do not match.
    """
    counts = _checked(counts, edges)
    bound = (1 << (bits - 1 + unsigned)) - 1
    middles = np.arange(len(counts)) + 0.5  # in units of bins, because the result does not depend on their width
    cuts = np.arange(min(start, len(counts) - 1), len(counts))

    def error(cut: int) -> float:
        steps = bound / middles[cut]
        q = np.minimum(np.round(middles * steps), bound)
        return float(np.mean(np.square(q / steps - middles) * counts))

    # The sum of (q - x)^2 is that of q^2 - 2 q x, plus that of x^2, which is the same for all cuts.
    starts = _level_starts("mse", bound, int(cuts[0]), len(counts))
    ones, firsts = _running(counts), _running(counts * middles)
    q = np.arange(bound + 1) / bound * middles[cuts, None]
    errors = (q * (q * np.diff(ones[starts]) - 2 * np.diff(firsts[starts]))).sum(1)
    errors += float(counts @ np.square(middles))
    best = _best(errors, cuts, error, scale=float(counts @ np.square(middles)))
    return float((edges[best[0]] + edges[best[0] + 1]) / 2)


def entropy_amax(
    counts: NDArray[Any], edges: NDArray[Any], *, bits: int = 8, unsigned: bool = False, start: int = FIRST_CUT
) -> float:
    """Return the edge with the least Kullback-Leibler divergence; of equally good ones, the last.

    For a cut at bin i, the reference distribution is the first i bins, where the last one also gets everything that is
    clipped. It is compared with the same bins after quantization, where the counts of each level are shared evenly
    among those of its bins that are not empty. The first bin, which holds the zeros, gets the count of the second.

    Args:
        counts: ``(n,)``, of ``|x|``.
        edges: ``(n + 1,)``, evenly spaced from zero on.
        bits: The bits of the integers.
        unsigned: Whether no bit is needed for the sign, so that there are twice as many levels.
        start: The first bin to try. With fewer bins, the last edge is returned.

    Raises:
        ValueError: There are no counts, or the shapes do not match.
    """
    counts = _checked(counts, edges).copy()
    if len(counts) > 1:
        counts[0] = counts[1]
    if len(counts) <= start or not counts.any():
        return float(edges[-1])
    levels = 1 << (bits - 1 + unsigned)
    cuts = np.arange(start, len(counts) + 1)

    def divergence(cut: int) -> float:
        return _divergence(counts, cut, levels)

    # With P for the reference and Q for the quantized bins, the divergence is the sum of P log P minus that of P log Q.
    # log Q is constant on each level, and clipping changes P only in the last bin, so that running sums suffice.
    starts = _level_starts("entropy", levels, start, len(counts))
    total, filled = _running(counts), _running(counts > 0)
    sums, sizes = np.diff(total[starts]), np.diff(filled[starts])
    log_mean = np.log(np.maximum(sums, _TINY) / np.maximum(sizes, 1))
    tail = total[-1] - total[cuts]
    last = counts[cuts - 1]
    own = _running(_x_log_x(counts))[cuts] - _x_log_x(last) + _x_log_x(last + tail)
    # The level of the last bin is the last one that contains a bin.
    cross = (sums * log_mean).sum(1) + tail * log_mean[np.arange(len(cuts)), _last_level(starts)]
    kept = total[cuts]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (own - cross) / total[-1] - np.log(total[-1]) + np.log(kept)
    found[(last == 0) & (tail > 0)] = np.inf  # the clipped counts would be in a bin where Q is zero
    found[kept == 0] = np.inf
    if not np.isfinite(found).any():
        return float(edges[-1])
    best = _best(found, cuts, divergence, scale=1.0)
    return float(edges[best[-1]])


def _level_starts(rule: str, levels: int, start: int, bins: int) -> NDArray[np.int64]:
    """Return, for each cut, the first bin of each level and the bin after the last: ``(cuts, levels + 1)``.

    mse: The cut is the middle of a bin. Level k holds what rounds to k of ``levels`` steps, the last one all the rest.
    entropy: The cut is an edge, and the bins before it are divided evenly.
    """
    # Tables are cached for powers of two, so that slots with slightly different numbers of bins share one.
    table: NDArray[np.int64] = _cached_starts(rule, levels, start, 1 << (bins - 1).bit_length())
    if rule == "mse":
        return np.minimum(table[: bins - start], bins)
    return table[: bins - start + 1]


@lru_cache(maxsize=8)
def _cached_starts(rule: str, levels: int, start: int, bins: int) -> NDArray[np.int64]:
    if rule == "mse":
        cuts = np.arange(start, bins)[:, None]
        halves = 2 * np.arange(levels + 1) - 1  # level k begins at (k - 1/2) / levels of the cut
        starts = -(-(halves * (2 * cuts + 1) - 2 * levels) // (4 * levels))
        starts = np.concatenate([np.maximum(starts, 0), np.full_like(cuts, bins)], axis=1)
    else:
        cuts = np.arange(start, bins + 1)[:, None]
        starts = -(-(np.arange(levels + 1) * cuts) // levels)
    return starts.astype(np.int64)


def _last_level(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the level of the last bin before each cut."""
    widths = np.diff(starts)
    levels: NDArray[np.int64] = widths.shape[1] - 1 - np.argmax(widths[:, ::-1] > 0, axis=1)
    return levels


def _best(found: Floats, cuts: NDArray[np.int64], exact: Callable[[int], float], *, scale: float) -> NDArray[np.int64]:
    """Return the cuts with the least value, ascending, after evaluating the close ones exactly."""
    close: NDArray[np.int64] = cuts[found <= found.min() + _CLOSE * max(abs(float(found.min())), 1e-3 * scale)]
    if len(close) == 1:
        return close
    values = np.array([exact(int(cut)) for cut in close])
    best: NDArray[np.int64] = close[values == values.min()]
    return best


def _divergence(counts: Floats, cut: int, levels: int) -> float:
    """Return the divergence of one cut, computed by its definition."""
    kept = counts[:cut]
    level = np.arange(cut) * levels // cut
    filled = kept > 0
    sums = np.bincount(level, weights=kept, minlength=levels)
    sizes = np.bincount(level, weights=filled, minlength=levels)
    q = np.where(filled, (sums / np.maximum(sizes, 1))[level], 0.0)
    p = kept.copy()
    p[-1] += counts[cut:].sum()
    p, q = p / p.sum(), q / q.sum()
    if ((q == 0) & (p > 0)).any():
        return np.inf
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / q[some])))


def _running(values: NDArray[Any]) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _x_log_x(x: Floats) -> Floats:
    result: Floats = x * np.log(np.maximum(x, 1.0))  # counts are whole numbers, so 1.0 only replaces zeros
    return result


def _checked(counts: NDArray[Any], edges: NDArray[Any]) -> Floats:
    if counts.ndim != 1 or edges.shape != (len(counts) + 1,):
        raise ValueError(f"counts {counts.shape} and edges {edges.shape}: must be (n,) and (n + 1,)")
    if not counts.sum() > 0:
        raise ValueError("a histogram without counts has no range")
    return counts.astype(np.float64)
