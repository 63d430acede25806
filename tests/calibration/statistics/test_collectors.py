"""Collectors: what they hold follows from the values alone, and takes the same room for ever."""

from __future__ import annotations

import math
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from calibration import HistogramCollector, MinMaxCollector, TokenMask

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = [MinMaxCollector, HistogramCollector]


def histogram(*parts: Tensor, half: int = 2048) -> HistogramCollector:
    collector = HistogramCollector(TokenMask(), half)
    for part in parts:
        collector.update(part)
    return collector


def contents(collector: MinMaxCollector) -> list[object]:
    """All that is held, in a form that compares."""
    held = {name: value for name, value in vars(collector).items() if name != "_mask"}
    return [(name, value.tolist() if isinstance(value, Tensor) else value) for name, value in held.items()]


def same(a: HistogramCollector, b: HistogramCollector) -> bool:
    return contents(a) == contents(b)


def awkward_values() -> Tensor:
    """Edges of bins and their neighbours, both zeros, subnormals, values of very different size, outliers."""
    generator = torch.Generator().manual_seed(5)
    powers = 2.0 ** torch.arange(-30, 12).float()
    infinity = torch.tensor(math.inf)
    edges = torch.cat([powers, powers.nextafter(infinity), powers.nextafter(-infinity), powers * 3, powers * 5 / 4])
    wide = torch.randn(2000, generator=generator) * torch.exp(torch.empty(2000).uniform_(-80, 8, generator=generator))
    tiny = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, -1e-38, 1e-10, -1e-10])
    values = torch.cat([edges, -edges, wide, tiny])
    return values[torch.randperm(len(values), generator=generator)]


# --- extremes ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_extremes_equal_numpy(kind: type[MinMaxCollector], dtype: torch.dtype) -> None:
    batches = [(torch.randn(shape) * 5).to(dtype) for shape in [(4, 7), (1,), (2, 3, 5), ()]]
    collector = kind(TokenMask())
    for x in batches:
        collector.update(x)
    values = np.concatenate([x.float().numpy().ravel() for x in batches])
    assert (float(collector.lower), float(collector.upper)) == (values.min(), values.max())
    assert collector.count == values.size
    assert collector.lower.dtype == collector.upper.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_seen_is_no_count(kind: type[MinMaxCollector]) -> None:
    collector = kind(TokenMask())
    collector.update(torch.empty(0, 4))
    assert collector.count == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_what_is_not_finite_is_not_forgotten(kind: type[MinMaxCollector], bad: float) -> None:
    collector = kind(TokenMask())
    for value in (1.0, bad, 2.0):
        collector.update(torch.tensor([value, 0.5]))
    assert not (math.isfinite(float(collector.lower)) and math.isfinite(float(collector.upper)))


# --- histogram ---


def test_counts_equal_numpy() -> None:
    for values in (torch.randn(5000), torch.rand(5000) * 1e-6, awkward_values(), -torch.rand(3000) - 7):
        collector = histogram(values)
        numbers, half = values.double().numpy(), collector.half
        # numpy closes a bin below and opens it above; mirrored, that is what bins of magnitudes do.
        edges = np.arange(half + 1) * collector.width
        upper, _ = np.histogram(numbers[numbers > 0], edges)
        lower, _ = np.histogram(-numbers[numbers < 0], edges)
        zeros = int((numbers == 0).sum())
        counts = collector.counts.numpy()
        np.testing.assert_array_equal(counts[half:], upper[1:])
        np.testing.assert_array_equal(counts[: half - 1][::-1], lower[1:])
        assert counts[half - 1] == upper[0] + lower[0] + zeros, "the one in the middle reaches both ways"
        magnitudes, same_edges = collector.magnitudes
        np.testing.assert_array_equal(same_edges.numpy(), edges)
        np.testing.assert_array_equal(magnitudes.numpy(), np.histogram(np.abs(numbers), edges)[0])
        assert int(collector.counts.sum()) == collector.count == len(values)


def test_edges_are_those_of_the_bins() -> None:
    collector = histogram(torch.tensor([-3.0, 0.1, 2.0]), half=4)
    assert collector.edges.tolist() == [-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0]
    assert collector.counts.tolist() == [1, 0, 0, 1, 0, 1, 0]


def test_width_is_the_smallest_power_of_two_that_reaches_all() -> None:
    for amax in (1.0, 1.0001, 0.9999, 3e-5, 2.0**20, 1e-30, 3e38):
        collector = histogram(torch.tensor([amax, -amax / 3]))
        assert math.log2(collector.width).is_integer()
        assert collector.width * collector.half > collector.upper
        assert collector.width * collector.half / 2 <= collector.upper


