"""The commands on a QDQBERT checkpoint as others made it."""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING, Any, Protocol

import pytest

import qdq
from qdq.cli.main import main
from qdq.quantization.quantizer import quantizers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.interop.pytorch_quantization.conftest import Golden


class RunJson(Protocol):
    """Runs ``qdq`` with ``--json``."""

    def __call__(self, *arguments: object) -> dict[str, Any]: ...


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> RunJson:
    """Return a function that runs ``qdq`` and returns its JSON document."""

    def run(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        document: dict[str, Any] = json.loads(captured.out)
        return document

    return run


@pytest.mark.parametrize("kind", ["dynamic", "calibrated"])
def test_inspect(kind: str, golden_classifier: Golden, run_json: RunJson, tmp_path: Path) -> None:
    folder = golden_classifier.write(
        tmp_path / "c", golden_classifier.state if kind == "calibrated" else golden_classifier.weights
    )
    document = run_json("inspect", folder)
    assert (document["quantized"], document["recipe"], document["calibration"]) == (True, None, None)
    assert len(document["slots"]) == 40
    (row,) = (row for row in document["slots"] if row["slot"] == "encoder.layers.1.feed_forward.add.other")
    if kind == "dynamic":
        assert row["scale"] is row["range"] is None
    else:
        amax = float(golden_classifier.amax["bert.encoder.layer.1.output.add_residual_input_quantizer._amax"])
        assert row["range"] == [-amax, amax]
        assert row["scale"] == [pytest.approx(amax / 127), pytest.approx(amax / 127)]


def test_inspect_in_words(golden_classifier: Golden, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def words(folder: Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(folder)])
        assert not ended.value.code
        return capsys.readouterr().out

    theirs = golden_classifier.write(tmp_path / "c")
    origin = {"method": "pytorch-quantization"}
    qdq.save(qdq.load(theirs), tmp_path / "q", recipe=qdq.load_recipe("qdqbert"), calibration=origin)
    for folder, expected in (
        (theirs, "with the ranges of pytorch-quantization"),
        (tmp_path / "q", "ranges from pytorch-quant"),
    ):
        assert expected in words(folder)
        assert "28 x int8 symmetric per-tensor (pytorch-quantization arithmetic)" in words(folder)


def test_calibrate_begins_from_the_float_model(golden_classifier: Golden, run_json: RunJson, tmp_path: Path) -> None:
    folder = golden_classifier.write(tmp_path / "c")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    (folder / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "data.txt").write_text("a b c d\ne f g\nx y z\n")
    run_json("calibrate", "-m", folder, "-o", tmp_path / "q", "--calib-data", tmp_path / "data.txt", "--seq-len", 8)
    model = qdq.load(tmp_path / "q")
    arithmetics = {q.spec.arithmetic for _, q in quantizers(model) if q.spec is not None}
    assert arithmetics == {"onnx"}


def test_export_and_verification(golden_classifier: Golden, run_json: RunJson, tmp_path: Path) -> None:
    """Ranges as they came; TensorRT's graph is the one that transformers exports, too."""
    folder = golden_classifier.write(tmp_path / "c")
    run_json("export", "-m", folder, "-o", tmp_path / "trt", "--target", "tensorrt", "--recipe", "qdqbert")
    assert run_json("verify", "-m", folder, tmp_path / "trt")["holds"] is True
