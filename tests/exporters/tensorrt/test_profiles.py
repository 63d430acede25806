from __future__ import annotations

import pytest

from exporters.tensorrt.profiles import (
    Profile,
    check_profiles,
    default_profile,
    format_shapes,
    longest_sequence,
    parse_profiles,
)
from qdq.errors import BuildError

INPUTS = {"input_ids": ("batch", "seq"), "attention_mask": ("batch", "seq")}


def whole(least: str, best: str, largest: str) -> Profile:
    (profile,) = parse_profiles(INPUTS, [least], [best], [largest])
    return profile


def test_shapes_are_read_as_trtexec_writes_them() -> None:
    profile = whole("input_ids:1x8,attention_mask:1x8", "input_ids:4x16, attention_mask:4x16", "8x32")
    assert profile.min == {"input_ids": (1, 8), "attention_mask": (1, 8)}
    assert profile.opt == {"input_ids": (4, 16), "attention_mask": (4, 16)}
    assert profile.max == {"input_ids": (8, 32), "attention_mask": (8, 32)}
    assert format_shapes(profile.max) == "input_ids:8x32,attention_mask:8x32"
    assert check_profiles([profile], INPUTS) == []


def test_a_name_may_hold_a_colon() -> None:
    (profile,) = parse_profiles({"a:0": (None,)}, ["a:0:3"], ["'a:0':4"], ["5"])
    assert profile == Profile({"a:0": (3,)}, {"a:0": (4,)}, {"a:0": (5,)})


def test_each_repetition_is_a_profile() -> None:
    profiles = parse_profiles(INPUTS, ["1x8", "1x64"], ["1x16", "8x128"], ["1x32", "32x512"])
    assert [profile.max["input_ids"] for profile in profiles] == [(1, 32), (32, 512)]
    assert check_profiles(profiles, INPUTS) == []


def test_all_problems_of_the_text_are_told_at_once() -> None:
    with pytest.raises(BuildError) as caught:
        parse_profiles(INPUTS, ["input_ids:1x", "1x8"], ["input_ids=8"], ["input_ids:1x2,input_ids:1x2"])
    message = str(caught.value)
    assert "--min-shapes input_ids:1x: 'input_ids:1x' is not of the form input_ids:8x128" in message
    assert "--opt-shapes input_ids=8" in message
    assert "input_ids is there twice" in message
    assert "profile 1 has no --opt-shapes" in message
    assert "profile 1 has no --max-shapes" in message


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (({"input_ids": (1, 8)},) * 3, "profile 0, opt: the input attention_mask is missing"),
        (({"input_ids": (1, 8), "attention_mask": (1, 8), "x": (1,)},) * 3, "the file has no input x"),
        (({"input_ids": (8,), "attention_mask": (1, 8)},) * 3, "input_ids is 8, the file has batchxseq"),
        (({"input_ids": (0, 8), "attention_mask": (0, 8)},) * 3, "no length can be 0"),
        (({"input_ids": (1, 8), "attention_mask": (2, 8)},) * 3, "the dimension batch differs between the inputs"),
    ],
    ids=["missing", "unknown", "rank", "zero", "symbol"],
)
def test_a_profile_must_fit_the_inputs(shapes: tuple[dict[str, tuple[int, ...]], ...], words: str) -> None:
    assert any(words in problem for problem in check_profiles([Profile(*shapes)], INPUTS))


def test_all_problems_of_the_shapes_are_told_at_once() -> None:
    problems = check_profiles([whole("4x8", "2x8", "1x900")], INPUTS, longest=512)
    assert "profile 0: input_ids must grow from min to max, it is 4x8, 2x8, 1x900" in problems
    assert "profile 0: attention_mask must grow from min to max, it is 4x8, 2x8, 1x900" in problems
    assert "profile 0, max: 900 tokens, but the model has 512 positions" in problems
    assert len(problems) == 3


def test_a_fixed_length_stays() -> None:
    inputs = {"x": (3, "n")}
    assert check_profiles([Profile({"x": (3, 1)}, {"x": (3, 2)}, {"x": (3, 9)})], inputs) == []
    (problem,) = check_profiles([Profile({"x": (3, 1)}, {"x": (3, 2)}, {"x": (4, 9)})], inputs)
    assert problem == "profile 0, max: x is 4x9, the file has 3xn"


def test_without_a_profile_inputs_must_be_fixed() -> None:
    assert check_profiles([], {"x": (3, 4)}) == []
    assert check_profiles([], INPUTS) == ["there is no profile, and the inputs have free dimensions"]


@pytest.mark.parametrize(("longest", "expected"), [(512, 512), (4096, 512), (40, 40)])
def test_the_default_profile_ends_where_int8_attention_and_positions_end(longest: int, expected: int) -> None:
    profile = default_profile(INPUTS, longest=longest)
    assert profile.max["attention_mask"] == (32, expected)
    assert profile.opt["input_ids"] == (8, min(128, expected))
    assert check_profiles([profile], INPUTS, longest=longest) == []


def test_every_kind_of_axis_has_a_default() -> None:
    inputs = {"input_ids": ("batch", "choices", "seq"), "attention_mask": ("batch", "choices", "seq"), "x": (3, None)}
    profile = default_profile(inputs, longest=256)
    assert profile.min == {"input_ids": (1, 1, 1), "attention_mask": (1, 1, 1), "x": (3, 1)}
    assert profile.max == {"input_ids": (32, 8, 256), "attention_mask": (32, 8, 256), "x": (3, 256)}
    assert check_profiles([profile], inputs, longest=256) == []


def test_a_cache_shares_the_positions_with_what_is_new() -> None:
    inputs = {
        "input_ids": ("batch", "seq"),
        "attention_mask": ("batch", "past_seq + seq"),
        "past_key_values.0.key": ("batch", 2, "past_seq", 32),
    }
    profile = default_profile(inputs, longest=40)
    assert profile.max["input_ids"] == (32, 20)
    assert profile.max["past_key_values.0.key"] == (32, 2, 20, 32)
    assert profile.max["attention_mask"] == (32, 40)
    assert check_profiles([profile], inputs, longest=40) == []
    empty = {**profile.min, "past_key_values.0.key": (1, 2, 0, 32)}
    assert check_profiles([Profile(empty, profile.opt, profile.max)], inputs, longest=40) == []


def test_the_longest_sequence_is_that_of_the_axis_of_its_name() -> None:
    inputs = {"x": ("batch", "seq", 64), "y": ("batch", "labels")}
    profile = Profile({}, {}, {"x": (2, 700, 64), "y": (2, 9000)})
    assert longest_sequence(profile, inputs) == 700
