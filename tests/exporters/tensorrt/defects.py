"""Defects to plant into a small exported BERT (one layer, 64 wide, two heads), each with the finding that it must give.

``parser`` is what TensorRT-RTX 1.7.1 does with the file: it cannot ``parse`` it, cannot ``build`` it, or ``accepts``
it. If the rule is an error although the parser accepts the file, ``why`` explains it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

Plant = Callable[[ir.Model], None]

LAYER = "encoder.layers.0"
ATTENTION = f"{LAYER}.attention"
FEED_FORWARD = f"{LAYER}.feed_forward"


@dataclass(frozen=True)
class Defect:
    """Describe a defect.

    Args:
        id: Id of the rule that must find it.
        name: Name of the test case.
        plant: Function that plants the defect into a model.
        at: Part of the name of the node that the finding must name.
        severity: Severity of the finding, if it is not that of the rule.
        parser: ``parse``, ``build`` or ``accepts``.
        why: Why it is an error although the parser accepts the file.
        options: Options for the lint.
    """

    id: str
    name: str
    plant: Plant
    at: str
    parser: str = "accepts"
    severity: str | None = None
    why: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def node(model: ir.Model, name: str) -> ir.Node:
    return next(one for one in model.graph if one.name == name)


def quantizer(model: ir.Model, slot: str, kind: str = "QuantizeLinear") -> ir.Node:
    return node(model, f"{slot}_quantizer/{kind}")


def constant(model: ir.Model, name: str, array: Any) -> ir.Value:
    tensor = array if isinstance(array, ir.Tensor) else ir.Tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def add(model: ir.Model, before: ir.Node, op_type: str, inputs: list[Any], name: str, **attributes: Any) -> ir.Value:
    domain = attributes.pop("domain", "")
    made = ir.node(op_type, inputs, attributes, domain=domain, name=name)
    made.outputs[0].name = f"{name}_out"
    model.graph.insert_before(before, made)
    return made.outputs[0]


def scale_of(slot: str, array: Any) -> Plant:
    """Change the scale of both nodes of a quantizer, or of the one node of a weight."""

    def plant(model: ir.Model) -> None:
        value = constant(model, "planted", array)
        for one in list(model.graph):
            if str(one.name).startswith(f"{slot}_quantizer/") and one.op_type in ("QuantizeLinear", "DequantizeLinear"):
                one.replace_input_with(1, value)

    return plant


def zero_of(slot: str, array: Any) -> Plant:
    def plant(model: ir.Model) -> None:
        value = constant(model, "planted", array)
        for one in list(model.graph):
            if str(one.name).startswith(f"{slot}_quantizer/") and one.op_type in ("QuantizeLinear", "DequantizeLinear"):
                one.replace_input_with(2, value)

    return plant


WEIGHT = f"{ATTENTION}.output.weight"
INPUT = f"{ATTENTION}.output.input"
ONES = np.full(64, 0.01, np.float32)


def one_bad(value: float) -> np.ndarray:
    scale = ONES.copy()
    scale[3] = value
    return scale


def scale_for_each(model: ir.Model) -> None:
    scale_of(INPUT, ONES)(model)
    zero = constant(model, "zeros", np.zeros(64, np.int8))
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        one = quantizer(model, INPUT, kind)
        one.replace_input_with(2, zero)
        one.attributes["axis"] = ir.AttrInt64("axis", 2)


def computed_zero(model: ir.Model) -> None:
    one = quantizer(model, INPUT)
    zero = add(model, one, "Cast", [node(model, "Squeeze").outputs[0]], "zero/Cast", to=3)
    one.replace_input_with(2, zero)


def uint8_weight(model: ir.Model) -> None:
    one = quantizer(model, WEIGHT, "DequantizeLinear")
    stored = one.inputs[0].const_value.numpy()
    one.replace_input_with(0, constant(model, "stored", (stored.astype(np.int16) + 128).astype(np.uint8)))
    one.replace_input_with(2, constant(model, "zero", np.zeros(64, np.uint8)))


def int32_bias(model: ir.Model) -> None:
    bias = node(model, f"{ATTENTION}.output/Add")
    stored = constant(model, "bias_int32", np.arange(64, dtype=np.int32))
    scale = constant(model, "bias_scale", np.float32(0.01))
    zero = constant(model, "bias_zero", np.int32(0))
    bias.replace_input_with(1, add(model, bias, "DequantizeLinear", [stored, scale, zero], "bias/DequantizeLinear"))


def quantize_integers(model: ir.Model) -> None:
    first = quantizer(model, f"{ATTENTION}.query.input")
    ids = next(value for value in model.graph.inputs if value.name == "input_ids")
    scale, zero = constant(model, "s", np.float32(0.1)), constant(model, "z", np.int8(0))
    made = add(model, first, "QuantizeLinear", [ids, scale, zero], "ids/QuantizeLinear")
    made = add(model, first, "DequantizeLinear", [made, scale, zero], "ids/DequantizeLinear")
    made.name = "ids_out"
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ids.shape
    model.graph.outputs.append(made)


def gather_integers(model: ir.Model) -> None:
    gather = node(model, "embeddings.token_type/Gather")
    table = constant(model, "table", np.ones((2, 64), np.int8))
    scale, zero = constant(model, "s", np.float32(0.1)), constant(model, "z", np.int8(0))
    rows = add(model, gather, "Gather", [table, gather.inputs[1]], "table/Gather", axis=0)
    made = add(model, gather, "DequantizeLinear", [rows, scale, zero], "table/DequantizeLinear")
    gather.outputs[0].replace_all_uses_with(made)
    model.graph.remove(gather, safe=True)


def axis_of(slot: str, axis: int) -> Plant:
    def plant(model: ir.Model) -> None:
        one = quantizer(model, slot, "DequantizeLinear")
        one.attributes["axis"] = ir.AttrInt64("axis", axis)

    return plant


def foreign(model: ir.Model) -> None:
    gelu = node(model, f"{FEED_FORWARD}.activation/Gelu")
    made = add(model, gelu, "FastGelu", [gelu.inputs[0]], "gelu/FastGelu", domain="com.microsoft")
    gelu.outputs[0].replace_all_uses_with(made)
    model.graph.remove(gelu, safe=True)
    model.graph.opset_imports["com.microsoft"] = 1


def integer_product(model: ir.Model) -> None:
    product = node(model, f"{ATTENTION}.output/MatMul")
    left, right = quantizer(model, INPUT), quantizer(model, WEIGHT, "DequantizeLinear")
    made = add(model, product, "MatMulInteger", [left.outputs[0], right.inputs[0]], "output/MatMulInteger")
    made = add(model, product, "Cast", [made], "output/Cast", to=1)
    product.outputs[0].replace_all_uses_with(made)
    model.graph.remove(product, safe=True)


def dynamic(model: ir.Model) -> None:
    one, other = quantizer(model, INPUT), quantizer(model, INPUT, "DequantizeLinear")
    made = ir.node("DynamicQuantizeLinear", [one.inputs[0]], num_outputs=3, name="dynamic/DynamicQuantizeLinear")
    for index, value in enumerate(made.outputs):
        value.name = f"dynamic_{index}"
        other.replace_input_with(index, value)
    model.graph.insert_before(one, made)
    model.graph.remove(one, safe=True)


def second_output(model: ir.Model) -> None:
    norm = node(model, f"{ATTENTION}.norm/LayerNormalization")
    norm.resize_outputs(2)
    norm.outputs[1].name = "mean"
    norm.outputs[1].type = ir.TensorType(ir.DataType.FLOAT)
    norm.outputs[1].shape = ir.Shape(["batch", "seq", 1])
    model.graph.outputs.append(norm.outputs[1])


def training_dropout(model: ir.Model) -> None:
    gelu = node(model, f"{FEED_FORWARD}.activation/Gelu")
    ratio, training = constant(model, "ratio", np.float32(0.1)), constant(model, "training", np.bool_(True))
    gelu.replace_input_with(0, add(model, gelu, "Dropout", [gelu.inputs[0], ratio, training], "gelu/Dropout"))


def attention_operator(model: ir.Model) -> None:
    product = node(model, f"{ATTENTION}.context/MatMul")
    names = ("Transpose", "Transpose_1", "Transpose_2")
    parts = [node(model, f"{ATTENTION}/{name}").outputs[0] for name in names]
    made = add(model, product, "Attention", parts, "attention/Attention")
    product.outputs[0].replace_all_uses_with(made)
    model.graph.opset_imports[""] = 23


def largest_of_a_vector(model: ir.Model) -> None:
    tanh = node(model, "pooler/Tanh")
    flat = add(model, tanh, "Reshape", [tanh.inputs[0], constant(model, "flat", np.array([-1]))], "flat/Reshape")
    flat.type, flat.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None])
    result = add(model, tanh, "ArgMax", [flat], "flat/ArgMax", axis=0)
    result.name, result.type, result.shape = "largest", ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    model.graph.outputs.append(result)


def opset(version: int) -> Plant:
    def plant(model: ir.Model) -> None:
        model.graph.opset_imports[""] = version

    return plant


def nothing(model: ir.Model) -> None:
    pass


def mixed(model: ir.Model) -> None:
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        tensor = ir.Tensor(np.zeros((), ir.DataType.FLOAT8E4M3FN.numpy()), dtype=ir.DataType.FLOAT8E4M3FN)
        quantizer(model, INPUT, kind).replace_input_with(2, constant(model, f"fp8_{kind}", tensor))


def other_scale(model: ir.Model) -> None:
    quantizer(model, INPUT, "DequantizeLinear").replace_input_with(1, constant(model, "other", np.float32(0.7)))


def dangling(model: ir.Model) -> None:
    one = quantizer(model, INPUT)
    add(model, one, "QuantizeLinear", list(one.inputs), "dangling/QuantizeLinear")


def in_float(product: str, index: int) -> Plant:
    """One operand without its quantizer."""

    def plant(model: ir.Model) -> None:
        one = node(model, product)
        dequantize = one.inputs[index].producer()
        one.replace_input_with(index, dequantize.inputs[0].producer().inputs[0])

    return plant


def bypassed(slot: str) -> Plant:
    """A quantizer taken out."""

    def plant(model: ir.Model) -> None:
        one, other = quantizer(model, slot), quantizer(model, slot, "DequantizeLinear")
        other.outputs[0].replace_all_uses_with(one.inputs[0])
        model.graph.remove([other, one], safe=True)

    return plant


def pair_on(reader: str, index: int, name: str, scale: float = 0.05) -> Plant:
    """A quantizer more, in front of one input of ``reader``."""

    def plant(model: ir.Model) -> None:
        one = node(model, reader)
        s, z = constant(model, f"{name}_s", np.float32(scale)), constant(model, f"{name}_z", np.int8(0))
        made = add(model, one, "QuantizeLinear", [one.inputs[index], s, z], f"{name}/QuantizeLinear")
        one.replace_input_with(index, add(model, one, "DequantizeLinear", [made, s, z], f"{name}/DequantizeLinear"))

    return plant


def own_scale_for_key(model: ir.Model) -> None:
    source = quantizer(model, f"{ATTENTION}.query.input").inputs[0]
    key = node(model, f"{ATTENTION}.key/MatMul")
    key.replace_input_with(0, source)
    pair_on(f"{ATTENTION}.key/MatMul", 0, "key", 0.2)(model)


def scaled_scores(model: ir.Model) -> None:
    mask = node(model, f"{ATTENTION}/Add")
    number = constant(model, "number", np.float32(0.5))
    mask.replace_input_with(0, add(model, mask, "Mul", [mask.inputs[0], number], f"{ATTENTION}/Mul"))


def table(model: ir.Model) -> None:
    gather = node(model, "embeddings.word/Gather")
    stored = constant(model, "stored", np.ones((83, 64), np.int8))
    scale, zero = constant(model, "s", np.float32(0.1)), constant(model, "z", np.int8(0))
    rows = add(model, gather, "DequantizeLinear", [stored, scale, zero], "word/DequantizeLinear")
    gather.replace_input_with(0, rows)


def last_layer(model: ir.Model) -> None:
    pooler, tanh = node(model, "pooler.dense/Gemm"), node(model, "pooler/Tanh")
    product = add(model, pooler, "MatMul", [pooler.inputs[0], pooler.inputs[1]], "classifier/MatMul")
    tanh.outputs[0].replace_all_uses_with(product, replace_graph_outputs=True)
    model.graph.remove([tanh, pooler], safe=True)
    product.name = "pooler_output"
    product.type, product.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", 64])
    pair_on("classifier/MatMul", 0, "classifier.input")(model)
    made = node(model, "classifier/MatMul")
    stored = constant(model, "stored", np.ones((64, 64), np.int8))
    scale, zero = constant(model, "s", np.float32(0.1)), constant(model, "z", np.int8(0))
    weight = add(model, made, "DequantizeLinear", [stored, scale, zero], "classifier.weight/DequantizeLinear")
    made.replace_input_with(1, weight)


def written_out_norm(model: ir.Model) -> None:
    norm = node(model, f"{ATTENTION}.norm/LayerNormalization")
    x = norm.inputs[0]
    axes, two = constant(model, "axes", np.array([-1])), constant(model, "two", np.float32(2))
    epsilon = constant(model, "epsilon", np.float32(1e-5))
    mean = add(model, norm, "ReduceMean", [x, axes], "norm/ReduceMean")
    centred = add(model, norm, "Sub", [x, mean], "norm/Sub")
    square = add(model, norm, "Pow", [centred, two], "norm/Pow")
    variance = add(model, norm, "ReduceMean", [square, axes], "norm/ReduceMean_1")
    root = add(model, norm, "Sqrt", [add(model, norm, "Add", [variance, epsilon], "norm/Add")], "norm/Sqrt")
    norm.outputs[0].replace_all_uses_with(add(model, norm, "Div", [centred, root], "norm/Div"))
    model.graph.remove(norm, safe=True)


def written_out_gelu(model: ir.Model) -> None:
    gelu = node(model, f"{FEED_FORWARD}.activation/Gelu")
    x = gelu.inputs[0]
    numbers = {name: constant(model, name, np.float32(n)) for name, n in (("a", 3), ("b", 0.044), ("c", 0.8), ("d", 1))}
    cube = add(model, gelu, "Mul", [add(model, gelu, "Pow", [x, numbers["a"]], "gelu/Pow"), numbers["b"]], "gelu/Mul")
    inner = add(model, gelu, "Mul", [add(model, gelu, "Add", [x, cube], "gelu/Add"), numbers["c"]], "gelu/Mul_1")
    tanh = add(model, gelu, "Tanh", [inner], "gelu/Tanh")
    half = add(model, gelu, "Mul", [x, add(model, gelu, "Add", [tanh, numbers["d"]], "gelu/Add_1")], "gelu/Mul_2")
    gelu.outputs[0].replace_all_uses_with(half)
    model.graph.remove(gelu, safe=True)


def computed_scale(model: ir.Model) -> None:
    one, other = quantizer(model, INPUT), quantizer(model, INPUT, "DequantizeLinear")
    top = add(model, one, "ReduceMax", [one.inputs[0]], "top/ReduceMax", keepdims=0)
    scale = add(model, one, "Div", [top, constant(model, "steps", np.float32(127))], "top/Div")
    one.replace_input_with(1, scale)
    other.replace_input_with(1, scale)


def narrow_layer(model: ir.Model) -> None:
    pooler = node(model, "pooler.dense/Gemm")
    source = node(model, "pooler/Gather").outputs[0]
    stored, zero = constant(model, "stored", np.ones((64, 4), np.int8)), constant(model, "z", np.int8(0))
    scale = constant(model, "s", np.float32(0.1))
    weight = add(model, pooler, "DequantizeLinear", [stored, scale, zero], "narrow.weight/DequantizeLinear")
    product = add(model, pooler, "MatMul", [source, weight], "narrow/MatMul")
    pair_on("narrow/MatMul", 0, "narrow.input")(model)
    result = add(model, pooler, "Relu", [product], "narrow/Relu")
    result.name, result.type = "narrow", ir.TensorType(ir.DataType.FLOAT)
    result.shape = ir.Shape(["batch", 4])
    model.graph.outputs.append(result)


def in_half(model: ir.Model) -> None:
    """The whole graph in float16, the embeddings' norm onwards."""
    half = ir.DataType.FLOAT16
    for value in list(model.graph.initializers.values()):
        if value.dtype is ir.DataType.FLOAT:
            numbers = np.clip(value.const_value.numpy(), -65504, 65504)
            value.const_value = ir.Tensor(numbers.astype(np.float16), name=value.name)
            value.type = ir.TensorType(half)
    for one in model.graph:
        if one.op_type == "Cast" and one.attributes.get_int("to", 0) == 1:
            one.attributes["to"] = ir.AttrInt64("to", 10)
        for value in one.outputs:
            if value.dtype in (ir.DataType.FLOAT, None):
                value.type = ir.TensorType(half)


