"""What every command writes is described by its config.json, whatever the source said about itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from qdq.models.huggingface import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Run

LEFT_OUT = {
    "auto_map": {"AutoModel": "modeling_own.OwnModel"},
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "_attn_implementation": "flash_attention_2",
}
LABELS = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
INPUTS = {"input_ids": torch.tensor([[2, 70, 71, 72, 73, 3]])}


@pytest.fixture
def source(model_folders: ModelFolders, tmp_path: Path) -> Path:
    """A classifier in bfloat16, with leftovers of the programs that made it."""
    folder: Path = model_folders.model(tmp_path / "source", task="sequence-classification")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | LEFT_OUT | LABELS | {"torch_dtype": "bfloat16"}))
    state = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [f"the cat {word},{label}" for word in ("and", "of", "to", "in") for label in ("yes", "no")]
    (tmp_path / "table.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return tmp_path / "table.csv"


def described(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    assert not LEFT_OUT.keys() & values.keys()
    return values


@pytest.mark.parametrize("command", ["calibrate", "finetune"])
def test_a_checkpoint(command: str, run: Run, source: Path, table: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options: dict[str, tuple[object, ...]] = {
        "calibrate": ("--calib-data", table, "--text-column", "text", "-r", "linear", "--no-refinement"),
        "finetune": ("--task", "sequence-classification", "--train-data", table, "--max-steps", 1),
    }
    ended = run(command, "-m", source, "-o", output, *options[command])
    assert ended.code == 0, ended.err
    shown = " ".join(ended.err.split())
    assert shown.count("auto_map names code") == 1
    assert "quantization_config (gptq)" in shown
    values = described(output)
    assert values["torch_dtype"] == "float32"
    assert (values["id2label"], values["label2id"]) == ({"0": "no", "1": "yes"}, {"no": 0, "yes": 1})
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(output).eval()
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        ours = load_model(output)(**INPUTS).logits
        torch.testing.assert_close(theirs(**INPUTS).logits, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("option", "named"), [("fp32", "float32"), ("fp16", "float16")])
def test_export(option: str, named: str, run: Run, source: Path, tmp_path: Path) -> None:
    ended = run("export", "-m", source, "-o", tmp_path / "e", "--float", "--dtype", option)
    assert ended.code == 0, ended.err
    assert described(tmp_path / "e")["torch_dtype"] == named
    assert transformers.AutoConfig.from_pretrained(tmp_path / "e").id2label == {0: "no", 1: "yes"}


def test_convert(run: Run, source: Path, tmp_path: Path) -> None:
    ended = run("convert", source, "--from", "pytorch-quantization", "-o", tmp_path / "c")
    assert ended.code == 0, ended.err
    assert described(tmp_path / "c")["torch_dtype"] == "float32"


def test_generate_mentions_settings_of_the_folder(run: Run, model_folders: ModelFolders, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"task": "causal-lm", "is_decoder": True, "bos_token_id": 2, "eos_token_id": [3, 4]}
    folder = model_folders.model(tmp_path / "causal", **fields)
    assert "not followed" not in run("generate", "the cat", "-m", folder).err
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 4, "do_sample": True, "eos_token_id": 3}))
    ended = run("generate", "the cat", "-m", folder)
    assert ended.code == 0
    shown = " ".join(ended.err.split())
    assert "do_sample True, num_beams 4, eos_token_id 3: not followed" in shown
    assert "num_beams" not in run("generate", "the cat", "-m", folder, "--num-beams", 4).err


def test_generate_stops_at_any_of_several_ends(run: Run, model_folders: ModelFolders, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"task": "causal-lm", "is_decoder": True, "initializer_range": 0.6}
    folder = model_folders.model(tmp_path / "causal", **fields)
    options = ("generate", "the cat", "-m", folder, "--max-new-tokens", 8, "--json")
    first, *_ = run(*options).document["results"][0]["added_ids"][0]
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"eos_token_id": [3, first]}))
    assert run(*options).document["results"][0]["added_ids"] == [[]]
