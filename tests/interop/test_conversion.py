"""QDQBERT's checkpoints under any name of the family, and the report of a conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qdq.checkpoint import load
from qdq.conversion import convert
from qdq.errors import CheckpointError, ConfigError
from tests.interop.support import GoldenFile

GOLDEN = Path(__file__).parent / "golden"


class Golden(GoldenFile):
    """A calibrated QDQBERT checkpoint of ``tools/golden_qdqbert.py``."""

    def __init__(self, name: str) -> None:
        super().__init__(GOLDEN / f"{name}.safetensors")
        self.config: dict[str, object] = self.about["config"]

    def write(self, folder: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
        folder.mkdir()
        config = {**self.config, **changes}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
        save_file(self.tensors("weight") if tensors is None else tensors, folder / "model.safetensors")
        return folder


@pytest.mark.parametrize("as_bert", [False, True], ids=["qdqbert", "bert"])
@pytest.mark.parametrize("name", ["question-answering", "masked-lm", "sequence-classification"])
def test_a_calibrated_qdqbert_computes_the_same(name: str, as_bert: bool, tmp_path: Path) -> None:
    golden = Golden(name)
    changes: dict[str, Any] = {}
    if as_bert:
        cls = golden.config["architectures"][0].replace("QDQBert", "Bert")
        changes = {"model_type": "bert", "architectures": [cls]}
    source = golden.write(tmp_path / "source", **changes)
    report = convert(source, tmp_path / "ours", format="pytorch-quantization")
    (tmp_path / "ours" / "quantization.json").stat()
    model = load(tmp_path / "ours")
    with torch.no_grad():
        output = model(**golden.tensors("in"))
    for field, wanted in golden.tensors("calibrated").items():
        torch.testing.assert_close(output[field], wanted, atol=1e-5, rtol=1e-5)
    reported = {entry.name for entry in report.mapped} | {entry.name for entry in report.skipped}
    assert reported == set(golden.tensors("weight"))
    slots = {entry.name: entry.targets for entry in report.mapped}
    amax = "bert.encoder.layer.0.attention.self.query._input_quantizer._amax"
    assert slots[amax] == ("encoder.layers.0.attention.query.input",)


def test_ranges_that_are_not_there_are_dynamic(tmp_path: Path) -> None:
    golden = Golden("question-answering")
    weights = {name: tensor for name, tensor in golden.tensors("weight").items() if not name.endswith("_amax")}
    report = convert(golden.write(tmp_path / "source", weights), tmp_path / "ours", format="pytorch-quantization")
    assert report.notes[0] == "40 of 40 quantizers have no range in the file and are dynamic"
    with torch.no_grad():
        output = load(tmp_path / "ours")(**golden.tensors("in"))
    for field, wanted in golden.tensors("dynamic").items():
        torch.testing.assert_close(output[field], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bert.encoder.layer.0.gate._input_quantizer._amax": torch.tensor(1.0)}, "QDQBERT has no such quantizer"),
        ({"bert.encoder.layer.0.gate.weight": torch.zeros(2, 2)}, r"gate\.weight is unknown"),
    ],
    ids=["quantizer", "weight"],
)
def test_unknown_tensors_are_refused(change: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    golden = Golden("question-answering")
    source = golden.write(tmp_path / "source", {**golden.tensors("weight"), **change})
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "ours", format="pytorch-quantization")
    assert not (tmp_path / "ours").exists()


def test_other_families_are_refused(tmp_path: Path) -> None:
    source = Golden("question-answering").write(tmp_path / "source", model_type="albert", architectures=...)
    with pytest.raises(ConfigError, match="model_type is 'albert'"):
        convert(source, tmp_path / "ours", format="pytorch-quantization")


def test_the_report_has_every_tensor_once(tmp_path: Path) -> None:
    golden = Golden("question-answering")
    report = convert(golden.write(tmp_path / "source"), tmp_path / "ours", format="pytorch-quantization")
    document = report.to_dict()
    names = [entry["name"] for entry in [*document["mapped"], *document["skipped"]]]
    assert sorted(names) == sorted(golden.tensors("weight"))
    assert json.loads(json.dumps(document)) == document
