"""Which head serves which task, and how long a sequence may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import qdq
from qdq.errors import ConfigError
from qdq.models.huggingface import save_model
from qdq.models.registry import configure
from qdq.tasks.model_under_test import TASKS, open_model_under_test

if TYPE_CHECKING:
    from pathlib import Path

TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

SERVES = {
    "feature-extraction": {"sts", "retrieval"},
    "sequence-classification": {"sts", "retrieval", "sequence-classification"},
    "next-sentence": {"sts", "retrieval", "sequence-classification"},
    "token-classification": {"sts", "retrieval", "token-classification"},
    "question-answering": {"sts", "retrieval", "question-answering"},
    "multiple-choice": {"sts", "retrieval", "multiple-choice"},
    "masked-lm": {"sts", "retrieval", "masked-lm"},
    "pre-training": {"sts", "retrieval", "masked-lm"},
}


@pytest.fixture(scope="module")
def folders(root: Path) -> dict[str, Path]:
    paths = {head: root / f"head-{head}" for head in SERVES}
    for head, path in paths.items():
        save_model(qdq.build(configure("bert", **TINY), head), path)
    return paths


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("head", SERVES)
def test_what_a_head_serves(head: str, task: str, folders: dict[str, Path]) -> None:
    if task in SERVES[head]:
        model = open_model_under_test(folders[head], task)
        assert (model.runtime, model.name) == ("torch", f"{folders[head]} (float checkpoint)")
        return
    has = "has no head, only the encoder" if head == "feature-extraction" else rf"has a head for {head} \(Bert"
    with pytest.raises(ConfigError, match=rf"{has}.*: it cannot be evaluated with the task {task}"):
        open_model_under_test(folders[head], task)


@pytest.mark.parametrize(
    ("family", "changes", "longest"),
    [("bert", {}, 64), ("albert", {}, 64), ("roberta-prelayernorm", {"pad_token_id": 1}, 62)],
)
def test_the_longest_sequence(family: str, changes: dict[str, Any], longest: int, tmp_path: Path) -> None:
    config = configure(family, **TINY, max_position_embeddings=64, **changes)
    save_model(qdq.build(config), tmp_path)
    assert open_model_under_test(tmp_path, "sts").max_length == longest
