"""Statistics in files, and sums of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibration import HistogramCollector, MinMaxCollector, TokenMask
from calibration.statistics.statistics_file import SavedStatistics, merge_statistics
from qdq.errors import CalibrationError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

IDENTITY = {"model": "abc", "recipe": "linear"}
KINDS = [MinMaxCollector, HistogramCollector]
SLOTS = ("encoder.layers.0.up.input", "pooler.dense.input")


def collected(kind: type[MinMaxCollector], *values: Tensor, **changes: Any) -> SavedStatistics:
    slots = {}
    for number, slot in enumerate(SLOTS, 1):
        collector = kind(TokenMask())
        for x in values:
            collector.update(x * number)
        slots[slot] = collector.state()
    fields = {"identity": IDENTITY, "kind": kind.kind, "samples": 3, "tokens": 30, "slots": slots}
    return SavedStatistics(**{**fields, **changes})


def same(one: SavedStatistics, other: SavedStatistics) -> bool:
    assert (one.identity, one.kind) == (other.identity, other.kind)
    assert one.slots.keys() == other.slots.keys()
    return all(
        torch.equal(one.slots[slot][name], other.slots[slot][name]) for slot in one.slots for name in one.slots[slot]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_and_back(kind: type[MinMaxCollector], tmp_path: Path) -> None:
    state = collected(kind, torch.randn(500))
    state.save(tmp_path / "a")
    read = SavedStatistics.load(tmp_path / "a")
    assert same(read, state)
    assert (read.samples, read.tokens) == (3, 30)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_add_up_to_one_run(kind: type[MinMaxCollector], tmp_path: Path) -> None:
    parts = [torch.randn(700) * 3.0**n for n in range(-3, 4)]
    files = []
    for n, part in enumerate(parts):
        files.append(tmp_path / str(n))
        collected(kind, part).save(files[-1])
    whole = collected(kind, *parts)
    for order in (files, files[::-1]):
        total = merge_statistics([SavedStatistics.load(file) for file in order])
        assert same(total, whole)
        assert (total.samples, total.tokens) == (21, 210)


def test_nothing_else_is_added() -> None:
    state = collected(MinMaxCollector, torch.ones(3))
    other = collected(HistogramCollector, torch.ones(3), identity={"model": "xyz", "recipe": "linear"})
    with pytest.raises(CalibrationError) as caught:
        merge_statistics([state, state, other])
    text = str(caught.value)
    assert "number 2: model: xyz there, abc here" in text
    assert "number 2: collector: histogram there, min-max here" in text
    assert "recipe" not in text
    fewer = SavedStatistics(**{**vars(state), "slots": {SLOTS[0]: state.slots[SLOTS[0]]}})
    with pytest.raises(CalibrationError, match=r"slots: 1 are in only one of them \(pooler.dense.input"):
        merge_statistics([state, fewer])
    with pytest.raises(CalibrationError, match="no statistics"):
        merge_statistics([])


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(CalibrationError, match="no such file"):
        SavedStatistics.load(path)
    state = collected(HistogramCollector, torch.randn(10))
    state.save(path)
    good, tensors = path.read_bytes(), load_file(path)
    about = {"format": "1", "kind": "histogram", "samples": 1, "tokens": 1, "identity": {}}
    cut = {name: tensor[:5] if tensor.dim() else tensor for name, tensor in tensors.items()}

    def written(content: dict[str, Tensor], metadata: dict[str, str] | None) -> bytes:
        save_file(content, path, metadata=metadata)
        return path.read_bytes()

    for content in (
        b"",
        good[: len(good) // 2],
        written(tensors, None),
        written(tensors, {"qdq": "{"}),
        written(tensors, {"qdq": json.dumps({**about, "format": "2"})}),
        written(tensors, {"qdq": json.dumps({**about, "kind": "other"})}),
        written(tensors, {"qdq": json.dumps({**about, "surplus": 1})}),
        written(dict(list(tensors.items())[:-1]), {"qdq": json.dumps(about)}),
        written(cut, {"qdq": json.dumps(about)}),
    ):
        path.write_bytes(content)
        with pytest.raises(CalibrationError, match="collect them again"):
            SavedStatistics.load(path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="state"):
        collected(MinMaxCollector, torch.ones(1)).save(tmp_path / "none" / "state")
