"""``qdq calibrate``: what it writes, what it says, and everything that it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qdq.checkpoint import load
from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure
from qdq.quantization.spec import QuantSpec

if TYPE_CHECKING:
    from tests.cli.conftest import ModelFolders, Refused, Run, RunInProcess


FILES = {".qdq.json", "config.json", "model.safetensors", "quantization.json", "quantizers.safetensors", "vocab.txt"}


def quantization(folder: Path) -> dict[str, Any]:
    record = json.loads((folder / "quantization.json").read_text())
    assert isinstance(record, dict)
    return record


class TestResult:
    def test_a_new_head_on_a_checkpoint_that_has_none(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        request = ("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text)
        refused = run(*request, "--task", "token-classification")
        assert refused.code == 2
        assert "head" in refused.err
        assert not (tmp_path / "out").exists()
        ended = run(*request, "--task", "token-classification", "--allow-missing", "head", "--json")
        assert ended.code == 0
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        assert written["architectures"] == ["BertForTokenClassification"]

    def test_the_document_and_the_files(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        ended = run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, "--json")
        assert (ended.code, ended.err) == (0, "")
        document = ended.document
        assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
        record = quantization(tmp_path / "out")
        assert document["checkpoint"] == str(tmp_path / "out")
        assert document["recipe"] == record["recipe"]["name"] == "onnxruntime"
        assert document["calibration"] == record["calibration"]
        assert document["calibration"]["samples"] == 40
        assert document["calibration"]["method"] == {"name": "max"}
        assert document["slots"]["quantized"] == len(record["slots"]) < document["slots"]["total"]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_what_people_see(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        options = ["--calibrator", "percentile", "--percentile", "99.9", "--num-samples", "7", "--recipe", "linear"]
        ended = run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, *options)
        assert ended.code == 0
        assert ended.err.startswith("warning: little data: 7 samples with ")
        assert quantization(tmp_path / "out")["calibration"]["warnings"][0] in ended.err
        assert f"{tmp_path / 'out'}: " in ended.out
        assert "recipe linear" in ended.out
        assert "ranges from 7 samples" in ended.out
        assert "percentile 99.9" in ended.out

    @pytest.mark.parametrize("calibrator", ["max", "percentile", "mse", "entropy", "auto"])
    def test_every_calibrator(self, run: Run, model: Path, text: Path, tmp_path: Path, calibrator: str) -> None:
        options = ["--calibrator", calibrator, "--recipe", "openvino", "--json"]
        ended = run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, *options)
        assert (ended.code, ended.err) == (0, "")
        record = ended.document["calibration"]
        assert record["method"]["name"] == calibrator
        assert quantization(tmp_path / "out")["calibration"] == record
        slots = set(quantization(tmp_path / "out")["slots"])
        if calibrator != "max":
            assert set(record["saturated"]) <= slots
            assert all(0 < share < 0.5 for share in record["saturated"].values())
        if calibrator == "auto":
            choices = record["choices"]
            shared = {f"encoder.layers.0.attention.{name}.input" for name in ("key", "value")}  # stand under query
            assert {slot for slot in slots if slot.endswith(".input")} - shared <= set(choices)
            for why in choices.values():
                assert why["sqnr_db"][why["method"]] >= max(why["sqnr_db"].values()) - 0.1
        shown = run("inspect", tmp_path / "out")
        assert (shown.code, shown.err) == (0, "")
        assert f"method {calibrator}" in shown.out

    def test_two_processes_find_what_one_finds(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        request = ["calibrate", "-m", str(model), "--calib-data", str(text), "--calibrator", "mse", "--json"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "qdq"]
        done = subprocess.run(
            [*torchrun, *request, "-o", str(tmp_path / "two")],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["calibration"]["samples"] == 40
        assert run(*request, "-o", tmp_path / "one").code == 0
        for file in ("quantizers.safetensors", "quantization.json"):
            assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]

    def test_both_spellings_of_an_option(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        for name, mark in (("dash", "-"), ("underscore", "_")):
            options = [f"--calib{mark}data", text, f"--num{mark}samples", 4, f"--batch{mark}size", 3]
            assert run("calibrate", "-m", model, "-o", tmp_path / name, *options, "-q").code == 0
        assert quantization(tmp_path / "dash") == quantization(tmp_path / "underscore")
        assert quantization(tmp_path / "dash")["calibration"]["batches"] == 2

    def test_the_seed_chooses_the_samples(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        for name, seed in (("one", 1), ("again", 1), ("other", 2)):
            options = ["--num-samples", 5, "--seed", seed]
            assert run("calibrate", "-m", model, "-o", tmp_path / name, "--calib-data", text, *options).code == 0
        one, again, other = (
            [(tmp_path / name / file).read_bytes() for file in ("quantization.json", "quantizers.safetensors")]
            for name in ("one", "again", "other")
        )
        assert one == again
        digests = {quantization(tmp_path / name)["calibration"]["data_sha256"] for name in ("one", "again", "other")}
        assert len(digests) == 2
        assert one[1] != other[1]

    def test_include_and_exclude(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        options = ["--include", "encoder.*", "--include", "embeddings.word", "--exclude", "*.feed_forward.*"]
        assert run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, *options).code == 0
        slots = set(quantization(tmp_path / "out")["slots"])
        assert {slot.split(".")[0] for slot in slots} == {"encoder", "embeddings"}
        assert not any("feed_forward" in slot for slot in slots)
        assert "embeddings.word.weight" in slots
        assert "embeddings.position.weight" not in slots

    def test_columns_by_name(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "pairs.csv").write_text("id,premise,claim\n1,a cat sat.,it sat.\n2,the sun is up.,it is day.\n")
        options = ["--text-column", "premise", "--text-pair-column", "claim"]
        arguments = ["-m", model, "-o", tmp_path / "out", "--calib-data", tmp_path / "pairs.csv", *options, "--json"]
        assert run("calibrate", *arguments).document["calibration"]["samples"] == 2

    def test_texts_are_cut_to_what_the_model_takes(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "long.txt").write_text("a cat and a dog " * 100)
        arguments = ["-m", model, "-o", tmp_path / "out", "--calib-data", tmp_path / "long.txt", "--seq-len", 500]
        calibration = run("calibrate", *arguments, "--json").document["calibration"]
        assert (calibration["tokens"], calibration["seq_len"]) == (48, 48)

    def test_positions_that_padding_takes_are_not_for_texts(
        self, run: Run, tmp_path: Path, model_folders: ModelFolders
    ) -> None:
        vocabulary = (model_folders.model(tmp_path / "bert") / "vocab.txt").read_bytes()
        fields = {"vocab_size": vocabulary.count(b"\n"), "hidden_size": 16, "intermediate_size": 16}
        fields |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 20, "pad_token_id": 1}
        save_model(build(configure("roberta-prelayernorm", **fields)), tmp_path / "roberta")
        (tmp_path / "roberta" / "vocab.txt").write_bytes(vocabulary)
        (tmp_path / "long.txt").write_text("a cat and a dog " * 100)
        arguments = ["-m", tmp_path / "roberta", "-o", tmp_path / "out", "--calib-data", tmp_path / "long.txt"]
        assert run("calibrate", *arguments, "--json").document["calibration"]["tokens"] == 18

    def test_an_earlier_result_is_replaced(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        arguments = ["-m", model, "-o", tmp_path / "out", "--calib-data", text]
        assert run("calibrate", *arguments, "--num-samples", 3).code == 0
        (tmp_path / "out" / "quantization.json").write_text("damaged")
        assert run("calibrate", *arguments, "--num-samples", 4).code == 0
        assert quantization(tmp_path / "out")["calibration"]["samples"] == 4
        assert {path.name for path in (tmp_path / "out").iterdir()} == FILES

    def test_a_checkpoint_calibrates_itself_anew(
        self, run: Run, model_folders: ModelFolders, checkpoint: Path, text: Path, tmp_path: Path
    ) -> None:
        folder = model_folders.copy(checkpoint, tmp_path / "out")
        assert run("calibrate", "-m", folder, "-o", folder, "--calib-data", text, "--num-samples", 4).code == 0
        assert quantization(folder)["calibration"]["samples"] == 4
        assert (folder / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()

    def test_text_the_model_does_not_know_is_told(self, run: Run, model: Path, tmp_path: Path) -> None:
        (tmp_path / "other.txt").write_text("Кириллица ☃\n")
        ended = run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", tmp_path / "other.txt")
        assert ended.code == 0
        assert "unknown to the tokenizer's vocabulary" in ended.err
        assert "unknown" not in ended.out


# A damage turns a folder with a good model and a good text into a bad one.
Damage = Callable[[Path], None]


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return damage


def configured(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def with_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


QUERY = "encoder.layer.0.attention.self.query.weight"

MODELS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no directory": (shutil.rmtree, ("no such directory",)),
    "no config.json": (remove("config.json"), ("config.json", "no such file")),
    "config.json is no JSON": (write("config.json", b"{'a': 1}"), ("config.json", "not valid JSON")),
    "config.json is a list": (write("config.json", b"[]"), ("config.json", "JSON object")),
    "unknown model_type": (configured(model_type="gpt2"), ("config.json", "'gpt2'", "megatron-bert")),
    "impossible sizes": (configured(hidden_size=33, num_attention_heads=4), ("config.json", "33", "4")),
    "no weights": (remove("model.safetensors"), ("no weights", "model.safetensors")),
    "weights cut short": (truncated, ("model.safetensors", "damaged or incomplete")),
    "weights of another shape": (configured(intermediate_size=96), ("intermediate", "[64, 32]", "[96, 32]")),
    "missing weights": (with_tensors(lambda tensors: tensors.pop(QUERY)), (QUERY, "missing")),
    "surplus weights": (
        with_tensors(lambda tensors: tensors.update({"encoder.layer.7.surplus": torch.zeros(2)})),
        ("encoder.layer.7.surplus",),
    ),
    "weights that are NaN": (with_tensors(lambda tensors: tensors[QUERY].fill_(torch.nan)), ("query", "NaN")),
    "no tokenizer": (remove("vocab.txt"), ("no tokenizer", "vocab.txt")),
    "damaged tokenizer": (write("tokenizer.json", b"{"), ("tokenizer.json", "damaged")),
    "a tokenizer of another model": (
        write("vocab.txt", b"[UNK]\n[CLS]\n[SEP]\n" + b"".join(b"x%d\n" % n for n in range(5000)) + b"cat\na\n"),
        ("the token 'cat' has id 5003", "155 word vectors", "give the model the tokenizer"),
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_used(
    case: str, refused: Refused, model_folders: ModelFolders, model: Path, text: Path, tmp_path: Path
) -> None:
    damage, phrases = MODELS[case]
    damaged = model_folders.copy(model, tmp_path / "damaged")
    damage(damaged)
    message = refused("calibrate", "-m", damaged, "-o", tmp_path / "new" / "out", "--calib-data", text)
    assert [phrase for phrase in phrases if phrase not in message] == [], message


DATA: dict[str, tuple[str, bytes | None, list[str], tuple[str, ...]]] = {
    "missing": ("a.txt", None, [], ("a.txt", "no such file")),
    "empty": ("a.txt", b"", [], ("a.txt", "no text")),
    "blank lines": ("a.txt", b"\n  \n\n", [], ("a.txt", "no text")),
    "binary": ("a.txt", bytes(range(256)), [], ("line 1", "binary")),
    "not UTF-8": ("a.txt", "good\nGröße\n".encode("latin-1"), [], ("line 2", "UTF-8")),
    "unsupported extension": ("a.docx", b"PK", [], (".docx", ".jsonl")),
    "damaged parquet": ("a.parquet", b"PAR1", [], ("a.parquet", "not a Parquet file")),
    "no such column": ("a.csv", b"text,label\nx,1\n", ["--text-column", "body"], ("'body'", "'text', 'label'")),
    "no usual column": ("a.csv", b"x,y\n1,2\n", [], ("'x', 'y'", "--text-column")),
    "a column of plain text": ("a.txt", b"x\n", ["--text-column", "text"], ("no columns",)),
    "damaged lines": ("a.jsonl", b'{"text": "x"}\n{"text": \n{"text": 3}\n', [], ("line 2", "line 3")),
}


@pytest.mark.parametrize("case", DATA)
def test_data_that_cannot_be_used(case: str, refused: Refused, model: Path, tmp_path: Path) -> None:
    name, content, options, phrases = DATA[case]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    arguments = ["-m", model, "-o", tmp_path / "out", "--calib-data", tmp_path / name]
    message = refused("calibrate", *arguments, *options, kind="DataError")
    assert [phrase for phrase in phrases if phrase not in message] == [], message


def test_a_directory_is_no_data(refused: Refused, model: Path, tmp_path: Path) -> None:
    assert "is a directory" in refused("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", model)


RECIPE = b"""name: mine
specs:
  weight: {bits: 9, granularity: per-axis(0)}
