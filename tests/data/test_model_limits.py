"""What the model takes: ids that it has vectors for, token types, lengths. Texts beyond it are refused by name."""

from __future__ import annotations

import json
import string
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoTokenizer

import qdq
from qdq.data.batches import make_batches
from qdq.data.examples import read_examples
from qdq.data.features import Masking
from qdq.data.text import TextSample, encode_batches, read_samples
from qdq.data.tokenizer import load_encoder, load_tokenizer
from qdq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
ROWS = len(WORDS)


def save(folder: Path, settings: dict[str, Any] | None = None, **config: Any) -> Path:
    """A tokenizer of single letters with one more token than the model has vectors for."""
    folder.mkdir()
    document = {"model_type": "bert", "vocab_size": ROWS, "type_vocab_size": 2, **config}
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "added_tokens.json").write_text(json.dumps({"[NEW]": ROWS}))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "model")


class TestVectors:
    def test_a_row_is_named_with_its_token(self, folder: Path, tmp_path: Path) -> None:
        data = tmp_path / "d.csv"
        data.write_text("text,label\na b,0\na [NEW] b,1\n[NEW],0\n")
        encoder = qdq.open(folder).encoder
        examples = read_examples(data, "sequence-classification")
        with pytest.raises(DataError) as raised:
            list(make_batches(examples, encoder, "sequence-classification", batch_size=2))
        lines = str(raised.value).splitlines()
        assert lines[0].endswith("d.csv: 2 problems")
        problem = f"the token '[NEW]' has id {ROWS}, but the model has only {ROWS} word vectors"
        assert lines[1] == f"  - line 3: {problem}"
        assert lines[2].startswith(f"  - line 4: {problem}; leave out")

    def test_texts_for_calibration_too(self, folder: Path, tmp_path: Path) -> None:
        data = tmp_path / "t.txt"
        data.write_text("a b\nc [NEW]\n")
        batches = encode_batches(read_samples(data), qdq.open(folder).encoder, batch_size=2, seq_len=8)
        with pytest.raises(DataError, match=r"texts: \S*t\.txt, line 2: the token '\[NEW\]' has id 31"):
            list(batches)

    def test_texts_without_the_token_are_as_ever(self, folder: Path) -> None:
        samples = [TextSample("a b c"), TextSample("d", "e f")]
        (found,) = encode_batches(samples, qdq.open(folder).encoder, batch_size=2, seq_len=8)
        (expected,) = encode_batches(samples, load_tokenizer(folder), batch_size=2, seq_len=8)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())

    def test_random_tokens_of_masking_have_vectors(self, folder: Path) -> None:
        encoder = qdq.open(folder).encoder
        assert (encoder.has_more_tokens, encoder.ordinary_ids.max()) == (True, ROWS - 1)
        masking = Masking(probability=1)
        texts = ["a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 40
        examples = read_examples(texts, "masked-lm")
        for batch in make_batches(examples, encoder, "masked-lm", batch_size=8, masking=masking):
            assert int(batch["input_ids"].max()) < ROWS

    def test_padding_without_a_vector_is_that_of_the_model(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "model", {"pad_token": "[NEW]"})
        assert qdq.open(folder).encoder.pad_id == 0
        assert load_encoder(folder).pad_id == ROWS

    def test_given_ids_and_types_must_be_of_the_model(self, folder: Path) -> None:
        encoder = qdq.open(folder).encoder

        def read(row: dict[str, list[int]]) -> None:
            list(make_batches(read_examples([row], "feature-extraction"), encoder, "feature-extraction", batch_size=1))

        read({"input_ids": [2, ROWS - 1, 3], "token_type_ids": [0, 1, 1]})
        with pytest.raises(DataError, match=f"the token id {ROWS} is not one of"):
            read({"input_ids": [2, ROWS, 3]})
        with pytest.raises(DataError, match="the token type 2 is not one of the model's 2"):
            read({"input_ids": [2, 5, 3], "token_type_ids": [0, 2, 0]})


class TestTokenTypes:
    def test_a_model_of_one_type_has_type_0(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "model", type_vocab_size=1)
        encoder = qdq.open(folder).encoder
        (batch,) = encode_batches([TextSample("a b", "c")], encoder, batch_size=1, seq_len=8)
        assert batch["input_ids"].tolist() == [load_tokenizer(save(tmp_path / "two")).encode("a b", "c").ids]
        assert not batch["token_type_ids"].any()

    @pytest.mark.parametrize("task", ["sequence-classification", "multiple-choice", "question-answering"])
    def test_names_without_types_give_type_0_in_every_task(self, tmp_path: Path, task: str) -> None:
        no_answer: dict[str, list[Any]] = {"text": [], "answer_start": []}
        rows: dict[str, dict[str, Any]] = {
            "sequence-classification": {"sentence1": "a b", "sentence2": "c", "label": 0},
            "multiple-choice": {"sent1": "a", "sent2": "b", "ending0": "c", "ending1": "d", "label": 0},
            "question-answering": {"id": "1", "question": "a", "context": "b c", "answers": no_answer},
        }
        for name, has_types in (("with", True), ("without", False)):
            names = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
            encoder = qdq.open(save(tmp_path / name, {"model_input_names": names})).encoder
            (batch,) = make_batches(read_examples([rows[task]], task), encoder, task, batch_size=1, max_length=16)
            assert bool(batch["token_type_ids"].any()) == has_types

    def test_pairs_that_transformers_5_gives_no_types_are_told(
        self, albert_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert "token_type_ids" not in AutoTokenizer.from_pretrained(albert_dir)("a", "b")
        encoder = load_encoder(albert_dir)
        caplog.clear()
        for texts in (["one text"], [("a first", "a second")]):
            assert caplog.text == ""
            (batch,) = make_batches(
                read_examples(texts, "feature-extraction"), encoder, "feature-extraction", batch_size=1
            )
        assert batch["token_type_ids"].any()
        assert "version 5 gives AlbertTokenizer no token types" in caplog.text
        assert "model_input_names in tokenizer_config.json decides" in caplog.text


class TestLengths:
    def test_the_usual_length_is_the_default_and_no_limit(self, tmp_path: Path) -> None:
        settings = {"model_max_length": 8}
        encoder = qdq.open(save(tmp_path / "model", settings, max_position_embeddings=32)).encoder
        text = "a " * 100

        def width(**options: int) -> int:
            examples = read_examples([text], "feature-extraction")
            (batch,) = make_batches(examples, encoder, "feature-extraction", batch_size=1, **options)
            return batch["input_ids"].shape[1]

        assert (width(), width(max_length=20)) == (8, 20)
        with pytest.raises(ConfigError, match="max_length 40 is more than the model's 32 positions"):
            width(max_length=40)

    def test_classification_cuts_at_the_left_where_the_tokenizer_does(self, tmp_path: Path) -> None:
        folder = save(tmp_path / "model", {"truncation_side": "left"})
        reference = AutoTokenizer.from_pretrained(folder)
        examples = read_examples([{"text": "a b c d e f", "label": 0}], "sequence-classification")
        encoder = qdq.open(folder).encoder
        (batch,) = make_batches(examples, encoder, "sequence-classification", batch_size=1, max_length=5)
        expected = reference("a b c d e f", truncation=True, max_length=5)["input_ids"]
        assert batch["input_ids"].tolist() == [expected] == [[2, *map(WORDS.index, "def"), 3]]
