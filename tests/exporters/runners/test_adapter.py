"""Files that another program named and shaped give what the same computation gives in numpy."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.runners import OnnxRuntimeRunner
from exporters.runners.adapter import AdaptedRunner, TextFacts, adapted
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

WORDS, POSITIONS, TYPES, WIDTH = 20, 12, 2, 4
DRAW = np.random.default_rng(0)
TABLES = {
    name: DRAW.normal(size=(rows, WIDTH)).astype(np.float32)
    for name, rows in (("words", WORDS), ("positions", POSITIONS), ("types", TYPES))
}
INTS = {"int64": TensorProto.INT64, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}
FACTS = TextFacts(pad_id=1, token_types=TYPES)
WANTED = [("sentence_embedding",), ("last_hidden_state",)]


def batch(rows: int = 3, length: int = 5) -> dict[str, NDArray[Any]]:
    mask = np.ones((rows, length), np.int64)
    mask[1::2, 3:] = 0
    ids = DRAW.integers(2, WORDS, (rows, length)) * mask + (1 - mask)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": np.tile(np.arange(length) % 2, (rows, 1)) * mask,
    }


def file(
    path: Path,
    shape: tuple[Any, Any] = ("batch", "seq"),
    *,
    ids: str = "input_ids",
    mask: str | None = "attention_mask",
    types: str | None = "token_type_ids",
    positions: str | None = None,
    output: str = "last_hidden_state",
    dtypes: dict[str, str] | None = None,
    more: tuple[str, ...] = (),
) -> OnnxRuntimeRunner:
    """Write a sum of embeddings times the mask, and a bias that makes padding visible in what it gives."""
    kinds = dtypes or {}

    def declared(name: str) -> Any:
        return helper.make_tensor_value_info(name, INTS[kinds.get(name, "int64")], shape)

    nodes = [helper.make_node("Gather", ["words", ids], ["sum0"])]
    for index, (table, name) in enumerate([("types", types), ("positions", positions)]):
        part = [] if name is None else [helper.make_node("Gather", [table, name], [table + "_rows"])]
        operator, inputs = ("Add", [f"sum{index}", table + "_rows"]) if part else ("Identity", [f"sum{index}"])
        nodes += [*part, helper.make_node(operator, inputs, [f"sum{index + 1}"])]
    if mask is None:  # the mean over all tokens, which padding changes
        nodes += [
            helper.make_node("ReduceMean", ["sum2"], ["mean"], axes=[1]),
            helper.make_node("Add", ["sum2", "mean"], [output]),
        ]
    else:
        nodes += [
            helper.make_node("Cast", [mask], ["float_mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["float_mask", "last"], ["column"]),
            helper.make_node("Mul", ["sum2", "column"], [output]),
        ]
    inputs = [declared(name) for name in (ids, mask, types, positions, *more) if name is not None]
    tables = [numpy_helper.from_array(array, name) for name, array in TABLES.items()]
    tables.append(numpy_helper.from_array(np.array([-1]), "last"))
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [*shape, WIDTH])
    graph = helper.make_graph(nodes, "g", inputs, [result], tables)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return OnnxRuntimeRunner(path, threads=1)


def expected(inputs: dict[str, NDArray[Any]], positions: NDArray[Any] | None = None) -> NDArray[Any]:
    found = TABLES["words"][inputs["input_ids"]] + TABLES["types"][inputs["token_type_ids"]]
    if positions is not None:
        found = found + TABLES["positions"][positions]
    result: NDArray[Any] = found * inputs["attention_mask"][..., None]
    return result


def of(runner: Any, facts: TextFacts = FACTS) -> Any:
    return adapted(runner, "the file", wanted=WANTED, of_tokens=("last_hidden_state",), facts=facts)


def test_a_file_with_our_names_is_taken_as_it_is(tmp_path: Path) -> None:
    runner = file(tmp_path / "a.onnx")
    assert of(runner) is runner


@pytest.mark.parametrize(
    "names",
    [
        {"ids": "input_word_ids", "mask": "input_mask", "types": "input_type_ids", "output": "sequence_output"},
        {"ids": "input_ids:0", "mask": "input_mask:0", "types": "segment_ids:0", "output": "last_hidden_state:0"},
        {"ids": "serving_default_input_ids:0", "output": "token_embeddings"},
        {"dtypes": {"input_ids": "int32", "attention_mask": "float32", "token_type_ids": "int32"}},
    ],
)
def test_other_names_and_types(tmp_path: Path, names: dict[str, Any]) -> None:
    runner = of(file(tmp_path / "a.onnx", **names))
    assert runner.output_names == ("last_hidden_state",)
    assert "input_ids" in runner.input_names
    inputs = batch()
    np.testing.assert_allclose(runner(inputs)["last_hidden_state"], expected(inputs), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (4, "seq"), ("batch", 8), (1, "seq"), (5, 5)])
def test_a_fixed_shape_is_filled_up_and_cut_again(tmp_path: Path, shape: tuple[Any, Any]) -> None:
    runner = of(file(tmp_path / "a.onnx", shape, positions="position_ids"))
    inputs = batch()
    found = runner(inputs)["last_hidden_state"]
    np.testing.assert_allclose(found, expected(inputs, np.tile(np.arange(5), (3, 1))), rtol=1e-6)
    assert runner.length == (shape[1] if isinstance(shape[1], int) else None)


def test_positions_are_counted_as_roberta_does(tmp_path: Path) -> None:
    runner = of(file(tmp_path / "a.onnx", (2, 8), positions="position_ids"), TextFacts(pad_id=1, first_position=2))
    inputs = batch()
    inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    positions = np.where(inputs["attention_mask"] == 1, np.cumsum(inputs["attention_mask"], axis=1) + 1, 1)
    np.testing.assert_allclose(runner(inputs)["last_hidden_state"], expected(inputs, positions), rtol=1e-6)


def test_a_file_without_a_mask_gets_texts_of_one_length(tmp_path: Path) -> None:
    runner = of(file(tmp_path / "a.onnx", mask=None))
    inputs = batch(4)
    found = runner(inputs)["last_hidden_state"]
    for row, length in enumerate(inputs["attention_mask"].sum(axis=1)):
        one = {name: array[row : row + 1, :length] for name, array in inputs.items()}
        vectors = expected(one)
        np.testing.assert_allclose(found[row, :length], (vectors + vectors.mean(axis=1))[0], rtol=1e-5)
        assert not found[row, length:].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": None, "shape": (1, 8)}, "padding counts as text"),
        ({"types": None}, "both texts of a pair are read as the first"),
        ({"shape": (1, 5)}, "takes exactly 5 tokens: longer texts are cut"),
    ],
)
def test_what_changes_results_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: dict[str, Any], words: str
) -> None:
    runner = of(file(tmp_path / "a.onnx", **options))
    with caplog.at_level(logging.WARNING):
        runner(batch())
        runner(batch())
    assert [record.getMessage() for record in caplog.records if words in record.getMessage()] != []
    assert len(caplog.records) == 1


def test_an_output_without_a_name_is_recognized_by_its_axes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        runner = of(file(tmp_path / "a.onnx", output="output_0"))
    assert "output output_0 is read as last_hidden_state" in caplog.text
    inputs = batch()
    np.testing.assert_allclose(runner(inputs)["last_hidden_state"], expected(inputs), rtol=1e-6)
    assert isinstance(runner, AdaptedRunner)


def test_an_output_that_means_something_else_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runner = of(file(tmp_path / "a.onnx", output="probabilities"))
    assert runner.output_names == ("probabilities",)  # whoever needs logits says that they are missing
    assert caplog.text == ""


def test_what_no_text_fills_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*input head_mask, int64.*input pixel_values"):
        of(file(tmp_path / "a.onnx", more=("head_mask", "pixel_values")))
    with pytest.raises(ConfigError, match="several inputs are attention_mask"):
        of(file(tmp_path / "b.onnx", more=("input_mask",)))
