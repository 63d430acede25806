"""Weights that are read into a model: a missing pooler, drawn weights, tied weights, and what does not fit."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdq.errors import CheckpointError, ConfigError
from qdq.models.huggingface import load_model, save_model
from qdq.models.weights import stores_pooler

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from tests.models.support import SmallModels

Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Replace the tensors of a checkpoint by ``change(tensors)``."""
    tensors = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    changed = {key: value.contiguous() for key, value in change(tensors).items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: one for key, one in tensors.items() if not any(part in key for part in parts)}


@pytest.fixture
def bare(small_models: SmallModels, tmp_path: Path) -> Path:
    """A feature extractor of BERT without a pooler."""
    save_model(small_models.build("bert", type_vocab_size=2), tmp_path / "bare")
    return rewrite(tmp_path / "bare", without("pooler"))


@pytest.fixture
def masked(small_models: SmallModels, tmp_path: Path) -> Path:
    """A masked language model of BERT."""
    save_model(small_models.build("bert", "masked-lm"), tmp_path / "masked")
    return tmp_path / "masked"


@pytest.mark.parametrize("model_type", ["bert", "albert", "roberta", "roberta-prelayernorm", "megatron-bert"])
def test_a_feature_extractor_needs_no_pooler(
    model_type: str, small_models: SmallModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = small_models.fields(model_type)
    save_model(small_models.build(model_type), tmp_path)
    inputs = small_models.inputs("feature-extraction", fields)
    assert stores_pooler(tmp_path, load_model(tmp_path).config)
    want = load_model(tmp_path)(**inputs)
    rewrite(tmp_path, without("pooler"))
    model = load_model(tmp_path)
    assert not stores_pooler(tmp_path, model.config)
    found = model(**inputs)
    assert found.pooler_output is None
    assert torch.equal(found.last_hidden_state, want.last_hidden_state)
    assert not any("pooler" in name for name in model.state_dict())
    save_model(model, tmp_path / "again")
    assert load_model(tmp_path / "again").state_dict().keys() == model.state_dict().keys()
    assert not caplog.messages


def test_transformers_computes_the_same_without_a_pooler(bare: Path, small_models: SmallModels) -> None:
    transformers = pytest.importorskip("transformers")
    inputs = small_models.inputs("feature-extraction", small_models.fields("bert", type_vocab_size=2))
    theirs = transformers.BertModel.from_pretrained(bare, add_pooling_layer=False).eval()
    with torch.no_grad():
        want = theirs(**inputs).last_hidden_state
        torch.testing.assert_close(load_model(bare)(**inputs).last_hidden_state, want)


def test_the_file_of_another_head_is_a_feature_extractor_too(masked: Path) -> None:
    assert load_model(masked, "feature-extraction").pooler is None


def test_a_classifier_needs_its_pooler(bare: Path) -> None:
    with pytest.raises(CheckpointError, match="--allow-missing head --allow-missing pooler"):
        load_model(bare, "sequence-classification")
    with pytest.raises(CheckpointError, match=r"2 missing: pooler\.dense\.weight, pooler\.dense\.bias"):
        load_model(bare, "sequence-classification", allow_missing={"head"})


def test_half_a_pooler_is_damage(small_models: SmallModels, tmp_path: Path) -> None:
    save_model(small_models.build("bert"), tmp_path)
    rewrite(tmp_path, without("pooler.dense.bias"))
    for allowed in ((), ("pooler",)):
        with pytest.raises(CheckpointError, match=r"1 missing: pooler\.dense\.bias$"):
            load_model(tmp_path, allow_missing=allowed)


def test_drawn_weights_follow_the_seed(bare: Path, caplog: pytest.LogCaptureFixture) -> None:
    def drawn(seed: int | None) -> Tensor:
        model = load_model(bare, allow_missing={"pooler"}, seed=seed)
        return model.pooler.dense.weight.detach()  # type: ignore[union-attr]

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))
    assert not torch.equal(drawn(None), drawn(None))
    assert "pooler.dense.weight, pooler.dense.bias drawn at random, since the checkpoint lacks them" in caplog.text