@pytest.mark.parametrize("half", [4, 128, 2048])
def test_order_and_batches_do_not_matter(half: int) -> None:
    values = awkward_values()
    whole = histogram(values, half=half)
    generator = torch.Generator().manual_seed(1)
    orders = [values.sort().values, values.abs().sort().indices, values.abs().sort(descending=True).indices]
    orders = [orders[0], values[orders[1]], values[orders[2]], values[torch.randperm(len(values), generator=generator)]]
    for ordered in orders:
        for size in (1, 37, 1000):
            some = torch.cat([ordered[:60], ordered[-60:]]) if size == 1 else ordered
            want = histogram(some, half=half)
            parts = some.split(size)
            assert same(histogram(*parts, half=half), want)
            assert same(histogram(*reversed(parts), half=half), want)
        assert same(histogram(*values.split(100), half=half), whole)


@pytest.mark.parametrize("half", [4, 128, 2048])
@pytest.mark.parametrize("kind", KINDS)
def test_parts_merge_to_the_whole(kind: type[MinMaxCollector], half: int) -> None:
    """However values are divided: by size, so that widths differ, or at random; even where a part saw nothing."""

    def collected(*parts: Tensor) -> MinMaxCollector:
        collector = MinMaxCollector(TokenMask()) if kind is MinMaxCollector else HistogramCollector(TokenMask(), half)
        for part in parts:
            collector.update(part)
        return collector

    values = awkward_values()
    whole = contents(collected(values))
    zeros, nothing = torch.zeros(3), torch.empty(0)
    for ordered in (values, values[values.abs().argsort()], values[values.abs().argsort(descending=True)]):
        parts = [collected(part) for part in (*ordered.split(500), nothing)]
        for order in (parts, parts[::-1]):
            merged = collected()
            for part in order:
                merged.merge(part.state())
            assert contents(merged) == whole
    merged = collected(zeros)
    merged.merge(collected(values).state())
    assert contents(merged) == contents(collected(zeros, values))


@pytest.mark.parametrize("kind", KINDS)
def test_broken_values_are_not_lost_in_a_merge(kind: type[MinMaxCollector]) -> None:
    good, bad = kind(TokenMask()), kind(TokenMask())
    good.update(torch.ones(3))
    bad.update(torch.tensor([math.nan]))
    good.merge(bad.state())
    assert not good.is_finite


def test_zeros_before_the_first_value_count() -> None:
    late, early = histogram(torch.zeros(7), torch.tensor([3.0])), histogram(torch.tensor([3.0]), torch.zeros(7))
    assert same(late, early)
    assert int(late.counts[late.half - 1]) == 7
    assert histogram(torch.zeros(7)).width == 0.0


def test_long_tensor_is_counted_in_pieces_and_exactly() -> None:
    x = torch.full((2**18 * 3 + 5,), 0.5)
    collector = histogram(x)
    assert int(collector.counts.max()) == collector.count == len(x)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_does_not_grow_with_the_data(kind: type[MinMaxCollector]) -> None:
    collector = kind(TokenMask())

    def feed(batches: int) -> int:
        for index in range(batches):
            collector.update(torch.randn(4, 8, 16) * (1 + index % 7))
        return sum(tensor.nbytes for tensor in collector.state().values())

    feed(20)
    tracemalloc.start()
    first = feed(20)
    before = tracemalloc.get_traced_memory()[0]
    second = feed(300)
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert second == first
    assert after - before < 10_000


# --- one tensor in several slots ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0.0, 1e-3, 100.0], ids=["nothing", "small", "large"])
def test_a_tensor_that_was_counted_is_not_counted_again(kind: type[MinMaxCollector], before: float) -> None:
    """What the second collector holds is what it would have found itself, whatever either of them saw before."""
    x = torch.randn(6, 4, 8)
    looked: list[Tensor] = []

    class Watched(TokenMask):
        def chunks(self, x: Tensor) -> Iterator[Tensor]:
            looked.append(x)
            return super().chunks(x)

    for earlier in ((before, 0.0), (0.0, before), (before, before)):
        mask = Watched()
        one, other = kind(mask), kind(mask)
        for collector, value in zip((one, other), earlier, strict=True):
            collector.update(torch.full((3,), value))
        looked.clear()
        one.update(x)
        other.update(x)
        alone = kind(TokenMask())
        alone.update(torch.full((3,), earlier[1]))
        alone.update(x)
        assert contents(other) == contents(alone)
        if earlier[0] == earlier[1]:
            assert len(looked) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_changed_in_place_or_with_the_batch_is_another_tensor(kind: type[MinMaxCollector]) -> None:
    mask = TokenMask()
    one, other = kind(mask), kind(mask)
    x = torch.ones(2, 3, 4)
    one.update(x)
    other.update(x.mul_(5))
    assert (float(one.upper), float(other.upper)) == (1.0, 5.0)
    mask.set(torch.tensor([[1, 0, 0], [1, 1, 1]]))
    other.update(x)
    assert other.count == x.numel() + 4 * 4
    with torch.inference_mode():
        y = torch.ones(5)
        one.update(y)
        other.update(y.mul_(9))
    assert float(other.upper) == 9.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_gone_is_not_taken_for_its_successor(kind: type[MinMaxCollector]) -> None:
    collector = kind(TokenMask())
    for value in range(50):  # each likely at the place of the one before
        collector.update(torch.full((1,), float(value)))
    assert (collector.count, float(collector.upper)) == (50, 49.0)


