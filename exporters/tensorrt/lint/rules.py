"""The rules that a file is checked against.

``E``: parsing or building fails. ``W``: the engine is slower, or does not do what was meant. ``I``: worth knowing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RULES", "Finding", "Rule", "Severity"]

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Rule:
    """Describe a rule.

    Args:
        id: Id of the rule, such as ``E1``.
        rule: What must hold.
        cure: What to do if it does not.
        source: Where NVIDIA documents it, or how it was found out.
    """

    id: str
    rule: str
    cure: str
    source: str

    @property
    def severity(self) -> Severity:
        """The severity that the letter of the id stands for."""
        levels: dict[str, Severity] = {"E": "error", "W": "warning", "I": "info"}
        return levels[self.id[0]]


@dataclass(frozen=True)
class Finding:
    """Describe a violation of a rule.

    Args:
        id: Id of the rule.
        node: Name of the node, or of the input or constant.
        problem: What is wrong.
        severity: Severity of the rule, unless this case is milder or more severe.
    """

    id: str
    node: str
    problem: str
    severity: Severity

    @property
    def rule(self) -> Rule:
        """The rule that is violated."""
        return RULES[self.id]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which name the problem ``fault``."""
        about = {"rule": self.rule.rule, "cure": self.rule.cure, "source": self.rule.source}
        return {"id": self.id, "severity": self.severity, "node": self.node, "fault": self.problem, **about}


_IMPORTER = "onnx-tensorrt, onnxOpImporters.cpp (10.13 to 11.x)"
_TRIED = "tried with TensorRT-RTX 1.7.1"
_PLACEMENT = "TensorRT documentation, Q/DQ layer-placement recommendations"
_MODELOPT = "TensorRT-Model-Optimizer, onnx/quantization"

