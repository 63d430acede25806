"""A single file is replaced only if qdq wrote it, and never if the command reads it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from qdq.errors import ConfigError, StorageError
from qdq.storage import REPAIRED_BY, check_no_input, check_replaceable_file, write_text_atomic

KINDS = ("engine", "repaired ONNX file", "statistics", "training log")
FOREIGN = {
    "notes": b"my notes\n",
    "an empty file": b"",
    "JSON": b'{"a": 1}',
    "binary": bytes(range(256)),
    "a huge length": b"\xff" * 8,
    "another table": b"step,epoch,lossy\n",
}


def onnx_file(path: Path, **metadata: str) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    model = helper.make_model(helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "g", [x], [y]))
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def engine(path: Path, content: bytes = b"an engine") -> Path:
    path.write_bytes(content)
    document = {"format": 1, "sha256": hashlib.sha256(content).hexdigest(), "source": "", "report": {}}
    path.with_name(f"{path.name}.json").write_text(json.dumps(document))
    return path


def statistics(path: Path, **about: object) -> Path:
    document = {"format": "1", "kind": "min-max", "samples": 1, "tokens": 1, "identity": {}, **about}
    save_file({"a/amax": torch.ones(1)}, path, metadata={"qdq": json.dumps(document)})
    return path


def own(kind: str, path: Path) -> Path:
    """An earlier result."""
    if kind == "engine":
        return engine(path)
    if kind == "repaired ONNX file":
        return onnx_file(path, **{REPAIRED_BY: "0.1"})
    if kind == "statistics":
        return statistics(path)
    path.write_text("step,epoch,loss,lr,spearman\n1,0,0.5,0.1,\n")
    return path


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_a_new_name_is_free(self, tmp_path: Path, kind: str) -> None:
        check_replaceable_file(tmp_path / "new", kind)
        assert not list(tmp_path.iterdir())

    def test_an_earlier_result_is_replaced(self, tmp_path: Path, kind: str) -> None:
        check_replaceable_file(own(kind, tmp_path / "old"), kind)

    def test_an_earlier_result_behind_a_link_is_replaced(self, tmp_path: Path, kind: str) -> None:
        own(kind, tmp_path / "old")
        (tmp_path / "link").symlink_to("old")
        check_replaceable_file(tmp_path / "link", kind)

    @pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
    def test_any_other_file_stays(self, tmp_path: Path, kind: str, content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"file: exists and cannot be recognized as an? {kind} .* remove it"):
            check_replaceable_file(path, kind)

    @pytest.mark.parametrize("other", KINDS)
    def test_a_result_of_another_kind_stays(self, tmp_path: Path, kind: str, other: str) -> None:
        if other == kind:
            pytest.skip("the same kind")
        with pytest.raises(ConfigError, match="exists and cannot be recognized"):
            check_replaceable_file(own(other, tmp_path / "file"), kind)

    def test_an_input_stays_under_every_name(self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = own(kind, tmp_path / "file")
        (tmp_path / "link").symlink_to("file")
        os.link(path, tmp_path / "hard")
        (tmp_path / "folder").mkdir()
        monkeypatch.chdir(tmp_path)
        names = (path, tmp_path / "link", tmp_path / "hard", Path("file"), tmp_path / "folder" / ".." / "file")
        for name in names:
            with pytest.raises(ConfigError, match=r"is read by this command .* choose another name"):
                check_replaceable_file(name, kind, inputs=[None, tmp_path / "missing", path])

    @pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout"])
    def test_a_device_stays(self, kind: str, name: str) -> None:
        with pytest.raises(ConfigError, match=rf"{name}: is not a regular file"):
            check_replaceable_file(Path(name), kind)

    def test_a_pipe_stays(self, tmp_path: Path, kind: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ConfigError, match="is not a regular file"):
            check_replaceable_file(tmp_path / "pipe", kind)

    def test_a_folder_stays(self, tmp_path: Path, kind: str) -> None:
        with pytest.raises(ConfigError, match="is a folder; name a file"):
            check_replaceable_file(tmp_path, kind)

    def test_the_true_reason_of_the_disk_is_told(self, tmp_path: Path, kind: str) -> None:
        (tmp_path / "a.txt").write_text("")
        (tmp_path / "loop").symlink_to("loop")
        reasons = {
            tmp_path / "none" / "x": "none/x: .*none does not exist; create the folder",
            tmp_path / "a.txt" / "x": "Not a directory",
            tmp_path / ("x" * 300): "File name too long",
            tmp_path / "loop": "Too many levels of symbolic links",
        }
        for path, reason in reasons.items():
            with pytest.raises(StorageError, match=reason):
                check_replaceable_file(path, kind)

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
    def test_a_missing_permission_is_told(self, tmp_path: Path, kind: str) -> None:
        (tmp_path / "locked").mkdir(mode=0o555)
        with pytest.raises(StorageError, match="Permission denied"):
            check_replaceable_file(tmp_path / "locked" / "x", kind)


class TestOneKind:
    def test_an_engine_that_changed_since_stays(self, tmp_path: Path) -> None:
        path = engine(tmp_path / "model.plan")
        path.write_bytes(b"another engine")
        with pytest.raises(ConfigError, match="exists and cannot be recognized"):
            check_replaceable_file(path, "engine")

    def test_a_foreign_file_where_the_metadata_would_be_stays(self, tmp_path: Path) -> None:
        (tmp_path / "model.plan.json").write_text('{"mine": true}')
        with pytest.raises(ConfigError, match=r"model\.plan\.json: exists and cannot be recognized"):
            check_replaceable_file(tmp_path / "model.plan", "engine")

    def test_metadata_whose_engine_is_gone_is_replaced(self, tmp_path: Path) -> None:
        engine(tmp_path / "model.plan").unlink()
        check_replaceable_file(tmp_path / "model.plan", "engine")

    def test_foreign_weights_beside_a_new_file_stay(self, tmp_path: Path) -> None:
        (tmp_path / "model.onnx.data").write_bytes(b"weights")
        with pytest.raises(ConfigError, match=r"model\.onnx\.data: exists"):
            check_replaceable_file(tmp_path / "model.onnx", "repaired ONNX file")

    def test_an_exported_file_is_no_repaired_one(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="exists and cannot be recognized"):
            check_replaceable_file(onnx_file(tmp_path / "model.onnx", **{"qdq.isa": "avx2"}), "repaired ONNX file")

    def test_a_foreign_safetensors_file_is_no_statistics(self, tmp_path: Path) -> None:
        save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match="exists and cannot be recognized"):
            check_replaceable_file(tmp_path / "model.safetensors", "statistics")


class TestFiles:
    def test_a_name_as_long_as_allowed_is_written(self, tmp_path: Path) -> None:
        path = tmp_path / ("é" * 127)
        check_replaceable_file(path, "training log")
        write_text_atomic(path, "step\n")
        assert [found.name for found in tmp_path.iterdir()] == [path.name]

    def test_no_input_is_its_own_output(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "link").symlink_to("model")
        check_no_input(tmp_path / "new", [tmp_path / "model"])
        with pytest.raises(ConfigError, match=r"link: is read by this command"):
            check_no_input(tmp_path / "link", [tmp_path / "new", tmp_path / "model"])

    def test_no_input_is_lost_with_the_folder_around_it(self, tmp_path: Path) -> None:
        (tmp_path / "all" / "model").mkdir(parents=True)
        (tmp_path / "link").symlink_to("all")
        check_no_input(tmp_path / "all" / "model" / "new", [tmp_path / "all" / "model"])
        with pytest.raises(ConfigError, match=r"link: holds .*model, which this command reads"):
            check_no_input(tmp_path / "link", [tmp_path / "all" / "model"])
