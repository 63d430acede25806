from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from exporters.export_model import wrap_for_export
from exporters.interface import ExportInterface
from exporters.io_signature import PAST_AND_SEQ
from exporters.verification.inputs import VERIFICATION_SHAPES, verification_batches

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels

REALM = {"num_candidates": 3, "retriever_proj_size": 16, "reader_beam_size": 3, "max_span_width": 4}
DECODER = {"is_decoder": True}
CROSS = {"is_decoder": True, "add_cross_attention": True}
CASES: dict[str, tuple[str, str, dict[str, Any], ExportInterface]] = {
    "tokens": ("bert", "feature-extraction", {}, ExportInterface()),
    "narrow tokens without types": ("bert", "masked-lm", {}, ExportInterface(int32_ids=True, token_type_ids=False)),
    "embedded tokens": ("albert", "token-classification", {"embedding_size": 16}, ExportInterface(inputs_embeds=True)),
    "choices": ("bert", "multiple-choice", {}, ExportInterface()),
    "a question and its candidates": ("realm", "scoring", REALM, ExportInterface()),
    "blocks": ("realm", "question-answering", {**REALM, "span_hidden_size": 16}, ExportInterface()),
    "a cache": ("bert", "causal-lm", DECODER, ExportInterface(cache="step")),
    "a cache behind padding": (
        "roberta-prelayernorm",
        "causal-lm",
        DECODER,
        ExportInterface(cache="step", int32_ids=True),
    ),
    "another text": ("bert", "causal-lm", CROSS, ExportInterface(cache="first")),
    "another text and a cache": ("bert", "causal-lm", CROSS, ExportInterface(cache="step", inputs_embeds=True)),
}


@pytest.fixture(params=["sample text", "random tokens"])
def tokenizer_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "sample text":
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
        (tmp_path / "vocab.txt").write_text("\n".join([*words, *(f"##{word}" for word in words[5:])]) + "\n")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_batches_have_the_shapes_and_types_of_the_signature(
    tiny_models: TinyModels, tokenizer_folder: Path, case: str
) -> None:
    name, task, changes, interface = CASES[case]
    export_model = wrap_for_export(tiny_models.model(name, task, **changes), interface)
    batches = verification_batches(tokenizer_folder, export_model)
    assert len(batches) == len(VERIFICATION_SHAPES)
    for batch, (batch_size, longest) in zip(batches, VERIFICATION_SHAPES, strict=True):
        assert tuple(batch) == export_model.signature.input_names
        lengths: dict[str, int] = {}
        for entry in export_model.signature.inputs:
            tensor = batch[entry.name]
            assert str(tensor.dtype) == f"torch.{entry.dtype}", entry.name
            for size, axis in zip(tensor.shape, entry.axes, strict=True):
                expected = axis if isinstance(axis, int) else lengths.setdefault(axis, size)
                assert size == expected, (entry.name, axis)
        assert lengths.get("batch", batch_size) == batch_size
        assert 1 <= lengths["seq"] <= longest
        if PAST_AND_SEQ in lengths:
            assert lengths[PAST_AND_SEQ] == lengths["past_seq"] + lengths["seq"]
        for output, value in export_model.run(batch).items():
            assert not value.is_floating_point() or bool(torch.isfinite(value).all()), output


def test_the_first_text_fills_the_length_and_others_are_padded(tiny_models: TinyModels, tokenizer_folder: Path) -> None:
    model = tiny_models.model(max_position_embeddings=130)
    for batch, (batch_size, seq_len) in zip(
        verification_batches(tokenizer_folder, wrap_for_export(model)), VERIFICATION_SHAPES, strict=True
    ):
        mask = batch["attention_mask"]
        assert tuple(mask.shape) == (batch_size, seq_len)
        assert bool(mask[0].all()) or batch_size == 1
        assert batch_size == 1 or not mask.all()


def test_some_positions_are_padding(tiny_models: TinyModels, tmp_path: Path) -> None:
    masks = [batch["attention_mask"] for batch in verification_batches(tmp_path, wrap_for_export(tiny_models.model()))]
    assert any(not mask.all() for mask in masks)
    assert all(mask[:, 0].all() for mask in masks)


def test_a_cache_is_what_the_model_makes_of_the_text_before(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.model(task="causal-lm", is_decoder=True)
    whole = verification_batches(tmp_path, wrap_for_export(model))[0]
    step = wrap_for_export(model, ExportInterface(cache="step"))
    batch = verification_batches(tmp_path, step)[0]
    rounding_error = batch["input_ids"].shape[1]
    assert torch.equal(whole["input_ids"][:, -rounding_error:], batch["input_ids"])
    expected = wrap_for_export(model).run(whole)["logits"][:, -rounding_error:]
    torch.testing.assert_close(step.run(batch)["logits"], expected, atol=2e-5, rtol=1e-4)


def test_ids_stay_within_the_vectors_of_the_model(
    tiny_models: TinyModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The sample text uses letters that only the tokenizer has a number for."""
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    batches = verification_batches(tmp_path, wrap_for_export(tiny_models.model(vocab_size=40)))
    assert max(int(batch["input_ids"].max()) for batch in batches) == 39
    assert "the tokenizer has 57 tokens, and the model has vectors for 40" in caplog.text


def test_the_batches_are_the_sample_text(tiny_models: TinyModels, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    for batch in verification_batches(tmp_path, wrap_for_export(tiny_models.model())):
        assert set(batch["input_ids"][:, 0].tolist()) == {words.index("[CLS]")}
