"""Batches of every task: the numbers are those of transformers' own preprocessing."""

from __future__ import annotations

import random
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AlbertTokenizer, AutoTokenizer, RobertaTokenizer

from qdq.data.batches import Masking, in_order, make_batches
from qdq.data.examples import ChoiceExample, IdsExample, QuestionExample, TextExample, TokenExample, read_examples
from qdq.data.features import best_contexts, span_of
from qdq.data.text import read_samples, sample_text
from qdq.data.tokenizer import TextEncoder, load_encoder
from qdq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from qdq.data.batches import Batch
    from qdq.data.example_types import Label

FAMILIES = ("bert", "albert", "roberta")

#: By name: our encoder, and the tokenizer of transformers.
Families: TypeAlias = "dict[str, tuple[TextEncoder, PreTrainedTokenizerBase]]"


@pytest.fixture(scope="module")
def families(minilm_dir: Path, albert_dir: Path, roberta_dir: Path) -> Families:
    """By name: our encoder and transformers' tokenizer."""
    return {
        "bert": (load_encoder(minilm_dir, max_length=512), AutoTokenizer.from_pretrained(minilm_dir)),
        "albert": (load_encoder(albert_dir, max_length=512), AlbertTokenizer.from_pretrained(albert_dir)),
        "roberta": (
            load_encoder(roberta_dir, max_length=512),
            RobertaTokenizer.from_pretrained(roberta_dir, add_prefix_space=False),
        ),
    }


@pytest.fixture(scope="module")
def encoder(families: Families) -> TextEncoder:
    return families["bert"][0]


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [sample.text for sample in read_samples(sample_text("heldout"))]


def by_index(batches: Iterable[Batch], name: str) -> dict[int, list[list[int]]]:
    """The rows of a tensor, without what is padding, by the index of their example."""
    rows = {}
    for batch in batches:
        assert batch[name].dtype == torch.int64
        for index, row, length in zip(batch.index.tolist(), batch[name], batch.lengths.tolist(), strict=True):
            rows.setdefault(index, []).append(row[..., :length].tolist())
    return rows


def texts_of(values: Iterable[tuple[Any, ...]]) -> list[TextExample]:
    return [TextExample(index, "", *value) for index, value in enumerate(values)]


