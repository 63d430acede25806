from __future__ import annotations

import numpy as np
import pytest

from qdq.errors import ConfigError
from qdq.tasks.evaluation_settings import EvaluationSettings
from qdq.tasks.example_table import TableBuilder, rows_of


def test_rows_in_any_order_and_columns_apart() -> None:
    builder = TableBuilder("a", "b")
    order = np.random.default_rng(0).permutation(5000)
    for chunk in np.array_split(order, 37):
        builder.put(chunk, a=chunk * 2.0)
    builder.put([], a=[], b=[])
    builder.put(np.arange(5000), b=np.arange(5000) + 0.5)
    table = builder.finish()
    assert rows_of(table) == 5000
    np.testing.assert_array_equal(table["a"], np.arange(5000) * 2.0)
    np.testing.assert_array_equal(table["b"], np.arange(5000) + 0.5)


def test_no_rows() -> None:
    assert rows_of(TableBuilder("a").finish()) == 0
    assert rows_of({}) == 0


def test_settings_out_of_range_arrive_together() -> None:
    with pytest.raises(ConfigError) as refused:
        EvaluationSettings(batch_size=0, seq_len=2, n_best=0, seed=-1, pooling="sum")
    message = str(refused.value)
    assert "5 problems" in message
    assert "seq_len is 2, must be a whole number of at least 3" in message
    assert "pooling is 'sum', must be one of mean, cls, max" in message
