"""Checkpoints: every variant of a checkpoint is read, and every damage is one clear error."""

from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdq.errors import CheckpointError, ConfigError, StorageError
from qdq.models.huggingface import load_model, load_weights, read_config, read_tensors, save_model
from qdq.models.registry import FAMILIES, build, configure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.models.support import SmallModels

EVERY_TASK = [
    pytest.param(family.model_type, task, id=f"{family.model_type}/{task}")
    for family in FAMILIES.values()
    for task in family.tasks
]


@pytest.fixture
def saved(small_models: SmallModels, tmp_path: Path) -> Path:
    """A directory with a masked language model of BERT."""
    save_model(small_models.build("bert", "masked-lm"), tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Replace the tensors of a checkpoint by ``change(tensors)``."""
    tensors = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    save_file({key: value.contiguous() for key, value in change(tensors).items()}, folder / "model.safetensors")


def change_config(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def logits(folder: Path, small_models: SmallModels, **options: Any) -> torch.Tensor:
    inputs = small_models.inputs("masked-lm", small_models.fields("bert"))
    with torch.no_grad():
        return load_model(folder, **options)(**inputs).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model_type", "task"), EVERY_TASK)
def test_round_trip_is_exact(model_type: str, task: str, small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.build(model_type, task)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.task == task
    assert not again.training
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert {id(p) for p in again.parameters()} == {id(p) for p in again.parameters()}
    assert len(list(again.parameters())) == len(list(model.parameters()))
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [FAMILIES[model_type].tasks[task].name]


def test_albert_stores_each_distinct_layer_once(small_models: SmallModels, tmp_path: Path) -> None:
    fields = small_models.fields("albert", num_hidden_layers=12, num_hidden_groups=1)
    model = build(configure("albert", **fields))
    assert len(model.encoder.layers) == 12
    assert len({id(layer.feed_forward.up) for layer in model.encoder.layers}) == 12
    assert len({id(layer.feed_forward.up.weight) for layer in model.encoder.layers}) == 1
    save_model(model, tmp_path)
    keys = load_file(tmp_path / "model.safetensors")
    assert sum("ffn.weight" in key for key in keys) == 1
    again = load_model(tmp_path)
    assert len({id(layer.feed_forward.up.weight) for layer in again.encoder.layers}) == 1


@pytest.mark.parametrize(
    ("sizes", "bare", "masked_lm"),
    [((12, 768, 12, 3072), 11_683_584, 11_221_680), ((24, 1024, 16, 4096), 17_683_968, 16_795_824)],
    ids=["base", "large"],
)
def test_albert_has_upstreams_number_of_parameters(sizes: tuple[int, ...], bare: int, masked_lm: int) -> None:
    from qdq.models.registry import construct

    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    config = configure("albert", **dict(zip(names, sizes, strict=True)))
    for task, count in (("feature-extraction", bare), ("masked-lm", masked_lm)):
        with torch.device("meta"):
            model = construct(config, task)
        assert sum(parameter.numel() for parameter in model.parameters()) == count


# --- variants of a checkpoint ---


def test_legacy_layer_norm_names_and_buffers(saved: Path, small_models: SmallModels) -> None:
    want = logits(saved, small_models)

    def old(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {
            key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for key, value in tensors.items()
        }
        return renamed | {"bert.embeddings.position_ids": torch.arange(40)[None]}

    rewrite(saved, old)
    assert torch.equal(logits(saved, small_models), want)


@pytest.mark.parametrize("name", ["cls.predictions.bias", "cls.predictions.decoder.bias"])
def test_either_name_of_the_bias_suffices(name: str, saved: Path, small_models: SmallModels) -> None:
    want = logits(saved, small_models)
    rewrite(saved, lambda tensors: {key: value for key, value in tensors.items() if key != name})
    assert torch.equal(logits(saved, small_models), want)


def test_tied_decoder_weight_may_be_present(saved: Path, small_models: SmallModels) -> None:
    want = logits(saved, small_models)
    rewrite(
        saved, lambda t: t | {"cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"].clone()}
    )
    assert torch.equal(logits(saved, small_models), want)


def test_prefix_may_be_absent_or_present(saved: Path, small_models: SmallModels, tmp_path: Path) -> None:
    want = logits(saved, small_models)
    rewrite(saved, lambda tensors: {key.removeprefix("bert."): value for key, value in tensors.items()})
    assert torch.equal(logits(saved, small_models), want)
    # a headed checkpoint, prefixed, under the bare encoder: the head is left out
    save_model(load_model(saved), tmp_path / "again")
    assert load_model(tmp_path / "again", "feature-extraction", allow_missing={"pooler"}).head is None


def test_shards(saved: Path, small_models: SmallModels) -> None:
    want = logits(saved, small_models)
    tensors = read_tensors(saved)
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"model-{number}.safetensors"
        save_file({name: tensors[name].clone() for name in part}, saved / file)
        index |= dict.fromkeys(part, file)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(logits(saved, small_models), want)

    (saved / "model-0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard model-0\.safetensors is missing"):
        load_model(saved)
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="elsewhere"):
        load_model(saved)
    (saved / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        load_model(saved)


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "before torch 1.6"])
def test_pytorch_bin(zipped: bool, saved: Path, small_models: SmallModels) -> None:
    want = logits(saved, small_models)
    tensors = {key: value.clone() for key, value in read_tensors(saved).items()}
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert torch.equal(logits(saved, small_models), want)


def test_half_precision_file_and_model(saved: Path) -> None:
    rewrite(saved, lambda tensors: {key: value.half() for key, value in tensors.items()})
    assert load_model(saved).embeddings.word.weight.dtype == torch.float32
    assert load_model(saved, dtype=torch.bfloat16).embeddings.word.weight.dtype == torch.bfloat16


def test_new_head_on_a_bare_encoder(small_models: SmallModels, tmp_path: Path) -> None:
    save_model(small_models.build("bert"), tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"2 missing: classifier\.weight, .*\(--allow-missing head, in Python allow_missing=\['head'\], init",
    ):
        load_model(tmp_path, "sequence-classification")
    model = load_model(tmp_path, "sequence-classification", allow_missing={"head"})
    assert 0.1 < float(model.head.classifier.weight.detach().std()) < 0.5
    assert not model.head.classifier.bias.any()
    masked = load_model(tmp_path, "masked-lm", allow_missing={"head"})
    assert masked.head.decoder.weight is masked.embeddings.word.weight
    assert bool((masked.head.norm.weight == 1).all())


def test_sts_is_the_bare_encoder(small_models: SmallModels, tmp_path: Path) -> None:
    save_model(small_models.build("bert"), tmp_path)
    model = load_model(tmp_path, "sts")
    assert model.task == "sts"
    assert model.head is None


def test_ignored_keys(saved: Path) -> None:
    rewrite(saved, lambda t: t | {"bert.encoder.layer.0.output.dense.gate": torch.tensor(1.0)})
    with pytest.raises(CheckpointError, match=r"1 unexpected: bert\.encoder\.layer\.0\.output\.dense\.gate"):
        load_model(saved)
    assert load_model(saved, ignore=(".gate",)).task == "masked-lm"


def test_reader_of_realm_needs_no_unused_weights(small_models: SmallModels, tmp_path: Path) -> None:
    save_model(small_models.build("realm", "question-answering"), tmp_path)
    rewrite(tmp_path, lambda t: {key: v for key, v in t.items() if "pooler" not in key and not key.startswith("cls")})
    assert load_model(tmp_path).task == "question-answering"


def test_scorer_takes_either_name_of_its_embedder(small_models: SmallModels, tmp_path: Path) -> None:
    save_model(small_models.build("realm", "scoring"), tmp_path)
    want = load_model(tmp_path).state_dict()
    rewrite(tmp_path, lambda t: {key.replace("embedder.", "query_embedder.", 1): value for key, value in t.items()})
    found = load_model(tmp_path).state_dict()
    assert all(torch.equal(found[key], tensor) for key, tensor in want.items())


def test_loading_keeps_one_copy_and_saving_over_itself_is_safe(saved: Path) -> None:
    model = load_model(saved)
    tensor = read_tensors(saved)["bert.embeddings.word_embeddings.weight"]
    save_model(model, saved)
    assert torch.equal(model.embeddings.word.weight, tensor)
    assert not [path.name for path in saved.iterdir() if path.name.startswith(".")]


def test_unknown_fields_are_written_back(saved: Path, tmp_path: Path) -> None:
    change_config(saved, gradient_checkpointing=False, my_field={"a": 1}, id2label={"0": "NO", "1": "YES", "2": "?"})
    save_model(load_model(saved), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["my_field"] == {"a": 1}
    assert written["id2label"] == {"0": "NO", "1": "YES", "2": "?"}
    assert written["label2id"] == {"NO": 0, "YES": 1, "?": 2}
    assert read_config(tmp_path / "out").num_labels == 3


# --- damage ---


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such directory"):
        load_model(tmp_path / "nowhere")


def test_a_file_for_a_directory(tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    with pytest.raises(CheckpointError, match="weights: is a file, not a directory; give the directory of"):
        load_model(tmp_path / "weights")


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", b"\xff\xfe\x00"], ids=["cut off", "a list", "not text"])
def test_config_is_not_json(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config\.json: (not valid JSON|must hold a JSON object)"):
        load_model(tmp_path)


@pytest.mark.parametrize("model_type", ["gpt2", None, 7, ...], ids=str)
def test_unknown_model_type_names_the_known(model_type: object, saved: Path) -> None:
    change_config(saved, model_type=model_type)
    with pytest.raises(ConfigError, match=", ".join(FAMILIES)):
        load_model(saved)


def test_unknown_architecture_and_task(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"no task 'summarization': 'bert' has feature-extraction, .*pre-training"):
        load_model(saved, "summarization")
    change_config(saved, architectures=["BertForHaiku"])
    with pytest.raises(ConfigError, match="BertForHaiku"):
        load_model(saved)
    with pytest.raises(ConfigError, match="attn_implementation is 'flash'"):
        load_model(saved, "masked-lm", attn_implementation="flash")  # type: ignore[arg-type]


def test_missing_weights(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights; expected one of model\.safetensors"):
        load_model(saved)


@pytest.mark.parametrize("size", [0, 5, 200, -100], ids=["empty", "no header", "half a header", "cut off"])
def test_truncated_safetensors(size: int, saved: Path) -> None:
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or incomplete"):
        load_model(saved)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 no archive", b"plain text"], ids=["empty", "zip", "text"])
def test_damaged_bin(data: bytes, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "pytorch_model.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: "):
        load_model(saved)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


@pytest.mark.parametrize("zipped", [True, False], ids=["archive", "plain pickle"])
def test_pickled_code_is_refused(zipped: bool, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (saved / "model.safetensors").unlink()
    if zipped:
        torch.save({"a": Attack()}, saved / "pytorch_model.bin")
    else:
        (saved / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Attack()}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: (refused|damaged)"):
        load_model(saved)
    assert "code ran" not in capsys.readouterr().out


def test_bin_without_tensors(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"epoch": 3}, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a state dict of tensors"):
        load_model(saved)


def test_all_wrong_keys_arrive_together(saved: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        del tensors["bert.encoder.layer.1.attention.self.key.bias"]
        tensors["bert.encoder.layer.9.output.dense.bias"] = torch.zeros(32)
        tensors["bert.embeddings.LayerNorm.weight"] = torch.ones(31)
        tensors["bert.embeddings.LayerNorm.bias"] = torch.ones(32, dtype=torch.long)
        return tensors

    rewrite(saved, damage)
    with pytest.raises(CheckpointError) as error:
        load_model(saved)
    text = str(error.value)
    assert "1 missing: encoder.layer.1.attention.self.key.bias" in text
    assert "1 unexpected: bert.encoder.layer.9.output.dense.bias" in text
    assert "2 with another shape" in text
    assert "bert.embeddings.LayerNorm.weight is [31] float32, must be [32] float" in text
    assert "bert.embeddings.LayerNorm.bias is [32] int64, must be [32] float" in text


def test_wrong_sizes_in_config_are_told_in_few_words(saved: Path) -> None:
    change_config(saved, intermediate_size=64, num_hidden_layers=2)
    with pytest.raises(CheckpointError) as error:
        load_model(saved)
    text = str(error.value)
    assert "16 unexpected: bert.encoder.* (16)" in text
    assert "num_hidden_layers is 2 in config.json, but the file has 3 layers" in text
    assert "6 with another shape: " in text


def test_model_with_foreign_parameters_cannot_be_saved(small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.build("bert")
    model.encoder.layers[0].gate = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="has no name in a 'bert' checkpoint"):
        save_model(model, tmp_path)


def test_function_as_activation_cannot_be_saved(small_models: SmallModels, tmp_path: Path) -> None:
    model = small_models.build("bert", hidden_act=torch.sin)
    with pytest.raises(ConfigError, match="hidden_act is a function"):
        save_model(model, tmp_path)


def test_directory_that_cannot_be_written(small_models: SmallModels, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = small_models.build("bert")
    with pytest.raises(StorageError, match="cannot write the model"):
        save_model(model, tmp_path / "file")


def test_weights_from_memory(small_models: SmallModels) -> None:
    model = small_models.build("bert")
    with pytest.raises(CheckpointError, match=r"^my tensors: .*55 missing: embeddings\.\* \(5\), encoder\.\* \(48\)"):
        load_weights(model, {}, source="my tensors")


def test_config_file_by_its_own_name(saved: Path) -> None:
    assert read_config(saved / "config.json") == read_config(saved)