class TestTexts:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("max_length", [8, 64, 512])
    def test_one_batch_is_that_of_transformers(
        self, families: Families, texts: tuple[str, ...], family: str, max_length: int
    ) -> None:
        encoder, reference = families[family]
        pairs = list(zip(texts, reversed(texts), strict=True))
        (batch,) = make_batches(
            texts_of(pairs), encoder, "sts", batch_size=999, max_length=max_length, pad_to_multiple_of=24, window=None
        )
        expected = reference(
            *map(list, zip(*pairs, strict=True)),
            truncation="longest_first",
            max_length=max_length,
            padding="longest",
            return_token_type_ids=True,
            return_tensors="pt",
        )
        width = expected["input_ids"].shape[1]
        assert batch["input_ids"].shape[1] == min(-(-width // 24) * 24, 512)
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
        for name, tensor in batch.items():
            assert torch.equal(tensor[:, :width], expected[name]), name
            assert set(tensor[:, width:].unique().tolist()) <= {encoder.pad_id if name == "input_ids" else 0}
        assert torch.equal(batch.lengths, expected["attention_mask"].sum(dim=1))

    @pytest.mark.parametrize(
        ("labels", "dtype"),
        [([1, 0], torch.int64), ([0.5, 2.0], torch.float32), ([(1.0, 0.0), (0.0, 0.0)], torch.float32)],
        ids=["classes", "scores", "several"],
    )
    def test_labels_have_the_type_of_their_loss(
        self, encoder: TextEncoder, labels: list[Label], dtype: torch.dtype
    ) -> None:
        examples = [TextExample(n, "", "word", None, label) for n, label in enumerate(labels)]
        (batch,) = make_batches(examples, encoder, "sequence-classification", batch_size=2)
        assert batch["labels"].dtype == dtype
        assert batch["labels"].tolist() == [list(label) if isinstance(label, tuple) else label for label in labels]
        assert "labels" not in batch.inputs
        assert set(batch.inputs) == {"input_ids", "attention_mask", "token_type_ids"}

    def test_a_batch_in_which_one_has_no_label_has_none(self, encoder: TextEncoder) -> None:
        examples = [TextExample(0, "", "a", None, 1), TextExample(1, "", "b")]
        (batch,) = make_batches(examples, encoder, "sequence-classification", batch_size=2)
        assert "labels" not in batch


class TestWindows:
    """Grouping by length."""

    LENGTHS = tuple(random.Random(1).choices(range(1, 100), k=1000))

    def examples(self) -> list[TextExample]:
        return (TextExample(n, "", "word " * length) for n, length in enumerate(self.LENGTHS))

    def test_every_example_comes_once_and_in_order_again(self, encoder: TextEncoder) -> None:
        batches = list(make_batches(self.examples(), encoder, "masked-lm", batch_size=16, window=320))
        indices = torch.cat([batch.index for batch in batches]).tolist()
        assert indices != sorted(indices) == list(range(1000))
        results = ((int(i), int(n)) for batch in batches for i, n in zip(batch.index, batch.lengths, strict=True))
        assert list(in_order(results)) == [length + 2 for length in self.LENGTHS]
        assert [batch.examples[0].index for batch in batches] == [int(batch.index[0]) for batch in batches]

    def test_little_is_padding_and_the_window_bounds_what_is_held(self, encoder: TextEncoder) -> None:
        taken = []
        examples = (taken.append(example.index) or example for example in self.examples())
        padding = total = 0
        for count, batch in enumerate(make_batches(examples, encoder, "feature-extraction", batch_size=16, window=300)):
            assert len(taken) <= 304 * (count * 16 // 304 + 1)  # a whole number of batches
            assert max(batch.index) < len(taken)
            padding += int((batch["attention_mask"] == 0).sum())
            total += batch["attention_mask"].numel()
        # 304 rows of 3 to 101 tokens in 19 batches: one spans 5 tokens, of 52 in the mean, and half of that is padding
        assert padding / total < 0.08

    def test_without_a_window_the_order_stays_and_only_a_batch_is_held(self, encoder: TextEncoder) -> None:
        taken = []
        examples = (taken.append(example.index) or example for example in self.examples())
        batches = make_batches(examples, encoder, "feature-extraction", batch_size=16, window=None)
        assert next(batches).index.tolist() == list(range(16))
        assert len(taken) == 16
        assert torch.cat([batch.index for batch in batches]).tolist() == list(range(16, 1000))

    def test_the_same_call_gives_the_same_batches_and_a_seed_others(self, encoder: TextEncoder) -> None:
        def order(**options: Any) -> list[int]:
            batches = make_batches(self.examples(), encoder, "feature-extraction", batch_size=16, **options)
            return [batch.index.tolist() for batch in batches]

        assert order() == order()
        assert order(shuffle_seed=1) == order(shuffle_seed=1)
        assert order(shuffle_seed=1) != order(shuffle_seed=2)
        assert sorted(chain(*order(shuffle_seed=1))) == list(range(1000))
        assert list(chain(*order(shuffle_seed=1, window=None))) != list(range(1000))

    def test_an_index_that_is_missing_is_told(self) -> None:
        with pytest.raises(ValueError, match="the value of index 1 is missing"):
            list(in_order([(0, "a"), (2, "c")]))


CONTEXT = (
    "The Normans were the people who in the 10th and 11th centuries gave their name to Normandy, a region in France. "
)


def questions(seed: int = 0) -> list[QuestionExample]:
    """Questions on contexts of many lengths, with an answer anywhere, or none."""
    generator = random.Random(seed)
    examples = []
    for index in range(30):
        context = " ".join(generator.choice(CONTEXT.split()) for _ in range(generator.randrange(1, 250)))
        begin = generator.randrange(len(context))
        answer = context[begin : begin + generator.randrange(1, 30)]
        answers, starts = ((answer,), (begin,)) if index % 4 else ((), ())
        examples.append(QuestionExample(index, "", str(index), CONTEXT[: 10 + index], context, answers, starts))
    return examples


class TestQuestions:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(("max_length", "stride"), [(384, 128), (64, 16), (64, 0)])
    def test_windows_and_offsets_are_those_of_transformers(
        self, families: Families, family: str, max_length: int, stride: int
    ) -> None:
        encoder, reference = families[family]
        examples = questions()
        batches = make_batches(
            examples, encoder, "question-answering", batch_size=7, max_length=max_length, stride=stride, window=None
        )
        expected = reference(
            [e.question for e in examples],
            [e.context for e in examples],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        row = 0
        for batch in batches:
            assert batch.offsets.shape == (*batch["input_ids"].shape, 2)
            for place in range(len(batch.index)):
                length = int(batch.lengths[place])
                assert batch["input_ids"][place, :length].tolist() == expected["input_ids"][row]
                assert int(batch.index[place]) == expected["overflow_to_sample_mapping"][row]
                offsets = [
                    list(offset) if sequence == 1 else [-1, -1]
                    for offset, sequence in zip(
                        expected["offset_mapping"][row], expected.sequence_ids(row), strict=True
                    )
                ]
                assert batch.offsets[place, :length].tolist() == offsets
                assert (batch.offsets[place, length:] == -1).all()
                assert int(batch.window_count[place]) == expected["overflow_to_sample_mapping"].count(
                    int(batch.index[place])
                )
                row += 1
        assert row == len(expected["input_ids"])

    @pytest.mark.parametrize("family", FAMILIES)
    def test_positions_hold_the_answer_and_no_token_more(self, families: Families, family: str) -> None:
        encoder, _ = families[family]
        held = dict.fromkeys(range(30), 0)
        for batch in make_batches(questions(), encoder, "question-answering", batch_size=8, max_length=64, stride=20):
            for place, example in enumerate(batch.examples):
                first, last = int(batch["start_positions"][place]), int(batch["end_positions"][place])
                offsets = batch.offsets[place]
                of_context = offsets[:, 0] >= 0
                if first == 0:
                    assert last == 0
                    if example.answers:  # the window lacks some of it
                        begin, end = offsets[of_context][0, 0], offsets[of_context][-1, 1]
                        (start,), (answer,) = example.starts, example.answers
                        assert start < begin or start + len(answer) > end
                    continue
                held[example.index] += 1
                start, end = example.starts[0], example.starts[0] + len(example.answers[0])
                assert offsets[first, 0] <= start
                assert offsets[last, 1] >= end
                assert offsets[first + 1, 0] > start or first == last
                assert offsets[last - 1, 1] < end or first == last
        assert all(held[index] == 0 for index in range(0, 30, 4))
        assert sum(held[index] > 0 for index in held) > 15

    def test_windows_of_an_example_come_within_one_window_of_examples(self, encoder: TextEncoder) -> None:
        batches = make_batches(
            questions(), encoder, "question-answering", batch_size=4, max_length=48, stride=8, window=8
        )
        seen = {}
        for count, batch in enumerate(batches):
            for index, part, parts in zip(
                *(t.tolist() for t in (batch.index, batch.window_index, batch.window_count)), strict=True
            ):
                seen.setdefault(index, []).append((part, parts, count))
        assert sorted(seen) == list(range(30))
        for entries in seen.values():
            assert sorted(part for part, _, _ in entries) == list(range(entries[0][1]))
        last_batch = [max(count for _, _, count in seen[index]) for index in range(30)]
        first_batch = [min(count for _, _, count in seen[index]) for index in range(30)]
        assert max(last_batch[:8]) < min(first_batch[8:16])

    def test_a_token_counts_in_the_window_that_shows_most_around_it(self, encoder: TextEncoder) -> None:
        """Against a search over all windows of the example, token by token."""
        (example,) = [e for e in questions() if e.index == 2]
        example = QuestionExample(0, "", "x", example.question, CONTEXT * 8, None, None)
        (batch,) = make_batches(
            [example], encoder, "question-answering", batch_size=99, max_length=64, stride=16, window=None
        )
        assert "start_positions" not in batch
        spans = [[tuple(o) for o in offsets.tolist() if o[0] >= 0] for offsets in batch.offsets]
        assert len(spans) > 4
        document = sorted(set(chain(*spans)))
        for part, span in enumerate(spans):
            flags = batch.is_best_context[part][batch.offsets[part, :, 0] >= 0].tolist()
            for token, flag in zip(span, flags, strict=True):
                scores = [
                    min(window.index(token), len(window) - 1 - window.index(token)) + 0.01 * len(window)
                    if token in window
                    else -1
                    for window in spans
                ]
                assert flag == (scores.index(max(scores)) == part)
        assert int(batch.is_best_context.sum()) == len(document)

    def test_a_question_too_long_is_cut_and_told(self, encoder: TextEncoder, caplog: pytest.LogCaptureFixture) -> None:
        example = QuestionExample(0, "", "x", "why " * 500, CONTEXT * 4, (), ())
        (batch,) = make_batches([example], encoder, "question-answering", batch_size=99, max_length=64, stride=16)
        assert batch["input_ids"].shape == (int(batch.window_count[0]), 64)
        # 16 tokens are repeated, and a window moves on by 64 / 12
        assert int((batch.offsets[0, :, 0] >= 0).sum()) == 16 + 5
        assert int((batch["token_type_ids"][0] == 0).sum()) == 64 - 21 - 1  # [SEP] behind the context
        assert "1 questions are longer than 40 tokens and were cut" in caplog.text

    def test_a_question_that_leaves_room_is_whole(self, encoder: TextEncoder, caplog: pytest.LogCaptureFixture) -> None:
        example = QuestionExample(0, "", "x", "why " * 40, CONTEXT * 4, (), ())
        (batch,) = make_batches([example], encoder, "question-answering", batch_size=99, max_length=64, stride=16)
        assert int((batch["input_ids"][0] == encoder.tokenizer.token_to_id("why")).sum()) == 40
        assert caplog.records == []

    def test_an_empty_context_has_one_window_without_text(self, encoder: TextEncoder) -> None:
        example = QuestionExample(0, "", "x", "why?", "", (), ())
        (batch,) = make_batches([example], encoder, "question-answering", batch_size=1)
        assert (batch.offsets == -1).all()
        assert batch["start_positions"].tolist() == [0]

    def test_the_defaults_fit_the_model(self, encoder: TextEncoder) -> None:
        small = TextEncoder.of(encoder.tokenizer, max_length=40)
        batches = list(make_batches(questions(), small, "question-answering", batch_size=8))
        assert max(batch["input_ids"].shape[1] for batch in batches) == 40
        (batch,) = make_batches(questions()[5:6], encoder, "question-answering", batch_size=8)
        assert batch["input_ids"].shape[1] <= 384


class TestSpans:
    OFFSETS = np.array([[-1, -1], [0, 3], [3, 5], [6, 9], [-1, -1]])

    @pytest.mark.parametrize(
        ("begin", "end", "expected"),
        [(0, 3, (1, 1)), (1, 2, (1, 1)), (0, 9, (1, 3)), (3, 4, (2, 2)), (4, 7, (2, 3)), (6, 10, (0, 0))],
    )
    def test_the_tokens_that_hold_it(self, begin: int, end: int, expected: tuple[int, int]) -> None:
        assert span_of(self.OFFSETS, begin, end, missing=0) == expected

    def test_no_text_no_span(self) -> None:
        assert span_of(np.full((3, 2), -1), 0, 1, missing=2) == (2, 2)

    def test_a_single_window_shows_most(self) -> None:
        assert best_contexts([np.array([False, True, True])], 4)[0].tolist() == [False, True, True]


class TestWords:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("max_length", [12, 512])
    def test_the_first_piece_has_the_label(
        self, families: Families, texts: tuple[str, ...], family: str, max_length: int
    ) -> None:
        encoder, reference = families[family]
        if family == "roberta":
            reference = RobertaTokenizer.from_pretrained(reference.name_or_path, add_prefix_space=True)
        words = [tuple(text.split()) for text in texts if text.split()]
        examples = [TokenExample(n, "", w, tuple(range(len(w)))) for n, w in enumerate(words)]
        expected = reference(
            [list(w) for w in words],
            is_split_into_words=True,
            truncation=True,
            max_length=max_length,
            padding="longest",
        )
        (batch,) = make_batches(
            examples, encoder, "token-classification", batch_size=999, max_length=max_length, window=None
        )
        assert batch["input_ids"].tolist() == expected["input_ids"]
        for place in range(len(words)):
            found = expected.word_ids(place)
            labels = [-100 if word is None or (at and found[at - 1] == word) else word for at, word in enumerate(found)]
            assert batch["labels"][place].tolist() == labels
            assert batch.word_ids[place].tolist() == [label if label >= 0 else -1 for label in labels]

    def test_a_sentence_without_words_has_only_special_tokens(self, encoder: TextEncoder) -> None:
        (batch,) = make_batches([TokenExample(0, "", (), ())], encoder, "token-classification", batch_size=1)
        assert batch["labels"].tolist() == [[-100, -100]]
        assert batch["input_ids"].tolist() == [[101, 102]]

    def test_words_without_tags(self, encoder: TextEncoder) -> None:
        (batch,) = make_batches([TokenExample(0, "", ("a", "b"))], encoder, "token-classification", batch_size=1)
        assert "labels" not in batch
        assert batch.word_ids.tolist() == [[-1, 0, 1, -1]]


class TestChoices:
    def test_a_choice_is_a_pair(self, families: Families, sentences: list[str]) -> None:
        encoder, reference = families["bert"]
        examples = [ChoiceExample(n, "", sentences[n], tuple(sentences[n + 1 : n + 5]), n % 4) for n in range(0, 40, 5)]
        for batch in make_batches(examples, encoder, "multiple-choice", batch_size=3, max_length=48):
            pairs = [(e.text, choice) for e in batch.examples for choice in e.choices]
            expected = reference(
                *map(list, zip(*pairs, strict=True)),
                truncation=True,
                max_length=48,
                padding="longest",
                return_tensors="pt",
            )
            for name in ("input_ids", "attention_mask", "token_type_ids"):
                assert torch.equal(batch[name], expected[name].view(len(batch.examples), 4, -1))
            assert batch["labels"].tolist() == [e.label for e in batch.examples]

    @pytest.mark.parametrize("window", [None, 64])
    def test_rows_of_one_batch_have_as_many_choices(self, encoder: TextEncoder, window: int | None) -> None:
        counts = [4, 4, 1, 3, 4, 3]
        examples = [ChoiceExample(n, "", "a", ("b",) * count) for n, count in enumerate(counts)]
        batches = list(make_batches(examples, encoder, "multiple-choice", batch_size=8, window=window))
        for batch in batches:
            assert batch["input_ids"].shape[:2] == (len(batch.index), counts[int(batch.index[0])])
            assert {counts[index] for index in batch.index.tolist()} == {batch["input_ids"].shape[1]}
        assert sorted(chain(*(batch.index.tolist() for batch in batches))) == list(range(6))


class TestIds:
    def test_padding_goes_and_what_is_too_long_keeps_its_last_token(self, encoder: TextEncoder) -> None:
        examples = [
            IdsExample(0, "row 1", (101, 5, 102, 0, 0), (1, 1, 1, 0, 0)),
            IdsExample(1, "row 2", (101, 5, 6, 7, 8, 102), None, (0, 0, 0, 1, 1, 1)),
            IdsExample(2, "row 3", (101, 5, 6, 102), (1, 0, 1, 1)),
        ]
        (batch,) = make_batches(examples, encoder, "feature-extraction", batch_size=3, max_length=5, window=None)
        assert batch["input_ids"].tolist() == [[101, 5, 102, 0, 0], [101, 5, 6, 7, 102], [101, 5, 6, 102, 0]]
        assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5, [1, 0, 1, 1, 0]]
        assert batch["token_type_ids"].tolist() == [[0] * 5, [0, 0, 0, 1, 1], [0] * 5]

    def test_labels_of_tokens_go_with_them(self, encoder: TextEncoder) -> None:
        example = IdsExample(0, "row 1", (101, 5, 6, 102), None, None, (-100, 1, 2, -100))
        (batch,) = make_batches([example], encoder, "token-classification", batch_size=1, max_length=3)
        assert batch["labels"].tolist() == [[-100, 1, -100]]

    @pytest.mark.parametrize("wrong", [-1, 30522])
    def test_an_id_beyond_the_vocabulary_is_named(self, encoder: TextEncoder, wrong: int) -> None:
        with pytest.raises(DataError, match=f"row 9: the token id {wrong} is not one of the vocabulary's 30522"):
            list(make_batches([IdsExample(0, "row 9", (5, wrong))], encoder, "feature-extraction", batch_size=1))


class TestMasking:
    def batches(
        self,
        encoder: TextEncoder,
        sentences: list[str],
        *,
        masking: Masking | None = None,
        batch_size: int = 8,
        window: int | None = 64,
    ) -> list[Batch]:
        return list(
            make_batches(
                texts_of([(s,) for s in sentences]),
                encoder,
                "masked-lm",
                batch_size=batch_size,
                window=window,
                masking=masking,
            )
        )

    def test_the_shares_are_those_of_the_paper(self, encoder: TextEncoder, sentences: list[str]) -> None:
        original = by_index(
            make_batches(texts_of([(s,) for s in sentences]), encoder, "feature-extraction", batch_size=8), "input_ids"
        )
        kinds = {"mask": 0, "random": 0, "same": 0}
        for seed in range(5):
            batches = self.batches(encoder, sentences, masking=Masking(seed=seed))
            ids, labels = by_index(batches, "input_ids"), by_index(batches, "labels")
            for index, (wanted,) in original.items():
                (found,), (label,) = ids[index], labels[index]
                chosen = [at for at, value in enumerate(label) if value != -100]
                assert len(chosen) == max(1, round(0.15 * (len(wanted) - 2)))
                assert not {0, len(wanted) - 1} & set(chosen)
                assert [label[at] for at in chosen] == [wanted[at] for at in chosen]
                assert all(found[at] == wanted[at] for at in range(len(wanted)) if at not in chosen)
                for at in chosen:
                    kind = "mask" if found[at] == 103 else "same" if found[at] == wanted[at] else "random"
                    kinds[kind] += 1
        total = sum(kinds.values())
        # five standard deviations of a share of 0.8 or 0.1
        assert abs(kinds["mask"] / total - 0.8) < 5 * (0.16 / total) ** 0.5
        assert abs(kinds["same"] / total - 0.1) < 5 * (0.09 / total) ** 0.5
        assert abs(kinds["random"] / total - 0.1) < 5 * (0.09 / total) ** 0.5

    def test_the_choice_does_not_depend_on_how_batches_are_made(
        self, encoder: TextEncoder, sentences: list[str]
    ) -> None:
        one = self.batches(encoder, sentences)
        two = self.batches(encoder, sentences, batch_size=5, window=None)
        assert by_index(one, "input_ids") == by_index(two, "input_ids")
        assert by_index(one, "labels") == by_index(two, "labels")
        other = self.batches(encoder, sentences, masking=Masking(seed=1))
        assert by_index(one, "labels") != by_index(other, "labels")

    def test_only_the_mask_token(self, encoder: TextEncoder, sentences: list[str]) -> None:
        for batch in self.batches(encoder, sentences, masking=Masking(only_mask=True, probability=1.0)):
            ordinary = batch["attention_mask"].bool()
            ordinary[:, 0] = False
            ordinary[torch.arange(len(ordinary)), batch.lengths - 1] = False
            assert (batch["input_ids"][ordinary] == 103).all()
            assert torch.equal(batch["labels"] != -100, ordinary)

    def test_special_tokens_in_the_text_are_left(self, encoder: TextEncoder) -> None:
        (batch,) = make_batches(
            texts_of([("[SEP] [MASK]",), ("",)]), encoder, "masked-lm", batch_size=2, masking=Masking(probability=1.0)
        )
        assert (batch["labels"] == -100).all()

    def test_wrong_settings_come_together(self) -> None:
        with pytest.raises(ConfigError) as caught:
            Masking(seed=-1, probability=0)
        assert "probability" in str(caught.value)
        assert "seed" in str(caught.value)

    def test_a_vocabulary_without_mask_token_is_refused(self) -> None:
        tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        with pytest.raises(ConfigError, match="masked-lm needs a mask token"):
            list(make_batches(texts_of([("a a",)]), TextEncoder.of(tokenizer), "masked-lm", batch_size=1))


class TestSettings:
    def test_all_that_is_wrong_comes_together(self, encoder: TextEncoder) -> None:
        with pytest.raises(ConfigError) as caught:
            make_batches([], encoder, "sts", batch_size=0, max_length=600, pad_to=550, window=0, pad_to_multiple_of=0)
        for problem in (
            "batch_size",
            "max_length 600 is more",
            "pad_to 550",
            "pad_to must be",
            "window",
            "multiple_of",
        ):
            assert problem in str(caught.value)

    @pytest.mark.parametrize("stride", [-1, 60])
    def test_a_stride_that_leaves_no_room(self, encoder: TextEncoder, stride: int) -> None:
        with pytest.raises(ConfigError, match="leaves a question no room"):
            make_batches([], encoder, "question-answering", batch_size=1, max_length=64, stride=stride)

    def test_examples_of_another_task_are_refused(self, encoder: TextEncoder) -> None:
        with pytest.raises(DataError, match="question-answering does not take examples of the kind TextExample"):
            list(make_batches(texts_of([("a",)]), encoder, "question-answering", batch_size=1))

    def test_no_examples_no_batches(self, encoder: TextEncoder) -> None:
        assert list(make_batches([], encoder, "sts", batch_size=1)) == []

    def test_text_the_vocabulary_does_not_know_is_told_with_the_figure(
        self, encoder: TextEncoder, caplog: pytest.LogCaptureFixture
    ) -> None:
        list(make_batches(texts_of([("☃ ☄ ☕ word",), ("☃",)]), encoder, "feature-extraction", batch_size=2))
        assert "80 % of the tokens (4 of 5) are unknown" in caplog.text

    def test_random_text_is_known_to_the_vocabulary(
        self, encoder: TextEncoder, caplog: pytest.LogCaptureFixture
    ) -> None:
        examples = read_examples("random:32", "feature-extraction")
        batches = list(make_batches(examples, encoder, "feature-extraction", batch_size=8))
        assert sum(len(batch.index) for batch in batches) == 32
        assert "unknown" not in caplog.text
