"""What an earlier version wrote is read, verified and gone on from: one of each format on disk.

``version-0.1.0.tar.gz`` was made with the commands below and the code of that version, from a BERT of two layers with
random weights and 40 made-up sentences. ``resumed.calibration`` is what a calibration left that was interrupted in its
third batch of ranges, ``retrained.training`` what a training left in its fifth step:

    qdq calibrate -m float -o quantized --calib-data text.txt -r tensorrt --calibrator percentile
        --seq-len 16 --batch-size 4
    qdq calibrate -m float -o plain --calib-data text.txt -r onnxruntime --calibrator percentile --no-refinement
        --seq-len 16 --batch-size 4 --save-statistics statistics.safetensors
    qdq export -m quantized -o export --target tensorrt
    qdq export -m plain -o export-ort --target onnxruntime
    qdq build -m export -o export/model.plan --min-shapes 1x4 --opt-shapes 2x8 --max-shapes 4x16
    qdq finetune -m quantized -o trained --train-data train.tsv --max-steps 6 --save-steps 2 --batch-size 8
        --ranges learned
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qdq
from calibration.digests import model_digest
from calibration.statistics.statistics_file import SavedStatistics
from exporters.directory import verify
from exporters.tensorrt.plan_metadata import read_metadata
from qdq.cli.main import main
from qdq.models.registry import build, configure

CALIBRATE = ["--calib-data", "text.txt", "--calibrator", "percentile", "--seq-len", "16", "--batch-size", "4", "-q"]


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory with everything, which is the working directory, too: paths in the files are relative."""
    with tarfile.open(Path(__file__).with_name("version-0.1.0.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code in (0, None)


def assert_same_tensors(path: Path, other: Path) -> None:
    """Equal up to the last bits, in which sums on another CPU may differ."""
    found, wanted = load_file(path), load_file(other)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}: {text}")  # noqa: B023


@pytest.mark.parametrize("name", ["float", "quantized", "plain", "trained"])
def test_checkpoints_load_and_save_to_the_same(name: str, old: Path, tmp_path: Path) -> None:
    model = qdq.load(old / name)
    assert model.task == "sequence-classification"
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    assert torch.isfinite(model(ids).logits).all()


@pytest.mark.parametrize(("checkpoint", "export"), [("quantized", "export"), ("plain", "export-ort")])
def test_exports_verify(checkpoint: str, export: str, old: Path) -> None:
    report = verify(old / checkpoint, old / export)
    assert report.problems == []
    assert report.segments


def test_the_record_of_an_engine_is_read(old: Path) -> None:
    plan = old / "export" / "model.plan"
    plan.write_bytes(b"")  # the engine itself is not kept: three megabytes that only one release of TensorRT opens
    record = old / "export" / "model.plan.json"
    document = json.loads(record.read_text()) | {"sha256": hashlib.sha256(b"").hexdigest()}
    record.write_text(json.dumps(document))
    found = read_metadata(plan)
    written = {"layers": [kernel.to_dict() for kernel in found["layers"]], "report": found["report"].to_dict()}
    assert json.loads(json.dumps(written)) == {name: document[name] for name in written}


SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
}


@pytest.mark.parametrize(
    ("model_type", "fields", "digest"),
    [
        ("bert", {}, "6aa2d8b71ae99deb"),
        ("qdqbert", {}, "5a081582cbc6ea3b"),
        ("albert", {"embedding_size": 8}, "e98306a75f7c968f"),
        ("roberta-prelayernorm", {"foo": 1}, "5def19c8c3b334c2"),
        ("megatron-bert", {"classifier_dropout": 0.3}, "9bfd8c0ea343b7fc"),
        ("realm", {"id2label": {"0": "a", "1": "b"}}, "668209111b3087fe"),
    ],
)
def test_models_are_recognised_by_the_digest_of_version_0_1_0(
    model_type: str, fields: dict[str, object], digest: str
) -> None:
    model = build(configure(model_type, **SIZES, **fields), "feature-extraction")
    for parameter in model.parameters():
        parameter.data.fill_(0.5)
    assert model_digest(model) == digest


def test_an_interrupted_calibration_goes_on(old: Path) -> None:
    command("calibrate", "-m", "float", "-o", "resumed", "-r", "tensorrt", *CALIBRATE, "--resume")
    assert not (old / "resumed.calibration").exists()
    assert_same_tensors(old / "resumed" / "quantizers.safetensors", old / "quantized" / "quantizers.safetensors")
    record = json.loads((old / "resumed" / "quantization.json").read_text())
    wanted = json.loads((old / "quantized" / "quantization.json").read_text())
    for document in (record, wanted):
        document["calibration"].pop("warnings")  # sentences, which are not a format
    assert record["calibration"] == wanted["calibration"]
    assert record.keys() == wanted.keys()


def test_statistics_are_added_to_those_of_a_new_run(old: Path) -> None:
    statistics = SavedStatistics.load(old / "statistics.safetensors")
    assert statistics
    command(
        *("calibrate", "-m", "float", "-o", "summed", "-r", "onnxruntime", "--no-refinement", *CALIBRATE),
        *("--add-statistics", "statistics.safetensors"),
    )
    # The same data twice has the ranges of the data once.
    assert_same_tensors(old / "summed" / "quantizers.safetensors", old / "plain" / "quantizers.safetensors")


def test_an_interrupted_training_goes_on(old: Path) -> None:
    command(
        *("finetune", "-m", "quantized", "-o", "retrained", "--train-data", "train.tsv", "--max-steps", "6"),
        *("--save-steps", "2", "--batch-size", "8", "--ranges", "learned", "-q", "--resume"),
    )
    for file in ("model.safetensors", "quantizers.safetensors"):
        assert_same_tensors(old / "retrained" / file, old / "trained" / file)