RULES: Mapping[str, Rule] = {
    rule.id: rule
    for rule in (
        Rule("E1", "scales are constants above 0 and finite", "calibrate again, or qdq lint --fix", _IMPORTER),
        Rule(
            "E2",
            "scales are float32, float16 or bfloat16; the latter two from opset 19 on",
            "write the scale in float32, export with --opset 19 or above, or qdq lint --fix",
            f"{_IMPORTER}; ONNX operator specification",
        ),
        Rule(
            "E3",
            "zero points are 0, and as many as there are scales",
            "quantize symmetrically (the recipe 'tensorrt'), or qdq lint --fix",
            f"{_IMPORTER}; NvInfer.h, IQuantizeLayer",
        ),
        Rule(
            "E4",
            "quantized types are int8, fp8 (e4m3fn), int4 and fp4",
            "use the recipe 'tensorrt', or qdq lint --fix, which turns uint8 into int8",
            f"{_IMPORTER}; {_TRIED}",
        ),
        Rule(
            "E5",
            "no DequantizeLinear reads int32: biases stay in float",
            "leave biases in float, or qdq lint --fix",
            f"NVIDIA/TensorRT#4542; {_TRIED}",
        ),
        Rule(
            "E6",
            "QuantizeLinear reads float, DequantizeLinear reads integers, int8 constants are read by nothing else, and "
            "are no scalars",
            "add a DequantizeLinear behind the int8 constant, or a Cast in front of QuantizeLinear; qdq lint --fix "
            "writes scalars in float",
            _TRIED,
        ),
        Rule(
            "E7",
            "there is one scale for the tensor, one for each index of an axis, or one for each block of one axis",
            "write as many scales as the axis has indices",
            _IMPORTER,
        ),
        Rule(
            "E8",
            "all operators are ONNX's own, and known to this TensorRT",
            "export for the target tensorrt (TensorRT cannot read graphs that ONNX Runtime optimized), or replace the "
            "operator",
            "onnx-tensorrt, docs/operators.md",
        ),
        Rule(
            "E9",
            "operands of one operator have one type: networks are strongly typed, and the output of DequantizeLinear "
            "has the type of its scale",
            "write scales in the type of the graph, or add a Cast",
            f"TensorRT documentation, strongly typed networks; {_TRIED}",
        ),
        Rule(
            "E10",
            "normalizations have one output, Dropout does not train, Attention is not of rank 4 in float32, ArgMax has "
            "two axes or more to read",
            "export in eval mode, with attention written as products and softmax, and a second axis of 1 for ArgMax",
            f"onnx-tensorrt, onnxOpCheckers.cpp; {_TRIED}",
        ),
        Rule(
            "E11",
            "the opset is one that this TensorRT reads",
            "export with another --opset, 18 to 24, or take another TensorRT",
            "onnx-tensorrt, docs/operators.md",
        ),
        Rule(
            "E12",
            "profiles name all dynamic inputs, min <= opt <= max, and dimensions of one name are equal",
            "give --min-shapes, --opt-shapes and --max-shapes for all inputs",
            f"{_TRIED}: network validation",
        ),
        Rule("E13", "a product multiplies int8 with int8, or fp8 with fp8", "quantize both operands alike", _TRIED),
        Rule(
            "W1",
            "QuantizeLinear is followed by DequantizeLinear with the same scale, zero point and axis",
            "write quantizers as pairs",
            "TensorRT documentation, explicit quantization",
        ),
        Rule("W2", "a product has both operands quantized, or none", "quantize the other operand too", _PLACEMENT),
        Rule(
            "W3",
            "weights have one scale, or one for each output",
            "put the scales on the axis of the outputs",
            f"{_TRIED}: with another axis the product leaves int8",
        ),
        Rule(
            "W4",
            "activations have one scale",
            "use a scale per tensor",
            f"NvInfer.h, IQuantizeLayer; {_TRIED}: fused attention is lost",
        ),
        Rule(
            "W5",
            "layers that read one tensor share its quantizer: query, key and value become one GEMM",
            "let them share a scale, the largest for instance (qdq lint --fix)",
            f"demoBERT; {_TRIED}: else the GEMM splits",
        ),
        Rule(
            "W6",
            "attention is quantized whole: query, key, softmax, value and context; or not at all",
            "quantize all five activations, or none",
            f"NVIDIA/TensorRT#2981; {_TRIED}",
        ),
        Rule(
            "W7",
            "int8 attention has heads of 16, 32 or 64 and profiles up to 512 tokens",
            "lower --max-shapes to 512 tokens, or leave attention in float",
            f"TensorRT documentation, MHA fusion; {_TRIED}",
        ),
        Rule(
            "W8",
            "nothing between scores and softmax is quantized, and scores are scaled through the query",
            "export for the target tensorrt, which does so",
            f"{_MODELOPT}; TensorRT 11 documentation, fused attention",
        ),
        Rule(
            "W9",
            "the residual operand of an addition behind an int8 layer is quantized, and nothing between a layer and "
            "its GELU",
            "quantize the residual operand (the recipe 'tensorrt' does)",
            _PLACEMENT,
        ),
        Rule(
            "W10",
            "inputs of LayerNormalization, Softmax and GELU, tables, and the last classifier are in float",
            "leave these out of the recipe",
            _MODELOPT,
        ),
        Rule(
            "W11",
            "GELU and LayerNormalization are operators, or the chain with Erf",
            "export with opset 20 or above",
            f"{_MODELOPT}; NVIDIA/TensorRT#4242",
        ),
        Rule(
            "W12",
            "scales are known when the engine is built",
            "calibrate a static range",
            f"NvInfer.h before 10.13; {_TRIED}: all fusions around it are lost",
        ),
        Rule(
            "W13",
            "int8 products have at least 16 inputs and 16 outputs, best a multiple of 16",
            "leave small layers in float",
            _MODELOPT,
        ),
        Rule(
            "W14",
            "in a half-precision graph scales are of that type, and no Cast stands beside a quantizer",
            "write scales in the type of the graph",
            _MODELOPT,
        ),
        Rule(
            "W15",
            "an operator without weights that reads integers alone gives integers",
            "quantize its output, or leave its inputs in float",
            _PLACEMENT,
        ),
        Rule(
            "W16",
            "in a half-precision graph scales fit into float16",
            "calibrate again, or keep this slot in float",
            _MODELOPT,
        ),
        Rule(
            "W17",
            "constants are finite and of a type that TensorRT has",
            "write float32 (TensorRT has no double), and masks with -10000 or the type's own least value, in float; "
            "qdq lint --fix does so for quantized ones",
            "onnx-tensorrt, docs; NVIDIA/TensorRT",
        ),
        Rule(
            "W18",
            "scales look calibrated: not exactly 1, not all the same, of softmax at most 1/127, of no mask",
            "calibrate again, with the masked scores in float",
            "conventions of pytorch-quantization: 1 marks what was never calibrated",
        ),
        Rule(
            "W19",
            "a tensor is quantized once",
            "let the readers share a quantizer (qdq lint --fix)",
            f"{_TRIED}: different scales split kernels",
        ),
        Rule(
            "W20",
            "int8 engines are not refitted",
            "leave --refit and --strip out",
            "TensorRT documentation, explicit quantization",
        ),
        Rule(
            "I1", "a file is below 2 GiB, or keeps its weights beside it", "export again: weights go beside", "protobuf"
        ),
        Rule("I2", "constants are used, and nodes have names of their own", "export again with qdq", "qdq"),
        Rule("I3", "the installed TensorRT reads the file", "see the messages", "the parser itself"),
    )
}
