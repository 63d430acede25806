"""The commands on a QDQBERT checkpoint as others made it."""

from __future__ import annotations

import json
import logging
import string
from typing import TYPE_CHECKING, Any

import pytest

import qdq
from qdq.cli.main import main
from qdq.quantization.quantizer import quantizers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """A command sets up logging for its process, to a stream that is gone after the test."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    for room in ("qdq", "calibration", "exporters"):
        logging.getLogger(room).setLevel(logging.NOTSET)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs ``qdq`` and gives its JSON document."""

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
def test_inspect(kind: str, choice: Any, run: Any, tmp_path: Path) -> None:
    folder = choice.write(tmp_path / "c", choice.state if kind == "calibrated" else choice.weights)
    document = run("inspect", folder)
    assert (document["quantized"], document["recipe"], document["calibration"]) == (True, None, None)
    assert len(document["slots"]) == 40
    (row,) = (row for row in document["slots"] if row["slot"] == "encoder.layers.1.feed_forward.add.other")
    if kind == "dynamic":
        assert row["scale"] is row["range"] is None
    else:
        amax = float(choice.amax["bert.encoder.layer.1.output.add_residual_input_quantizer._amax"])
        assert row["range"] == [-amax, amax]
        assert row["scale"] == [pytest.approx(amax / 127), pytest.approx(amax / 127)]


def test_inspect_in_words(choice: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def words(folder: Path) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(folder)])
        assert not ended.value.code
        return capsys.readouterr().out

    theirs = choice.write(tmp_path / "c")
    origin = {"method": "pytorch-quantization"}
    qdq.save(qdq.load(theirs), tmp_path / "q", recipe=qdq.load_recipe("qdqbert"), calibration=origin)
    for folder, expected in (
        (theirs, "as pytorch-quantization left it"),
        (tmp_path / "q", "ranges from pytorch-quant"),
    ):
        assert expected in words(folder)
        assert "28 x int8 symmetric per-tensor (pytorch-quantization arithmetic)" in words(folder)


def test_calibrate_begins_from_the_float_model(choice: Any, run: Any, tmp_path: Path) -> None:
    folder = choice.write(tmp_path / "c")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    (folder / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "data.txt").write_text("a b c d\ne f g\nx y z\n")
    run("calibrate", "-m", folder, "-o", tmp_path / "q", "--calib-data", tmp_path / "data.txt", "--seq-len", 8)
    model = qdq.load(tmp_path / "q")
    arithmetics = {q.spec.arithmetic for _, q in quantizers(model) if q.spec is not None}
    assert arithmetics == {"onnx"}


def test_export_and_proof(choice: Any, run: Any, tmp_path: Path) -> None:
    """Ranges as they came; TensorRT's form is the one that upstream exports, too."""
    folder = choice.write(tmp_path / "c")
    run("export", "-m", folder, "-o", tmp_path / "trt", "--target", "tensorrt", "--recipe", "qdqbert")
    assert run("verify", "-m", folder, tmp_path / "trt")["holds"] is True
