"""Attention as one node: the same numbers to the bit, whatever the mask hides, and what is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.attention_node import AttentionNodePass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

BATCH, SEQ, HEADS, SIZE = 3, 7, 2, 4
RNG = np.random.default_rng(0)
TENSORS = {name: RNG.normal(size=(BATCH, SEQ, HEADS * SIZE)).astype(np.float32) for name in "qkv"}


def attention(
    *,
    scaling: str = "scaled = Div(scores, root)",
    masking: str = "masked = Add(scaled, hidden)",
    between: str = "weights = Softmax<axis=-1>(masked)",
    outputs: str = "float[b,s,8] y",
    keys: str = "s",
) -> str:
    return f"""
        g (float[b,s,8] q, float[b,{keys},8] k, float[b,{keys},8] v, int64[b,{keys}] mask) => ({outputs})
        <float root = {{2.0}}, float half = {{0.5}}, float one = {{1.0}}, float lowest = {{-3.4028234663852886e38}},
         int64[2] axes = {{1, 2}}, int64[4] split = {{0, -1, 2, 4}}, int64[3] joined = {{0, -1, 8}}> {{
            m = Unsqueeze(mask, axes)
            f = Cast<to=1>(m)
            away = Sub(one, f)
            hidden = Mul(away, lowest)
            qs = Reshape(q, split)
            qt = Transpose<perm=[0,2,1,3]>(qs)
            ks = Reshape(k, split)
            kt = Transpose<perm=[0,2,3,1]>(ks)
            vs = Reshape(v, split)
            vt = Transpose<perm=[0,2,1,3]>(vs)
            scores = MatMul(qt, kt)
            {scaling}
            {masking}
            {between}
            context = MatMul(weights, vt)
            ct = Transpose<perm=[0,2,1,3]>(context)
            y = Reshape(ct, joined)
        }}"""


def masks() -> dict[str, np.ndarray]:
    full = np.ones((BATCH, SEQ), dtype=np.int64)
    right, left, holes, empty = (full.copy() for _ in range(4))
    right[1, 4:] = right[2, 1:] = 0
    left[1, :3] = 0
    holes[1, ::2] = holes[2, 3] = 0
    empty[1] = 0
    return {"full": full, "right-padded": right, "left-padded": left, "holes": holes, "nothing visible": empty}


@pytest.mark.parametrize("mask", masks().values(), ids=masks().keys())
def test_case_1_and_2_one_node_gives_the_same_bits(graphs: Graphs, mask: np.ndarray) -> None:
    before, after = graphs.parse(attention(), opset=23), graphs.parse(attention(), opset=23)
    assert AttentionNodePass()(after).modified
    assert not AttentionNodePass()(after).modified
    assert graphs.operators(after).count("Attention") == 1
    inputs = {**TENSORS, "mask": mask}
    (wanted,), (found,) = (graphs.run(model, optimize=True, **inputs).values() for model in (before, after))
    np.testing.assert_array_equal(found, wanted)


def node(graphs: Graphs, **changes: str) -> dict[str, object]:
    """The attributes of the attention in a changed graph."""
    model = graphs.parse(attention(**changes), opset=23)
    assert AttentionNodePass()(model).modified
    (found,) = (node for node in model.graph if node.op_type == "Attention")
    return {name: value.value for name, value in found.attributes.items()} | {"inputs": len(found.inputs)}


def test_the_usual_scale_is_left_to_the_operator(graphs: Graphs) -> None:
    # Given, it would go into the query before the product, and round differently.
    assert node(graphs) == {"q_num_heads": 2, "kv_num_heads": 2, "inputs": 4}


def test_another_scale_is_given(graphs: Graphs) -> None:
    found = node(graphs, scaling="scaled = Mul(half, scores)")
    assert found == {"q_num_heads": 2, "kv_num_heads": 2, "inputs": 4}  # 0.5 is 1 / sqrt(4)
    assert node(graphs, scaling="scaled = Mul(scores, one)")["scale"] == 1.0


def test_without_a_mask_nothing_is_added(graphs: Graphs) -> None:
    found = node(graphs, masking="", between="weights = Softmax<axis=-1>(scaled)")
    assert found["inputs"] == 3


def test_keys_of_another_length(graphs: Graphs) -> None:
    text = attention(keys="t")
    before, after = graphs.parse(text, opset=23), graphs.parse(text, opset=23)
    assert AttentionNodePass()(after).modified
    memory = {name: RNG.normal(size=(BATCH, 5, 8)).astype(np.float32) for name in "kv"}
    mask = np.ones((BATCH, 5), dtype=np.int64)
    mask[1, 2:] = 0
    inputs = {"q": TENSORS["q"], **memory, "mask": mask}
    (wanted,), (found,) = (graphs.run(model, optimize=True, **inputs).values() for model in (before, after))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"between": "w = Softmax<axis=-1>(masked)\n weights = Neg(w)"},
        {"scaling": "n = Neg(scores)\n scaled = Div(n, root)"},
        {"between": "weights = Softmax<axis=-1>(masked)", "outputs": "float[b,s,8] y, float[b,h,s,s] weights"},
        {"scaling": "scaled = Div(scores, root)", "outputs": "float[b,s,8] y, float[b,h,s,s] scores"},
    ],
    ids=["weights are changed", "scores are changed", "weights are an output", "scores are an output"],
)
def test_case_3_is_left_alone(graphs: Graphs, changes: dict[str, str]) -> None:
    assert not AttentionNodePass()(graphs.parse(attention(**changes), opset=23)).modified


def test_older_opsets_keep_their_nodes(graphs: Graphs) -> None:
    assert not AttentionNodePass()(graphs.parse(attention())).modified
