"""The same tokens as ``generate`` of transformers on the same weights: greedy and beam search, torch and ONNX."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from calibration import calibrate
from exporters.interface import ExportInterface
from exporters.onnx.export import export_onnx
from exporters.runners import OnnxRuntimeRunner
from qdq.errors import ConfigError, DataError
from qdq.generation import Decoder, GenerationSettings, RunnerDecoder, TorchDecoder, generate, visible_tokens
from qdq.models.huggingface import load_model, save_model
from qdq.models.model import Model
from qdq.models.registry import FAMILIES, build, configure
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from pathlib import Path


transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FAMILIES_ALIVE = ("bert", "megatron-bert", "roberta", "roberta-prelayernorm")
FIELDS: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.5,
    "is_decoder": True,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    torch.set_num_threads(1)


class Pair:
    """A model of transformers, ours with its weights, and the positions that it was trained with."""

    def __init__(self, model_type: str, folder: Path, **changes: Any) -> None:
        torch.manual_seed(0)
        cls = getattr(transformers, FAMILIES[model_type].tasks["causal-lm"].name)
        self.theirs = cls(cls.config_class(**{**FIELDS, **changes})).eval()
        with torch.no_grad():
            bias = self.theirs.get_output_embeddings().bias.normal_(0.0, 0.5)
            bias[2] += 1.0  # some texts end early
        self.theirs.save_pretrained(folder)
        self.ours = load_model(folder)
        self.first = 2 if model_type.startswith("roberta") else 0

    def wanted(self, ids: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        visible = ids.ne(1).long() if mask is None else mask
        positions = torch.where(visible == 0, self.first, visible.cumsum(1) - 1 + self.first)
        generation = transformers.GenerationConfig(pad_token_id=1, eos_token_id=2)
        generation.update(**options)
        # None would be filled in from here.
        self.theirs.generation_config.eos_token_id = generation.eos_token_id
        return self.theirs.generate(
            ids, attention_mask=mask, position_ids=positions, generation_config=generation, do_sample=False
        )


@pytest.fixture(scope="module", params=FAMILIES_ALIVE)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair("bert", tmp_path_factory.mktemp("bert"))


def prompts(padding: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Four prompts, two of them shorter where there is padding."""
    ids = torch.randint(3, FIELDS["vocab_size"], (4, 7), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    padded = {"": slice(0, 0), "left": slice(0, 3), "right": slice(4, 7)}[padding]
    mask[1:3, padded] = 0
    return ids.where(mask == 1, 1), mask


def settings_of(options: dict[str, Any]) -> GenerationSettings:
    known = {"max_new_tokens": 12, "eos_token_id": 2, "pad_token_id": 1}
    return GenerationSettings(**{**known, **options})


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy-one-token": {"max_new_tokens": 1},
    "greedy-two-ends": {"eos_token_id": [2, 18, 24]},
    "greedy-no-end": {"eos_token_id": ()},
    "beam": {"num_beams": 3},
    "beam-all-returned": {"num_beams": 4, "num_return_sequences": 4},
    "beam-early": {"num_beams": 3, "early_stopping": True, "num_return_sequences": 2},
    "beam-never": {"num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
    "beam-short": {"num_beams": 4, "length_penalty": -1.5, "num_return_sequences": 3},
    "beam-two-ends": {"num_beams": 3, "eos_token_id": [2, 18, 24], "num_return_sequences": 3},
    "beam-no-end": {"num_beams": 2, "eos_token_id": ()},
}


@pytest.mark.parametrize("padding", ["", "left"], ids=["unpadded", "left"])
@pytest.mark.parametrize("case", OPTIONS)
def test_the_tokens_are_those_of_transformers(case: str, padding: str, pair: Pair) -> None:
    assert_same_tokens(case, padding, pair)


@pytest.mark.parametrize("case", ["greedy", "beam-all-returned"])
@pytest.mark.filterwarnings("ignore:.*right-padding:UserWarning")
def test_padding_on_the_right_is_continued_as_transformers_does(case: str, bert: Pair) -> None:
    assert_same_tokens(case, "right", bert)


def assert_same_tokens(case: str, padding: str, pair: Pair) -> None:
    options, (ids, mask) = {"max_new_tokens": 12, **OPTIONS[case]}, prompts(padding)
    got = generate(TorchDecoder(pair.ours), ids, mask, settings=settings_of(options))
    theirs = {key: None if value == () else value for key, value in options.items()}
    want = pair.wanted(ids, mask, **theirs)
    assert torch.equal(got, want), f"\n{got}\n{want}"
    assert got.shape[0] == 4 * options.get("num_return_sequences", 1)


def test_some_texts_end_before_others(pair: Pair) -> None:
    got = generate(TorchDecoder(pair.ours), prompts()[0], settings=settings_of({"eos_token_id": [2, 18, 24]}))
    lengths = {len(visible_tokens(row, 7, (2, 18, 24))) for row in got.tolist()}
    assert len(lengths) > 1


def test_many_seeds_of_beams_agree(bert: Pair) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, FIELDS["vocab_size"], (3, 4), generator=generator)
        for more in (OPTIONS["beam-early"], OPTIONS["beam-short"], {"num_beams": 5, "num_return_sequences": 5}):
            options = {"max_new_tokens": 9, "eos_token_id": [2, 25], **more}
            got = generate(TorchDecoder(bert.ours), ids, settings=settings_of(options))
            assert torch.equal(got, bert.wanted(ids, **options)), (seed, options)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_padding_is_seen_without_a_mask(bert: Pair) -> None:
    ids, mask = prompts("left")
    with_mask = generate(TorchDecoder(bert.ours), ids, mask, settings=settings_of({}))
    assert torch.equal(generate(TorchDecoder(bert.ours), ids, settings=settings_of({})), with_mask)
    assert torch.equal(bert.wanted(ids, max_new_tokens=12), with_mask)


