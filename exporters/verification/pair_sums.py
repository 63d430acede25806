"""Sums of pairs that would saturate on CPUs without VNNI, counted over the batches of a proof."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from exporters.onnx.load import load_onnx
from exporters.onnx.saturation import SaturationCount, count_saturated_pairs, risky_products

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np

    from exporters.onnx.segments import Cut

__all__ = ["PairSums"]


class PairSums:
    """Counts the pair sums that would saturate, with the integers that torch finds."""

    def __init__(self, path: Path | None) -> None:
        self._products = [] if path is None else risky_products(load_onnx(path).graph)
        self._found: dict[str, SaturationCount] = {}

    def add(self, cuts: Iterable[Cut], fed: Mapping[str, np.ndarray]) -> None:
        """Count one batch; ``fed`` are the integers by name of the graph's input."""
        integers = {piece.output: fed[piece.input] for piece in cuts if piece.input in fed}
        for product in self._products:
            if product.activations not in integers:
                continue
            new = count_saturated_pairs(product, integers[product.activations])
            old = self._found.get(product.name, replace(new, pairs=0, saturated=0, worst=0))
            self._found[product.name] = replace(
                new,
                pairs=old.pairs + new.pairs,
                saturated=old.saturated + new.saturated,
                worst=max(old.worst, new.worst),
            )

    def rows(self) -> list[SaturationCount]:
        """One for each product whose weights could saturate."""
        return list(self._found.values())

    def problems(self) -> list[str]:
        """The products that do saturate, in words."""
        return [
            f"{row.name}: {row.saturated:,} of {row.pairs:,} sums of pairs leave 16 bits on CPUs without VNNI, the "
            f"largest is {row.worst:,}: export for them (--isa avx2), or with overflow_safe weights"
            for row in self.rows()
            if row.saturated
        ]
