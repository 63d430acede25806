"""A made-up family that differs from BERT in what other families differ in, from its checkpoint to a verified file.

Pre-norm with RMSNorm, which has no bias; no norm in front of the first attention; query, key and value in one tensor;
fields of the configuration under other names.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import qdq
from exporters.directory import export, verify
from qdq.errors import CheckpointError, ConfigError
from qdq.models.assembly import attention, embeddings, feed_forward
from qdq.models.config import BertLikeConfig, ModelConfig, configuration
from qdq.models.encoder import Encoder, Layer
from qdq.models.family import Family, standard_tasks
from qdq.models.huggingface import load_model, save_model
from qdq.models.keymap import EMBEDDING_KEYS, FusedPart, below, fused
from qdq.models.registry import FAMILIES, build, configure
from qdq.quantization.graph import quantized_reads
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from qdq.models.embeddings import Embeddings
    from qdq.models.model import Model


@configuration
class MadeUpConfig(BertLikeConfig):
    names: ClassVar[Mapping[str, str]] = {"dim": "hidden_size", "norm_eps": "layer_norm_eps"}

    model_type: str = "made-up"


def rms_norm(config: ModelConfig, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=config.layer_norm_eps)


def assemble(config: MadeUpConfig) -> tuple[Embeddings, Encoder]:
    layers = [
        Layer(
            attention(config, norm=rms_norm if depth else None, norm_first=True),
            feed_forward(config, norm=rms_norm, norm_first=True),
        )
        for depth in range(config.num_hidden_layers)
    ]
    return embeddings(config, norm=rms_norm), Encoder(layers, norm=rms_norm(config, config.hidden_size))


MADE_UP = Family(
    config=MadeUpConfig,
    build=assemble,
    prefix="model",
    keys={
        **EMBEDDING_KEYS,
        **below("encoder.layers.{}.attention", "layers.{}.attn", fused("Wqkv", "query", "key", "value")),
        **below("encoder.layers.{}.attention", "layers.{}.attn", {"output": "Wo", "norm": "norm"}),
        **below("encoder.layers.{}.feed_forward", "layers.{}.mlp", {"up": "Wi", "down": "Wo", "norm": "norm"}),
        "encoder.norm": "final_norm",
        "pooler.dense": "pooler.dense",
    },
    tasks=standard_tasks("MadeUp"),
)

FIELDS = {
    "vocab_size": 60,
    "dim": 32,
    "norm_eps": 1e-6,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 150,
    "initializer_range": 0.2,
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "made-up", MADE_UP)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return build(configure("made-up", **FIELDS), "sequence-classification").eval()


def batches(count: int = 4) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        ids = torch.randint(1, 60, (4, 20), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 12:] = 0
        found.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)})
    return found


@torch.no_grad()
def logits_of(model: Model) -> Tensor:
    return torch.cat([model(**batch).logits for batch in batches()])


def test_fields_are_written_back_under_the_names_they_were_read_with(model: Model, tmp_path: Path) -> None:
    assert (model.config.hidden_size, model.config.layer_norm_eps) == (32, 1e-6)
    save_model(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["dim"], written["norm_eps"]) == (32, 1e-6)
    assert not {"hidden_size", "layer_norm_eps"} & set(written)
    again = load_model(tmp_path).config
    assert replace(again, architectures=()) == model.config
    assert again.read_as == {"hidden_size": "dim", "layer_norm_eps": "norm_eps"}


def test_weights_that_upstream_stores_together_go_both_ways(model: Model, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    block = model.encoder.layers[1].attention
    for leaf in ("weight", "bias"):
        wanted = torch.cat([getattr(getattr(block, name), leaf) for name in ("query", "key", "value")])
        torch.testing.assert_close(stored[f"model.layers.1.attn.Wqkv.{leaf}"], wanted, rtol=0, atol=0)
    again = load_model(tmp_path)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter, rtol=0, atol=0)


def test_a_misshaped_fused_tensor_is_told_once(model: Model, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_model(model, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.1.attn.Wqkv.weight"] = torch.zeros(95, 32)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(qdq.QDQError) as caught:
        load_model(tmp_path)
    assert str(caught.value).count("Wqkv") == 1
    assert "model.layers.1.attn.Wqkv.weight is [95, 32] float32, must be [96, 32] float" in str(caught.value)


def test_a_new_configuration_is_written_under_upstreams_names(tmp_path: Path) -> None:
    model = build(configure("made-up", **{**FIELDS, "hidden_size": 32, "dim": 32}), "feature-extraction")
    model.config = replace(model.config, read_as={})
    save_model(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["dim"], written["norm_eps"]) == (32, 1e-6)
    assert not {"hidden_size", "layer_norm_eps"} & set(written)


def test_one_field_under_two_names_must_be_one_value() -> None:
    with pytest.raises(ConfigError, match="hidden_size is 64, but dim is 32: they are one field"):
        configure("made-up", dim=32, hidden_size=64)


def test_messages_name_the_field_as_the_file_does() -> None:
    with pytest.raises(ConfigError, match=r"dim \(hidden_size\) is 0, must be a positive whole number"):
        configure("made-up", dim=0)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"is_decoder": True, "add_cross_attention": True}, "add_cross_attention is set, but its layers have none"),
        ({"position_embedding_type": "relative_key"}, "its layers have no relative positions"),
    ],
    ids=["cross-attention", "relative positions"],
)
def test_a_configuration_that_the_family_does_not_follow_is_refused(field: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(configure("made-up", **FIELDS, **field), "feature-extraction")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"encoder.layers.{}.attention.output": "layers.{}.mlp.Wi"},
            "encoder.layers.0.feed_forward.up.weight and encoder.layers.0.attention.output.weight are both",
        ),
        (
            {"encoder.layers.{}.attention.key": FusedPart("layers.{}.attn.Wqkv", 2, 3)},
            "are both layers.0.attn.Wqkv.weight",
        ),
        ({"encoder.layers.{}.attention.key": "layers.{}.attn.k"}, "Wqkv.weight has 3 parts, the model only"),
    ],
    ids=["one key for two modules", "one part for two modules", "a part is missing"],
)
def test_a_key_table_that_would_lose_a_weight_is_refused(
    keys: Mapping[str, str | FusedPart], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(FAMILIES, "made-up", replace(MADE_UP, keys={**MADE_UP.keys, **keys}))
    model = build(configure("made-up", **FIELDS), "feature-extraction")
    with pytest.raises(CheckpointError) as caught:
        save_model(model, tmp_path)
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_family_may_call_its_norms_gamma(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = {**MADE_UP.keys, "encoder.norm.weight": "final_norm.gamma"}
    monkeypatch.setitem(FAMILIES, "made-up", replace(MADE_UP, keys=keys))
    model = build(configure("made-up", **FIELDS), "feature-extraction")
    save_model(model, tmp_path)
    assert "final_norm.gamma" in load_file(tmp_path / "model.safetensors")
    again = load_model(tmp_path)
    torch.testing.assert_close(again.encoder.norm.weight, model.encoder.norm.weight, rtol=0, atol=0)


def test_blocks_say_who_makes_what_their_linears_read(model: Model) -> None:
    reads = {read.name: read for read in quantized_reads(quantize(model, "tensorrt"))}
    first = reads["encoder.layers.0.attention.query"]
    assert first.norm is model.embeddings.norm
    assert first.add is model.encoder.layers[0].attention.add
    second = reads["encoder.layers.1.attention.query"]
    assert second.norm is model.encoder.layers[1].attention.norm
    assert second.add is None


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_from_checkpoint_to_verified_file(target: str, model: Model, tmp_path: Path) -> None:
    recipe = load_recipe(target)
    reference = logits_of(model)
    quantize(model, recipe)
    summary = qdq.calibrate_and_refine(model, batches, recipe.refinement)
    error = logits_of(model) - reference
    assert float(error.square().sum()) < 0.05 * float(reference.square().sum())
    qdq.save(model, tmp_path / "quantized", recipe=recipe, calibration=summary.to_dict(), source=None)
    export(tmp_path / "quantized", tmp_path / "export", target=target)
    report = verify(tmp_path / "quantized", tmp_path / "export")
    assert report.problems == []
    assert report.segments
