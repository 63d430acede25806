"""``qdq inspect``: slots, specs and ranges of a checkpoint; what of an ONNX file runs in int8."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Refused, Run

QUERY = "encoder.layers.0.attention.query"


class TestCheckpoints:
    def test_the_document(self, run: Run, checkpoint: Path) -> None:
        ended = run("inspect", checkpoint, "--json")
        assert (ended.code, ended.err) == (0, "")
        document = ended.document
        record = json.loads((checkpoint / "quantization.json").read_text())
        assert (document["kind"], document["model_type"], document["task"]) == (
            "checkpoint",
            "bert",
            "feature-extraction",
        )
        assert document["quantized"] is True
        assert document["recipe"] == "onnxruntime"
        assert document["calibration"] == record["calibration"]
        assert {row["slot"] for row in document["slots"]} == set(record["slots"])
        assert sum(document["counts"].values()) == len(document["slots"])

    def test_the_figures_are_those_of_the_file(self, run: Run, checkpoint: Path) -> None:
        rows = {row["slot"]: row for row in run("inspect", checkpoint, "--json").document["slots"]}
        stored = load_file(checkpoint / "quantizers.safetensors")
        for slot in (f"{QUERY}.input", f"{QUERY}.weight"):
            for key in ("scale", "zero_point"):
                tensor = stored[f"{slot}_quantizer.{key}"]
                assert rows[slot][key] == [tensor.min().item(), tensor.max().item()]
        bounds = [stored[f"{QUERY}.input_quantizer.{key}"].item() for key in ("lower", "upper")]
        assert rows[f"{QUERY}.input"]["range"] == bounds
        assert len(stored[f"{QUERY}.weight_quantizer.scale"]) == 32  # per axis: the figures are least and greatest

    def test_what_people_see(self, run: Run, checkpoint: Path) -> None:
        ended = run("inspect", checkpoint)
        assert (ended.code, ended.err) == (0, "")
        document = run("inspect", checkpoint, "--json").document
        head, ranges = ended.out.splitlines()[:2]
        assert head.startswith(f"{checkpoint}: bert, feature-extraction, ")
        assert head.endswith(", recipe onnxruntime")
        assert ranges == f"ranges from 40 samples, {document['calibration']['tokens']} tokens, method max"
        for spec, count in document["counts"].items():
            assert f"{count} x {spec}" in ended.out
        rows = [line.split()[0] for line in ended.out.splitlines() if line.startswith(("encoder.", "embeddings."))]
        assert rows == [row["slot"] for row in document["slots"]]

    def test_a_float_one(self, run: Run, model: Path) -> None:
        document = run("inspect", model, "--json").document
        assert (document["quantized"], document["model_type"]) == (False, "bert")
        assert document["parameters"] == sum(t.numel() for t in load_file(model / "model.safetensors").values())
        assert run("inspect", model).out.endswith("M parameters, float\n")

    def test_damage_is_told(
        self, refused: Refused, model_folders: ModelFolders, checkpoint: Path, tmp_path: Path
    ) -> None:
        damaged = model_folders.copy(checkpoint, tmp_path / "damaged")
        (damaged / "quantizers.safetensors").write_bytes(b"garbage")
        assert "quantizers.safetensors" in refused("inspect", damaged, kind="CheckpointError")


class TestPlans:
    def test_the_document(self, run: Run, model: Path) -> None:
        ended = run("inspect", model, "--recipe", "qdqbert", "--json")
        assert (ended.code, ended.err) == (0, "")
        document = ended.document
        assert (document["kind"], document["recipe"], document["model_type"]) == ("plan", "qdqbert", "bert")
        assert (document["quantized"], document["quantizers"]) == (20, 18)
        assert document["needing_data"] == 14
        assert document["specs"] == [
            {"spec": "int8 symmetric per-tensor", "places": 14, "quantizers": 12},
            {"spec": "int8 symmetric per-axis(0)", "places": 6, "quantizers": 6},
        ]
        assert document["kinds"]["matmul"] == {
            "input": {"places": 2, "quantized": 2},
            "other": {"places": 2, "quantized": 2},
        }
        assert document["kinds"]["embedding"]["weight"] == {"places": 3, "quantized": 0}
        assert document["kinds"]["linear"]["weight"] == {"places": 7, "quantized": 6}
        assert (
            document["places"]
            == len(document["slots"])
            == sum(count["places"] for slots in document["kinds"].values() for count in slots.values())
        )

    def test_it_is_what_a_calibration_then_does(self, run: Run, model: Path, checkpoint: Path) -> None:
        rows = {row["slot"]: row["spec"] for row in run("inspect", checkpoint, "--json").document["slots"]}
        for path in (model, checkpoint, model / "config.json"):
            planned = run("inspect", path, "--recipe", "onnxruntime", "--json").document
            assert {row["slot"]: row["spec"] for row in planned["slots"] if row["spec"]} == rows

    def test_a_config_alone_of_a_large_model(self, run: Run, tmp_path: Path) -> None:
        config = {
            "model_type": "megatron-bert",
            "num_hidden_layers": 24,
            "hidden_size": 4096,
            "num_attention_heads": 16,
        }
        (tmp_path / "large.json").write_text(json.dumps({**config, "intermediate_size": 16384}))
        document = run("inspect", tmp_path / "large.json", "-r", "qdqbert", "--task", "masked-lm", "--json").document
        assert document["parameters"] > 4e9
        assert (document["task"], document["quantized"], document["quantizers"]) == ("masked-lm", 480, 432)
        plain = run("inspect", tmp_path / "large.json", "--json").document
        assert plain["kind"] == "config"
        assert "specs" not in plain

    def test_what_people_see(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "num_hidden_layers": 6}))
        ended = run("inspect", tmp_path, "--recipe", "linear", "--exclude", "encoder.layers.[34].*")
        assert (ended.code, ended.err) == (0, "")
        lines = [line.split() for line in ended.out.splitlines()]
        assert lines[0][-2:] == ["recipe", "linear"]
        assert " ".join(lines[1]).startswith("48 of ")
        assert "40 quantizers; 24 slots need calibration data" in ended.out
        assert ["A", "int8", "symmetric", "per-tensor", "24", "16"] in lines
        assert ["linear", "weight", "37", "24"] in lines
        assert ["encoder.layers.N.attention.query.input", "A", "0-2,", "5"] in lines
        assert ["encoder.layers.N.attention.query.input", "float", "3-4"] in lines
        assert ["pooler.dense.weight", "float"] in lines

    def test_options_alone_change_the_usual_recipe(self, run: Run, model: Path) -> None:
        document = run("inspect", model, "--quant-disable-keyword", "embeddings", "--json").document
        assert document["recipe"] == "onnxruntime"
        assert document["quantized"] == 12

    def test_refusals(self, refused: Refused, model: Path, exports: dict[str, Path], tmp_path: Path) -> None:
        assert "did you mean tensorrt?" in refused("inspect", model, "-r", "tensort", kind="RecipeError")
        message = refused("inspect", exports["float"] / "model.onnx", "-r", "linear", kind="CheckpointError")
        assert "a recipe is for a model" in message
        assert "no such file" in refused("inspect", tmp_path / "x", "-r", "linear", kind="CheckpointError")
        assert "--task goes with" in refused("inspect", model, "--task", "masked-lm", kind="ConfigError")
        (tmp_path / "config.json").write_text("{}")
        assert "model_type is missing" in refused("inspect", tmp_path, "-r", "linear", kind="ConfigError")


class TestGraphs:
    @pytest.mark.parametrize("name", ["float", "onnxruntime", "openvino", "tensorrt"])
    def test_the_document(self, run: Run, exports: dict[str, Path], name: str) -> None:
        file = exports[name] / "model.onnx"
        ended = run("inspect", exports[name], "--json")
        assert (ended.code, ended.err) == (0, "")
        document = ended.document
        assert document == run("inspect", file, "--json").document
        assert (document["kind"], document["path"], document["bytes"]) == ("onnx", str(file), file.stat().st_size)
        assert document["opsets"]["ai.onnx"] == (23 if name == "onnxruntime" else 21)
        nodes = onnx.load(file).graph.node
        assert sum(document["operators"].values()) == len(nodes)
        runs_in = [product["runs_in"] for product in document["products"] if product["kind"] == "linear"]
        # query, key, value, output, up, down; the pooler stays float
        assert (runs_in.count("int8"), runs_in.count("float")) == ((0, 7) if name == "float" else (6, 1))
        assert ("INT8" in document["bytes_by_type"]) == (name != "float")

    def test_what_people_see(self, run: Run, exports: dict[str, Path]) -> None:
        ended = run("inspect", exports["onnxruntime"])
        assert (ended.code, ended.err) == (0, "")
        lines = [line.split() for line in ended.out.splitlines()]
        assert ["linear", "6", "1"] in lines
        assert ["attention", "0", "1"] in lines
        assert "opsets ai.onnx 23, com.microsoft 1" in ended.out
        assert "linear in float: pooler.dense" in ended.out
        assert "6 com.microsoft.MatMulIntegerToFloat" in ended.out


def test_weights_beside_a_large_file_count(run: Run, exports: dict[str, Path], tmp_path: Path) -> None:
    onnx.save(
        onnx.load(exports["float"] / "model.onnx"),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    files = [tmp_path / "model.onnx", tmp_path / "model.onnx.data"]
    assert run("inspect", tmp_path, "--json").document["bytes"] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x0a" * 30, b"text, a lot" * 1000], ids=range(4))
def test_files_that_are_no_models(content: bytes, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    message = refused("inspect", tmp_path / "model.onnx", kind="CheckpointError")
    assert message.startswith(f"{tmp_path / 'model.onnx'}: ")
    assert "\n" not in message


def test_a_file_cut_short(refused: Refused, exports: dict[str, Path], tmp_path: Path) -> None:
    content = (exports["onnxruntime"] / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    assert "not an ONNX file" in refused("inspect", tmp_path / "model.onnx", kind="CheckpointError")


def test_what_is_not_there(refused: Refused, tmp_path: Path) -> None:
    assert "no such file or directory" in refused("inspect", tmp_path / "nothing", kind="CheckpointError")
    message = refused("inspect", tmp_path, kind="CheckpointError")
    assert "no config.json" in message
    assert "no model.onnx" in message


class TestProfile:
    """What a runtime does with a file, which is run for it."""

    QUICK = ("--profile", "--shape", "2x8", "--threads", 1)

    @pytest.mark.parametrize(("name", "runtime"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino")])
    def test_each_file_in_its_own_runtime(self, run: Run, exports: dict[str, Path], name: str, runtime: str) -> None:
        document = run("inspect", exports[name], *self.QUICK, "--json").document
        found = document["profile"]
        assert (document["kind"], found["runtime"], found["batch_size"], found["seq_len"]) == ("onnx", runtime, 2, 8)
        assert len([node for node in found["nodes"] if node["in_int8"] and node["macs"]]) == 6
        assert 0.5 < found["share_of_macs_in_int8"] < 1
        one_node = {"both products are in one node, which has no int8"} if name == "onnxruntime" else set()
        assert {entry["why"] for entry in found["in_float"]} == {"neither operand is quantized"} | one_node

    def test_what_people_see(self, run: Run, exports: dict[str, Path]) -> None:
        ended = run("inspect", exports["onnxruntime"], *self.QUICK)
        assert (ended.code, ended.err) == (0, "")
        assert "Run in onnxruntime at 2 x 8: " in ended.out
        assert "MatMulIntegerToFloat" in ended.out
        assert "encoder.layers.0.attention/Attention: both products are in one node" in ended.out

    def test_refusals(self, refused: Refused, exports: dict[str, Path], checkpoint: Path) -> None:
        file = exports["float"]
        assert "--shape 8: it must be rows and tokens" in refused("inspect", file, "--profile", "--shape", 8)
        assert "no runtime 'tflite'" in refused("inspect", file, "--profile", "--runtime", "tflite")
        assert "--profile runs an exported directory" in refused("inspect", checkpoint, "--profile")