def half_with_casts(model: ir.Model) -> None:
    half_with_one_scale(model)
    weight = quantizer(model, WEIGHT, "DequantizeLinear")
    weight.replace_input_with(1, constant(model, "weights32", ONES))
    weight.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    product = node(model, f"{ATTENTION}.output/MatMul")
    back = add(model, product, "Cast", [weight.outputs[0]], "casts/Cast_2", to=10)
    back.type = ir.TensorType(ir.DataType.FLOAT16)
    product.replace_input_with(1, back)


def half_with_one_scale(model: ir.Model) -> None:
    in_half(model)
    one = quantizer(model, INPUT)
    made = add(model, one, "Cast", [one.inputs[0]], "casts/Cast", to=1)
    made.type = ir.TensorType(ir.DataType.FLOAT)
    one.replace_input_with(0, made)
    scale = constant(model, "scale32", np.float32(0.05))
    other = quantizer(model, INPUT, "DequantizeLinear")
    for pair in (one, other):
        pair.replace_input_with(1, scale)
    other.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    product = node(model, f"{ATTENTION}.output/MatMul")
    back = add(model, product, "Cast", [other.outputs[0]], "casts/Cast_1", to=10)
    back.type = ir.TensorType(ir.DataType.FLOAT16)
    product.replace_input_with(0, back)


