"""Where to clip: the rules that pytorch-quantization made usual, as pure functions on a histogram of magnitudes.

Each takes ``counts`` (n,) of ``|x|`` and their ``edges`` (n + 1,), evenly spaced from zero on, and returns one of the
edges, or for the mean squared error the middle of a bin. On the same histogram they choose what that package chooses,
except that a cut which leaves no counts at all is never chosen here.

All cuts are judged at once. A cut puts bins into levels; sums over a level come from running sums, at the places in
:func:`_level_starts`, which are the same for all slots. Running sums round differently from plain
ones, so the cuts that come close to the best are judged again one by one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["START", "entropy_amax", "mse_amax", "percentile_amax"]

START = 128  # no cut below this bin

_CLOSE = 1e-9  # relative; far above what running sums of float64 lose
_TINY = 1e-300


def percentile_amax(counts: NDArray[Any], edges: NDArray[Any], percentile: float) -> float:
    """The lower edge of the bin in which the ``percentile`` (0 to 100) of the counts is reached.

    Raises:
        ValueError: when there are no counts or the shapes do not fit.
    """
    counts = _checked(counts, edges)
    reached = np.searchsorted(np.cumsum(counts / counts.sum()), percentile / 100)
    return float(edges[min(int(reached), len(counts))])


def mse_amax(
    counts: NDArray[Any], edges: NDArray[Any], *, bits: int = 8, unsigned: bool = False, start: int = START
) -> float:
    """The middle of the bin that, as amax, gives the least squared error of all bins' middles; the first of equals.

    Args:
        counts: ``(n,)``, of ``|x|``.
        edges: ``(n + 1,)``, evenly spaced from zero on.
        bits: of the integers.
        unsigned: no bit for a sign: twice the levels.
        start: the first bin to try. With fewer bins, the last one alone.

    Raises:
        ValueError: when there are no counts or the shapes do not fit.
    """
    counts = _checked(counts, edges)
    bound = (1 << (bits - 1 + unsigned)) - 1
    middles = np.arange(len(counts)) + 0.5  # in bins: the rule does not depend on their width
    cuts = np.arange(min(start, len(counts) - 1), len(counts))

    def error(cut: int) -> float:
        steps = bound / middles[cut]
        q = np.minimum(np.round(middles * steps), bound)
        return float(np.mean(np.square(q / steps - middles) * counts))

    # The sum of (q - x)^2 is that of q^2 - 2 q x, and of x^2, which no cut changes.
    starts = _level_starts("mse", bound, int(cuts[0]), len(counts))
    ones, firsts = _running(counts), _running(counts * middles)
    q = np.arange(bound + 1) / bound * middles[cuts, None]
    errors = (q * (q * np.diff(ones[starts]) - 2 * np.diff(firsts[starts]))).sum(1)
    errors += float(counts @ np.square(middles))
    best = _best(errors, cuts, error, scale=float(counts @ np.square(middles)))
    return float((edges[best[0]] + edges[best[0] + 1]) / 2)


def entropy_amax(
    counts: NDArray[Any], edges: NDArray[Any], *, bits: int = 8, unsigned: bool = False, start: int = START
) -> float:
    """The edge at which clipping loses the least information by Kullback and Leibler; the last of equals.

    For a cut at bin i, the reference are the first i bins, the last of which takes all that is clipped; against it
    stand the same bins, each level's counts shared out evenly among those of its bins that are not empty. The first
    bin, in which zeros are, counts like the second. Arguments as in :func:`mse_amax`; with fewer bins than ``start``
    the last edge is returned.

    Raises:
        ValueError: when there are no counts or the shapes do not fit.
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

    # With P for the reference and Q for the levels: the sum of P log P, less that of P log Q, which is constant on each
    # level. What is clipped changes P in the last bin alone.
    starts = _level_starts("entropy", levels, start, len(counts))
    total, filled = _running(counts), _running(counts > 0)
    sums, sizes = np.diff(total[starts]), np.diff(filled[starts])
    log_mean = np.log(np.maximum(sums, _TINY) / np.maximum(sizes, 1))
    tail = total[-1] - total[cuts]
    last = counts[cuts - 1]
    own = _running(_x_log_x(counts))[cuts] - _x_log_x(last) + _x_log_x(last + tail)
    # the level of the last bin is the last that is not empty of bins
    cross = (sums * log_mean).sum(1) + tail * log_mean[np.arange(len(cuts)), _last_level(starts)]
    kept = total[cuts]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (own - cross) / total[-1] - np.log(total[-1]) + np.log(kept)
    found[(last == 0) & (tail > 0)] = np.inf  # what is clipped would stand where nothing is
    found[kept == 0] = np.inf
    if not np.isfinite(found).any():
        return float(edges[-1])
    best = _best(found, cuts, divergence, scale=1.0)
    return float(edges[best[-1]])


def _level_starts(rule: str, levels: int, start: int, bins: int) -> NDArray[np.int64]:
    """For each cut, the first bin of each level and the bin after the last: ``(cuts, levels + 1)``.

    mse: the cut is the middle of a bin, level k holds what rounds to k of ``levels`` steps, the last one all the rest.
    entropy: the cut is an edge, and the bins before it are divided evenly.
    """
    # Kept for whole powers of two, so that slots with a few bins more or less share them.
    table: NDArray[np.int64] = _kept_starts(rule, levels, start, 1 << (bins - 1).bit_length())
    if rule == "mse":
        return np.minimum(table[: bins - start], bins)
    return table[: bins - start + 1]


@lru_cache(maxsize=8)
def _kept_starts(rule: str, levels: int, start: int, bins: int) -> NDArray[np.int64]:
    if rule == "mse":
        cuts = np.arange(start, bins)[:, None]
        halves = 2 * np.arange(levels + 1) - 1  # level k begins at (k - 1/2) / levels of the cut, never on a middle
        starts = -(-(halves * (2 * cuts + 1) - 2 * levels) // (4 * levels))
        starts = np.concatenate([np.maximum(starts, 0), np.full_like(cuts, bins)], axis=1)
    else:
        cuts = np.arange(start, bins + 1)[:, None]
        starts = -(-(np.arange(levels + 1) * cuts) // levels)
    return starts.astype(np.int64)


def _last_level(starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The level in which the last bin before each cut lies."""
    widths = np.diff(starts)
    levels: NDArray[np.int64] = widths.shape[1] - 1 - np.argmax(widths[:, ::-1] > 0, axis=1)
    return levels


def _best(found: Floats, cuts: NDArray[np.int64], exact: Callable[[int], float], *, scale: float) -> NDArray[np.int64]:
    """The cuts with the least value, ascending, the close ones judged exactly."""
    close: NDArray[np.int64] = cuts[found <= found.min() + _CLOSE * max(abs(float(found.min())), 1e-3 * scale)]
    if len(close) == 1:
        return close
    values = np.array([exact(int(cut)) for cut in close])
    best: NDArray[np.int64] = close[values == values.min()]
    return best


def _divergence(counts: Floats, cut: int, levels: int) -> float:
    """The divergence of one cut, by its definition."""
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
    result: Floats = x * np.log(np.maximum(x, 1.0))  # counts are whole numbers
    return result


def _checked(counts: NDArray[Any], edges: NDArray[Any]) -> Floats:
    if counts.ndim != 1 or edges.shape != (len(counts) + 1,):
        raise ValueError(f"counts {counts.shape} and edges {edges.shape}: must be (n,) and (n + 1,)")
    if not counts.sum() > 0:
        raise ValueError("a histogram without counts has no range")
    return counts.astype(np.float64)
