"""Count the pair sums that would saturate on CPUs without VNNI, over the batches of a verification."""

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
    """Count the pair sums that would saturate, with the integers that torch computes.

    Args:
        path: The ONNX file; None counts nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._products = [] if path is None else risky_products(load_onnx(path).graph)
        self._found: dict[str, SaturationCount] = {}

    def add(self, cuts: Iterable[Cut], fed: Mapping[str, np.ndarray]) -> None:
        """Count one batch.

        Args:
            cuts: The cuts of the graph.
            fed: The integers that each segment was given, by the name of its graph input.
        """
        integers = {cut.output: fed[cut.input] for cut in cuts if cut.input in fed}
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
        """Return the counts of each product whose weights could saturate."""
        return list(self._found.values())

    def problems(self) -> list[str]:
        """Describe the products that saturate."""
        return [
            f"{row.name}: {row.saturated:,} of {row.pairs:,} sums of pairs exceed 16 bits on CPUs without VNNI, the "
            f"largest is {row.worst:,}: export for them (--isa avx2), or with overflow_safe weights"
            for row in self.rows()
            if row.saturated
        ]
