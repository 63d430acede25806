"""TensorFlow's variables to ours: the same outputs as transformers with its own loader, and nothing unsaid.

The golden folders are of ``tools/golden_tensorflow.py``; TensorFlow itself wrote the checkpoints in them. They are read
by the Python that ``QDQ_TENSORFLOW_PYTHON`` names, one that has tensorflow and numpy.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from qdq.conversion import convert
from qdq.errors import CheckpointError, ConfigError, MissingPackageError
from qdq.interop.tensorflow.convert import convert as convert_tensorflow
from qdq.interop.tensorflow.convert import from_variables
from qdq.interop.tensorflow.reader import checkpoint_prefix, read_variables
from tests.interop.support import GoldenFile

if TYPE_CHECKING:
    from qdq.models.model import Model

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "tensorflow"
CASES = [
    ("bert", "pre-training"),
    ("albert", "pre-training"),
    ("realm-openqa", "question-answering"),
    ("realm-openqa", "retrieval"),
    ("realm-encoder", "masked-lm"),
]


class Golden(GoldenFile):
    """The variables of one checkpoint and its configuration, of ``tools/golden_tensorflow.py``."""

    def __init__(self, name: str) -> None:
        folder = GOLDEN / name
        super().__init__(folder / "golden.safetensors")
        self.folder = folder
        self.model_type = name.partition("-")[0]
        config = next(folder.glob("*_config.json"))
        self.config = {key: value for key, value in json.loads(config.read_text()).items() if key != "model_type"}

    @property
    def variables(self) -> dict[str, np.ndarray[Any, Any]]:
        return {name: tensor.numpy() for name, tensor in self.tensors("variable").items()}


def compare(model: Model, golden: Golden, task: str) -> None:
    inputs, wanted = golden.tensors("in"), golden.tensors(f"out:{task}")
    more: dict[str, torch.Tensor] = {}
    if task == "question-answering":
        more = {"relevance_score": torch.tensor([0.3, 0.7]), "block_mask": inputs["token_type_ids"]}
    given = {key: value[None] for key, value in inputs.items()} if task == "masked-lm" else inputs
    with torch.no_grad():
        output = model(**given, **more)
        hidden = model.encode(**inputs).last_hidden_state
    torch.testing.assert_close(hidden, wanted.pop("encoder"), atol=1e-5, rtol=1e-5)
    assert wanted.keys() == {*output.keys()}
    for name, tensor in wanted.items():
        torch.testing.assert_close(output[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "task"), CASES, ids=lambda value: value)
def test_outputs_are_those_of_transformers(name: str, task: str) -> None:
    golden = Golden(name)
    # What a model of REALM consists of is in one file: the reader is what it is for.
    asked = "retrieval" if task == "retrieval" else None
    found = from_variables(golden.variables, golden.model_type, golden.config, task=asked)
    assert found.model.task == task
    compare(found.model, golden, task)
    reported = [entry.name for entry in found.report.mapped] + [entry.name for entry in found.report.skipped]
    assert sorted(reported) == sorted(golden.variables)
    reasons = {entry.name: entry.reason for entry in found.report.skipped}
    assert reasons["global_step"] == "optimizer state, not a weight"
    if name == "realm-openqa":
        left = "module/module/module/dense/kernel" if task == "question-answering" else "reader/dense/kernel"
        assert "of another component of the model" in reasons[left]


def test_a_classifier_at_the_root(tmp_path: Path) -> None:
    golden = Golden("bert")
    variables = {name: value for name, value in golden.variables.items() if not name.startswith("cls/")}
    weight, bias = np.random.default_rng(0).normal(size=(3, 16)).astype("float32"), np.zeros(3, dtype="float32")
    found = from_variables({**variables, "output_weights": weight, "output_bias": bias}, "bert", golden.config)
    assert found.model.task == "sequence-classification"
    assert torch.equal(found.model.get_parameter("head.classifier.weight"), torch.from_numpy(weight))
    spans = {"cls/squad/output_weights": weight[:2], "cls/squad/output_bias": bias[:2]}
    found = from_variables({**variables, **spans}, "bert", golden.config)
    assert found.model.task == "question-answering"
    assert torch.equal(found.model.get_parameter("head.classifier.weight"), torch.from_numpy(weight[:2]))


def test_a_head_that_the_task_has_not_is_left_out_and_said() -> None:
    golden = Golden("bert")
    found = from_variables(golden.variables, "bert", golden.config, task="masked-lm")
    reasons = {entry.name: entry.reason for entry in found.report.skipped}
    assert reasons["cls/seq_relationship/output_weights"] == "a model of the task masked-lm does not have it"
    assert reasons["bert/pooler/dense/kernel"] == "a model of the task masked-lm does not have it"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bert/encoder/layer_0/adapter/kernel": np.zeros((2, 2), dtype="float32")}, "adapter/kernel is unknown"),
        ({"swap/kernel": np.zeros((2, 2), dtype="float32")}, "swap/kernel is unknown"),
        ({"bert/pooler/dense/kernel": np.zeros((4, 16), dtype="float32")}, r"pooler\.dense\.weight is \[16, 4\]"),
        ({"bert/pooler/dense/bias": np.zeros(16, dtype="int32")}, "is int32, must be floating point"),
        ({"bert/pooler/dense/bias": None}, r"missing: pooler\.dense\.bias"),
    ],
    ids=["adapter", "root", "shape", "dtype", "missing"],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    golden = Golden("bert")
    variables = {name: value for name, value in {**golden.variables, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        from_variables(variables, "bert", golden.config)


def test_families_and_tasks_that_there_are_not() -> None:
    golden = Golden("bert")
    with pytest.raises(ConfigError, match="no TensorFlow checkpoints of roberta-prelayernorm"):
        from_variables(golden.variables, "roberta-prelayernorm", golden.config)
    with pytest.raises(ConfigError, match="no task 'scoring': 'bert' has"):
        from_variables(golden.variables, "bert", golden.config, task="scoring")


# --- files ---


@pytest.mark.parametrize("given", ["", "model.ckpt", "model.ckpt.index"], ids=["folder", "prefix", "file"])
def test_the_checkpoint_is_found(given: str) -> None:
    assert checkpoint_prefix(GOLDEN / "bert" / given) == GOLDEN / "bert" / "model.ckpt"


def test_no_checkpoint_or_several(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file \*\.index"):
        checkpoint_prefix(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.ckpt-5\.index is missing"):
        checkpoint_prefix(tmp_path / "model.ckpt-5")
    for step in (5, 10):
        (tmp_path / f"model.ckpt-{step}.index").touch()
    with pytest.raises(CheckpointError, match=r"several checkpoints; name one of them: model\.ckpt-10, model\.ckpt-5"):
        checkpoint_prefix(tmp_path)


def test_without_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt.index").touch()
    with pytest.raises(ConfigError, match=r"--config FILE"):
        convert_tensorflow(tmp_path)
    (tmp_path / "bert_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold a JSON object, not a list"):
        convert_tensorflow(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here")
def test_without_tensorflow_the_pip_command_is_told() -> None:
    with pytest.raises(MissingPackageError, match=r"pip install 'qdq\[tensorflow\]'"):
        read_variables(GOLDEN / "bert")


def read_elsewhere(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """``read_variables`` in a Python that has TensorFlow."""
    python = os.environ.get("QDQ_TENSORFLOW_PYTHON")
    if not python:
        pytest.skip("needs TensorFlow: set QDQ_TENSORFLOW_PYTHON to a Python that has it")
    code = (
        "import sys, numpy; from qdq.interop.tensorflow.reader import read_variables; "
        "numpy.savez(sys.argv[2], **{k.replace('/', '|'): v for k, v in read_variables(sys.argv[1]).items()})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, "-c", code, str(source), str(target)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["bert", "albert", "realm-openqa", "realm-encoder"])
def test_what_tensorflow_wrote_is_read(name: str, tmp_path: Path) -> None:
    done = read_elsewhere(GOLDEN / name, tmp_path / "found.npz")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as file:
        found = {key.replace("|", "/"): file[key] for key in file.files}
    wanted = Golden(name).variables
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "bert", tmp_path / "bert"))
    data = folder / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:500])
    done = read_elsewhere(folder, tmp_path / "found.npz")
    assert "CheckpointError" in done.stderr
    assert "damaged or incomplete checkpoint of TensorFlow" in done.stderr


def test_options_of_tensorflow_are_for_tensorflow(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not for megatron-lm"):
        convert(tmp_path, tmp_path / "ours", format="megatron-lm", model_type="bert")
    with pytest.raises(ConfigError, match="it must be one of megatron-lm, tensorflow, pytorch-quantization"):
        convert(tmp_path, tmp_path / "ours", format="jax")