def test_the_seed_leaves_other_random_numbers_alone(bare: Path) -> None:
    state = torch.random.get_rng_state()
    load_model(bare, allow_missing={"pooler"}, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


# --- tied weights ---


@pytest.mark.parametrize("kept", ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"])
def test_one_of_two_tied_weights_suffices(kept: str, masked: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = "bert.embeddings.word_embeddings.weight"
    want = load_file(masked / "model.safetensors")[table]
    rewrite(masked, lambda tensors: {**without(table, "decoder.weight")(tensors), kept: tensors[table]})
    model = load_model(masked)
    assert model.head.decoder.weight is model.embeddings.word.weight
    assert torch.equal(model.embeddings.word.weight, want)
    assert not caplog.messages


def test_an_untied_decoder_cannot_be_missing(masked: Path) -> None:
    values = json.loads((masked / "config.json").read_text()) | {"tie_word_embeddings": False}
    (masked / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"1 missing: cls\.predictions\.decoder\.weight"):
        load_model(masked)


def test_tied_weights_with_different_values_are_not_tied(
    small_models: SmallModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers = pytest.importorskip("transformers")
    fields = small_models.fields("bert", type_vocab_size=2)
    save_model(small_models.build("bert", "masked-lm", type_vocab_size=2), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors | {"cls.predictions.decoder.weight": torch.randn(83, 32)})
    model = load_model(tmp_path)
    inputs = small_models.inputs("feature-extraction", fields)
    with torch.no_grad():
        want = transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, want, atol=1e-4, rtol=1e-4)
    assert "other values than the word embedding, so they are not tied" in caplog.text
    save_model(model, tmp_path / "again")
    caplog.clear()
    assert torch.equal(load_model(tmp_path / "again")(**inputs).logits, model(**inputs).logits)
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING and one.name.startswith("qdq")]


# --- what does not fit ---


def test_two_tensors_for_one_weight(masked: Path) -> None:
    name = "embeddings.LayerNorm.weight"
    rewrite(masked, lambda tensors: tensors | {name: tensors[f"bert.{name}"].clone()})
    load_model(masked)
    rewrite(masked, lambda tensors: tensors | {name: tensors[name] + 1})
    with pytest.raises(CheckpointError, match=rf"bert\.{name} and {name} are one weight, with different values"):
        load_model(masked)


@pytest.mark.parametrize(
    ("extra", "cure"),
    [
        (["fit_dense.weight", "fit_dense.bias"], r"\(--ignore-keys 'fit_dense\.\*' leaves them out\)"),
        (["a.x", "b.x", "c.x", "d.x"], r"--ignore-keys 'a\.\*' --ignore-keys 'b\.\*' --ignore-keys 'c\.\*' \.\.\."),
        (["lonely"], "--ignore-keys 'lonely'"),
        (["bert.encoder.layer.0.output.dense.SCB"], "the weights are quantized by bitsandbytes"),
        (["bert.encoder.layer.7.output.dense.bias"], "num_hidden_layers is 3 in .*has 8 layers"),
        (
            ["bert.encoder.layer.0.output.dense.weight_orig"],
            "prune.remove makes the pruning permanent",
        ),
    ],
    ids=["layer", "many", "parameter", "quantized", "layers", "pruned"],
)
def test_left_over_tensors_come_with_the_cure(extra: list[str], cure: str, masked: Path) -> None:
    rewrite(masked, lambda tensors: tensors | {name: torch.ones(2) for name in extra})
    with pytest.raises(CheckpointError, match=cure):
        load_model(masked)


def test_ignored_tensors_leave_the_model_as_it_is(masked: Path, caplog: pytest.LogCaptureFixture) -> None:
    want = load_model(masked).state_dict()
    rewrite(masked, lambda tensors: tensors | {"fit_dense.weight": torch.ones(2)})
    found = load_model(masked, ignore_keys=["fit_dense.*"]).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in want.items())
    assert not caplog.messages


def test_weights_of_another_family(small_models: SmallModels, tmp_path: Path) -> None:
    save_model(small_models.build("roberta"), tmp_path)
    rewrite(tmp_path, lambda tensors: {f"roberta.{key}": value for key, value in tensors.items()})
    values = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "bert", "architectures": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"named like those of roberta: is the model_type 'bert'"):
        load_model(tmp_path)


@pytest.mark.parametrize(("model_type", "named"), [("bert", "bert"), ("albert", "albert"), ("roberta", "roberta")])
def test_a_config_without_model_type(model_type: str, named: str, small_models: SmallModels, tmp_path: Path) -> None:
    save_model(small_models.build(model_type, "masked-lm"), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=f'named like those of {named}: add "model_type": "{named}"'):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model_type is missing, must be one of .*realm$"):
        load_model(tmp_path)
