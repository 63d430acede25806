"""Pooling against sentence-transformers, and the folders that ask for one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from qdq.errors import ConfigError
from qdq.tasks.pooling import pool, read_max_length, read_pooling

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.tasks.pooling import Pooling as PoolingName


@pytest.mark.parametrize("how", ["mean", "cls", "max"])
def test_against_sentence_transformers(how: PoolingName) -> None:
    hidden, mask = torch.randn(4, 7, 5), torch.ones(4, 7, dtype=torch.int64)
    mask[1, 3:] = 0
    mask[2, :2] = 0  # padding on the left
    expected = Pooling(5, pooling_mode=how)({"token_embeddings": hidden, "attention_mask": mask})["sentence_embedding"]
    found = pool(hidden.numpy(), mask.numpy(), how)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def folder_with(path: Path, config: object, *modules: str) -> Path:
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    entries = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", *modules)]
    (path / "modules.json").write_text(json.dumps(entries))
    return path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"word_embedding_dimension": 384}, "mean"),
    ],
    ids=str,
)
def test_what_a_folder_says(config: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert read_pooling(folder_with(tmp_path, config, "Normalize")) == expected


def test_a_folder_that_says_nothing(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == "mean"
    assert read_max_length(tmp_path) is None


def test_the_real_folder(minilm_dir: Path) -> None:
    assert read_pooling(minilm_dir) == "mean"
    assert read_max_length(minilm_dir) == 256


@pytest.mark.parametrize(
    ("config", "modules", "culprit"),
    [
        ({"pooling_mode": "lasttoken"}, (), "the pooling lasttoken is not supported"),
        ({"pooling_mode": ["cls", "mean"]}, (), "the pooling cls and mean is not supported"),
        ({"pooling_mode": "mean"}, ("Dense",), "the module Dense is not supported"),
        ([], (), "must hold a JSON object"),
    ],
    ids=["last-token", "two", "dense", "list"],
)
def test_what_cannot_be_read(config: object, modules: tuple[str, ...], culprit: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=culprit):
        read_pooling(folder_with(tmp_path, config, *modules))
