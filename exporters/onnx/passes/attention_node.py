"""Write attention as one node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, only_consumer, producer

__all__ = ["ATTENTION_SINCE", "HIDDEN", "AttentionNodePass"]

ATTENTION_SINCE = 23
"""The opset that brought the operator."""

HIDDEN = -1e30
"""What a mask adds to hide a position. The lowest float32 would overflow inside the kernel in rows that see nothing."""

_HEADS, _KEYS = [0, 2, 1, 3], [0, 2, 3, 1]  # (batch, seq, heads, size) -> heads first, and that transposed


@dataclass(frozen=True)
class _Match:
    """The nodes of one attention.

    Args:
        sources: Query, key and value, each ``(batch, seq, hidden)``.
        heads: Number of heads.
        scale: What the scores are multiplied with.
        mask: What is added to them; None for nothing.
        last: The node whose output the attention replaces.
    """

    sources: tuple[ir.Value, ir.Value, ir.Value]
    heads: int
    scale: float
    mask: ir.Value | None
    last: ir.Node
    head_size: int


class AttentionNodePass(ir.passes.InPlacePass):
    """Replace the nodes of an attention by ``Attention`` of opset 23, which ONNX Runtime computes in one kernel.

    It takes query, key and value as the linear layers give them, ``(batch, seq, hidden)``: four Reshapes, four
    Transposes, two products, the scaling, the mask and the softmax become one node. The result is the same to the bit.

    Case 1: Query, key and value are reshaped into heads and transposed; scores are scaled by a constant, maybe masked
    by an added tensor, and go through a softmax; the context is transposed and reshaped back.
    Case 2: The mask is ``(1 - visible) * lowest``. The lowest number becomes :data:`HIDDEN`, and the mask is expanded
    to ``(batch, 1, queries, keys)``, once for all layers: the kernel reads whole matrices.
    Case 3: Anything in between (quantizers of the products, relative positions, a cache), or any of the tensors has
    other readers: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace every attention of case 1."""
        masks: dict[tuple[ir.Value, ir.Value | None], ir.Value] = {}
        modified = False
        if (model.graph.opset_imports.get("") or 0) < ATTENTION_SINCE:
            return ir.passes.PassResult(model, modified)
        for node in list(model.graph):
            match = _match(node) if is_op(node, "Softmax") else None
            if match is not None:
                _replace(model.graph, match, masks)
                modified = True
        return ir.passes.PassResult(model, modified)


def _match(softmax: ir.Node) -> _Match | None:
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    context = only_consumer(softmax.outputs[0], "MatMul")
    if context is None or context.inputs[0] is not softmax.outputs[0]:
        return None
    scaled, mask = _masked(softmax.inputs[0])
    scores, scale = _scaled(scaled)
    if scores is None or scale is None:
        return None
    query, key = _split(scores.inputs[0], _HEADS), _split(scores.inputs[1], _KEYS)
    value = _split(context.inputs[1], _HEADS)
    last = _merged(context)
    if query is None or key is None or value is None or last is None:
        return None
    if not query[1] == key[1] == value[1] or not query[2] == key[2] == value[2]:
        return None
    return _Match((query[0], key[0], value[0]), query[1], scale, mask, last, query[2])


def _masked(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """Return the scaled scores and the mask that is added to them."""
    add = producer(value, "Add")
    if add is None:
        return value, None
    for index in (0, 1):
        if producer(add.inputs[index], "Div", "Mul") is not None and _scaled(add.inputs[index])[0] is not None:
            return add.inputs[index], add.inputs[1 - index]
    return None, None


def _scaled(value: ir.Value | None) -> tuple[ir.Node | None, float | None]:
    """Return the product of query and key, and what it is multiplied with."""
    node = producer(value, "Div", "Mul")
    if node is None or value is None or only_consumer(value) is None:
        return None, None
    for index in (0,) if is_op(node, "Div") else (0, 1):
        scores, number = producer(node.inputs[index], "MatMul"), constant(node.inputs[1 - index])
        if scores is not None and number is not None and number.size == 1 and only_consumer(scores.outputs[0]):
            factor = float(number.reshape(-1)[0])
            return scores, 1 / factor if is_op(node, "Div") else factor
    return None, None


def _split(value: ir.Value | None, perm: list[int]) -> tuple[ir.Value, int, int] | None:
    """Return what was split into heads, their number and their size."""
    transpose = producer(value, "Transpose")
    if transpose is None or list(transpose.attributes.get_ints("perm", ())) != perm:
        return None
    reshape = producer(transpose.inputs[0], "Reshape")
    if reshape is None or only_consumer(reshape.outputs[0]) is None or only_consumer(transpose.outputs[0]) is None:
        return None
    heads = _last_of_shape(reshape.inputs[1], 2)
    if heads is None or reshape.inputs[0] is None:
        return None
    return reshape.inputs[0], heads[0], heads[1]


def _last_of_shape(value: ir.Value | None, count: int) -> list[int] | None:
    """Return the last numbers of a shape that is constant, or joined from computed and constant pieces."""
    known = constant(value)
    if known is None:
        concat = producer(value, "Concat")
        if concat is None:
            return None
        numbers: list[int] = []
        for piece in reversed(concat.inputs):
            array = constant(piece)
            if array is None:
                break
            numbers = [*array.reshape(-1).tolist(), *numbers]
        known = np.array(numbers, dtype=np.int64)
    found = [int(number) for number in known.reshape(-1)[-count:]]
    return found if len(found) == count and min(found) > 0 else None


def _merged(context: ir.Node) -> ir.Node | None:
    """Return the Reshape that joins the heads again."""
    transpose = only_consumer(context.outputs[0], "Transpose")
    if transpose is None or list(transpose.attributes.get_ints("perm", ())) != _HEADS:
        return None
    return only_consumer(transpose.outputs[0], "Reshape")


def _replace(graph: ir.Graph, match: _Match, masks: dict[tuple[ir.Value, ir.Value | None], ir.Value]) -> None:
    query, key, _ = match.sources
    inputs: list[ir.Value | None] = [*match.sources]
    if match.mask is not None:
        # Masks of self-attention are shared by all layers; those of cross-attention have other keys.
        kind = (match.mask, None if _same_length(query, key) else key)
        if kind not in masks:
            masks[kind] = _whole_mask(graph, match)
        inputs.append(masks[kind])
    attributes: dict[str, int | float] = {"q_num_heads": match.heads, "kv_num_heads": match.heads}
    if not np.isclose(match.scale, match.head_size**-0.5, rtol=1e-6, atol=0):
        attributes["scale"] = match.scale
    old = match.last.outputs[0]
    name = (match.last.name or "attention").rpartition("/")[0] or "attention"
    node = ir.node("Attention", inputs, attributes, name=f"{name}/Attention")
    new = node.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    graph.insert_before(match.last, node)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(match.last, safe=True)


def _same_length(query: ir.Value, key: ir.Value) -> bool:
    """Return whether both come from the same sequence, as far as the graph shows."""
    first, second = query.shape, key.shape
    return first is not None and second is not None and first[1] == second[1]


def _whole_mask(graph: ir.Graph, match: _Match) -> ir.Value:
    """Return the mask with :data:`HIDDEN` for the lowest number, as ``(batch, 1, queries, keys)``."""
    assert match.mask is not None
    query, key, _ = match.sources
    before = match.last
    mask = match.mask
    lowest = producer(mask, "Mul")
    if lowest is not None:
        for index in (0, 1):
            number = constant(lowest.inputs[index])
            if number is not None and number.size == 1 and float(number.reshape(-1)[0]) < HIDDEN:
                hidden = initializer(graph, "attention_mask_hidden", np.array(HIDDEN, dtype=np.float32))
                own = ir.node("Mul", [lowest.inputs[1 - index], hidden], name=f"{lowest.name}_hidden")
                _describe(own.outputs[0], f"{own.name}_output_0", mask)
                graph.insert_after(lowest, own)
                mask = own.outputs[0]
                break
    pieces = []
    for name, value, index in (("batch", query, 0), ("queries", query, 1), ("keys", key, 1)):
        shape = ir.node("Shape", [value], {"start": index, "end": index + 1}, name=f"attention_mask_{name}")
        shape.outputs[0].name = f"attention_mask_{name}_output_0"
        shape.outputs[0].type, shape.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
        graph.insert_before(before, shape)
        pieces.append(shape.outputs[0])
    one = initializer(graph, "attention_mask_one", np.array([1], dtype=np.int64))
    concat = ir.node("Concat", [pieces[0], one, *pieces[1:]], {"axis": 0}, name="attention_mask_shape")
    concat.outputs[0].name = "attention_mask_shape_output_0"
    concat.outputs[0].type, concat.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([4])
    expand = ir.node("Expand", [mask, concat.outputs[0]], name="attention_mask_whole")
    _describe(expand.outputs[0], "attention_mask_whole_output_0", None)
    graph.insert_before(before, [concat, expand])
    return expand.outputs[0]


def _describe(value: ir.Value, name: str, like: ir.Value | None) -> None:
    value.name = name
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = None if like is None else like.shape
