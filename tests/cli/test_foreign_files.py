"""Commands on ONNX files that other programs named, shaped and placed, and outputs that must not replace them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import onnx
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Refused, Run

TEXT_FILES = ("config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json")
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1234567\n"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = ["a cat\ta dog\t3", "big house\tsmall house of the old town by the river\t1", "red\tblue bird on a tree\t4"]
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "\n".join(rows) + "\n")
    return tmp_path / "pairs.tsv"


def layout(export: Path, folder: Path, name: str) -> Path:
    """Write the model of an export under another name, with the configuration and the tokenizer in ``folder``."""
    (folder / name).parent.mkdir(parents=True)
    shutil.copy(export / "model.onnx", folder / name)
    for text in TEXT_FILES:
        if (export / text).is_file():
            shutil.copy(export / text, folder / text)
    return folder


def fixed(path: Path, rows: int, length: int) -> None:
    proto = onnx.load(path)
    for value in proto.graph.input:
        for size, dim in zip((rows, length), value.type.tensor_type.shape.dim, strict=True):
            dim.dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.shape.dim[0].dim_value = rows
    del proto.graph.value_info[:]
    onnx.save(proto, path)


@pytest.mark.parametrize("name", ["model_quantized.onnx", "onnx/model.onnx", "onnx/model_int8.onnx"])
@pytest.mark.parametrize("given", ["folder", "file", "its folder"])
def test_every_command_takes_the_folder_and_the_file(
    run: Run, exports: dict[str, Path], tmp_path: Path, pairs: Path, name: str, given: str
) -> None:
    folder = layout(exports["float"], tmp_path / "other", name)
    path = {"folder": folder, "file": folder / name, "its folder": (folder / name).parent}[given]
    evaluate = ["--task", "sts", "--data", pairs, "--resamples", "0", "--json"]
    expected = run("evaluate", exports["float"], *evaluate).document["metrics"]
    ended = run("evaluate", path, *evaluate)
    assert (ended.code, ended.document["metrics"]) == (0, pytest.approx(expected))
    inspected = run("inspect", path, "--json")
    assert (inspected.code, inspected.document["path"]) == (0, str(folder / name))
    assert run("lint", path, "--json").code == 0


def test_a_file_of_a_fixed_shape_is_evaluated(run: Run, exports: dict[str, Path], tmp_path: Path, pairs: Path) -> None:
    folder = layout(exports["float"], tmp_path / "other", "model.onnx")
    fixed(folder / "model.onnx", 2, 24)
    evaluate = ["--task", "sts", "--data", pairs, "--resamples", "0", "--json"]
    expected = run("evaluate", exports["float"], *evaluate, "--seq-len", "24").document["metrics"]
    ended = run("evaluate", folder, *evaluate)
    assert (ended.code, ended.document["metrics"]) == (0, pytest.approx(expected, rel=1e-3))


def test_several_files_are_listed(refused: Refused, exports: dict[str, Path], tmp_path: Path, pairs: Path) -> None:
    folder = layout(exports["float"], tmp_path / "other", "model_int8.onnx")
    shutil.copy(folder / "model_int8.onnx", folder / "model_fp16.onnx")
    words = "give one of them (model_fp16.onnx, model_int8.onnx)"
    assert words in refused("inspect", folder)
    assert words in refused("lint", folder)
    assert words in refused("benchmark", folder)
    assert words in refused("evaluate", folder, "--task", "sts", "--data", pairs)
    assert words in refused("build", "-m", folder, "-o", tmp_path / "model.plan")


def test_where_to_copy_the_tokenizer_from_is_said(refused: Refused, exports: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(exports["float"] / "model.onnx", tmp_path / "alone" / "model.onnx")
    message = refused("evaluate", tmp_path / "alone", "--task", "sts", "--data", "nowhere.tsv")
    assert "no config.json and no tokenizer" in message
    assert "copy them from the model that the file was exported from" in message


def test_a_pointer_of_git_lfs_is_named(refused: Refused, exports: dict[str, Path], tmp_path: Path, pairs: Path) -> None:
    folder = layout(exports["float"], tmp_path / "other", "onnx/model.onnx")
    path = folder / "onnx" / "model.onnx"
    path.write_text(POINTER)
    for arguments in (
        ("inspect", path),
        ("inspect", path, "--profile"),
        ("benchmark", path, "--rounds", "1"),
        ("lint", path),
        ("evaluate", path, "--task", "sts", "--data", pairs),
        ("build", "-m", path, "-o", tmp_path / "model.plan"),
    ):
        message = refused(*arguments)
        assert f"{path}: is a Git LFS pointer" in message
        assert "git lfs pull" in message


def test_outputs_replace_nothing_that_qdq_did_not_write(
    refused: Refused, run: Run, exports: dict[str, Path], tmp_path: Path
) -> None:
    folder = layout(exports["tensorrt"], tmp_path / "mine", "model.onnx")
    path, notes = folder / "model.onnx", tmp_path / "notes.txt"
    before = path.read_bytes()
    notes.write_text("mine")
    for arguments in (
        ("build", "-m", path, "-o", path),
        ("build", "-m", folder, "-o", path),
        ("build", "-m", folder, "-o", notes),
        ("lint", path, "--fix", path),
        ("lint", folder, "--fix", path),
        ("lint", folder, "--fix", notes),
    ):
        refused(*arguments)
    assert path.read_bytes() == before
    assert notes.read_text() == "mine"
    assert run("lint", folder, "--fix", tmp_path / "fixed.onnx").code == 0
    assert run("lint", folder, "--fix", tmp_path / "fixed.onnx").code == 0  # its own copy may be replaced


def test_verify_takes_a_file_of_an_export(run: Run, checkpoint: Path, exports: dict[str, Path]) -> None:
    assert run("verify", "-m", checkpoint, exports["onnxruntime"] / "model.onnx").code == 0
