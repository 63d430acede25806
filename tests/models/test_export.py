"""Exported, compiled and traced graphs compute what the model does."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
import torch

from qdq.models.registry import FAMILIES
from tests.models.support import assert_same

if TYPE_CHECKING:
    from tests.models.support import SmallModels


@pytest.mark.parametrize("model_type", FAMILIES)
def test_exported_graph_takes_any_batch_and_length(model_type: str, small_models: SmallModels) -> None:
    model = small_models.build(model_type, chunk_size_feed_forward=4)
    inputs = small_models.inputs("feature-extraction", small_models.fields(model_type))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, axes), strict=False)
        other = small_models.inputs("feature-extraction", small_models.fields(model_type), batch=4, length=20)
        assert_same(exported.module()(**other).to_tuple(), model(**other).to_tuple())
    operators = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    layers = len(model.encoder.layers)
    assert sum("layer_norm" in name for name in operators) == sum(
        isinstance(module, torch.nn.LayerNorm) for module in model.modules()
    )
    assert sum("softmax" in name for name in operators) == layers
    assert sum("gelu" in name for name in operators) == layers
    assert not [name for name in operators if "assert_scalar" in name or "sym_constrain" in name]


def test_compiled_model_agrees(small_models: SmallModels) -> None:
    model = small_models.build("bert")
    ids = torch.full((2, 6), 5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_same(compiled(ids).to_tuple(), model(ids).to_tuple())


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("sequence-classification", 1),
        ("token-classification", 1),
        ("question-answering", 2),
        ("masked-lm", 1),
        ("next-sentence", 1),
        ("pre-training", 2),
        ("causal-lm", 1),
        ("multiple-choice", 1),
    ],
)
def test_every_task_exports_and_gives_no_loss_without_labels(
    task: str, outputs: int, small_models: SmallModels
) -> None:
    model = small_models.build("bert", task)
    inputs = {
        key: small_models.inputs(task, small_models.fields("bert"))[key]
        for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, strict=False)
    assert len(exported.module()(**inputs).to_tuple()) == outputs


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_relative_positions_export_with_any_length(kind: str, model_type: str, small_models: SmallModels) -> None:
    model = small_models.build(model_type, position_embedding_type=kind)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=40)}
    ids = torch.randint(4, 83, (4, 20))
    with torch.no_grad():
        exported = torch.export.export(
            model, (ids[:2, :7].contiguous(),), dynamic_shapes={"input_ids": axes}, strict=False
        )
        assert_same(exported.module()(ids).to_tuple(), model(ids).to_tuple())
