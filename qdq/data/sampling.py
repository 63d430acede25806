"""Drawing a few of many, in one pass."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

from qdq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["draw"]

T = TypeVar("T")


def draw(samples: Iterable[T], num_samples: int | None, seed: int) -> list[T]:
    """At most ``num_samples`` of the samples, uniformly at random, in their own order.

    Reservoir sampling (Vitter 1985, algorithm R): one pass, memory for ``num_samples`` only, the same choice for the
    same seed everywhere. ``None``, or no more samples than asked for, gives them all.

    Raises:
        ConfigError: ``num_samples`` is below 1.
    """
    if num_samples is None:
        return list(samples)
    if num_samples < 1:
        raise ConfigError(f"the number of samples must be at least 1, not {num_samples}")
    generator = random.Random(seed)
    reservoir: list[tuple[int, T]] = []
    for index, sample in enumerate(samples):
        if index < num_samples:
            reservoir.append((index, sample))
            continue
        # random() is the one method whose sequence Python promises to keep across versions
        place = int(generator.random() * (index + 1))
        if place < num_samples:
            reservoir[place] = (index, sample)
    return [sample for _, sample in sorted(reservoir, key=lambda entry: entry[0])]
