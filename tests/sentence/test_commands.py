"""What the commands print about directories of sentence-transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from typer.testing import CliRunner

from exporters.runners import OnnxRuntimeRunner
from qdq.cli.main import app
from tests.sentence.conftest import TEXTS, WIDTH, in_old_layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LENGTH = "the vectors of the file do not have length 1, as modules.json asks for: give --normalize"


def run(*arguments: object, code: int = 0) -> str:
    """Return what a command prints."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def test_auto_gives_the_vectors_of_upstream(save_sentence_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = in_old_layout(save_sentence_model(Pooling(WIDTH, "cls"), Normalize()))
    document: dict[str, Any] = json.loads(
        run("export", "-m", folder, "-o", tmp_path / "out", "--float", "--pooling", "auto", "--json")
    )
    assert document["form"] == {"pooling": "cls", "normalize": True}
    assert document["notes"] == []
    model = SentenceTransformer(str(folder), device="cpu")
    features = model.preprocess(list(TEXTS))
    inputs = {name: features[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids")}
    found = OnnxRuntimeRunner(tmp_path / "out" / "model.onnx")(inputs)["sentence_embedding"]
    np.testing.assert_allclose(found, model.encode(list(TEXTS)), atol=1e-4)
    assert "float" in run("inspect", folder)
    assert "slots" in run("inspect", folder, "-r", "linear")


def test_auto_refuses_what_is_more_than_a_pooling(save_sentence_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_sentence_model(Pooling(WIDTH, "cls"), Dense(WIDTH, 4))
    arguments = ("export", "-m", folder, "-o", tmp_path / "out", "--float", "--pooling")
    assert "they are made with 2_Dense (Dense); --pooling mean|cls" in run(*arguments, "auto", code=2)
    assert not (tmp_path / "out").exists()
    assert "the pooling cls alone makes the vectors: 2_Dense (Dense)" in run(*arguments, "cls")


@pytest.mark.parametrize(
    ("settings", "normalizes", "pooling", "notes"),
    [
        ({}, False, "mean", []),
        (
            {},
            True,
            "mean",
            [LENGTH],
        ),
        ({}, False, "max", ["the pooling max makes the vectors, modules.json asks for mean"]),
        (
            {"truncate_dim": 4},
            False,
            "mean",
            ["cut the vectors of the file to 4 numbers, as config_sentence_transformers.json says"],
        ),
        (
            {"prompts": {"query": "lake: "}},
            None,
            "mean",
            ["the tokens of a prompt count in the vectors of the file, although include_prompt is false"],
        ),
    ],
    ids=["same", "length", "pooling", "truncated", "prompt"],
)
def test_an_explicit_pooling_says_what_it_leaves_out(
    settings: dict[str, Any],
    normalizes: bool | None,
    pooling: str,
    notes: list[str],
    save_sentence_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    modules = [Pooling(WIDTH, include_prompt=normalizes is not None), *([Normalize()] if normalizes else [])]
    folder = save_sentence_model(*modules, **settings)
    arguments = ("export", "-m", folder, "-o", tmp_path / "out", "--float", "--pooling", pooling, "--json")
    assert json.loads(run(*arguments))["notes"] == notes
