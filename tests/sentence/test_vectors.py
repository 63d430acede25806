"""The vectors of a directory of sentence-transformers equal those of ``SentenceTransformer.encode``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

import qdq
from qdq.data.example_types import TextExample
from qdq.sentence.folder import POOLINGS
from qdq.tasks.embeddings import Embeddings
from qdq.tasks.evaluation_settings import EvaluationSettings
from qdq.tasks.evaluator import Evaluator
from qdq.tasks.model_under_test import open_model_under_test
from qdq.tasks.similarity import normalized
from tests.sentence.conftest import TEXTS, WIDTH, in_old_layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

PROMPTS = {"search": "red boat: ", "document": "lake: "}


def found_in(folder: Path, *, prompt: str | None = None, **options: Any) -> np.ndarray:
    """Our vectors of length 1, with the default prompt if none is given."""
    model = open_model_under_test(folder, "sts")
    embeddings = Embeddings(Evaluator(model, None, EvaluationSettings(batch_size=3, **options)))
    prompt = embeddings.folder.default_prompt if prompt is None else prompt
    texts = [TextExample(index, str(index), text, None, None) for index, text in enumerate(TEXTS)]
    return np.stack(list(embeddings.embed(texts, prompt=prompt)))


def expected_of(folder: Path, **options: Any) -> np.ndarray:
    """The vectors of sentence-transformers, scaled to length 1, since cosines compare them."""
    return normalized(SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS), **options))


def dense(inner: int = WIDTH, outer: int = 6, **options: Any) -> Dense:
    torch.manual_seed(inner + outer)
    return Dense(inner, outer, **options)


def layer_norm(width: int) -> LayerNorm:
    module = LayerNorm(width)
    torch.nn.init.normal_(module.norm.weight)
    torch.nn.init.normal_(module.norm.bias)
    return module


MODULES: dict[str, Callable[[], list[nn.Module]]] = {
    **{how: lambda how=how: [Pooling(WIDTH, how)] for how in POOLINGS},  # type: ignore[misc]
    "two": lambda: [Pooling(WIDTH, ("cls", "mean")), Normalize()],
    "two-in-another-order": lambda: [Pooling(WIDTH, ("weightedmean", "max", "cls"))],
    "dense": lambda: [Pooling(WIDTH, "cls"), dense(), Normalize()],
    "dense-of-two": lambda: [Pooling(WIDTH, ("max", "mean")), dense(2 * WIDTH)],
    "dense-linear": lambda: [Pooling(WIDTH), dense(bias=False, activation_function=torch.nn.Identity())],
    "dense-residual": lambda: [Pooling(WIDTH), dense(use_residual=True), dense(6, 6, use_residual=True)],
    "dense-gelu-twice": lambda: [Pooling(WIDTH), dense(activation_function=torch.nn.GELU()), dense(6, 24)],
    "layer-norm": lambda: [Pooling(WIDTH), layer_norm(WIDTH)],
    "dropout": lambda: [Pooling(WIDTH), Dropout(0.5), Normalize()],
    "normalized-before": lambda: [Pooling(WIDTH), Normalize(), dense()],
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(*MODULES[name]())
    np.testing.assert_allclose(found_in(folder), expected_of(folder), atol=2e-6)


@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("include", [True, False], ids=["included", "excluded"])
def test_a_default_prompt(how: str, include: bool, save_sentence_model: Callable[..., Path]) -> None:
    pooling = Pooling(WIDTH, how, include_prompt=include)  # type: ignore[arg-type]
    folder = save_sentence_model(pooling, prompts=PROMPTS, default_prompt_name="search")
    expected = expected_of(folder)
    np.testing.assert_allclose(found_in(folder), expected, atol=2e-6)
    assert np.abs(expected - expected_of(folder, prompt="")).max() > 0.01


def test_a_prompt_longer_than_the_text_may_be(save_sentence_model: Callable[..., Path]) -> None:
    pooling = Pooling(WIDTH, "cls", include_prompt=False)
    folder = save_sentence_model(pooling, prompts=PROMPTS, default_prompt_name="search", length=4)
    np.testing.assert_allclose(found_in(folder), expected_of(folder), atol=2e-6)


@pytest.mark.parametrize("lowercases", [True, False], ids=["lowercased", "as-it-is"])
def test_lowercasing_before_a_tokenizer_that_keeps_capitals(
    lowercases: bool, save_sentence_model: Callable[..., Path]
) -> None:
    folder = save_sentence_model(Pooling(WIDTH), cased=True, lowercases=lowercases)
    np.testing.assert_allclose(found_in(folder), expected_of(folder), atol=2e-6)


@pytest.mark.parametrize("length", [5, 9, None])
def test_the_longest_text(length: int | None, save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH), length=length)
    assert "max_seq_length" not in (folder / "sentence_bert_config.json").read_text()
    np.testing.assert_allclose(found_in(folder), expected_of(folder), atol=2e-6)
    assert qdq.open(folder).max_length == (length or 64)


@pytest.mark.parametrize("file", ["sentence_bert_config.json", "sentence_distilbert_config.json"])
def test_the_longest_text_of_older_releases(file: str, save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH))
    (folder / "sentence_bert_config.json").unlink()
    (folder / file).write_text('{"max_seq_length": 6, "do_lower_case": false}')
    np.testing.assert_allclose(found_in(folder), expected_of(folder), atol=2e-6)
    assert qdq.open(folder).sentence_length == 6


def test_a_transformer_in_a_directory_of_its_own(save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH, "cls"), Normalize(), length=6)
    expected = expected_of(folder)
    in_old_layout(folder)
    np.testing.assert_allclose(expected_of(folder), expected, atol=2e-6)
    np.testing.assert_allclose(found_in(folder), expected, atol=2e-6)


def test_numbers_are_cut_off_before_the_length_is_taken(save_sentence_model: Callable[..., Path]) -> None:
    folder = save_sentence_model(Pooling(WIDTH), Normalize(), truncate_dim=5)
    assert expected_of(folder).shape == (len(TEXTS), 5)
    np.testing.assert_allclose(found_in(folder), expected_of(folder), atol=2e-6)


def test_another_kind_of_model_is_read_as_sentence_transformers_converts_it(
    save_sentence_model: Callable[..., Path],
) -> None:
    folder = save_sentence_model(Pooling(WIDTH, "cls"), Normalize(), prompts=PROMPTS, default_prompt_name="search")
    file = folder / "config_sentence_transformers.json"
    file.write_text(file.read_text().replace('"SentenceTransformer"', '"CrossEncoder"'))
    np.testing.assert_allclose(found_in(folder), expected_of(folder), atol=2e-6)


def test_a_directory_without_modules_json(
    save_sentence_model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_sentence_model(Pooling(WIDTH, "cls"), prompts=PROMPTS, default_prompt_name="search", truncate_dim=4)
    (folder / "modules.json").unlink()
    np.testing.assert_allclose(found_in(folder), expected_of(folder), atol=2e-6)
    assert "the mean is taken, as sentence-transformers does; --pooling cls takes another" in caplog.text


def test_an_export_of_a_directory(save_sentence_model: Callable[..., Path], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prompts": PROMPTS, "default_prompt_name": "search", "length": 12, "truncate_dim": 4}
    pooling = Pooling(WIDTH, ("cls", "max"), include_prompt=False)
    folder = save_sentence_model(pooling, dense(2 * WIDTH), Normalize(), **settings)
    qdq.export(folder, tmp_path / "export", target=None)
    np.testing.assert_allclose(found_in(tmp_path / "export"), expected_of(folder), atol=1e-4)
