from __future__ import annotations

import numpy as np
import pytest
import torch

from exporters.verification.recording import RecordedTensor, _largest
from qdq.quantization.quantizer import Quantizer
from qdq.quantization.spec import QuantSpec
from qdq.quantization.transform import Transform

ONE = np.float32(1)


@pytest.mark.parametrize(
    ("largest", "matches"),
    [(None, [False, False]), (np.float32([300, 10]), [True, False])],
    ids=["plain", "transformed"],
)
def test_what_was_rounded_before_a_transform_counts(largest: np.ndarray | None, matches: list[bool]) -> None:
    """Two steps off: 1 % of 11 steps does not explain that, of 300 steps it does."""
    record = RecordedTensor.of(np.float32([[10.9, 10.9]]), np.float32([[11, 11]]), ONE, np.int32(0), largest=largest)
    assert record.matches(np.float32([[13, 13]]), 0.01).tolist() == [matches]
    assert not record.matches(np.float32([[13, 13]]), 0.0).any(), "in float32 there is nothing to explain"


def test_the_largest_value_before_a_transform_in_steps_of_each_channel() -> None:
    quantizer = Quantizer(QuantSpec())
    scale = torch.tensor(0.5)
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert _largest(quantizer, x, scale) is None
    quantizer.transform = Transform(shift=torch.tensor([10.0, 0.0]), smoothing_scale=torch.tensor([1.0, 4.0]))
    before = torch.tensor([[11.0, -7.0], [2.0, 5.0]])
    found = _largest(quantizer, quantizer.transform(before), scale)
    assert found is not None
    np.testing.assert_allclose(found, [11 * 1 / 0.5, 11 * 4 / 0.5])