def half_with_tiny_scale(model: ir.Model) -> None:
    half_with_casts(model)
    value = model.graph.initializers["scale32"]
    value.const_value = ir.Tensor(np.array(1e-9, np.float32), name="scale32")


def double_constant(model: ir.Model) -> None:
    mask = node(model, "Mul")
    mask.inputs[1].const_value = ir.Tensor(np.array(-1e4), name=mask.inputs[1].name)
    mask.inputs[1].type = ir.TensorType(ir.DataType.DOUBLE)
    cast = node(model, "Cast")
    cast.attributes["to"] = ir.AttrInt64("to", 11)
    one = node(model, "Sub").inputs[0]
    one.const_value, one.type = ir.Tensor(np.array(1.0), name=one.name), ir.TensorType(ir.DataType.DOUBLE)
    add_mask = node(model, f"{ATTENTION}/Add")
    for made in ("Cast", "Sub", "Mul"):
        node(model, made).outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)
    add_mask.replace_input_with(1, add(model, add_mask, "Cast", [mask.outputs[0]], "mask/Cast", to=1))


def infinite_mask(model: ir.Model) -> None:
    mask = node(model, "Mul")
    mask.inputs[1].const_value = ir.Tensor(np.array(-np.inf, np.float32), name=mask.inputs[1].name)


