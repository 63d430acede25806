"""qdq generate: a checkpoint and its export continue texts with the same words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from exporters.directory import export
from exporters.interface import ExportInterface

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Refused, Run

TEXTS = ("the cat", "a dog and the other")
CAUSAL = {"task": "causal-lm", "is_decoder": True, "initializer_range": 0.6, "bos_token_id": 2, "eos_token_id": 3}


@pytest.fixture
def model(model_folders: ModelFolders, tmp_path: Path) -> Path:
    return model_folders.model(tmp_path / "causal", **CAUSAL)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_checkpoint_and_export_agree(run: Run, model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "step", target=None, interface=ExportInterface(cache="step"))
    for options in ((), ("--num-beams", 3, "--num-return-sequences", 2, "--early-stopping")):
        known = run("generate", *TEXTS, "-m", model, "--max-new-tokens", 8, "--json", *options)
        assert known.code == 0, known.err
        found = run("generate", *TEXTS, "-m", tmp_path / "step", "--max-new-tokens", 8, "--json", *options)
        assert found.document["results"] == known.document["results"]
        assert [entry["text"] for entry in known.document["results"]] == list(TEXTS)
        for entry in known.document["results"]:
            assert len(entry["continued"]) == (2 if options else 1)
            assert all(0 < len(ids) <= 8 for ids in entry["added_ids"])


def test_every_text_is_continued(run: Run, model: Path) -> None:
    options = ("--max-new-tokens", 8, "--num-beams", 3, "--num-return-sequences", 2, "--json")
    ended = run("generate", *TEXTS, "-m", model, *options)
    assert ended.code == 0, ended.err
    results = ended.document["results"]
    assert [entry["text"] for entry in results] == list(TEXTS)
    for entry in results:
        assert len(entry["continued"]) == 2
        assert all(len(ids) <= 8 for ids in entry["added_ids"])


def test_people_get_the_texts(run: Run, model: Path) -> None:
    ended = run("generate", *TEXTS, "-m", model)
    lines = ended.out.splitlines()
    assert [line.startswith(text) for line, text in zip(lines, TEXTS, strict=True)] == [True, True]


def test_what_is_wrong_is_told(refused: Refused, model_folders: ModelFolders, model: Path, tmp_path: Path) -> None:
    assert "nothing to continue in ' '" in refused("generate", " ", "-m", model)
    assert "there are 1 beams" in refused("generate", "the", "-m", model, "--num-return-sequences", 2)
    assert "the model reads at most 48" in refused("generate", "the", "-m", model, "--max-new-tokens", 60)
    other = model_folders.model(tmp_path / "other")
    assert "only a model of the task causal-lm continues texts" in refused("generate", "the", "-m", other)
