"""Matrix product and addition as modules."""

from __future__ import annotations

import torch

from qdq.models.ops import Add, MatMul


def test_operations_as_modules() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert torch.equal(MatMul()(a, b), a @ b)
    assert torch.equal(MatMul(transpose_other=True)(a, b.transpose(-1, -2)), a @ b)
    assert torch.equal(Add()(a, a), a + a)
    assert repr(MatMul(transpose_other=True)) == "MatMul(transpose_other=True)"
    assert not [*MatMul().parameters(), *Add().parameters()]
