"""Models run at the shapes that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest

from exporters.benchmark import AcceptedShape, Shape, accepted_shape, chosen_shapes
from exporters.onnx.longest_text import longest_text
from exporters.profile import profile
from qdq.errors import ConfigError, ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels

FREE, SHORT, FIXED = AcceptedShape(), AcceptedShape(longest=64), AcceptedShape(1, 32, 64)


@pytest.mark.parametrize(
    ("accepted", "batch_sizes", "lengths", "expected"),
    [
        ([FREE], None, None, [(1, 128), (8, 128)]),
        ([FREE, SHORT], None, None, [(1, 64), (8, 64)]),
        ([SHORT, FIXED], None, None, [(1, 32)]),
        ([FIXED], [1], [32], [(1, 32)]),
        ([FREE], [2], [16, 512], [(2, 16), (2, 512)]),
    ],
)
def test_what_is_not_given_follows_the_models(
    accepted: list[AcceptedShape],
    batch_sizes: list[int] | None,
    lengths: list[int] | None,
    expected: list[tuple[int, int]],
) -> None:
    found = chosen_shapes({str(n): one for n, one in enumerate(accepted)}, batch_sizes, lengths)
    assert found == [Shape(*one) for one in expected]


def test_all_problems_arrive_together() -> None:
    accepted = {"a": SHORT, "b": FIXED, "c": AcceptedShape(seq_len=16)}
    with pytest.raises(ConfigError) as caught:
        chosen_shapes(accepted, [4], [100])
    for words in (
        "--batch-size 4: b takes exactly 1 rows",
        "--seq-len 100: b takes exactly 32 tokens",
        "--seq-len 100: c takes exactly 16 tokens",
        "--seq-len 100: a accepts at most 64 tokens",
    ):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match="no number of tokens in common: b takes exactly 32, c takes exactly 16"):
        chosen_shapes(accepted, None, None)


def test_positions_are_found_in_the_graph(tiny_models: TinyModels) -> None:
    model, path, _ = tiny_models.exported(None)
    assert longest_text(path) == model.config.max_length
    assert accepted_shape(path).longest == model.config.max_length


def test_a_fixed_file_is_profiled_as_it_is(tiny_models: TinyModels, tmp_path: Path) -> None:
    proto = onnx.load(tiny_models.exported(None)[1])
    for value in proto.graph.input:
        for size, dim in zip((3, 8), value.type.tensor_type.shape.dim, strict=True):
            dim.dim_value = size
    onnx.save(proto, tmp_path / "fixed.onnx")
    assert accepted_shape(tmp_path / "fixed.onnx").seq_len == 8
    found = profile(tmp_path / "fixed.onnx", threads=1, runs=1, warmup=0)
    assert (found.batch_size, found.seq_len) == (3, 8)


def test_a_text_beyond_the_table_names_the_options(tiny_models: TinyModels, tmp_path: Path) -> None:
    from exporters.benchmark.inputs import make_inputs
    from exporters.runners import OnnxRuntimeRunner

    model, path, _ = tiny_models.exported(None)
    runner = OnnxRuntimeRunner(path, threads=1)
    with pytest.raises(ExportError, match=r"embeddings\.position.* beyond the end of its table.*--seq-len, or --shape"):
        runner(make_inputs(runner.inputs, 1, model.config.max_length + 1))
