"""Tables and values of other packages as rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from qdq.data.examples import read_examples
from qdq.data.in_memory import columns_of
from qdq.data.labels import Labels
from qdq.data.source import open_source
from qdq.errors import DataError

pa = pytest.importorskip("pyarrow")
ROWS = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


@pytest.mark.parametrize("table", [pd.DataFrame(ROWS), pa.Table.from_pylist(ROWS)], ids=["pandas", "pyarrow"])
def test_a_table_gives_its_rows_and_not_the_names_of_its_columns(table: Any) -> None:
    assert [record.values for record in open_source(table)] == ROWS


def test_what_pandas_has_for_a_missing_text_is_no_text() -> None:
    frame = pd.DataFrame({"text": pd.array(["a", pd.NA, "b"]), "label": [0, 1, 0]})
    assert [e.text for e in read_examples(frame, "feature-extraction")] == ["a", "b"]  # type: ignore[union-attr]
    frame = pd.DataFrame({"text": ["a", float("nan")], "label": [0, 1]})
    assert [e.text for e in read_examples(frame, "feature-extraction")] == ["a"]  # type: ignore[union-attr]


@pytest.mark.parametrize("label", [np.int64(1), np.float32(1), torch.tensor(1), np.bool_(True), "1", 1.0])
def test_numbers_of_other_packages_are_labels(label: object) -> None:
    (example,) = read_examples([{"text": "a", "label": label}], "sequence-classification", labels=Labels(("x", "y")))
    assert example.label == 1


def test_arrays_are_lists() -> None:
    assert columns_of({"input_ids": np.array([1, 2])}) == {"input_ids": [1, 2]}


def test_splits_in_memory() -> None:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict({name: datasets.Dataset.from_list(ROWS) for name in ("train", "test")})
    assert [record.values for record in open_source(both, split="test")] == ROWS
    with pytest.raises(DataError, match="have the splits 'train', 'test'"):
        open_source(both)
    with pytest.raises(DataError, match="no split 'x'"):
        open_source(both, split="x")