def all_alike(model: ir.Model) -> None:
    value = constant(model, "same", np.float32(0.05))
    for one in list(model.graph):
        slot = str(one.name).partition("/")[0]
        if one.op_type not in ("QuantizeLinear", "DequantizeLinear") or slot.endswith("context.input_quantizer"):
            continue
        if slot.endswith(("input_quantizer", "other_quantizer")):
            one.replace_input_with(1, value)


def twice(model: ir.Model) -> None:
    source = quantizer(model, f"{FEED_FORWARD}.up.input").inputs[0]
    residual = node(model, f"{FEED_FORWARD}.add/Add")
    residual.replace_input_with(1, source)
    pair_on(f"{FEED_FORWARD}.add/Add", 1, "again", 0.3)(model)


def unused(model: ir.Model) -> None:
    constant(model, "nobody", np.zeros(3, np.float32))


def named_twice(model: ir.Model) -> None:
    node(model, f"{ATTENTION}.key/Add").name = f"{ATTENTION}.query/Add"


def profile(*shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """Options for the lint: one profile, least, best and largest."""
    return {"shapes": shapes}


def everywhere(*shape: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), shape)


_NEWER = "TensorRT-RTX reads newer and older opsets; full TensorRT documents the range"
_DOUBLE = "the parser rounds double to float; ONNX itself knows no such scale, and its checker refuses the file"
_INFINITE = "the parser looks for <= 0 only; the layer then gives NaN"

