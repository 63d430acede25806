"""What the files of sentence-transformers say, and which of them are refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

import qdq
from qdq.errors import CheckpointError, ConfigError
from qdq.sentence.embedder import load_embedder
from qdq.sentence.folder import PoolingSettings, SentenceFolder
from qdq.sentence.modules_file import read_modules

if TYPE_CHECKING:
    from pathlib import Path

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def directory_of(
    path: Path, modules: object, *, pooling: object = None, settings: object = None, transformer: object = None
) -> SentenceFolder:
    """A directory with these files."""
    (path / "1_Pooling").mkdir(exist_ok=True)
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling or {"pooling_mode": "mean"},
        "config_sentence_transformers.json": settings,
        "sentence_bert_config.json": transformer,
    }
    for name, value in files.items():
        if value is not None:
            (path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return SentenceFolder(path, path)


def entries(*modules: tuple[str, str]) -> list[dict[str, str]]:
    """The entries of ``modules.json`` for paths and kinds, behind those of transformer and pooling."""
    every = (("", "Transformer"), ("1_Pooling", "Pooling"), *modules)
    return [
        {"path": path, "type": kind if "." in kind else f"sentence_transformers.models.{kind}"} for path, kind in every
    ]


PLAIN = entries()


@pytest.mark.parametrize(
    ("modules", "problem"),
    [
        ("{", "not valid JSON"),
        ({}, "must hold a JSON list"),
        (["Pooling"], "module 0 must be an object with a type"),
        (entries(("../2_Dense", "Dense")), "module 2: the path '../2_Dense' leaves the directory"),
        (entries(("a/../../b", "Dense")), "leaves the directory"),
        (entries(("/etc", "Dense")), "the path '/etc' leaves the directory; give a relative path"),
        (entries(("C:\\models", "Dense")), "leaves the directory"),
        (entries(("..\\b", "Dense")), "leaves the directory"),
        ([*PLAIN, {"path": 3, "type": "a.B"}], "module 2: the path 3"),
        (POINTER, "is a Git LFS pointer"),
    ],
    ids=["json", "object", "text", "above", "inside", "root", "drive", "backslash", "number", "pointer"],
)
def test_modules_that_are_refused(modules: object, problem: str, tmp_path: Path) -> None:
    directory_of(tmp_path, modules)
    with pytest.raises(ConfigError, match=r"modules\.json: ") as caught:
        qdq.open(tmp_path)
    assert problem in str(caught.value)


def test_all_problems_of_the_modules_come_together(tmp_path: Path) -> None:
    directory_of(tmp_path, [3, *entries(("../a", "Dense"), ("/b", "Dense"))])
    with pytest.raises(ConfigError, match="3 problems"):
        read_modules(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode": ["max", "cls"]}, PoolingSettings(("max", "cls"))),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, PoolingSettings(("cls", "mean"))),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, PoolingSettings(("cls",))),
        ({"pooling_mode_mean_tokens": False}, PoolingSettings(("mean",))),
        ({"pooling_mode_lasttoken": True, "include_prompt": False}, PoolingSettings(("lasttoken",), False)),
    ],
    ids=["list", "flags", "both", "no-flag", "prompt"],
)
def test_pooling(config: dict[str, Any], expected: PoolingSettings, tmp_path: Path) -> None:
    assert directory_of(tmp_path, PLAIN, pooling=config).pooling == expected


@pytest.mark.parametrize(
    ("modules", "pooling", "problem"),
    [
        ([], None, "it names no pooling"),
        (PLAIN[:1], None, "it names no pooling, and a vector for a text needs one; choose one with --pooling"),
        ([*PLAIN, PLAIN[1]], None, "it names 2 poolings"),
        (PLAIN, {"pooling_mode": 3}, "the pooling 3 is not supported"),
        (PLAIN, {"pooling_mode": ["cls", "first"]}, "the pooling first is not supported"),
        (PLAIN, {"include_prompt": "no"}, "include_prompt is 'no', must be true or false"),
    ],
    ids=["empty", "none", "two", "number", "unknown", "prompt"],
)
def test_pooling_that_is_refused(modules: object, pooling: object, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        _ = directory_of(tmp_path, modules, pooling=pooling).pooling
    assert problem in str(caught.value)


def test_a_pooling_without_settings_is_refused(tmp_path: Path) -> None:
    folder = directory_of(tmp_path, PLAIN)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"1_Pooling/config\.json: no such file.*choose one with --pooling"):
        _ = folder.pooling


def test_modules_json_decides_which_pooling_counts(tmp_path: Path) -> None:
    modules = [PLAIN[0], {"path": "heads/pool", "type": "sentence_transformers.models.Pooling"}]
    folder = directory_of(tmp_path, modules, pooling={"pooling_mode": "max"})
    (tmp_path / "heads" / "pool").mkdir(parents=True)
    (tmp_path / "heads" / "pool" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert folder.pooling.modes == ("cls",)
    assert qdq.open(tmp_path).pooling == "cls"


@pytest.mark.parametrize("kind", ["LSTM", "CNN", "WeightedLayerPooling", "WordWeights", "own.Dense"])
def test_a_module_that_is_not_supported_is_named(kind: str, tmp_path: Path) -> None:
    folder = directory_of(tmp_path, entries(("2_Own", kind)))
    with pytest.raises(ConfigError, match=rf"2_Own \({kind}\); --pooling mean leaves it out"):
        load_embedder(folder)
    with pytest.raises(ConfigError, match=rf"2_Own \({kind}\); --pooling .* leaves it out"):
        _ = qdq.open(tmp_path).pooling


@pytest.mark.parametrize("module", ["Router", "StaticEmbedding", "WordEmbeddings", "own.Transformer"])
def test_what_stands_in_place_of_the_transformer_is_named(module: str, tmp_path: Path) -> None:
    kind = module if "." in module else f"sentence_transformers.models.{module}"
    folder = directory_of(tmp_path, [{"path": "", "type": kind}, PLAIN[1]])
    with pytest.raises(ConfigError, match=f"not supported: .*{module.rpartition('.')[-1]}"):
        load_embedder(folder)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"in_features": 4}, "out_features is None, must be a whole number of at least 1"),
        ({"in_features": 4, "out_features": 2, "module_input_name": "token_embeddings"}, "token_embeddings"),
        ({"in_features": 4, "out_features": 2, "activation_function": "torch.nn.functional.relu"}, "not a module"),
        ({"in_features": 4, "out_features": 2, "activation_function": "torch.nn.Threshold"}, "needs arguments"),
        ({"in_features": 4, "out_features": 2, "activation_function": 3}, "must be the name of a module"),
    ],
    ids=["size", "tokens", "function", "arguments", "number"],
)
def test_a_dense_layer_that_is_refused(config: dict[str, Any], problem: str, tmp_path: Path) -> None:
    folder = directory_of(tmp_path, entries(("2_Dense", "Dense")))
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"2_Dense/config\.json: ") as caught:
        load_embedder(folder)
    assert problem in str(caught.value)


def test_a_module_whose_directory_is_missing_is_refused(tmp_path: Path) -> None:
    folder = directory_of(tmp_path, entries(("2_Dense", "Dense"), ("3_Normalize", "Normalize")))
    with pytest.raises(ConfigError, match=r"2_Dense/config\.json: no such file, although modules\.json names 2_Dense"):
        load_embedder(folder)


def test_a_dense_layer_without_weights_is_refused(tmp_path: Path) -> None:
    folder = directory_of(tmp_path, entries(("2_Dense", "Dense")))
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "config.json").write_text('{"in_features": 4, "out_features": 2}')
    with pytest.raises(CheckpointError, match="2_Dense: no weights"):
        load_embedder(folder)


@pytest.mark.parametrize(
    ("settings", "read", "problem"),
    [
        ({"prompts": ["query: "]}, "prompts", "prompts must be an object of texts by name"),
        ({"prompts": {"query": 3}}, "prompts", "prompts must be an object of texts by name"),
        ({"default_prompt_name": "a"}, "default_prompt", "default_prompt_name is 'a', but there are only the prompts"),
        ({"truncate_dim": 0}, "truncate_dim", "truncate_dim is 0, must be a whole number"),
        ({"truncate_dim": "8"}, "truncate_dim", "truncate_dim is '8'"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings: dict[str, Any], read: str, problem: str, tmp_path: Path) -> None:
    folder = directory_of(tmp_path, PLAIN, settings=settings)
    with pytest.raises(ConfigError, match=r"config_sentence_transformers\.json: ") as caught:
        getattr(folder, read)
    assert problem in str(caught.value)


def test_a_longest_text_that_is_refused(tmp_path: Path) -> None:
    folder = directory_of(tmp_path, PLAIN, transformer={"max_seq_length": "long"})
    with pytest.raises(ConfigError, match="max_seq_length is 'long', must be a whole number of at least 3"):
        _ = folder.max_length


@pytest.mark.parametrize(
    ("transformer", "tokenizer", "expected"),
    [
        ({"max_seq_length": 20}, {"model_max_length": 10}, 20),
        ({"max_seq_length": None}, {"model_max_length": 10}, 10),
        ({"max_seq_length": 20, "tokenizer_args": {"model_max_length": 7}}, {}, 7),
        (None, {"max_len": 12}, 12),
        (None, {"model_max_length": 1e30}, int(1e30)),
        (None, {}, None),
    ],
    ids=["own", "null", "arguments", "old-name", "no-limit", "nothing"],
)
def test_where_the_longest_text_is_said(
    transformer: object, tokenizer: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    folder = directory_of(tmp_path, PLAIN, transformer=transformer)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert folder.max_length == expected


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"query_length": 8}, "query_length 8"),
        ({"processing_kwargs": {"text": {"max_length": 8}}}, "processing_kwargs"),
        ({"model_args": {"torch_dtype": "bfloat16"}}, "model_args.torch_dtype 'bfloat16'"),
        ({"tokenizer_args": {"padding_side": "left"}}, "tokenizer_args.padding_side 'left'"),
        ({"modality_config": {"text": {"method": "encode"}}}, "modality_config"),
        ({"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_that_is_not_followed_is_warned_of_once(
    setting: dict[str, Any], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = directory_of(tmp_path, PLAIN, transformer=setting)
    assert not folder.lowercases
    assert folder.max_length is None
    (record,) = caplog.records
    assert named in record.getMessage()
    assert "is not followed: sentence-transformers may give other vectors" in record.getMessage()


def test_nothing_is_warned_of_in_the_real_directory(minilm_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = qdq.open(minilm_dir).sentence
    assert (folder.pooling, folder.normalizes, folder.changes_vectors) == (PoolingSettings(), True, ())
    assert (folder.lowercases, folder.max_length, folder.truncate_dim) == (False, 256, None)
    assert (folder.default_prompt, folder.query_prompt, folder.document_prompt) == ("", "", "")
    assert not caplog.records


def test_a_model_that_is_not_where_modules_json_says(tmp_path: Path) -> None:
    directory_of(tmp_path, [{"path": "0_Transformer", "type": PLAIN[0]["type"]}, PLAIN[1]])
    with pytest.raises(ConfigError, match=r"modules\.json: the model should be in 0_Transformer, which does not exist"):
        qdq.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")  # moved up
    assert qdq.open(tmp_path).path == tmp_path
