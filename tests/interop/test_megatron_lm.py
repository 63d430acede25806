"""Megatron-LM's layout to ours: the same outputs as transformers' converter and model, and nothing unsaid.

The golden files are of ``tools/golden_megatron.py``.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdq.conversion import convert
from qdq.errors import CheckpointError, ConfigError
from qdq.interop.megatron_lm import split
from qdq.models.huggingface import load_model
from tests.interop.support import GoldenFile

GOLDEN = sorted((Path(__file__).parent / "megatron").glob("*.safetensors"))


class Golden(GoldenFile):
    """A checkpoint of Megatron-LM of ``tools/golden_megatron.py``."""

    def document(self, **changes: Any) -> dict[str, Any]:
        """What Megatron-LM saves: dicts in dicts, the innermost with whole names, and the state of its training."""
        model: dict[str, Any] = {}
        for name, tensor in self.tensors("megatron").items():
            scopes = name.split(".")
            depth = 3 if ".embedding." in name else 2 if name.startswith("language_model") else 1
            inner = model
            for scope in scopes[:depth]:
                inner = inner.setdefault(scope, {})
            inner[".".join(scopes[depth:])] = tensor
        document: dict[str, Any] = {
            "model": model,
            "args": argparse.Namespace(**self.about["args"]),
            "iteration": 7,
            "optimizer": {"param_groups": []},
            "rng_state": [
                {"np_rng_state": np.random.RandomState(0).get_state(), "random_rng_state": (3, (1, 2), None)}
            ],
        }
        if self.about["version"] is not None:
            document["checkpoint_version"] = self.about["version"]
        document |= changes
        return {key: value for key, value in document.items() if value is not ...}


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def golden_version_3() -> Golden:
    return Golden(Path(__file__).parent / "megatron" / "version-3.safetensors")


def written(document: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(document, folder / "model_optim_rng.pt")
    return folder / "model_optim_rng.pt"


def test_there_are_golden_files() -> None:
    assert [path.stem for path in GOLDEN] == ["version-1", "version-2", "version-3", "version-none"]


def test_outputs_are_those_of_transformers(golden: Golden, tmp_path: Path) -> None:
    source = written(golden.document(), tmp_path / "source")
    report = convert(source, tmp_path / "ours", format="megatron-lm")
    model = load_model(tmp_path / "ours")
    assert model.task == "pre-training"
    with torch.no_grad():
        output = model(**golden.tensors("in"))
    for name, wanted in golden.tensors("out").items():
        torch.testing.assert_close(output[name], wanted, atol=1e-5, rtol=1e-5)
    names = {f"model.{entry.name}".removeprefix("model.") for entry in report.mapped}
    assert names == set(golden.tensors("megatron"))
    assert {entry.name for entry in report.skipped} >= {"args", "iteration", "optimizer", "rng_state"}


@pytest.mark.parametrize("where", ["run", "release", "iteration", "rank", "archive"])
def test_the_file_is_found(where: str, golden_version_3: Golden, tmp_path: Path) -> None:
    root = tmp_path / "run"
    inner = {"release": "release/mp_rank_00", "rank": "", "archive": "release/mp_rank_00"}.get(
        where, "iter_0000012/mp_rank_00"
    )
    file = written(golden_version_3.document(), root / inner)
    source = root
    if where == "run":
        (root / "latest_checkpointed_iteration.txt").write_text("12\n")
    elif where == "iteration":
        source = root / "iter_0000012"
    elif where == "archive":
        source = tmp_path / "archive.zip"
        with zipfile.ZipFile(source, "w") as archive:
            archive.write(file, "release/mp_rank_00/model_optim_rng.pt")
    convert(source, tmp_path / "ours", format="megatron-lm")
    assert load_model(tmp_path / "ours").config.num_hidden_layers == 2


def test_the_epsilon_is_that_of_the_arguments_or_the_one_asked_for(golden_version_3: Golden, tmp_path: Path) -> None:
    args = argparse.Namespace(**golden_version_3.about["args"], layernorm_epsilon=1e-5)
    source = written(golden_version_3.document(args=args), tmp_path / "source")
    convert(source, tmp_path / "told", format="megatron-lm")
    assert load_model(tmp_path / "told").config.layer_norm_eps == 1e-5
    convert(source, tmp_path / "asked", format="megatron-lm", overrides={"layer_norm_eps": 1e-6})
    assert load_model(tmp_path / "asked").config.layer_norm_eps == 1e-6
    convert(written(golden_version_3.document(), tmp_path / "old"), tmp_path / "usual", format="megatron-lm")
    assert load_model(tmp_path / "usual").config.layer_norm_eps == 1e-12


def test_without_arguments_the_tensors_tell_the_sizes(golden_version_3: Golden, tmp_path: Path) -> None:
    source = written(golden_version_3.document(args=...), tmp_path / "source")
    with pytest.raises(ConfigError, match=r"--set num_attention_heads=N"):
        convert(source, tmp_path / "ours", format="megatron-lm")
    report = convert(source, tmp_path / "ours", format="megatron-lm", overrides={"num_attention_heads": 4})
    assert "no arguments" in report.notes[0]
    with torch.no_grad():
        output = load_model(tmp_path / "ours")(**golden_version_3.tensors("in"))
    torch.testing.assert_close(
        output.prediction_logits, golden_version_3.tensors("out")["prediction_logits"], atol=1e-5, rtol=1e-5
    )


def test_words_behind_the_vocabulary_are_cut(golden_version_3: Golden, tmp_path: Path) -> None:
    source = written(golden_version_3.document(), tmp_path / "source")
    report = convert(source, tmp_path / "ours", format="megatron-lm", overrides={"vocab_size": 37})
    model = load_model(tmp_path / "ours")
    words = golden_version_3.tensors("megatron")["language_model.embedding.word_embeddings.weight"]
    assert torch.equal(model.get_parameter("embeddings.word.weight"), words[:37])
    assert any(entry.how == "the first 37 of 40 rows" for entry in report.mapped)


@pytest.mark.parametrize(
    ("dropped", "task"),
    [("binary_head", "masked-lm"), ("lm_head", "feature-extraction")],
)
def test_the_heads_decide_the_task(dropped: str, task: str, golden_version_3: Golden, tmp_path: Path) -> None:
    document = golden_version_3.document()
    del document["model"][dropped]
    report = convert(written(document, tmp_path / "source"), tmp_path / "ours", format="megatron-lm")
    model = load_model(tmp_path / "ours")
    assert model.task == task
    left = {entry.name: entry.reason for entry in report.skipped if entry.shape is not None}
    assert all("does not have it" in reason for reason in left.values())
    assert any(name.startswith("language_model.pooler" if task == "masked-lm" else "binary_head") for name in left)


def test_newer_names_of_the_norms_and_what_is_no_weight(golden_version_3: Golden, tmp_path: Path) -> None:
    document = golden_version_3.document()
    encoder = document["model"]["language_model"]["encoder"]
    for name in [name for name in encoder if "layernorm" in name]:
        encoder[name.replace("_layernorm", "_norm")] = encoder.pop(name)
    encoder["layers.0.mlp._extra_state"] = None
    document["model"]["word_embeddings_for_head"] = {"weight": torch.zeros(40, 24)}
    report = convert(written(document, tmp_path / "source"), tmp_path / "ours", format="megatron-lm")
    assert {entry.name: entry.reason for entry in report.skipped}["word_embeddings_for_head.weight"].startswith(
        "a copy"
    )
    with torch.no_grad():
        output = load_model(tmp_path / "ours")(**golden_version_3.tensors("in"))
    torch.testing.assert_close(
        output.prediction_logits, golden_version_3.tensors("out")["prediction_logits"], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("version", [0.0, 1.0, 2.0, 3.0])
def test_split_puts_every_row_where_it_belongs(version: float) -> None:
    heads, size = 3, 4
    label = {
        (matrix, head, row): 100 * matrix + 10 * head + row
        for matrix in range(3)
        for head in range(heads)
        for row in range(size)
    }
    order = {
        0.0: lambda key: key,
        1.0: lambda key: (key[1], key[2], key[0]),
    }.get(version, lambda key: (key[1], key[0], key[2]))
    fused = torch.tensor([label[key] for key in sorted(label, key=order)], dtype=torch.float32)
    matrices = split(fused, heads, version)
    for matrix, found in enumerate(matrices):
        assert found.tolist() == [label[matrix, head, row] for head in range(heads) for row in range(size)]
    assert torch.equal(torch.cat(split(fused[:, None].expand(-1, 5), heads, version))[:, 3], torch.cat(matrices))


def test_unknown_tensors_are_told_together(golden_version_3: Golden, tmp_path: Path) -> None:
    document = golden_version_3.document()
    document["model"]["moe"] = {"gate.weight": torch.zeros(2)}
    document["model"]["language_model"]["encoder"]["layers.0.adapter.weight"] = torch.zeros(2)
    document["model"]["language_model"]["encoder"]["layers.0.steps"] = torch.zeros(2).long()
    with pytest.raises(CheckpointError) as raised:
        convert(written(document, tmp_path / "source"), tmp_path / "ours", format="megatron-lm")
    assert all(name in str(raised.value) for name in ("moe.gate.weight", "layers.0.adapter.weight", "torch.int64"))
    assert not (tmp_path / "ours").exists()


class Foreign:
    """Something that only Megatron-LM's own code could make sense of."""