def test_the_configuration_names_end_and_padding(bert: Pair) -> None:
    ids = prompts()[0]
    got = generate(TorchDecoder(bert.ours), ids, settings=GenerationSettings(max_new_tokens=12))
    assert torch.equal(got, generate(TorchDecoder(bert.ours), ids, settings=settings_of({})))


def test_a_padding_token_of_zero_is_replaced_in_beam_search_as_upstream_does(tmp_path: Path) -> None:
    pair = Pair("bert", tmp_path, pad_token_id=0)
    ids = prompts()[0]
    options = {"num_beams": 3, "num_return_sequences": 3, "eos_token_id": [2, 5], "max_new_tokens": 12}
    got = generate(TorchDecoder(pair.ours), ids, settings=settings_of({**options, "pad_token_id": 0}))
    generation = transformers.GenerationConfig(pad_token_id=0)
    generation.update(**options)
    want = pair.theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=generation)
    assert torch.equal(got, want)


def test_positions_of_transformers_5_for_roberta_are_an_option(tmp_path: Path) -> None:
    pair = Pair("roberta-prelayernorm", tmp_path)
    ids = prompts()[0]
    want = pair.theirs.generate(ids, max_new_tokens=12, do_sample=False)
    got = generate(TorchDecoder(pair.ours), ids, settings=settings_of({"first_position": 0}))
    assert torch.equal(got, want)
    assert not torch.equal(got, generate(TorchDecoder(pair.ours), ids, settings=settings_of({})))


def test_a_decoder_attends_to_another_text(tmp_path: Path) -> None:
    pair = Pair("bert", tmp_path, add_cross_attention=True)
    ids, memory = prompts()[0], torch.randn(4, 5, 32)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 4)
    for options in ({}, {"num_beams": 3}):
        # Upstream makes a cache of the wrong kind for a decoder alone.
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
        given = {"encoder_hidden_states": memory, "encoder_attention_mask": mask, "past_key_values": cache}
        want = pair.theirs.generate(ids, **given, max_new_tokens=8, do_sample=False, **options)
        decoder = TorchDecoder(pair.ours, memory=memory, memory_mask=mask)
        got = generate(decoder, ids, settings=settings_of({"max_new_tokens": 8, **options}))
        assert torch.equal(got, want)
    with pytest.raises(DataError, match="encoder_hidden_states has 3 rows for 4 prompts"):
        generate(TorchDecoder(pair.ours, memory=memory[:3]), ids)


