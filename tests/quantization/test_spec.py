from __future__ import annotations

import dataclasses
import itertools
import json

import onnx
import pytest
import torch

from qdq.errors import RecipeError
from qdq.quantization.spec import Granularity, PerAxis, PerGroup, PerTensor, PerToken, QuantSpec


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_integers_fill_the_bits(bits: int, signed: bool) -> None:
    spec = QuantSpec(bits=bits, signed=signed)
    assert spec.qmax - spec.qmin + 1 == 2**bits
    assert spec.qmin == (-(2 ** (bits - 1)) if signed else 0)
    assert spec.middle == spec.qmin + 2 ** (bits - 1)


@pytest.mark.parametrize(("signed", "dtype"), [(True, torch.int8), (False, torch.uint8)], ids=["int8", "uint8"])
def test_eight_bits_are_torch_and_onnx_types(signed: bool, dtype: torch.dtype) -> None:
    spec, info = QuantSpec(signed=signed), torch.iinfo(dtype)
    assert (spec.qmin, spec.qmax) == (info.min, info.max)
    kind = onnx.TensorProto.INT8 if signed else onnx.TensorProto.UINT8
    assert str(spec).startswith(onnx.TensorProto.DataType.Name(kind).lower())


def test_narrow_range_is_symmetric_about_zero() -> None:
    for bits in range(2, 9):
        spec = QuantSpec(bits=bits, narrow_range=True)
        assert spec.qmin == -spec.qmax


def test_every_spec_survives_json_and_reads_differently() -> None:
    specs = [
        QuantSpec(
            bits=bits, signed=signed, symmetric=symmetric, narrow_range=narrow and signed, granularity=granularity
        )
        for bits, signed, symmetric, narrow, granularity in itertools.product(
            (2, 5, 8), (True, False), (True, False), (True, False), (PerTensor(), PerAxis(0), PerAxis(-1))
        )
    ]
    specs += [
        QuantSpec(granularity=PerAxis(0), overflow_safe=True),
        QuantSpec(granularity=PerGroup(32), bits=4),
        QuantSpec(granularity=PerGroup(64), bits=4),
        QuantSpec(dynamic=True),
        QuantSpec(dynamic=True, granularity=PerToken()),
        QuantSpec(learned_scale=True),
        QuantSpec(format="float8e4m3fn"),
        QuantSpec(format="float8e4m3fn", granularity=PerAxis(0)),
        QuantSpec(arithmetic="pytorch-quantization"),
    ]
    for spec in specs:
        assert QuantSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert len({str(spec) for spec in specs}) == len(set(specs))


def test_missing_keys_take_the_defaults() -> None:
    assert QuantSpec.from_dict({}) == QuantSpec()
    assert QuantSpec.from_dict({"bits": 4}) == QuantSpec(bits=4)


def test_axis_is_that_of_the_granularity() -> None:
    assert QuantSpec().axis is None
    assert QuantSpec(granularity=PerAxis(1)).axis == 1


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [(PerTensor(), ()), (PerAxis(0), (6,)), (PerAxis(-1), (70,)), (PerGroup(32), (6, 3)), (PerToken(), (6, 1))],
    ids=str,
)
def test_shape_of_the_scale(granularity: Granularity, shape: tuple[int, ...]) -> None:
    spec = QuantSpec(granularity=granularity, dynamic=granularity == PerToken())
    assert spec.scale_shape((6, 70)) == shape


def test_spec_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantSpec().bits = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bits": 1}, ["bits is 1"]),
        ({"bits": 9}, ["bits is 9"]),
        ({"bits": True}, ["bits is True"]),
        ({"bits": 8.0}, ["bits is 8.0"]),
        ({"bits": None}, ["bits is None"]),
        ({"signed": "yes"}, ["signed is 'yes'"]),
        ({"symmetric": 1}, ["symmetric is 1"]),
        ({"granularity": "per-axis"}, ["granularity is 'per-axis'"]),
        ({"granularity": "per-axis(--1)"}, ["granularity"]),
        ({"granularity": "per-axis(²)"}, ["granularity"]),
        ({"granularity": "per-axis(1"}, ["granularity"]),
        ({"granularity": 0}, ["granularity is 0"]),
        ({"narrow_range": True, "signed": False}, ["narrow_range is for signed"]),
        ({"overflow_safe": True}, ["overflow_safe is for linear weights"]),
        ({"overflow_safe": True, "granularity": "per-axis(1)"}, ["overflow_safe"]),
        ({"overflow_safe": True, "granularity": "per-axis(0)", "symmetric": False}, ["overflow_safe"]),
        ({"granularity": "per-group(0)"}, ["per-group(0)", "at least one"]),
        ({"granularity": "per-token"}, ["per-token needs dynamic"]),
        ({"dynamic": 1}, ["dynamic is 1"]),
        ({"dynamic": True, "learned_scale": True}, ["exclude each other"]),
        ({"learned_scale": True, "granularity": "per-group(8)"}, ["not per group"]),
        ({"arithmetic": "exact"}, ["arithmetic is 'exact'", "onnx, pytorch-quantization"]),
        (
            {"arithmetic": "pytorch-quantization", "symmetric": False, "granularity": "per-group(8)"},
            ["2 problems", "is symmetric", "no granularity per-group(8)"],
        ),
        (
            {"bits": 12, "bitz": 8, "narrow_range": "no", "granularity": "all"},
            ["4 problems", "'bitz'", "bits is 12", "narrow_range is 'no'", "granularity is 'all'"],
        ),
        (
            {"bits": 0, "oops": 1, "signed": False, "narrow_range": True, "overflow_safe": True},
            ["4 problems", "bits is 0", "'oops'", "narrow_range", "overflow_safe"],
        ),
    ],
    ids=str,
)
def test_mistakes_are_named_all_at_once(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        QuantSpec.from_dict(values)
    for word in words:
        assert word in str(caught.value)
    assert QuantSpec.problems_in(values)


def test_constructor_lists_its_problems_too() -> None:
    with pytest.raises(RecipeError, match=r"(?s)3 problems.*bits is 1.*narrow_range.*overflow_safe"):
        QuantSpec(bits=1, signed=False, narrow_range=True, overflow_safe=True)
    with pytest.raises(RecipeError, match="granularity is 'per-axis"):
        QuantSpec(granularity="per-axis(0)")  # type: ignore[arg-type]
