"""The program itself: help, version, spellings, usage errors, and how quickly it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import qdq

if TYPE_CHECKING:
    from tests.cli.conftest import Refused, Run, RunInProcess


COMMANDS = (
    *("quickstart", "calibrate", "finetune", "export", "verify", "lint", "build", "evaluate", "analyze", "benchmark"),
    *("convert", "generate", "inspect", "realm"),
)
OUTPUT_OPTIONS = ("--json", "--verbose", "-v", "--quiet", "-q", "--seed")
OPTIONS = {
    "quickstart": ("--output", "-o", "--model", "-m", "--threads", "--rounds"),
    "calibrate": (
        *("--model", "-m", "--output", "-o", "--calib-data", "--recipe", "--calibrator", "--percentile"),
        *("--num-samples", "--seq-len", "--batch-size", "--include", "--exclude", "--text-column", "-r"),
        *("--quant-per-tensor", "--quant-disable", "--quant-disable-keyword", "--quant-disable-layer-module"),
        *("--quant-enable-layer-module", "--fuse-qkv", "--clip-gelu", "--recalibrate-weights"),
    ),
    "finetune": ("--model", "-m", "--output", "-o", "--train-data", "--eval-data", "--task", "--recipe", "--teacher"),
    "lint": ("OUT_DIR", "--target", "--strict", "--fix", "--parse", "--refit", "--min-shapes"),
    "build": ("--model", "-m", "--output", "-o", "--opt-shapes", "--backend", "--print-trtexec", "--tf32"),
    "convert": ("SRC", "--output", "-o", "--from", "--task", "--set", "--config", "--model-type"),
    "generate": ("TEXT...", "--model", "-m", "--max-new-tokens", "--num-beams", "--early-stopping"),
    "export": ("--model", "-m", "--output", "-o", "--target", "--float", "--recipe", "--opset"),
    "verify": ("--model", "-m", "OUT_DIR"),
    "evaluate": (
        *("PATH", "--task", "--data", "--against", "--max-drop", "--metric", "--runtime", "--threads", "--batch-size"),
        *("--seq-len", "--num-samples", "--split", "--resamples", "--pooling", "--stride", "--n-best"),
        *("--max-answer-length", "--null-threshold", "--always-answer", "--text-column", "--text-pair-column"),
        "--label-column",
    ),
    "analyze": (
        *("PATH", "--data", "--by", "--only", "--top", "--num-samples", "--max-batches", "--batch-size", "--seq-len"),
        *("--text-column", "--text-pair-column", "--threads", "--target-cosine", "--target-sqnr", "--task", "--metric"),
        "--task-samples",
    ),
    "benchmark": ("--batch-size", "--seq-len", "--threads", "--rounds", "--runtime", "OUT_DIR"),
    "inspect": (
        *("PATH", "--recipe", "-r", "--task", "--include", "--exclude", "--quant-per-tensor", "--quant-disable"),
        *("--quant-disable-keyword", "--quant-disable-layer-module", "--quant-enable-layer-module"),
    ),
}


def script() -> list[str]:
    """The installed command."""
    return [str(Path(sys.executable).with_name("qdq"))]


@pytest.mark.parametrize("command", [script(), [sys.executable, "-m", "qdq"]], ids=["qdq", "python -m qdq"])
def test_help_lists_every_command(command: list[str]) -> None:
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    listed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ") and line[2].islower()]
    assert listed == list(COMMANDS)
    assert done.stderr == ""


@pytest.mark.parametrize("command", OPTIONS)
def test_help_of_a_command_names_its_options(run: Run, command: str) -> None:
    ended = run(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    words = ended.out.replace("{", " ").replace("}", " ").split()
    assert [option for option in (*OPTIONS[command], *OUTPUT_OPTIONS) if option not in words] == []
    assert run(command, "-h") == ended


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from qdq.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'onnxscript', 'openvino', 'numpy', 'tokenizers', 'yaml'}\n"
        "print('loaded', sorted(heavy & set(sys.modules)))\n"
    )
    for arguments in (["--help"], ["calibrate", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "loaded []"


def test_nothing_given_is_a_question_for_help(run: Run) -> None:
    assert run() == run("--help")


def test_version(run: Run) -> None:
    ended = run("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"qdq {qdq.__version__}\n", "")


USAGE_ERRORS = {
    "no command of that name": (["foo"], "'foo'", "qdq --help"),
    "no option of that name": (["inspect", "x", "--depth"], "--depth", "qdq inspect --help"),
    "an option of a command before it": (["--seed", "1", "inspect", "x"], "--seed", "qdq --help"),
    "a required option left out": (["calibrate", "-o", "x", "--calib-data", "y"], "--model", "qdq calibrate --help"),
    "a required argument left out": (["benchmark"], "OUT_DIR", "qdq benchmark --help"),
    "too many arguments": (["inspect", "x", "y"], "y", "qdq inspect --help"),
    "not a number": (["inspect", "x", "--seed", "one"], "--seed", "qdq inspect --help"),
    "a number too small": (["benchmark", "x", "--rounds", "0"], "--rounds", "qdq benchmark --help"),
}


@pytest.mark.parametrize("case", USAGE_ERRORS)
def test_usage_errors_name_the_culprit_and_the_help(refused: Refused, case: str) -> None:
    arguments, culprit, hint = USAGE_ERRORS[case]
    message = refused(*arguments, kind="UsageError")
    assert culprit in message
    assert message.endswith(f"; see {hint}")
    assert "\n" not in message


def test_usage_errors_of_the_process(process: RunInProcess) -> None:
    ended = process("calibrate", "--json")
    assert ended.code == 2
    assert ended.document["exit_code"] == 2
    assert "Traceback" not in ended.err


def test_a_path_that_looks_like_markup_is_shown_as_it_is(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "[bold]x[/red] :smile:"
    assert refused("inspect", path) == f"{path}: no such file or directory"


def test_a_path_that_is_no_text(process: RunInProcess, tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    shown = process("inspect", os.fsencode(path).decode(errors="surrogateescape"), "--json")
    assert shown.code == 2
    assert shown.document["error"] == f"{path}: no such file or directory"
    assert "caf\\udce9" in shown.err


def test_a_reader_that_has_enough_is_no_error(model: Path) -> None:
    for form in ([], ["--json"]):
        read, write = os.pipe()
        os.close(read)  # nobody will ever read
        command = [sys.executable, "-m", "qdq", "inspect", str(model), *form]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")


def test_json_errors_are_one_document(process: RunInProcess, tmp_path: Path) -> None:
    ended = process("inspect", tmp_path, "--json")
    assert json.loads(ended.out) == {
        "error": f"{tmp_path}: neither a checkpoint (no config.json) nor an export (no model.onnx). "
        "The folder is empty",
        "kind": "CheckpointError",
        "exit_code": 2,
    }
    assert ended.code == 2