DEFECTS = (
    Defect("E1", "scale of 0", scale_of(WEIGHT, one_bad(0)), f"{WEIGHT}_quantizer", "parse"),
    Defect("E1", "negative scale", scale_of(WEIGHT, one_bad(-0.1)), f"{WEIGHT}_quantizer", "parse"),
    Defect("E1", "scale NaN", scale_of(WEIGHT, one_bad(np.nan)), f"{WEIGHT}_quantizer", "parse"),
    Defect("E1", "infinite scale", scale_of(WEIGHT, one_bad(np.inf)), f"{WEIGHT}_quantizer", why=_INFINITE),
    Defect("E2", "scale in double", scale_of(INPUT, np.float64(0.1)), f"{INPUT}_quantizer", why=_DOUBLE),
    Defect("E3", "zero point of 3", zero_of(INPUT, np.int8(3)), f"{INPUT}_quantizer", "parse"),
    Defect("E3", "too few zero points", zero_of(WEIGHT, np.zeros(8, np.int8)), f"{WEIGHT}_quantizer", "parse"),
    Defect("E3", "computed zero point", computed_zero, f"{INPUT}_quantizer", "build"),
    Defect("E4", "int16", zero_of(INPUT, np.int16(0)), f"{INPUT}_quantizer", "parse"),
    Defect("E4", "uint8 weight", uint8_weight, f"{WEIGHT}_quantizer", "parse"),
    Defect("E4", "uint8 activation", zero_of(INPUT, np.uint8(0)), f"{INPUT}_quantizer", "accepts", "warning"),
    Defect("E5", "int32 bias", int32_bias, "bias/DequantizeLinear", "parse"),
    Defect("E6", "quantized token ids", quantize_integers, "ids/QuantizeLinear", "parse"),
    Defect("E6", "lookup in an int8 table", gather_integers, "table/Gather", "build"),
    Defect("E7", "scales of another length", scale_of(WEIGHT, ONES[:32]), f"{WEIGHT}_quantizer", "parse"),
    Defect("E7", "axis out of range", axis_of(WEIGHT, 5), f"{WEIGHT}_quantizer", "parse"),
    Defect("E8", "operator of ONNX Runtime", foreign, "gelu/FastGelu", "parse"),
    Defect("E8", "MatMulInteger", integer_product, "output/MatMulInteger", "parse"),
    Defect("E8", "DynamicQuantizeLinear", dynamic, "dynamic/DynamicQuantizeLinear", "parse"),
    Defect("E9", "float16 scale in a float32 graph", scale_of(INPUT, np.float16(0.1)), f"{ATTENTION}.output/", "parse"),
    Defect("E9", "scales of two types", half_with_one_scale, f"{ATTENTION}.output/", "build"),
    Defect("E10", "mean of a LayerNormalization", second_output, f"{ATTENTION}.norm", "parse"),
    Defect("E10", "Dropout that trains", training_dropout, "gelu/Dropout", "parse"),
    Defect("E10", "Attention of rank 4 in float32", attention_operator, "attention/Attention", "build"),
    Defect("E10", "ArgMax of a vector", largest_of_a_vector, "flat/ArgMax", "parse"),
    Defect("E11", "opset 25", opset(25), "the file", why=_NEWER),
    Defect("E12", "no profile", nothing, "the profiles", "build", options={"shapes": None}),
    Defect(
        "E12",
        "input without shape",
        nothing,
        "the profiles",
        "build",
        options=profile(*({"input_ids": (1, n), "attention_mask": (1, n)} for n in (4, 8, 16))),
    ),
    Defect(
        "E12",
        "least above best",
        nothing,
        "the profiles",
        "build",
        options=profile(everywhere(4, 8), everywhere(2, 8), everywhere(4, 8)),
    ),
    Defect(
        "E12",
        "sequences of two lengths",
        nothing,
        "the profiles",
        "build",
        options=profile(*({**everywhere(2, n), "attention_mask": (2, n + 1)} for n in (4, 8, 16))),
    ),
    Defect("E13", "int8 times fp8", mixed, f"{ATTENTION}.output/", "build"),
    Defect("W1", "another scale behind", other_scale, f"{INPUT}_quantizer"),
    Defect("W1", "integers that nobody reads", dangling, "dangling/QuantizeLinear"),
    Defect("W2", "one operand in float", in_float(f"{ATTENTION}.output/MatMul", 0), f"{ATTENTION}.output/"),
    Defect("W3", "weight scales on the inputs", axis_of(WEIGHT, 0), f"{ATTENTION}.output/"),
    Defect("W4", "activation with 64 scales", scale_for_each, f"{INPUT}_quantizer"),
    Defect("W5", "key with a scale of its own", own_scale_for_key, f"{ATTENTION}."),
    Defect("W6", "softmax in float", bypassed(f"{ATTENTION}.context.input"), f"{ATTENTION}/Softmax"),
    Defect(
        "W7",
        "profile of 1024 tokens",
        nothing,
        f"{ATTENTION}/Softmax",
        options=profile(*(everywhere(1, n) for n in (8, 128, 1024))),
    ),
    Defect("W8", "quantized scores", pair_on(f"{ATTENTION}/Add", 0, "between"), "between/QuantizeLinear"),
    Defect("W8", "scaled scores", scaled_scores, f"{ATTENTION}/Mul", severity="info"),
    Defect("W9", "residual in float", in_float(f"{ATTENTION}.add/Add", 1), f"{ATTENTION}.add"),
    Defect("W9", "quantizer in front of GELU", pair_on(f"{FEED_FORWARD}.activation/Gelu", 0, "gelu"), "activation"),
    Defect("W10", "quantized LayerNormalization", pair_on(f"{ATTENTION}.norm/LayerNormalization", 0, "n"), "norm"),
    Defect("W10", "quantized table", table, "embeddings.word/Gather"),
    Defect("W10", "quantized classifier", last_layer, "classifier/MatMul"),
    Defect("W11", "LayerNormalization written out", written_out_norm, "norm/ReduceMean"),
    Defect("W11", "GELU written out with Tanh", written_out_gelu, "gelu/Tanh"),
    Defect("W12", "computed scale", computed_scale, f"{INPUT}_quantizer"),
    Defect("W13", "a layer of 4 outputs", narrow_layer, "narrow/MatMul"),
    Defect("W14", "casts around a quantizer", half_with_casts, f"{INPUT}_quantizer"),
    Defect("W15", "integers for Tanh alone", pair_on("pooler/Tanh", 0, "tanh"), "pooler/Tanh"),
    Defect("W16", "scale below float16", half_with_tiny_scale, f"{INPUT}_quantizer"),
    Defect("W17", "mask in double", double_constant, "val_"),
    Defect("W17", "mask with infinity", infinite_mask, "val_"),
    Defect("W18", "scale of exactly 1", scale_of(INPUT, np.float32(1)), f"{INPUT}_quantizer"),
    Defect("W18", "softmax beyond 1", scale_of(f"{ATTENTION}.context.input", np.float32(0.1)), "context.input"),
    Defect("W18", "all scales alike", all_alike, "_quantizer"),
    Defect("W19", "a tensor quantized twice", twice, "again/QuantizeLinear"),
    Defect("W20", "refitted int8", nothing, "the file", options={"refit": True}),
    Defect("I2", "a constant that nobody reads", unused, "nobody", severity="info"),
    Defect("I2", "a name twice", named_twice, f"{ATTENTION}.query/Add", severity="info"),
)