def test_a_long_text_equals_one_without_a_cache(bert: Pair) -> None:
    ids = prompts()[0]
    got = generate(TorchDecoder(bert.ours), ids, settings=settings_of({"eos_token_id": (), "max_new_tokens": 30}))
    with torch.no_grad():
        scores = bert.ours(got[:, :-1]).logits
    assert torch.equal(scores.argmax(-1)[:, 6:], got[:, 7:])


def test_qdqbert_continues_as_bert_does(bert: Pair, tmp_path: Path) -> None:
    save_model(bert.ours, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    changes = {"model_type": "qdqbert", "architectures": ["QDQBertLMHeadModel"]}
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    ids, mask = prompts("left")
    for options in (OPTIONS["greedy"], OPTIONS["beam-early"]):
        decoder = TorchDecoder(load_model(tmp_path))
        got = generate(decoder, ids, mask, settings=settings_of(options))
        assert torch.equal(got, generate(TorchDecoder(bert.ours), ids, mask, settings=settings_of(options)))


def test_a_quantized_model_continues_as_it_computes_without_a_cache(bert: Pair, tmp_path: Path) -> None:
    save_model(bert.ours, tmp_path)
    model = quantize(load_model(tmp_path), "qdqbert")
    ids = prompts()[0]
    calibrate(model, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    assert isinstance(model, Model)
    got = generate(TorchDecoder(model), ids, settings=settings_of({"eos_token_id": ()}))
    with torch.no_grad():
        scores = model(got[:, :-1], return_dict=True).logits  # type: ignore[union-attr]
    assert torch.equal(scores.argmax(-1)[:, 6:], got[:, 7:])
    with torch.no_grad():
        assert not torch.equal(scores, bert.ours(got[:, :-1]).logits)  # it does quantize


# --- exported files ---


@pytest.fixture(
    scope="module",
    params=[pytest.param("bert", marks=pytest.mark.slow), "roberta-prelayernorm"],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Decoder]:
    folder = tmp_path_factory.mktemp("exported")
    pair = Pair(request.param, folder, num_hidden_layers=1)
    export_onnx(pair.ours, folder / "model.onnx", target=None, interface=ExportInterface(cache="step"))
    return pair, RunnerDecoder(OnnxRuntimeRunner(folder / "model.onnx", threads=1), pair.ours.config)


@pytest.mark.parametrize("padding", ["", "left"], ids=["unpadded", "left"])
@pytest.mark.parametrize("case", ["greedy", "greedy-two-ends", "beam-all-returned", "beam-two-ends", "beam-no-end"])
def test_an_exported_file_gives_the_same_tokens(case: str, padding: str, exported: tuple[Pair, Decoder]) -> None:
    pair, decoder = exported
    options, (ids, mask) = {"max_new_tokens": 12, **OPTIONS[case]}, prompts(padding)
    got = generate(decoder, ids, mask, settings=settings_of(options))
    theirs = {key: None if value == () else value for key, value in options.items()}
    want = pair.wanted(ids, mask, **theirs)
    assert torch.equal(got, want), f"\n{got}\n{want}"


def test_an_exported_file_refuses_padding_on_the_right(exported: tuple[Pair, Decoder]) -> None:
    with pytest.raises(DataError, match="only prompts that are padded on the left"):
        generate(exported[1], *prompts("right"))


def test_a_file_without_a_cache_is_refused() -> None:
    class Plain:
        inputs = ()

        def __call__(self, inputs: Any) -> Any:
            raise AssertionError

    with pytest.raises(ConfigError, match="--cache step"):
        RunnerDecoder(Plain(), configure("bert", **FIELDS))


# --- what is refused ---


def test_right_padding_is_warned_of(bert: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="qdq.generation"):
        generate(TorchDecoder(bert.ours), *prompts("right"), settings=settings_of({"max_new_tokens": 1}))
    assert "pad prompts on the left" in caplog.text


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({"is_decoder": False}, "causal-lm", "is_decoder is false"),
        ({}, "masked-lm", "only a model of the task causal-lm"),
    ],
    ids=["no-decoder", "no-causal-lm"],
)
def test_other_models_are_refused(changes: dict[str, Any], task: str, message: str) -> None:
    model: Model = build(configure("bert", **{**FIELDS, **changes}), task)
    with pytest.raises(ConfigError, match=message):
        TorchDecoder(model)


