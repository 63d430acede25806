"""Pooling against sentence-transformers."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from qdq.source import Pooling as PoolingName
from qdq.tasks.pooling import pool


@pytest.mark.parametrize("how", get_args(PoolingName))
def test_against_sentence_transformers(how: PoolingName) -> None:
    hidden, mask = torch.randn(4, 7, 5), torch.ones(4, 7, dtype=torch.int64)
    mask[1, 3:] = 0
    mask[2, :2] = 0  # padding on the left
    expected = Pooling(5, pooling_mode=how)({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]
    found = pool(hidden.numpy(), mask.numpy(), how)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
