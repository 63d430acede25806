from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest

from exporters.tensorrt.plan_metadata import is_plan, metadata_path, read_metadata, write_metadata
from exporters.tensorrt.report import engine_report
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from tests.exporters.tensorrt.conftest import BuiltEngine


@pytest.fixture
def plan(built_engine: BuiltEngine, small_model: Path, tmp_path: Path) -> Path:
    engine, source = built_engine
    copy = tmp_path / "m.plan"
    copy.write_bytes(source.read_bytes())
    write_metadata(
        copy, engine, engine_report(ir.load(small_model), engine.kernels), [{"id": "W1"}], source=small_model
    )
    return copy


def test_there_and_back(built_engine: BuiltEngine, small_model: Path, plan: Path) -> None:
    engine, _ = built_engine
    record = read_metadata(plan)
    assert record["report"] == engine_report(ir.load(small_model), engine.kernels)
    assert record["layers"] == list(engine.kernels)
    assert record["backend"] == engine.backend
    assert record["findings"] == [{"id": "W1"}]
    assert Path(record["source"]) == small_model.parent.resolve()


def test_a_plan_is_known_by_its_name_or_its_record(plan: Path, tmp_path: Path) -> None:
    assert is_plan(plan)
    assert is_plan(Path("nowhere.engine"))
    assert not is_plan(tmp_path / "model.onnx")
    other = tmp_path / "anything"
    other.write_bytes(b"")
    assert not is_plan(other)
    metadata_path(other).write_text("{}")
    assert is_plan(other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "not a format that this version reads"),
        ({"sha256": "0"}, "belongs to another engine"),
        ({"report": {}}, "is missing or has another type"),
        ({"layers": [{}]}, "is missing or has another type"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_record_that_does_not_fit_is_refused(plan: Path, change: dict[str, Any], words: str) -> None:
    path = metadata_path(plan)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=words):
        read_metadata(plan)


def test_without_plan_or_record(plan: Path) -> None:
    metadata_path(plan).unlink()
    with pytest.raises(CheckpointError, match="which qdq build writes beside it"):
        read_metadata(plan)
    plan.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        read_metadata(plan)