def test_settings_tell_all_their_problems() -> None:
    with pytest.raises(ConfigError) as raised:
        GenerationSettings(max_new_tokens=0, num_beams=2, num_return_sequences=3, early_stopping="soon")  # type: ignore[arg-type]
    assert all(name in str(raised.value) for name in ("max_new_tokens is 0", "there are 2 beams", "'soon'"))


@pytest.mark.parametrize("penalty", [float("nan"), float("inf"), -1e10, 51.0])
def test_length_penalties_without_a_meaning_are_refused(penalty: float) -> None:
    with pytest.raises(ConfigError, match=r"length_penalty is .*, must be a number between -50 and 50"):
        GenerationSettings(length_penalty=penalty)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 10**7}, "num_beams is 10000000, the vocabulary has 31 tokens"),
        ({"eos_token_id": ["x", 2]}, "eos_token_id is 'x'"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'"),
        ({"pad_token_id": 1.5}, r"pad_token_id is 1\.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_the_vocabulary_does_not_allow(changes: dict[str, Any], message: str, bert: Pair) -> None:
    with pytest.raises(ConfigError, match=message):
        generate(TorchDecoder(bert.ours), prompts()[0], settings=settings_of(changes))


@pytest.mark.parametrize(
    ("ids", "mask", "changes", "message"),
    [
        (torch.zeros(0, 3).long(), None, {}, r"shape \[0, 3\]"),
        (torch.zeros(3).long(), None, {}, r"shape \[3\]"),
        (torch.full((2, 3), 4), torch.ones(2, 4), {}, "attention_mask has shape"),
        (torch.full((2, 3), 4), torch.tensor([[1, 1, 1], [0, 0, 0]]), {}, "no visible token in row 1"),
        (torch.full((2, 30), 4), None, {"max_new_tokens": 12}, "the model reads at most 40"),
    ],
    ids=["empty", "flat", "mask", "nothing-visible", "too-long"],
)
def test_prompts_that_do_not_fit_are_refused(
    ids: torch.Tensor, mask: torch.Tensor | None, changes: dict[str, Any], message: str, bert: Pair
) -> None:
    with pytest.raises(DataError, match=message):
        generate(TorchDecoder(bert.ours), ids, mask, settings=settings_of(changes))


def test_the_longest_text_that_fits_is_made(bert: Pair) -> None:
    longest = settings_of({"max_new_tokens": 11, "eos_token_id": ()})
    ids = torch.full((1, 30), 4)
    assert generate(TorchDecoder(bert.ours), ids, settings=longest).shape == (1, 41)
    with pytest.raises(DataError, match="too long"):
        generate(TorchDecoder(bert.ours), ids, settings=replace(longest, max_new_tokens=12))


def test_tokens_outside_the_vocabulary_are_refused(bert: Pair) -> None:
    with pytest.raises(ConfigError, match=r"(?s)eos_token_id is 31.*pad_token_id is 99"):
        generate(TorchDecoder(bert.ours), prompts()[0], settings=settings_of({"eos_token_id": 31, "pad_token_id": 99}))


@pytest.mark.parametrize(
    ("row", "eos", "added"),
    [([5, 6, 7, 2, 1, 1], (2,), [7]), ([5, 6, 7, 8], (2,), [7, 8]), ([5, 6, 2], (2,), []), ([5, 6, 7], (), [7])],
    ids=["ends", "does-not", "at-once", "no-end-known"],
)
def test_visible_tokens(row: list[int], eos: tuple[int, ...], added: list[int]) -> None:
    assert visible_tokens(row, 2, eos) == added