def damaged(kind: str, golden: Golden, folder: Path) -> Path:
    document = golden.document()
    if kind == "code":
        return written({**document, "args": Foreign()}, folder)
    if kind == "version":
        return written({**document, "checkpoint_version": 1.5}, folder)
    if kind == "other":
        return written({"weights": {}}, folder)
    if kind == "rows":
        document["args"].hidden_size = 16
        return written(document, folder)
    if kind == "missing":
        del document["model"]["language_model"]["encoder"]["layers.1.mlp.dense_4h_to_h.bias"]
        return written(document, folder)
    file = written(document, folder)
    file.write_bytes(file.read_bytes()[:3000])
    return file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("code", "refused: the pickle holds more than tensors"),
        ("version", r"checkpoint_version is 1\.5"),
        ("other", "it has no 'model'"),
        ("rows", r"must be 3 \* hidden_size 16"),
        ("missing", r"missing: encoder\.layer\.1\.output\.dense\.bias"),
        ("cut", "damaged or incomplete"),
    ],
)
def test_what_cannot_be_converted_is_refused(kind: str, message: str, golden_version_3: Golden, tmp_path: Path) -> None:
    source = damaged(kind, golden_version_3, tmp_path / "source")
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "ours", format="megatron-lm")
    assert not (tmp_path / "ours").exists()


def test_a_text_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("A cat sits on a mat.\n")
    with pytest.raises(CheckpointError, match=r"notes\.txt: not a file of PyTorch"):
        convert(tmp_path / "notes.txt", tmp_path / "ours", format="megatron-lm")


def test_nothing_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        convert(tmp_path / "nothing.pt", tmp_path / "ours", format="megatron-lm")
    with pytest.raises(CheckpointError, match=r"there is no mp_rank_00/model_optim_rng\.pt"):
        convert(tmp_path, tmp_path / "ours", format="megatron-lm")
