"""Whole models: module names, pruning, resizing, initialisation, tied weights, gradient checkpointing, dropout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.errors import ConfigError
from qdq.models.bert import BertConfig
from qdq.models.huggingface import load_model, save_model
from qdq.models.inputs import InputError
from qdq.models.registry import FAMILIES, build
from tests.models.support import assert_same

if TYPE_CHECKING:
    from pathlib import Path

    from tests.models.support import SmallModels


@pytest.mark.parametrize("model_type", FAMILIES)
def test_modules_have_the_same_names_in_every_family(model_type: str, small_models: SmallModels) -> None:
    names = {name for name, _ in small_models.build(model_type).named_modules()}
    parts = ("query", "key", "value", "scores", "context", "output", "add", "norm")
    assert {f"encoder.layers.1.attention.{part}" for part in parts} <= names
    assert {f"encoder.layers.1.feed_forward.{part}" for part in ("up", "activation", "down", "add", "norm")} <= names
    assert {"embeddings.word", "embeddings.position", "embeddings.token_type", "pooler"} <= names


def test_projections_that_read_the_same_tensor(small_models: SmallModels) -> None:
    layer = small_models.build("bert", is_decoder=True, add_cross_attention=True).encoder.layers[0]
    assert layer.attention.same_input == (("query", "key", "value"),)
    assert layer.cross_attention.same_input == (("key", "value"),)


# --- changes of a model ---


@pytest.mark.parametrize("model_type", ["bert", "albert", "megatron-bert", "roberta", "roberta-prelayernorm"])
def test_pruned_heads_equal_masked_heads(model_type: str, small_models: SmallModels) -> None:
    model = small_models.build(
        model_type, **({"num_hidden_groups": 1, "num_hidden_layers": 2} if model_type == "albert" else {})
    )
    ids = torch.randint(4, 83, (2, 6))
    mask = torch.ones(model.config.num_hidden_layers, 4)
    mask[0, [1, 3]] = 0
    with torch.no_grad():
        want = model(ids, head_mask=mask).last_hidden_state
        model.prune_heads({})
        model.prune_heads({0: [1]})
        model.prune_heads({0: [3, 1]})
        assert_same(model(ids).last_hidden_state, want)
    assert model.config.pruned_heads == {0: (1, 3)}
    assert model.encoder.layers[0].attention.output.in_features == 16


class OtherLinear(torch.nn.Linear):
    pass


@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_heads_of_a_changed_model_are_not_pruned(model_type: str, name: str, small_models: SmallModels) -> None:
    model = small_models.build(model_type)
    setattr(model.encoder.layers[1].attention, name, OtherLinear(32, 32))
    before = model.state_dict()
    message = f"encoder.layers.1.attention.{name} is OtherLinear, not a plain Linear: heads can only be pruned before"
    with pytest.raises(InputError, match=message):
        model.prune_heads({0: [1]})
    assert model.config.pruned_heads == {}
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({3: [0]}, "pruned_heads names layer 3, the model has 3"),
        ({0: [4]}, r"pruned_heads of layer 0 are \[4\], there are 4"),
        ({0: range(4)}, "pruned_heads of layer 0 leaves no head"),
    ],
    ids=["layer", "head", "all heads"],
)
def test_heads_that_cannot_be_pruned(heads: dict[int, Any], message: str, small_models: SmallModels) -> None:
    model = small_models.build("bert")
    with pytest.raises(ConfigError, match=message):
        model.prune_heads(heads)
    assert model.encoder.layers[0].attention.query.out_features == 32


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", [60, 90], ids=["smaller", "larger"])
def test_resized_vocabulary(tied: bool, size: int, small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.build("bert", "masked-lm", tie_word_embeddings=tied)
    ids = torch.randint(4, 60, (2, 6))
    kept = min(size, 83)
    with torch.no_grad():
        want = model(ids).logits[..., :kept]
        assert model.resize_token_embeddings(size) is model.embeddings.word
        got = model(ids).logits
    assert got.shape[-1] == size
    assert_same(got[..., :kept], want)
    assert (model.head.decoder.weight is model.embeddings.word.weight) is tied
    assert model.embeddings.word.padding_idx is None
    save_model(model, tmp_path)
    assert load_model(tmp_path).config.vocab_size == size


def test_resized_to_a_multiple(small_models: SmallModels) -> None:
    model = small_models.build("bert", "pre-training")
    model.resize_token_embeddings(84, pad_to_multiple_of=16)
    assert model.config.vocab_size == 96
    assert model.head.predictions.decoder.out_features == 96
    encoder = small_models.build("bert")
    encoder.resize_token_embeddings(10)
    assert encoder.embeddings.word.num_embeddings == 10


@pytest.mark.parametrize("model_type", FAMILIES)
def test_initialisation(model_type: str, small_models: SmallModels) -> None:
    model = small_models.build(model_type, vocab_size=3000, pad_token_id=2, initializer_range=0.05)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.endswith("bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert bool((values == 1).all()), name
        else:
            assert 0.03 < float(values.std()) < 0.07, name
    # Megatron-BERT alone does not treat the padding token differently
    assert bool(model.embeddings.word.weight[2].any()) is (model_type == "megatron-bert")


def test_padding_row_of_a_tied_table_is_initialised_too(small_models: SmallModels) -> None:
    model = small_models.build("bert", "masked-lm", pad_token_id=2)
    assert model.head.decoder.weight is model.embeddings.word.weight
    assert not model.embeddings.word.weight[2].any()


def test_torchscript_copies_the_tied_table(small_models: SmallModels, tmp_path: Path) -> None:
    built = small_models.build("bert", "masked-lm", torchscript=True)
    save_model(built, tmp_path)
    ids = torch.full((2, 3), 5)
    for model in (built, load_model(tmp_path)):
        decoder, table = model.head.decoder.weight, model.embeddings.word.weight
        assert decoder is not table
        assert torch.equal(decoder, table)
        with torch.no_grad():
            assert_same(torch.jit.trace(model, (ids,))(ids)[0], model(ids)[0])
    built.resize_token_embeddings(90)
    assert torch.equal(built.head.decoder.weight, built.embeddings.word.weight)


@pytest.mark.parametrize("model_type", ["bert", "qdqbert", "megatron-bert", "roberta", "roberta-prelayernorm"])
def test_gradient_checkpointing_gives_the_same_gradients(model_type: str, small_models: SmallModels) -> None:
    model = small_models.build(model_type).train()
    ids = torch.randint(4, 83, (2, 6))

    def gradients() -> list[Any]:
        model.zero_grad()
        model(ids).last_hidden_state.square().mean().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    want = gradients()
    model.gradient_checkpointing_enable()
    assert_same(gradients(), want)
    model.gradient_checkpointing_disable()
    assert not model.encoder.checkpointing


@pytest.mark.parametrize("model_type", ["albert", "realm"])
def test_gradient_checkpointing_is_not_offered(model_type: str, small_models: SmallModels) -> None:
    with pytest.raises(InputError, match=f"'{model_type}' does not offer gradient checkpointing"):
        small_models.build(model_type).gradient_checkpointing_enable()


def test_gradient_checkpointing_turns_the_cache_off(small_models: SmallModels) -> None:
    model = small_models.build("bert", is_decoder=True).train()
    model.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="use_cache is off"):
        assert model(torch.full((1, 3), 5)).past_key_values is None


def test_dropout_where_upstream_has_it(small_models: SmallModels) -> None:
    model = small_models.build("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    ids = torch.full((1, 3), 5)
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    model.set_attn_implementation("sdpa")
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    albert = small_models.build("albert", hidden_dropout_prob=0.5)
    assert albert.encoder.layers[0].feed_forward.dropout.p == 0.0
    assert albert.encoder.layers[0].attention.output_dropout.p == 0.5


def test_configuration_of_another_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"make it with configure\('albert'\)"):
        build(BertConfig(model_type="albert"))
