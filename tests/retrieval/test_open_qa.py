"""Open question answering equals transformers 4.40.2: blocks, rows, spans, losses, gradients; eval and train mode."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from qdq.checkpoint import save as save_checkpoint
from qdq.data.tokenizer import load_tokenizer
from qdq.errors import CheckpointError, ConfigError, DataError
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe
from qdq.retrieval.candidates import find_answers, pair_with_blocks
from qdq.retrieval.open_qa import OpenQA, load, load_component, save
from qdq.retrieval.search import ExactSearcher

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.retrieval.open_qa import OpenQAOutput
    from tests.retrieval.conftest import Golden

QUESTIONS = ("invented", "capital", "record", "nothing")


def asked(golden: Golden, question: str, mode: str, model: OpenQA) -> OpenQAOutput:
    about = golden.questions[question]
    ids = torch.tensor([model.tokenizer.encode(about["question"]).ids])
    return model.train(mode == "train")(ids, answer_ids=about["answer_ids"])


def assert_same_answers(one: OpenQA, other: OpenQA) -> None:
    """The same up to the last bits, which depend on where in memory a weight begins."""
    for given, wanted in zip(one.answer("Test question", top_k=3), other.answer("Test question", top_k=3), strict=True):
        assert (given.text, given.block, given.context) == (wanted.text, wanted.block, wanted.context)
        assert (given.score, given.relevance) == pytest.approx((wanted.score, wanted.relevance), abs=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_everything_equals_transformers(question: str, mode: str, golden: Golden) -> None:
    model, wanted = golden.model(), golden.part(question, mode)
    output = asked(golden, question, mode, model)
    assert output.block_ids.tolist() == wanted["retrieved"].tolist()
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(getattr(output.candidates, name), wanted[name]), name
    evidence = wanted["special_tokens_mask"].eq(0) & wanted["token_type_ids"].eq(1)
    assert torch.equal(output.candidates.block_mask, evidence)
    assert torch.equal(output.targets.has_answers, wanted["has_answers"])
    for name in ("start_positions", "end_positions"):
        found = getattr(output.targets, name).tolist()
        # Without any match upstream's rows are empty, ours have one -1 each.
        rows = wanted[name].long().tolist() if wanted[name].numel() else [[-1]] * len(found)
        assert found == rows, name
    assert torch.equal(output.predicted_answer_ids, wanted["predicted_answer_ids"])
    for name, tensor in wanted.items():
        if name.startswith("reader:"):
            found = output.reader_output[name.removeprefix("reader:")]
            torch.testing.assert_close(found, tensor, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_gradients_reach_embedder_and_reader(golden: Golden) -> None:
    model, wanted = golden.model(), golden.part("invented", "train")
    asked(golden, "invented", "train", model).reader_output.loss.backward()
    ours = {
        "grad:embedder.cls.dense.weight": model.embedder.head.projection.weight,
        "grad:embedder.realm.embeddings.word_embeddings.weight": model.embedder.embeddings.word.weight,
        "grad:reader.qa_outputs.dense_intermediate.weight": model.reader.head.intermediate.weight,
    }
    for name, parameter in ours.items():
        assert parameter.grad is not None
        assert wanted[name].abs().max() > 1e-4, name
        torch.testing.assert_close(parameter.grad, wanted[name], atol=1e-5, rtol=1e-4)


def test_the_golden_questions_show_every_kind_of_loss(golden: Golden) -> None:
    losses = {
        (question, mode): float(golden.part(question, mode)["reader:loss"])
        for question in QUESTIONS
        for mode in ("eval", "train")
    }
    assert losses["nothing", "train"] == 0
    assert all(losses["invented", mode] > 0 for mode in ("eval", "train"))


def test_a_few_steps_of_training_lower_the_loss(golden: Golden) -> None:
    model = golden.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(8):
        loss = asked(golden, "invented", "train", model).reader_output.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0], losses


def test_answers_come_with_block_and_score(golden: Golden) -> None:
    model = golden.model()
    about, wanted = golden.questions["record"], golden.part("record", "eval")
    answers = model.answer(about["question"], top_k=3)
    assert [answer.score for answer in answers] == sorted((answer.score for answer in answers), reverse=True)
    assert {answer.block for answer in answers} == set(wanted["retrieved"].tolist())
    best = answers[0]
    assert best.block == wanted["retrieved"][wanted["reader:block_idx"]]
    assert best.text == model.tokenizer.decode(wanted["predicted_answer_ids"].tolist())
    assert best.context == golden.records[best.block]
    relevance = model(torch.tensor([model.tokenizer.encode(about["question"]).ids])).relevance.detach()
    assert best.relevance == pytest.approx(float(relevance[int(wanted["reader:block_idx"])]), abs=1e-5)


@pytest.mark.parametrize(
    ("question", "message"),
    [("", "the question is empty"), (" \n", "the question is empty"), ("a " * 70, "at most 64"), ("\x00", "no token")],
    ids=["empty", "blank", "long", "nothing-left"],
)
def test_questions_that_cannot_be_asked(question: str, message: str, golden: Golden) -> None:
    with pytest.raises(DataError, match=message):
        golden.model().answer(question)


def test_more_than_one_question_is_refused(golden: Golden) -> None:
    with pytest.raises(DataError, match=r"must be \[1, seq\]"):
        golden.model()(torch.ones(2, 5).long())


def test_records_and_embeddings_of_different_length_are_refused(golden: Golden) -> None:
    with pytest.raises(DataError, match="39 records, but 40 embeddings"):
        load(golden.folder, golden.records[:39])


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_blocks_than_the_reader_reads_are_all_read(
    count: int, golden: Golden, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [text for text in golden.records if len(text) > 20][:count]
    model = load(golden.folder, texts, ExactSearcher(torch.randn(count, 6)))
    answers = model.answer("Test question", top_k=5)
    assert sorted(answer.block for answer in answers) == list(range(count))
    assert f"top_k is 5, but there are {count} answers" in caplog.text


def test_blocks_without_a_token_are_never_the_answer(golden: Golden) -> None:
    blank = ["", "   ", "\u200b"] * 20
    texts = [*blank, *golden.records[:5]]
    embeddings = torch.randn(len(texts), 6)
    embeddings[: len(blank)] *= 100  # they would be the best blocks
    model = load(golden.folder, texts, ExactSearcher(embeddings))
    answers = model.answer("Test question", top_k=3)
    assert len(answers) == 3
    assert all(answer.block >= len(blank) and answer.text for answer in answers)
    nothing = load(golden.folder, blank[:4], ExactSearcher(torch.randn(4, 6)))
    with pytest.raises(DataError, match="no block has a token"):
        nothing.answer("Test question")


def test_an_answer_of_unknown_characters_is_no_empty_text(golden: Golden) -> None:
    model = load(golden.folder, ["\U0001f600 \U0001f600"], ExactSearcher(torch.randn(1, 6)))
    (answer,) = model.answer("Test question")
    assert "[UNK]" in answer.text


def test_rows_shorter_than_the_widest_span_are_padded(golden: Golden) -> None:
    model = golden.model()
    found = pair_with_blocks("a", ["b"], model.tokenizer, max_length=30, min_length=12)
    assert found.input_ids.shape == (1, 12)
    assert found.attention_mask.sum() == 5


def test_it_survives_the_disk(golden: Golden, tmp_path: Path) -> None:
    model = golden.model()
    save(model, tmp_path / "saved")
    state = load_file(tmp_path / "saved" / "model.safetensors")
    assert state.keys() < load_file(golden.folder / "model.safetensors").keys()
    with pytest.raises(CheckpointError, match="has no block_emb: give an index"):
        load(tmp_path / "saved", golden.records)
    again = load(tmp_path / "saved", golden.records, model.searcher)
    assert_same_answers(again, model)


def test_components_in_folders_of_their_own(golden: Golden, tmp_path: Path) -> None:
    from qdq.models.huggingface import save_model

    model = golden.model()
    for component in ("embedder", "reader"):
        save_model(getattr(model, component), tmp_path / component)
    model.tokenizer.save(str(tmp_path / "embedder" / "tokenizer.json"))
    again = load(tmp_path, golden.records, model.searcher)
    assert_same_answers(again, model)
    assert_same_answers(load(golden.folder, golden.records, reader=tmp_path / "reader"), model)


def test_quantized_components_answer_too(golden: Golden, tmp_path: Path) -> None:
    model, recipe = golden.model(), load_recipe("dynamic")
    for component in ("embedder", "reader"):
        quantize(getattr(model, component), recipe)
        save_checkpoint(getattr(model, component), tmp_path / component, recipe=recipe, calibration={})
        set_mode(getattr(model, component), Mode.QUANTIZE)
    model.tokenizer.save(str(tmp_path / "embedder" / "tokenizer.json"))
    again = load(tmp_path, golden.records, model.searcher)
    assert any(quantizers(again.embedder))
    assert any(quantizers(again.reader))
    assert_same_answers(again, model)
    in_float = golden.model().answer("Test question")[0]
    relevance = again.answer("Test question")[0].relevance
    assert relevance == pytest.approx(in_float.relevance, rel=0.05)
    assert relevance != pytest.approx(in_float.relevance, rel=1e-5)


def test_a_component_that_is_damaged_names_its_keys(golden: Golden, tmp_path: Path) -> None:
    state = load_file(golden.folder / "model.safetensors")
    del state["reader.qa_outputs.dense_output.bias"]
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((golden.folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"\(reader\).*(?s:.)*qa_outputs\.dense_output\.bias"):
        load_component(tmp_path, "question-answering")


def test_models_of_other_tasks_are_refused(golden: Golden) -> None:
    model = golden.model()
    with pytest.raises(ConfigError, match="the reader must be a realm model of the task 'question-answering'"):
        OpenQA(model.embedder, model.embedder, model.searcher, golden.records, model.tokenizer)


# --- rows ---


def test_the_published_example_of_answers(golden: Golden) -> None:
    """Of the test of transformers' retriever, in whose vocabulary "a" and "longer" are both unknown."""
    tokenizer = load_tokenizer(golden.folder)
    blocks = ["This is the first record", "This is the fourth record", "This is a longer longer longer record"]
    pair = pair_with_blocks("Test question", blocks, tokenizer, max_length=40)
    unknown, known = tokenizer.token_to_id("[UNK]"), pair.input_ids.clone()
    for word in ("a", "longer"):
        known[known == tokenizer.token_to_id(word)] = unknown
    ids = [tokenizer.encode("the fourth", add_special_tokens=False).ids, [unknown, unknown]]
    # The block comes second in a row: positions are those of the whole row.
    found = find_answers(replace(pair, input_ids=known), ids, tokenizer.token_to_id("[SEP]"))
    assert found.has_answers.tolist() == [False, True, True]
    assert found.start_positions.tolist() == [[-1, -1, -1], [6, -1, -1], [6, 7, 8]]
    assert found.end_positions.tolist() == [[-1, -1, -1], [7, -1, -1], [7, 8, 9]]


def test_a_question_that_leaves_no_room_is_refused(golden: Golden) -> None:
    tokenizer = load_tokenizer(golden.folder)
    with pytest.raises(DataError, match="the question leaves no room for a block"):
        pair_with_blocks("who", [""], tokenizer, max_length=10)


def test_an_approximate_searcher_changes_no_relevance(golden: Golden) -> None:
    exact = golden.model()

    class Noisy(ExactSearcher):
        def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
            scores, ids = super().search(queries, k)
            return scores + 5, ids

    noisy = load(golden.folder, golden.records, Noisy(np.asarray(exact.searcher.embeddings_of(torch.arange(40)))))
    assert_same_answers(noisy, exact)
