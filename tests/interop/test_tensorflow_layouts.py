"""Checkpoints of TensorFlow as they are published: optimizers' slots, other heads, TensorFlow Hub, other formats."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from qdq.conversion import convert
from qdq.errors import CheckpointError, ConfigError
from qdq.interop.tensorflow import convert as tensorflow_convert
from qdq.interop.tensorflow.convert import from_variables
from qdq.interop.tensorflow.reader import checkpoint_prefix
from tests.interop.test_tensorflow import GOLDEN, Golden, compare

if TYPE_CHECKING:
    from pathlib import Path

Variables = dict[str, np.ndarray[Any, Any]]
SLOTS = (
    *("Adam", "Adam_1", "adam_m", "adam_v", "AdamWeightDecayOptimizer", "BERTAdam_1", "LAMB", "lamb_m", "lamb_v"),
    *("Momentum", "m", "v", "Adagrad", "RMSProp_1", "vr", "vc", "replica_1"),
)


def with_heads(variables: Variables, width: int) -> Variables:
    """Add the heads of ALBERT's run_squad.py, and drop those of the pre-training."""
    shapes = {
        "start_logits/dense/kernel": (width, 1),
        "start_logits/dense/bias": (1,),
        "end_logits/dense_0/kernel": (2 * width, width),
        "end_logits/LayerNorm/gamma": (width,),
        "answer_class/dense_1/kernel": (width, 1),
    }
    kept = {name: value for name, value in variables.items() if not name.startswith("cls/")}
    return kept | {name: np.zeros(shape, "float32") for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_slots_of_optimizers_are_left_out(name: str) -> None:
    golden = Golden(name)
    variables = golden.variables
    slots = {f"{first}/{slot}": value for slot in SLOTS for first, value in list(variables.items())[:3]}
    numbers = {"beta1_power": np.float32(0.9), "loss_scale": np.float32(2), "good_steps": np.int64(3)}
    numbers |= {"cond/beta2_power_1": np.float32(0.9), "loss_scale/good_steps": np.int64(1)}
    found = from_variables({**variables, **slots, **numbers}, name, golden.config)  # type: ignore[dict-item]
    compare(found.model, golden, "pre-training")
    reasons = {entry.name: entry.reason for entry in found.report.skipped}
    assert set(reasons) >= {*slots, *numbers}
    assert {reasons[entry] for entry in slots} == {"optimizer state, not a weight"}


def test_a_moving_average_is_not_taken_for_the_weight() -> None:
    golden = Golden("bert")
    name = "bert/pooler/dense/kernel/ExponentialMovingAverage"
    found = from_variables({**golden.variables, name: np.zeros((16, 16), "float32")}, "bert", golden.config)
    reasons = {entry.name: entry.reason for entry in found.report.skipped}
    assert reasons[name].startswith("a moving average")


@pytest.mark.parametrize("task", [None, "feature-extraction"])
def test_heads_that_no_model_has_are_left_out_with_a_note(task: str | None) -> None:
    golden = Golden("albert")
    found = from_variables(with_heads(golden.variables, 16), "albert", golden.config, task=task)
    assert found.model.task == "feature-extraction"
    assert any("start_logits, end_logits, answer_class" in note for note in found.report.notes)
    reasons = {entry.name: entry.reason for entry in found.report.skipped}
    assert reasons["answer_class/dense_1/kernel"] == "of a head that no model of transformers has"
    inputs, wanted = golden.tensors("in"), golden.tensors("out:pre-training")["encoder"]
    with torch.no_grad():
        torch.testing.assert_close(found.model.encode(**inputs).last_hidden_state, wanted, atol=1e-5, rtol=1e-5)


def test_questions_need_another_head_than_albert_has() -> None:
    golden = Golden("albert")
    with pytest.raises(CheckpointError, match="--task feature-extraction takes the encoder"):
        from_variables(with_heads(golden.variables, 16), "albert", golden.config, task="question-answering")


@pytest.mark.parametrize("name", ["bert", "albert"])
def test_names_of_tensorflow_hub(name: str) -> None:
    golden = Golden(name)
    variables = {f"module/{key}": value for key, value in golden.variables.items()}
    compare(from_variables(variables, name, golden.config).model, golden, "pre-training")


def test_the_activation_of_albert_is_told() -> None:
    golden = Golden("albert")
    (note,) = from_variables(golden.variables, "albert", golden.config).report.notes
    assert "--set hidden_act=gelu_new" in note
    asked = from_variables(golden.variables, "albert", {**golden.config, "hidden_act": "gelu_new"})
    assert asked.report.notes == []


# --- object-based checkpoints ---


@pytest.mark.parametrize("given", ["", "bert_model.ckpt", "bert_model.ckpt.index"], ids=["folder", "prefix", "file"])
def test_an_object_based_checkpoint_is_named_without_tensorflow(given: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="an object-based checkpoint of TensorFlow 2"):
        convert(GOLDEN / "objects" / given, tmp_path / "out", format="tensorflow")
    assert not (tmp_path / "out").exists()


def test_variables_of_an_object_based_checkpoint_are_named() -> None:
    variables: dict[str, Any] = {
        "_CHECKPOINTABLE_OBJECT_GRAPH": b"\n\x0c...",
        "model/layer-1/kernel/.ATTRIBUTES/VARIABLE_VALUE": np.zeros((4, 4), "float32"),
    }
    with pytest.raises(CheckpointError, match="an object-based checkpoint of TensorFlow 2"):
        from_variables(variables, "bert", Golden("bert").config)


def test_texts_among_the_variables_are_no_weights() -> None:
    golden = Golden("bert")
    with pytest.raises(CheckpointError, match="bert/pooler/dense/bias is"):
        from_variables({**golden.variables, "bert/pooler/dense/bias": b"x"}, "bert", golden.config)  # type: ignore[dict-item]


# --- files ---


@pytest.fixture
def read_golden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the golden variables instead of the files, since TensorFlow need not be installed."""
    variables = Golden("albert").variables
    monkeypatch.setattr(tensorflow_convert, "read_variables", lambda prefix: variables)


def hub(folder: Path, layout: str) -> Path:
    """ALBERT as Google publishes it: a module of TensorFlow Hub, or an archive."""
    import io

    import sentencepiece

    assets = folder / "assets" if layout == "hub" else folder
    prefix = folder / "variables" / "variables" if layout == "hub" else folder / "model.ckpt-best"
    assets.mkdir(parents=True)
    prefix.parent.mkdir(exist_ok=True)
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(GOLDEN / "albert" / f"model.ckpt{suffix}", f"{prefix}{suffix}")
    shutil.copy(GOLDEN / "albert" / "albert_config.json", assets)
    if layout == "hub":
        (folder / "saved_model.pb").touch()
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat and the dog ran to it", "a bird flew over the river"] * 20),
        model_writer=pieces,
        vocab_size=30,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        control_symbols=["[CLS]", "[SEP]", "[MASK]"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (assets / "30k-clean.model").write_bytes(pieces.getvalue())
    return folder


@pytest.mark.parametrize(
    ("layout", "given"),
    [
        ("hub", ""),
        ("hub", "saved_model.pb"),
        ("hub", "variables"),
        ("hub", "variables/variables"),
        ("hub", "variables/variables.index"),
        ("hub", "variables/variables.data-00000-of-00001"),
        ("archive", ""),
        ("archive", "model.ckpt-best"),
    ],
)
@pytest.mark.usefixtures("read_golden")
def test_albert_comes_with_its_tokenizer(layout: str, given: str, tmp_path: Path) -> None:
    from qdq.data.tokenizer import load_tokenizer

    report = convert(hub(tmp_path / "source", layout) / given, tmp_path / "out", format="tensorflow")
    assert any(note.endswith("30k-clean.model, as spiece.model") for note in report.notes)
    assert load_tokenizer(tmp_path / "out").encode("The cat").tokens[0] == "[CLS]"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "albert"


@pytest.mark.usefixtures("read_golden")
def test_a_tokenizer_that_is_not_there_is_told(tmp_path: Path) -> None:
    source = hub(tmp_path / "source", "archive")
    (source / "30k-clean.model").unlink()
    report = convert(source, tmp_path / "out", format="tensorflow")
    assert report.notes[-1].startswith("no tokenizer lies with the checkpoint: copy its spiece.model or vocab.txt")


@pytest.mark.usefixtures("read_golden")
def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    source = hub(tmp_path / "source", "hub")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (source / "assets" / "30k-clean.model").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"30k-clean\.model: is a Git LFS pointer"):
        convert(source, tmp_path / "out", format="tensorflow")
    assert not (tmp_path / "out").exists()
    (source / "variables" / "variables.data-00000-of-00001").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"variables\.data-00000-of-00001: is a Git LFS pointer"):
        convert(source, tmp_path / "out", format="tensorflow")


def test_weights_of_keras_are_named(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    for source in (tmp_path, tmp_path / "tf_model.h5"):
        with pytest.raises(CheckpointError, match=r"weights of Keras.*model\.safetensors"):
            checkpoint_prefix(source)


def test_a_configuration_that_is_not_there_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "variables").mkdir()
    shutil.copy(GOLDEN / "albert" / "model.ckpt.index", tmp_path / "variables" / "variables.index")
    (tmp_path / "assets").mkdir()
    with pytest.raises(ConfigError, match=r"assets: none of config\.json, bert_config\.json"):
        convert(tmp_path, tmp_path / "out", format="tensorflow")
    with pytest.raises(ConfigError, match="no such file"):
        convert(tmp_path, tmp_path / "out", format="tensorflow", config=tmp_path / "none.json")
