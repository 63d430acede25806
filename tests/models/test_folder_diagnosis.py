"""Folders that are no model directory: each is called by its name, with the cure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from qdq.errors import CheckpointError
from qdq.models.folder_diagnosis import check_no_adapter, describe_missing_config, describe_missing_weights
from qdq.models.huggingface import load_model, read_config, save_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.models.support import SmallModels

ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/base"})


def fill(folder: Path, *names: str) -> Path:
    """Write files with a byte each; a name that ends with a slash is a folder."""
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((), "The folder is empty"),
        (("bert_config.json", "bert_model.ckpt.index"), "qdq convert --from tensorflow {}/bert_model.ckpt -o DIR"),
        (("saved_model.pb", "variables/variables.index"), "--from tensorflow {}/variables/variables -o DIR"),
        (("mp_rank_00/model_optim_rng.pt",), "qdq convert --from megatron-lm {}/mp_rank_00/model_optim_rng.pt -o DIR"),
        (("iter_0000100/mp_rank_00/model_optim_rng.pt",), "--from megatron-lm {}/iter_0000100/mp_rank_00/"),
        (("zero_to_fp32.py", "latest"), "a checkpoint of DeepSpeed in pieces: python zero_to_fp32.py"),
        (("pytorch_model_fsdp_0/__0_0.distcp",), "accelerate merge-weights {}/pytorch_model_fsdp_0 OUT"),
        (("checkpoint-500/config.json", "checkpoint-1000/config.json"), "give {}/checkpoint-1000; there are 2"),
        (("model.safetensors",), "The weights are there (model.safetensors): copy the config.json"),
        (("pytorch_model.bin", "bert_config.json"), "Rename bert_config.json, as old releases call it, to config.json"),
        (
            ("tf_model.h5",),
            'with transformers 4, which still reads them: AutoModel.from_pretrained("{}", from_tf=True)',
        ),
        (("flax_model.msgpack",), "from_flax=True"),
        (("model-q8_0.gguf",), "model-q8_0.gguf is in the format of llama.cpp"),
        (("onnx/model.onnx",), "{}/onnx/model.onnx is an ONNX file, which qdq inspect and qdq benchmark take"),
        (
            ("models--x--base/snapshots/1/config.json",),
            "the cache of huggingface_hub: give a snapshot in it, such as {}/",
        ),
    ],
    ids=lambda value: str(value[-1]) if value and isinstance(value, tuple) else "",
)
def test_a_folder_without_config(files: tuple[str, ...], said: str, tmp_path: Path) -> None:
    text = describe_missing_config(fill(tmp_path, *files))
    assert f"{tmp_path}/config.json: no such file" in text
    assert said.replace("{}", str(tmp_path)) in text
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    assert str(error.value) == text


def test_a_folder_of_anything_else_says_no_more(tmp_path: Path) -> None:
    text = describe_missing_config(fill(tmp_path, "notes.txt"))
    assert text == f"{tmp_path}/config.json: no such file; a model directory needs a config.json"


def test_the_cache_of_a_model_names_the_snapshot_of_its_main_branch(tmp_path: Path) -> None:
    fill(tmp_path, "blobs/", "snapshots/1/config.json", "snapshots/2/config.json", "refs/")
    (tmp_path / "refs" / "main").write_text("2\n")
    text = describe_missing_config(tmp_path)
    assert f"give its snapshot {tmp_path}/snapshots/2 (or one of 1 others there)" in text


def test_an_adapter_alone_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(ADAPTER)
    text = describe_missing_config(fill(tmp_path, "adapter_model.safetensors"))
    assert "It holds an adapter (LORA) of x/base, without that model. Merge the two: peft." in text
    (tmp_path / "adapter_config.json").write_text("{")  # a diagnosis does not fail
    assert "an adapter (of peft) of another model" in describe_missing_config(tmp_path)


def test_an_adapter_beside_the_weights_is_refused(small_models: SmallModels, tmp_path: Path) -> None:
    save_model(small_models.build("bert"), tmp_path)
    (tmp_path / "adapter_config.json").write_text(ADAPTER)
    check_no_adapter(tmp_path)
    load_model(tmp_path)
    for name in ("adapter_model.bin", "adapter_model.safetensors"):
        fill(tmp_path, name)
        with pytest.raises(CheckpointError, match=r"an adapter \(LORA\) of x/base beside the weights.*merge_and"):
            load_model(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("model.safetensors/",), "model.safetensors is a directory, not a file"),
        (("tf_model.h5",), "from_tf=True"),
        (("model.fp16.safetensors",), "If model.fp16.safetensors holds the weights, rename it to model.safetensors"),
        (("best.pt", "optimizer.pt"), "If best.pt holds the weights, rename it to pytorch_model.bin"),
        (("model-00001-of-00002.safetensors",), "copy model.safetensors.index.json too"),
        (("model.onnx",), "model.onnx is an ONNX file"),
        (("model.ckpt.index",), "qdq convert --from tensorflow {}/model.ckpt"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_a_folder_without_weights(files: tuple[str, ...], said: str, tmp_path: Path) -> None:
    fill(tmp_path, "config.json", *files)
    text = describe_missing_weights(tmp_path, ["model.safetensors"])
    assert "no weights; expected one of model.safetensors. " in text
    assert said.replace("{}", str(tmp_path)) in text


def test_a_link_to_a_file_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../blobs/1")
    text = describe_missing_weights(tmp_path, ["model.safetensors"])
    assert "is a link to ../blobs/1, which does not exist: download the model again" in text
