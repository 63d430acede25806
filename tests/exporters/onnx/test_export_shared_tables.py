"""Exports of a word embedding that is also the weight of the output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from exporters.onnx.export import export_onnx
from exporters.verification.verify import verify
from qdq.recipes.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels
    from tests.exporters.onnx.conftest import Graphs


TABLE = {"bits": 8, "granularity": "per-axis(0)", "overflow_safe": True}
ACTIVATION = {"bits": 8, "signed": False, "symmetric": False}


def tied(*, decoder: bool) -> Recipe:
    rules: list[dict[str, Any]] = [{"module": "*embeddings.*", "kind": "embedding", "slot": "weight", "spec": TABLE}]
    if decoder:
        rules += [
            {"module": "head.decoder", "kind": "linear", "slot": slot, "spec": spec}
            for slot, spec in (("input", ACTIVATION), ("weight", TABLE))
        ]
    return Recipe.from_dict({"name": "tied", "rules": rules})


def test_an_embedding_that_is_the_output_layer_too_is_one_table(
    tiny_models: TinyModels, graphs: Graphs, tmp_path: Path
) -> None:
    model, path = tiny_models.calibrated(tied(decoder=True), task="masked-lm"), tmp_path / "model.onnx"
    assert export_onnx(model, path, target="onnxruntime").notes == ()
    tables = [array.dtype for array in graphs.stored(path).values() if array.size == 83 * 32]
    assert tables == [np.dtype(np.int8)]
    assert "MatMulIntegerToFloat" in {node.op_type for node in onnx.load(path).graph.node}
    assert verify(model, path, tiny_models.batches(model)).problems == []


PRESETS = {"onnxruntime": ("onnxruntime", "dynamic", "weight-only-int8"), "openvino": ("openvino", "weight-only-int8")}
TIED = [
    (family, target, recipe)
    for family in ("bert", "qdqbert", "albert", "roberta-prelayernorm", "megatron-bert")
    for target in (None, "onnxruntime", "openvino", "tensorrt")
    for recipe in PRESETS.get(str(target), (target,))
]
TIED_SAMPLE = [
    ("bert", None, None),
    ("albert", "onnxruntime", "onnxruntime"),
]


@pytest.mark.parametrize(
    ("family", "target", "recipe"),
    [pytest.param(*case, marks=[] if case in TIED_SAMPLE else pytest.mark.slow) for case in TIED],
)
def test_the_presets_store_a_tied_table_once(
    tiny_models: TinyModels, graphs: Graphs, family: str, target: str | None, recipe: str | None, tmp_path: Path
) -> None:
    changes = {"embedding_size": 16} if family == "albert" else {}
    arguments = (family, "masked-lm")
    model = (
        tiny_models.calibrated(recipe, *arguments, **changes) if recipe else tiny_models.model(*arguments, **changes)
    )
    path = tmp_path / "model.onnx"
    notes = export_onnx(model, path, target=target).notes
    assert not [note for note in notes if "one weight" in note]
    size = model.embeddings.word.weight.numel()
    (table,) = [array for array in graphs.stored(path).values() if array.size == size]
    assert table.itemsize == (4 if target in (None, "tensorrt") else 1)
    runtime = {None: "onnxruntime", "tensorrt": "reference"}.get(target, target)
    report = verify(model, path, tiny_models.batches(model), runtime=runtime)
    assert [row.name for row in report.segments if row.wrong] == []


def test_a_tied_table_for_another_recipe_and_cpu(tiny_models: TinyModels, graphs: Graphs, tmp_path: Path) -> None:
    model, path = tiny_models.calibrated("tensorrt", task="masked-lm"), tmp_path / "model.onnx"
    export_onnx(model, path, target="onnxruntime", recipe="onnxruntime", isa="vnni")
    (table,) = [array for array in graphs.stored(path).values() if array.size == 83 * 32]
    assert table.dtype == np.int8
    assert verify(model, path, tiny_models.batches(model)[:1]).first_wrong is None


def test_a_table_that_is_stored_twice_is_told(tiny_models: TinyModels, tmp_path: Path) -> None:
    model = tiny_models.calibrated(tied(decoder=False), task="masked-lm")
    (note,) = export_onnx(model, tmp_path / "model.onnx", target="onnxruntime").notes
    assert note.startswith("embeddings.word.weight and head.decoder.weight are one weight")
