from __future__ import annotations

import pytest

from exporters.tensorrt.lint.operators import opsets_of, supported_operators, target_version
from qdq.errors import ConfigError


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("tensorrt", (11, 1)),
        ("tensorrt-rtx", (11, 1)),
        ("tensorrt:10.16", (10, 16)),
        ("tensorrt:10.16.1.11", (10, 16)),
        ("tensorrt:11.4", (11, 4)),
        ("tensorrt:8.5", (8, 5)),
    ],
)
def test_targets(target: str, expected: tuple[int, int]) -> None:
    assert target_version(target) == expected


@pytest.mark.parametrize("target", ["", "tensorrt:", "tensorrt:11", "tensorrt:7.2", "onnxruntime", "tensorrt:10.x"])
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"8\.5, 8\.6"):
        target_version(target)


@pytest.mark.parametrize(
    ("name", "since"),
    [("LayerNormalization", (8, 6)), ("Gelu", (10, 0)), ("Attention", (10, 14)), ("Swish", (11, 1)), ("Erf", (8, 5))],
)
def test_an_operator_is_known_from_its_version_on(name: str, since: tuple[int, int]) -> None:
    versions = [(8, 5), (8, 6), (10, 0), (10, 1), (10, 13), (10, 14), (10, 15), (10, 16), (11, 1), (12, 0)]
    assert [name in supported_operators(version) for version in versions] == [version >= since for version in versions]


@pytest.mark.parametrize("name", ["QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"])
def test_integer_operators_are_in_no_version(name: str) -> None:
    assert not any(name in supported_operators(version) for version in ((8, 5), (10, 16), (11, 1)))


def test_versions_between_take_the_table_before_them() -> None:
    assert supported_operators((10, 7)) == supported_operators((10, 1))


@pytest.mark.parametrize(("version", "last"), [((11, 1), 24), ((10, 15), 24), ((10, 1), 20), ((8, 6), 17)])
def test_opsets(version: tuple[int, int], last: int) -> None:
    assert last in opsets_of(version)
    assert last + 1 not in opsets_of(version)


def test_the_real_parser_knows_what_the_table_says(rtx: object) -> None:
    """RTX 1.7.1 is of the 11.1 era; DeformConv comes with a plugin of full TensorRT."""
    from exporters.tensorrt.backend import messages

    trt = rtx.trt  # type: ignore[attr-defined]
    logger, _ = messages(rtx)  # type: ignore[arg-type]
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    unknown = {name for name in supported_operators((11, 1)) if not parser.supports_operator(name)}
    assert unknown <= {"DeformConv"}
