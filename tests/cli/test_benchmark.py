"""``qdq benchmark``: rows for every model and shape; no figure here is held against a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Refused, Run

QUICK = ("--rounds", 1, "--warmup", 0, "--threads", 1, "--batch-size", 1, "--batch_size", 2, "--seq-len", 8)


def test_the_document(run: Run, exports: dict[str, Path]) -> None:
    ended = run("benchmark", exports["float"], exports["onnxruntime"] / "model.onnx", *QUICK, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    names = [str(exports["float"]), str(exports["onnxruntime"] / "model.onnx")]
    assert (document["baseline"], document["runtimes"], document["threads"]) == (names[0], ["onnxruntime"], 1)
    rows = [(row["name"], row["shape"]["batch_size"], row["shape"]["seq_len"]) for row in document["timings"]]
    assert rows == [(name, batch_size, 8) for name in names for batch_size in (1, 2)]
    assert [row["speedup"] for row in document["timings"][:2]] == [1, 1]
    for row in document["timings"]:
        assert 0 < row["p10_s"] <= row["median_s"] <= row["p90_s"] <= row["p99_s"]
        assert row["runtime"] == "onnxruntime"
        assert row["rounds"] == 1


def test_what_people_see(run: Run, exports: dict[str, Path]) -> None:
    ended = run("benchmark", exports["openvino"], *QUICK, "--runtime", "openvino")
    assert (ended.code, ended.err) == (0, "")
    assert "Latency in openvino, 1 threads" in ended.out
    rows = [line.split() for line in ended.out.splitlines() if line.startswith(str(exports["openvino"]))]
    assert [row[1:4] for row in rows] == [["1", "x", "8"], ["2", "x", "8"]]
    assert [row[-1] for row in rows] == ["1.00x", "1.00x"]


def test_runtimes_side_by_side_and_the_best_float_file(run: Run, exports: dict[str, Path]) -> None:
    quick = ("--rounds", 1, "--warmup", 0, "--threads", 1, "--batch-size", 1, "--seq-len", 8)
    document = run("benchmark", exports["float"], exports["openvino"], *quick, "--best-float", "--json").document
    baseline, best = str(exports["float"]), f"{exports['float']}, optimized"
    assert document["baselines"] == [baseline, best]
    rows = [(row["name"], row["runtime"]) for row in document["timings"]]
    assert rows == [(baseline, "onnxruntime"), (best, "onnxruntime"), (str(exports["openvino"]), "openvino")]
    medians = {row["name"]: row["median_s"] for row in document["timings"]}
    fastest = min(medians[baseline], medians[best])
    for row in document["timings"]:  # one round: the ratio of its medians
        assert row["speedup"] == pytest.approx(fastest / row["median_s"])


def test_one_file_in_both_runtimes(run: Run, exports: dict[str, Path]) -> None:
    quick = ("--rounds", 1, "--threads", 1, "--batch-size", 1, "--seq-len", 8)
    ended = run("benchmark", exports["float"], *quick, "--runtime", "onnxruntime", "--runtime", "openvino")
    assert ended.code == 0, ended.err
    assert "Latency in onnxruntime and openvino, 1 threads" in ended.out
    for runtime in ("onnxruntime", "openvino"):
        assert f"{exports['float']} in {runtime}" in ended.out


def test_files_that_do_not_exist_are_all_named(refused: Refused, exports: dict[str, Path], tmp_path: Path) -> None:
    message = refused("benchmark", exports["float"], tmp_path, tmp_path / "missing.onnx", kind="CheckpointError")
    assert f"no such model file: {tmp_path / 'model.onnx'}" in message
    assert f"{tmp_path / 'missing.onnx'}: no such model file\n" in f"{message}\n", "a file's name is its path"


def test_a_model_twice(refused: Refused, exports: dict[str, Path]) -> None:
    assert "names must differ" in refused("benchmark", exports["float"], exports["float"])


def test_an_unknown_runtime_names_the_known_ones(refused: Refused, exports: dict[str, Path]) -> None:
    message = refused("benchmark", exports["float"], "--runtime", "tflite")
    assert message == "no runtime 'tflite': it must be onnxruntime or openvino"


def test_a_file_that_is_no_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"hello")
    assert str(tmp_path / "model.onnx") in refused("benchmark", tmp_path, *QUICK)


def test_texts_longer_than_the_model_takes(refused: Refused, exports: dict[str, Path]) -> None:
    message = refused("benchmark", exports["float"], "--rounds", 1, "--seq-len", 64, "--batch-size", 1)
    assert str(exports["float"]) in message


@pytest.mark.parametrize("option", ["--batch-size", "--seq-len"])
def test_shapes_of_nothing(refused: Refused, exports: dict[str, Path], option: str) -> None:
    assert "at least 1 x 1" in refused("benchmark", exports["float"], option, 0)
