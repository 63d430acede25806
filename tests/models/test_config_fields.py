"""Warnings about fields of config.json that are not followed, and the label tables of what is written."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
from transformers import BertConfig

from qdq.errors import ConfigError
from qdq.models.config_fields import CONFIG_FIELDS
from qdq.models.huggingface import config_to_json, read_config
from qdq.models.registry import configure, task_of

if TYPE_CHECKING:
    from pathlib import Path

CLASSIFIER = ["BertForSequenceClassification"]


def write(folder: Path, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **fields}))
    return folder


def test_a_field_has_one_row() -> None:
    names = [name for entry in CONFIG_FIELDS for name in entry.names]
    assert len(names) == len(set(names))


def test_a_warning_appears_once_for_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        write(folder, auto_map={"AutoModel": "modeling_own.OwnModel"})
        read_config(folder)
        read_config(folder)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert said[0].startswith(f"{tmp_path / 'a' / 'config.json'}: auto_map names code that is not run")
    assert "modeling_own.OwnModel" in said[0]


def test_fields_without_a_meaning_are_for_debugging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    config = read_config(write(tmp_path, my_field=1, language="en"))
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert "my_field" in caplog.text
    assert config_to_json(config)["my_field"] == 1


def test_refusals_arrive_together(tmp_path: Path) -> None:
    fields = {"transformers_weights": "other.bin", "per_layer_config": {"0": {}}}
    with pytest.raises(ConfigError, match="2 problems") as error:
        read_config(write(tmp_path, **fields))
    assert all(name in str(error.value) for name in fields)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "albert", "qdqbert"])
def test_relative_positions_are_mentioned_where_transformers_ignores_them(
    model_type: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, model_type=model_type, position_embedding_type="relative_key")
    assert read_config(tmp_path).max_length > 0
    # transformers 5 has no QDQBERT, so there is nothing to compare with.
    assert ("position_embedding_type 'relative_key' is followed" in caplog.text) is (model_type != "qdqbert")


def test_pruned_heads_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_config(write(tmp_path, pruned_heads={"0": [1]}))
    assert "pruned_heads is followed as transformers 4 does" in caplog.text


def test_one_label_of_a_class_is_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_config(write(tmp_path, problem_type="single_label_classification", num_labels=1))
    assert "problem_type is 'single_label_classification' with one label" in caplog.text


@pytest.mark.parametrize(
    "label2id",
    [{"neg": 1, "pos": 0}, {"LABEL_0": 0, "LABEL_1": 1}, {"neg": "a"}, {"neg": 0}, {}, None, ["neg"], 7],
    ids=str,
)
def test_id2label_decides(label2id: Any, tmp_path: Path) -> None:
    write(tmp_path, architectures=CLASSIFIER, id2label={"0": "neg", "1": "pos"}, label2id=label2id)
    config = read_config(tmp_path)
    assert config.label2id == (None if label2id is None else {"neg": 0, "pos": 1})
    written = config_to_json(config)
    assert (written["id2label"], written["label2id"]) == ({0: "neg", 1: "pos"}, {"neg": 0, "pos": 1})


def test_two_ids_with_one_name_are_kept() -> None:
    config = configure("bert", id2label={"0": "pos", "1": "neg", "2": "pos"}, label2id={"pos": 0, "neg": 1})
    assert config.num_labels == 3
    assert config_to_json(config)["id2label"] == {0: "pos", 1: "neg", 2: "pos"}


@pytest.mark.parametrize(
    ("label2id", "names"),
    [
        ({"neg": 0, "pos": 1}, {0: "neg", 1: "pos"}),
        ({"pos": 1, "neg": 0}, {0: "neg", 1: "pos"}),
        ({"neg": 0, "pos": 2}, None),
        ({"neg": 0, "pos": 0}, None),
        ({"neg": "0", "pos": "1"}, None),
        ({"neg": False, "pos": True}, None),
        ({"neg": 0, "neu": 1, "pos": 2}, None),
    ],
    ids=["in order", "in another order", "a gap", "twice", "text", "switches", "too many"],
)
def test_label2id_alone_names_ids_if_it_is_complete(label2id: dict[str, Any], names: dict[int, str] | None) -> None:
    config = configure("bert", label2id=label2id)
    assert (config.num_labels, config.id2label) == (2, names)
    written = config_to_json(config)
    assert written.get("id2label") == names
    assert ("label2id" in written) is (names is not None)


def test_of_several_architectures_the_first_that_is_known_is_taken() -> None:
    listed = ("OwnModel", "BertForTokenClassification", "BertForSequenceClassification", "BertModel")
    assert task_of(configure("bert", architectures=listed))[0] == "token-classification"


def test_whole_numbers_are_written_as_transformers_reads_them() -> None:
    written = config_to_json(configure("bert", layer_norm_eps=0, initializer_range=1))
    assert [str(written[name]) for name in ("layer_norm_eps", "initializer_range")] == ["0.0", "1.0"]


def test_numbers_that_json_does_not_have_are_written_as_transformers_writes_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "a": Infinity, "b": [-Infinity, {"c": NaN}]}')
    written = json.dumps(config_to_json(read_config(tmp_path)), allow_nan=False)
    read = BertConfig.from_pretrained(tmp_path)
    tmp_path.joinpath("config.json").write_text(written)
    assert str(BertConfig.from_pretrained(tmp_path).b) == str(read.b) == "[-inf, {'c': nan}]"


@pytest.mark.parametrize("value", ["[SEP]", ["[SEP]"], 1.5, True, {}], ids=str)
def test_a_token_is_an_id(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"eos_token_id is .*, must be null, the id of a token or a list of them"):
        configure("bert", eos_token_id=value)