def test_a_collector_of_another_kind_looks_for_itself() -> None:
    mask, x = TokenMask(), torch.randn(50)
    extremes, fine, coarse = MinMaxCollector(mask), HistogramCollector(mask), HistogramCollector(mask, 64)
    for collector in (extremes, fine, coarse):
        collector.update(x)
    assert same(fine, histogram(x))
    assert same(coarse, histogram(x, half=64))


# --- padding ---


def lengths_to_mask(lengths: list[int], total: int, *, left: bool = False) -> Tensor:
    mask = (torch.arange(total)[None] < torch.tensor(lengths)[:, None]).long()
    return mask.flip(1) if left else mask


def pad(rows: list[Tensor], total: int, *, left: bool = False, dim: int = 0, value: float = math.nan) -> Tensor:
    """Rows of ``(seq, ...)`` in one tensor, NaN in the padding."""
    padded = []
    for row in rows:
        shape = list(row.shape)
        shape[dim] = total - shape[dim]
        fill = torch.full(shape, value)
        padded.append(torch.cat([fill, row] if left else [row, fill], dim=dim))
    return torch.stack(padded)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_never_counts(kind: type[MinMaxCollector], left: bool) -> None:
    lengths = [3, 7, 1, 5]
    rows = [torch.randn(length, 6) for length in lengths]
    heads = [torch.randn(2, length, 4) for length in lengths]
    held = []
    for total in (7, 8, 31):
        mask = TokenMask()
        collector = kind(mask)
        mask.set(lengths_to_mask(lengths, total, left=left))
        collector.update(pad(rows, total, left=left))
        collector.update(pad(heads, total, left=left, dim=1))
        held.append(contents(collector))
        assert collector.count == sum(lengths) * (6 + 8)
    assert held[0] == held[1] == held[2]

    one_by_one = kind(TokenMask())
    for row, head in zip(rows, heads, strict=True):
        one_by_one.update(row[None])
        one_by_one.update(head[None])
    assert contents(one_by_one) == held[0]


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_attention_weights_lose_padding_on_both_axes(left: bool) -> None:
    lengths = [3, 5, 1]
    rows = [torch.rand(2, length, length) for length in lengths]
    want = torch.cat([row.flatten() for row in rows])
    for total in (5, 9):
        x = pad(
            [pad(list(row.unbind(1)), total, left=left, dim=1, value=0.0).transpose(0, 1) for row in rows],
            total,
            left=left,
            dim=1,
        )
        assert x.shape == (3, 2, total, total)
        mask = TokenMask(keys=True)
        mask.set(lengths_to_mask(lengths, total, left=left))
        got = mask.select(x)
        assert torch.equal(got.flatten().sort().values, want.sort().values)


def test_only_attention_weights_lose_their_last_axis() -> None:
    mask = TokenMask()
    mask.set(lengths_to_mask([2, 4], 4))
    x = torch.randn(2, 3, 4, 4)
    assert mask.select(x).shape == (6, 3, 4), "head size equal to the length: all of a token's values count"
    keyed = TokenMask(keys=True)
    keyed.set(lengths_to_mask([2, 4], 4))
    assert keyed.select(x).numel() == 3 * (2 * 2 + 4 * 4)
    assert keyed.select(torch.randn(2, 3, 4, 9)).shape == (6, 3, 9), "other keys than these positions"


def test_tensors_without_positions_are_taken_whole() -> None:
    mask = TokenMask()
    mask.set(lengths_to_mask([2, 4], 4))
    for shape in [(2, 8), (2, 1, 8), (3, 4, 8), (4,), (2, 3, 5, 6), (2, 4, 3, 2, 1)]:
        x = torch.randn(shape)
        assert mask.select(x) is x


def test_full_mask_no_mask_and_next_batch() -> None:
    mask, x = TokenMask(), torch.randn(2, 4, 8)
    assert mask.select(x) is x
    mask.set(torch.ones(2, 4))
    assert mask.select(x) is x
    mask.set(lengths_to_mask([1, 4], 4))
    assert mask.select(x).shape == (5, 8)
    mask.set(None)
    assert mask.select(x) is x


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32], ids=str)
def test_masks_of_any_type(dtype: torch.dtype) -> None:
    mask = TokenMask()
    mask.set(lengths_to_mask([1, 3], 4).to(dtype))
    assert mask.select(torch.randn(2, 4, 8)).shape == (4, 8)


def test_choices_are_rows_of_their_own() -> None:
    mask = TokenMask()
    mask.set(lengths_to_mask([1, 4, 2, 2], 4).reshape(2, 2, 4))
    assert mask.select(torch.randn(4, 4, 8)).shape == (9, 8)