rules:
  - {module: "encoder.*", slot: weight, specs: weight}
  - {module: "encoder.*", slot: weight, spec: w}
"""

CHOICES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "no sample text": (
        ["--calib-data"],
        ("'onnxruntime'", "sample text", "--calib-data", "dynamic, weight-only-int4, weight-only-int8"),
    ),
    "keyword matches nothing": (
        ["--quant-disable-keyword", "qery", "--quant-enable-layer-module", "self"],
        ("2 problems", "'qery'", "'self'", "encoder.layers.0.attention.query.input_quantizer"),
    ),
    "layer module is no regular expression": (["--quant-disable-layer-module", "("], ("'('", "regular expression")),
    "bound that is none": (["--clip-gelu", "-1"], ("-1", "a number above 0")),
    "unknown recipe": (["--recipe", "onnx"], ("'onnx'", "onnxruntime", "openvino", "tensorrt", "qdqbert", "linear")),
    "recipe with mistakes": (["--recipe", "mine.yaml"], ("line 3", "bits", "line 5", "'specs'", "line 6", "'w'")),
    "recipe that is no YAML": (["--recipe", "other.yaml"], ("other.yaml", "not a YAML file")),
    "include matches nothing": (
        ["--include", "layers.*"],
        ("include", "'layers.*'", "matches nothing", "encoder.layers.0.attention.query"),
    ),
    "exclude matches nothing": (["--exclude", "cls.*"], ("exclude", "'cls.*'", "matches nothing")),
    "unknown calibrator": (["--calibrator", "kl"], ("'kl'", "max", "percentile", "mse", "entropy", "auto")),
    "percentile too large": (["--calibrator", "percentile", "--percentile", "101"], ("percentile", "101", "100")),
    "percentile too small": (["--calibrator", "percentile", "--percentile", "0.999"], ("percentile", "0.999", "50")),
    "percentile for another calibrator": (["--percentile", "99.9"], ("--percentile", "--calibrator percentile")),
    "percentile for one that cuts by itself": (
        ["--calibrator", "mse", "--percentile", "99.9"],
        ("--calibrator percentile", "mse"),
    ),
    "percentile is no number": (["--calibrator", "percentile", "--percentile", "nan"], ("percentile", "nan")),
}


@pytest.mark.parametrize("case", CHOICES)
def test_choices_that_do_not_exist(
    case: str, refused: Refused, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, phrases = CHOICES[case]
    (tmp_path / "mine.yaml").write_bytes(RECIPE)
    (tmp_path / "other.yaml").write_bytes(b"a: [1\nb: 2")
    monkeypatch.chdir(tmp_path)
    data = [] if options == ["--calib-data"] else ["--calib-data", text]
    options = [] if options == ["--calib-data"] else options
    message = refused("calibrate", "-m", model, "-o", tmp_path / "out", *data, *options)
    assert [phrase for phrase in phrases if phrase not in message] == [], message


class TestWithoutData:
    """Recipes in which nothing static needs a range."""

    @pytest.mark.parametrize("recipe", ["dynamic", "weight-only-int8", "weight-only-int4"])
    def test_a_checkpoint_that_works(self, run: Run, model: Path, tmp_path: Path, recipe: str) -> None:
        ended = run("calibrate", "-m", model, "-r", recipe, "-o", tmp_path / "out")
        assert ended.code == 0, ended.err
        assert f"recipe {recipe} needs no calibration data" in ended.err
        assert "no ranges from data" in ended.out
        assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
        record = quantization(tmp_path / "out")
        assert record["recipe"]["name"] == recipe
        assert (record["calibration"]["method"], record["calibration"]["samples"]) == ({"name": "none"}, 0)
        ids = torch.arange(5, 25)[None]
        quantized, in_float = load(tmp_path / "out"), load(model)
        with torch.no_grad():
            found, expected = quantized(input_ids=ids)[0], in_float(input_ids=ids)[0]
        assert not torch.equal(found, expected)
        assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.95
        shown = run("inspect", tmp_path / "out")
        assert (shown.code, shown.err) == (0, "")
        assert "no ranges from data" in shown.out
        slots = run("inspect", tmp_path / "out", "--json").document["slots"]
        assert {row["slot"] for row in slots if row["scale"] is None} == (
            {row["slot"] for row in slots if row["slot"].endswith(".input")} if recipe == "dynamic" else set()
        )

    def test_a_target_that_would_need_ranges_names_the_cure(
        self, run: Run, refused: Refused, model: Path, tmp_path: Path
    ) -> None:
        assert run("calibrate", "-m", model, "-r", "weight-only-int8", "-o", tmp_path / "out").code == 0
        arguments = ["-m", tmp_path / "out", "-o", tmp_path / "engine", "--target", "tensorrt"]
        message = refused("export", *arguments, kind="ExportError")
        assert "made without data" in message
        assert "--calib-data" in message

    def test_no_tokenizer_is_needed(self, run: Run, model_folders: ModelFolders, model: Path, tmp_path: Path) -> None:
        (model_folders.copy(model, tmp_path / "bare") / "vocab.txt").unlink()
        assert run("calibrate", "-m", tmp_path / "bare", "-r", "dynamic", "-o", tmp_path / "out").code == 0

    def test_data_is_taken_all_the_same(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        arguments = ["-m", model, "-r", "weight-only-int8", "-o", tmp_path / "out", "--calib-data", text]
        assert run("calibrate", *arguments, "--json").document["calibration"]["samples"] == 40
        assert "encoder.layers.0.attention.query.input_quantizer.amax" in load_file(
            tmp_path / "out" / "quantizers.safetensors"
        )

    def test_what_the_options_leave_over_decides(self, run: Run, model: Path, tmp_path: Path) -> None:
        options = ["--quant-disable-keyword", "input_quantizer"]
        ended = run("calibrate", "-m", model, "-o", tmp_path / "out", *options, "--json")
        assert ended.code == 0, ended.err
        assert ended.document["slots"]["quantized"] == len(quantization(tmp_path / "out")["slots"]) == 6 + 3


class TestTrainerOptions:
    """The options of NVIDIA's quantization trainer."""

    def quantizers(self, folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / "quantizers.safetensors")

    def calibrated(self, run: Run, model: Path, text: Path, out: Path, *options: object) -> Any:
        ended = run("calibrate", "-m", model, "-o", out, "--calib-data", text, "-r", "qdqbert", *options, "--json")
        assert ended.code == 0, ended.err
        return ended.document

    def test_on_and_off(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        options = ["--quant-disable", "--quant-enable-layer-module", r"attention\.(query|key)"]
        options += ["--quant-per-tensor"]
        self.calibrated(run, model, text, tmp_path / "out", *options)
        slots = quantization(tmp_path / "out")["slots"]
        attention = "encoder.layers.0.attention"
        assert set(slots) == {f"{attention}.{name}.{slot}" for name in ("query", "key") for slot in ("input", "weight")}
        assert {spec["granularity"] for spec in slots.values()} == {"per-tensor"}
        planned = run("inspect", model, "-r", "qdqbert", *options, "--json").document
        assert {row["slot"]: row["spec"] for row in planned["slots"] if row["spec"]} == {
            slot: str(QuantSpec.from_dict(spec)) for slot, spec in slots.items()
        }

    def test_ranges_after_calibration(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        plain = self.calibrated(run, model, text, tmp_path / "plain", "--quant-per-tensor")
        assert "adjustments" not in plain["calibration"]
        options = ["--quant-per-tensor", "--fuse-qkv", "--clip-gelu", "0.5", "--recalibrate-weights"]
        document = self.calibrated(run, model, text, tmp_path / "changed", *options)
        before, after = self.quantizers(tmp_path / "plain"), self.quantizers(tmp_path / "changed")
        attention = "encoder.layers.0.attention"
        for group in (
            [f"{attention}.{place}_quantizer.scale" for place in ("scores.input", "scores.other", "context.other")],
            [f"{attention}.{place}.weight_quantizer.scale" for place in ("query", "key", "value")],
        ):
            assert {after[name].item() for name in group} == {max(before[name].item() for name in group)}
        gelu = "encoder.layers.0.feed_forward.down.input_quantizer"
        assert before[f"{gelu}.amax"] > 0.5
        assert after[f"{gelu}.amax"] == 0.5
        assert after[f"{gelu}.scale"].item() == pytest.approx(0.5 / 127)
        expected = [("recalibrate-weights", 6), ("fuse-qkv", 6), ("clip-gelu", 1)]
        assert [(row["name"], row["slots"]) for row in document["calibration"]["adjustments"]] == expected
        assert quantization(tmp_path / "changed")["calibration"] == document["calibration"]

    def test_an_option_without_effect_is_told(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        ended = run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, "--fuse-qkv")
        assert ended.code == 0
        assert "--fuse-qkv had no effect" in ended.err


class TestRefinement:
    def record(self, run: Run, model: Path, text: Path, folder: Path, *options: str) -> dict[str, Any]:
        ended = run("calibrate", "-m", model, "-o", folder, "--calib-data", text, *options, "--json")
        assert ended.code == 0, ended.err
        found: dict[str, Any] = ended.document["calibration"].get("refinement", {})
        recipe = quantization(folder)["recipe"].get("refinement", {})
        assert all(recipe[name] == found[name] for name in recipe)
        return found

    def test_as_the_recipe_says(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        found = self.record(run, model, text, tmp_path / "out")
        assert found == {
            "shift": True,
            "smoothing": 0.9,
            "bias_correction": True,
            "rounding": "gptq",
            "transformed": 4,
            "refined": 6,
            "samples": 40,
        }
        kept = load_file(tmp_path / "out" / "quantizers.safetensors")
        assert sum(name.endswith(".transform.factor") for name in kept) == 3 + 6
        assert sum(name.endswith(".bias_correction") for name in kept) == 6
        assert sum(name.endswith(".rounding") for name in kept) == 6
        floats, quantized = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
        assert all(torch.equal(floats[name], quantized[name]) for name in floats)

    def test_each_on_its_own_flag(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        assert self.record(run, model, text, tmp_path / "a", "--no-refinement") == {}
        one = self.record(run, model, text, tmp_path / "b", "--no-refinement", "--bias-correction")
        assert one == {"bias_correction": True, "refined": 6, "samples": 40}
        other = self.record(
            run, model, text, tmp_path / "c", "--smoothing", "off", "--no-shift", "--rounding", "nearest"
        )
        assert other == {"bias_correction": True, "refined": 6, "samples": 40}
        third = self.record(run, model, text, tmp_path / "d", "--no-refinement", "--smoothing", "0.5")
        assert third == {"smoothing": 0.5, "transformed": 4}

    def test_values_that_cannot_be_are_told_together(
        self, refused: Refused, model: Path, text: Path, tmp_path: Path
    ) -> None:
        options = ["--smoothing", "much", "--rounding", "up"]
        message = refused("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, *options)
        assert "smoothing is 'much', must be a number from 0 to 1" in message
        assert "rounding is 'up', must be one of nearest, gptq" in message


class TestStatisticsOfSeveralMachines:
    def test_two_halves_are_the_whole(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        lines = text.read_text().splitlines(keepends=True)
        for name, part in (("a", lines[:25]), ("b", lines[25:])):
            (tmp_path / f"{name}.txt").write_text("".join(part))
        common = ["-m", model, "--no-refinement", "--calibrator", "mse", "--batch-size", "5", "--json"]
        save = ["--save-statistics", tmp_path / "a.statistics"]
        first = run("calibrate", *common, "-o", tmp_path / "a", "--calib-data", tmp_path / "a.txt", *save)
        assert first.code == 0, first.err
        add = ["--add-statistics", tmp_path / "a.statistics"]
        second = run("calibrate", *common, "-o", tmp_path / "b", "--calib-data", tmp_path / "b.txt", *add)
        assert second.code == 0, second.err
        assert second.document["calibration"]["added"] == 25
        whole = run("calibrate", *common, "-o", tmp_path / "whole", "--calib-data", text)
        assert whole.code == 0, whole.err
        got, want, part = (load_file(tmp_path / name / "quantizers.safetensors") for name in ("b", "whole", "a"))
        # Kernels differ by float rounding with the shape of a batch, and by nothing else.
        assert all(torch.allclose(got[name].double(), want[name].double(), rtol=1e-5, atol=1e-7) for name in want)
        assert any(not torch.allclose(part[name].double(), want[name].double(), rtol=1e-3) for name in want)

    def test_of_another_calibrator(self, run: Run, refused: Refused, model: Path, text: Path, tmp_path: Path) -> None:
        common = ["calibrate", "-m", model, "-o", tmp_path / "out", "--no-refinement", "--calib-data", text]
        kept = tmp_path / "kept"
        assert run(*common, "--calibrator", "mse", "--save-statistics", kept).code == 0
        message = refused(*common, "--calibrator", "max", "--add-statistics", kept)
        assert 'method: {"name": "mse"} there, {"name": "max"} here' in message

    def test_with_smoothing_they_are_no_others(self, refused: Refused, model: Path, text: Path, tmp_path: Path) -> None:
        options = ["--save-statistics", tmp_path / "kept"]
        message = refused("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, *options)
        assert "give --smoothing off --no-shift" in message

    def test_earlier_statistics_are_replaced(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        common = ["calibrate", "-m", model, "-o", tmp_path / "out", "--no-refinement", "--calib-data", text]
        for count in (4, 8):
            ended = run(*common, "--num-samples", count, "--save-statistics", tmp_path / "kept")
            assert ended.code == 0, ended.err
        with safe_open(tmp_path / "kept", framework="pt") as file:
            assert json.loads(file.metadata()["qdq"])["samples"] == 8

    @pytest.mark.parametrize("name", ["notes.txt", "out/kept", "model.safetensors", "/dev/null", "."])
    def test_what_is_in_the_way_stays(
        self, refused: Refused, run: Run, model: Path, text: Path, tmp_path: Path, name: str
    ) -> None:
        common = ["calibrate", "-m", model, "-o", tmp_path / "out", "--no-refinement", "--calib-data", text]
        assert run(*common).code == 0
        (tmp_path / "notes.txt").write_text("precious")
        shutil.copy(model / "model.safetensors", tmp_path)
        message = refused(*common, "--save-statistics", tmp_path / name)
        assert f"{tmp_path / name}" in message

    def test_added_statistics_are_not_replaced_by_their_sum(
        self, run: Run, refused: Refused, model: Path, text: Path, tmp_path: Path
    ) -> None:
        common = ["calibrate", "-m", model, "-o", tmp_path / "out", "--no-refinement", "--calib-data", text]
        assert run(*common, "--save-statistics", tmp_path / "kept").code == 0
        (tmp_path / "link").symlink_to("kept")
        message = refused(*common, "--add-statistics", tmp_path / "kept", "--save-statistics", tmp_path / "link")
        assert "would be replaced by its own result" in message


class TestOutputThatIsNotOurs:
    """What is in the way stays as it was; ``refused`` compares the whole folder."""

    @pytest.fixture
    def calibrate(self, refused: Refused, model: Path, text: Path, tmp_path: Path) -> Callable[[], str]:
        return lambda: refused("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text)

    def test_a_file(self, calibrate: Callable[[], str], tmp_path: Path) -> None:
        (tmp_path / "out").write_text("precious")
        assert "is a file" in calibrate()

    def test_somebody_elses_folder(self, calibrate: Callable[[], str], tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("precious")
        assert "was not made by qdq" in calibrate()

    def test_the_model_itself(
        self, refused: Refused, model_folders: ModelFolders, model: Path, text: Path, tmp_path: Path
    ) -> None:
        folder = model_folders.copy(model, tmp_path / "model")
        assert "was not made by qdq" in refused("calibrate", "-m", folder, "-o", folder, "--calib-data", text)

    def test_a_result_of_another_kind(
        self, calibrate: Callable[[], str], model_folders: ModelFolders, exports: dict[str, Path], tmp_path: Path
    ) -> None:
        model_folders.copy(exports["float"], tmp_path / "out")
        message = calibrate()
        assert "another kind" in message
        assert "export" in message

    def test_a_result_to_which_files_were_added(
        self, calibrate: Callable[[], str], model_folders: ModelFolders, checkpoint: Path, tmp_path: Path
    ) -> None:
        folder = model_folders.copy(checkpoint, tmp_path / "out")
        (folder / "notes.md").write_text("precious")
        (folder / "more").mkdir()
        (folder / "more" / "figures.csv").write_text("precious")
        message = calibrate()
        assert "notes.md" in message
        assert "more/figures.csv" in message


class TestTheWorldOutside:
    """Disks, permissions and impatience: a process of their own where the limit is one of the process."""

    def leftovers(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    def test_a_disk_that_fills_up(
        self, process: RunInProcess, run: Run, model: Path, text: Path, tmp_path: Path
    ) -> None:
        limit = (model / "model.safetensors").stat().st_size // 2
        ended = process(
            *("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, "--json"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert ended.code == 4, ended.err
        assert ended.document["kind"] == "StorageError"
        assert str(tmp_path / "out") in ended.document["error"]
        assert "staging" not in ended.document["error"]
        assert "File too large" in ended.document["error"]
        assert "Traceback" not in ended.err
        assert "out.calibration keeps what was collected" in ended.document["error"]
        assert self.leftovers(tmp_path) == ["out.calibration"]
        again = run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text, "--resume")
        assert again.code == 0, again.err
        assert ": resumed after batch 5" in again.err
        assert self.leftovers(tmp_path) == ["out"]

    def test_a_small_disk(self, run: Run, model: Path, text: Path, tmp_path: Path) -> None:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a small disk here")
        try:
            ended = run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text)
            assert ended.code == 4, ended.err
            assert ended.err.startswith(f"error: {tmp_path / 'out'}")
            assert "No space left on device" in ended.err
            assert ended.err.count("\n") == 1
            assert set(self.leftovers(tmp_path)) <= {"out.calibration"}
        finally:
            subprocess.run(["umount", str(tmp_path)], check=True)

    def test_a_folder_that_may_not_be_written(
        self, process: RunInProcess, model: Path, text: Path, tmp_path: Path
    ) -> None:
        plain: list[str] = []
        if os.geteuid() == 0:  # to whom everything is permitted, unless these rights are given up
            if shutil.which("setpriv") is None:
                pytest.skip("root may write everywhere, and setpriv is not installed")
            plain = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]
        command = [*plain, sys.executable, "-m", "qdq", "calibrate", "-m", model, "-o", tmp_path / "out"]
        tmp_path.chmod(0o555)
        try:
            done = subprocess.run(
                [*command, "--calib-data", text], capture_output=True, text=True, check=False, timeout=300
            )
        finally:
            tmp_path.chmod(0o755)
        assert done.returncode == 4, done.stderr
        assert done.stderr == f"error: {tmp_path / 'out'}: Permission denied\n"
        assert self.leftovers(tmp_path) == []

    def test_an_interrupt(self, model: Path, tmp_path: Path) -> None:
        """The progress bar is on a terminal, so that we see when calibration is under way."""
        folder = tmp_path / "work"
        folder.mkdir()
        (tmp_path / "much.txt").write_text("a cat and a dog\n" * 200_000)
        options = ["--calib-data", str(tmp_path / "much.txt"), "--num-samples", "200000", "--batch-size", "1"]
        ours, theirs = pty.openpty()
        # Shells make what they start in the background deaf to interrupts, and children inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        with subprocess.Popen(
            [sys.executable, "-m", "qdq", "calibrate", "-m", str(model), "-o", str(folder / "out"), *options],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
        ) as started:
            signal.signal(signal.SIGINT, before)
            os.close(theirs)
            try:
                seen = b""
                deadline = time.monotonic() + 120
                while not re.search(rb"\b[1-9]\d*/200000", seen):
                    assert started.poll() is None, seen.decode()
                    assert time.monotonic() < deadline, seen.decode()
                    if select.select([ours], [], [], 1)[0]:
                        seen = seen[-10_000:] + os.read(ours, 65536)
                assert [name for name in self.leftovers(folder) if "qdq-staging" in name]
                started.send_signal(signal.SIGINT)
                rest = b""
                while started.poll() is None:
                    assert time.monotonic() < deadline
                    if select.select([ours], [], [], 0.1)[0]:
                        try:
                            rest += os.read(ours, 65536)
                        except OSError:  # the other end is closed
                            break
                assert started.wait(30) == 130
                assert started.stdout is not None
                assert started.stdout.read() == b""
            finally:
                started.kill()  # nothing when it has ended; else the next line would wait for all of the work
        os.close(ours)
        assert b"interrupted; " in rest
        assert b"the same command with --resume goes on" in rest
        assert b"Traceback" not in rest
        assert self.leftovers(folder) == ["out.calibration"]
