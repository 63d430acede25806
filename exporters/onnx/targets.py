"""The targets: which specs each can run, its preset, and the passes that rewrite the graph for it.

To add a target, add a :class:`Target` here, its passes in ``passes/`` and its preset in ``qdq/recipes/presets``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_ir.passes import common

from exporters.onnx.isa import ANY, Isa
from exporters.onnx.passes.attention_node import ATTENTION_SINCE, AttentionNodePass
from exporters.onnx.passes.fold_weights import FoldWeightsPass
from exporters.onnx.passes.four_bits import FourBitsPass
from exporters.onnx.passes.gather_before_dequantize import GatherBeforeDequantizePass
from exporters.onnx.passes.integer_gemm import IntegerGemmPass
from exporters.onnx.passes.quantize_after_transpose import QuantizeAfterTransposePass
from exporters.onnx.passes.residual_sum import ResidualSumPass
from exporters.onnx.passes.scale_query import ScaleQueryPass
from exporters.onnx.passes.signed_activations import SignedActivationsPass
from exporters.onnx.passes.subtract_branch import SubtractBranchPass
from exporters.onnx.passes.token_scales import TokenScalesPass
from exporters.onnx.passes.transpose_before_dequantize import TransposeBeforeDequantizePass
from exporters.onnx.passes.transpose_weights import TransposeWeightsPass
from exporters.onnx.passes.unsigned_activations import UnsignedActivationsPass
from exporters.onnx.passes.unsigned_tables import UnsignedTablesPass
from exporters.onnx.passes.unsigned_weights import UnsignedWeightsPass
from exporters.onnx.passes.weight_only_gemm import WeightOnlyGemmPass
from qdq.errors import ExportError
from qdq.quantization.spec import PerTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir.passes as ir_passes

    from qdq.quantization.slot import Slot
    from qdq.quantization.spec import QuantSpec

__all__ = ["DEFAULT_OPSET", "TARGETS", "Target", "cleanup_passes", "default_opset", "target_named"]

DEFAULT_OPSET = 21
"""The operator set of float files, and of targets that gain nothing from a newer one."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Describe a runtime to export for.

    Args:
        name: Name on the command line.
        recipe: The preset for this target.
        runtime: Runtime in which verification runs the file end to end; see
            :func:`exporters.verification.verify.verify`.
        passes: Function that makes the passes for an instruction set. They run in order on the traced graph.
        refuses: Function that returns why the target cannot run a slot with a spec, None if it can.
        whole_groups: Whether the group size must divide the width of a weight.
        dtypes: Types that the target can compute in besides integers.
        dtypes_why: Why it has no others.
        takes_isa: Whether the graph depends on the instruction set.
        opset: Version of the standard operators unless another one is asked for.
    """

    name: str
    recipe: str
    runtime: str
    passes: Callable[..., list[ir_passes.InPlacePass]]
    refuses: Callable[[Slot, QuantSpec], str | None]
    whole_groups: bool = False
    dtypes: tuple[str, ...] = ("fp32",)
    dtypes_why: str = ""
    takes_isa: bool = False
    opset: int = DEFAULT_OPSET

    def problems(self, specs: Mapping[Slot, QuantSpec | None]) -> list[str]:
        """Return a line for each slot that the target cannot run."""
        reasons = ((slot, spec and self.refuses(slot, spec)) for slot, spec in specs.items())
        return [f"{slot}: {reason}" for slot, reason in reasons if reason]


_NO_FLOAT8 = "its kernels on CPUs have no float8: export for tensorrt, or with --recipe"


def _onnxruntime_refuses(slot: Slot, spec: QuantSpec) -> str | None:  # noqa: ARG001
    if spec.is_float8:
        return f"{_NO_FLOAT8} onnxruntime"
    if (
        spec.dynamic
        and isinstance(spec.granularity, PerTensor)
        and not spec.symmetric
        and (spec.qmin, spec.qmax) != (0, 255)
    ):
        return f"dynamic ranges must be symmetric, or uint8 with all of its values; this is {spec}"
    return None


def _openvino_refuses(slot: Slot, spec: QuantSpec) -> str | None:
    if spec.is_float8:
        return f"{_NO_FLOAT8} openvino"
    if spec.dynamic and slot.name != "weight":
        return f"OpenVINO takes static ranges, this is {spec}"
    return _onnxruntime_refuses(slot, spec)


def _tensorrt_refuses(slot: Slot, spec: QuantSpec) -> str | None:
    """Apply the rules of TensorRT's importer: int8 with all values, or float8; zero points of 0, tables in float."""
    if slot.kind == "embedding":
        return "TensorRT cannot look up quantized tables"
    if not spec.signed or not spec.symmetric:
        return f"TensorRT takes symmetric int8, this is {spec}"
    if spec.bits != 8 or spec.narrow_range:
        return f"TensorRT takes int8 with all of its values, this is {spec}"
    if spec.dynamic and slot.name != "weight":
        return f"TensorRT takes static ranges, this is {spec}"
    if spec.group:
        return f"TensorRT takes scales per tensor or per axis, this is {spec}"
    return None


def _common_passes() -> list[ir_passes.InPlacePass]:
    """Make the passes that every target begins with: weights stored in int8, products right behind their quantizers."""
    return [
        common.CommonSubexpressionEliminationPass(),
        FoldWeightsPass(),
        TransposeWeightsPass(),
        QuantizeAfterTransposePass(),
    ]


def _tensorrt_passes(isa: Isa = ANY) -> list[ir_passes.InPlacePass]:  # noqa: ARG001
    """Keep QuantizeLinear and DequantizeLinear nodes, and write attention so that TensorRT fuses it."""
    return [
        *_common_passes(),
        ScaleQueryPass(),
        *cleanup_passes(),
    ]


def _onnxruntime_passes(isa: Isa = ANY) -> list[ir_passes.InPlacePass]:
    """Write integer products out, so that nothing depends on the pattern matching of the runtime."""
    return [
        *_common_passes(),
        TokenScalesPass(),
        SignedActivationsPass() if isa.signed_activations else UnsignedActivationsPass(),
        UnsignedTablesPass(isa),
        GatherBeforeDequantizePass(),
        TransposeBeforeDequantizePass(),
        IntegerGemmPass(isa),
        WeightOnlyGemmPass(),
        ResidualSumPass(),
        SubtractBranchPass(),
        AttentionNodePass(),
        *cleanup_passes(),
    ]


def _openvino_passes(isa: Isa = ANY) -> list[ir_passes.InPlacePass]:  # noqa: ARG001
    """Keep QuantizeLinear and DequantizeLinear nodes, in types for which the kernels of x86 CPUs are exact."""
    return [
        *_common_passes(),
        UnsignedActivationsPass(),
        UnsignedWeightsPass(),
        FourBitsPass(),
        *cleanup_passes(),
    ]


def cleanup_passes() -> list[ir_passes.InPlacePass]:
    """Make the passes that remove unused nodes and every trace of the machine that exported."""
    return [
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.TopologicalSortPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
    ]


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        Target(
            name="onnxruntime",
            recipe="onnxruntime",
            runtime="onnxruntime",
            passes=_onnxruntime_passes,
            refuses=_onnxruntime_refuses,
            dtypes_why="its kernels on CPUs compute in float32",
            takes_isa=True,
            opset=ATTENTION_SINCE,
        ),
        Target(
            name="openvino",
            recipe="openvino",
            runtime="openvino",
            passes=_openvino_passes,
            refuses=_openvino_refuses,
            whole_groups=True,
            dtypes_why="OpenVINO itself chooses the type of what is not quantized",
        ),
        Target(
            name="tensorrt",
            recipe="tensorrt",
            runtime="reference",
            passes=_tensorrt_passes,
            refuses=_tensorrt_refuses,
            dtypes=("fp32", "fp16", "bf16"),
        ),
    )
}


def target_named(name: str) -> Target:
    """Return the target of that name.

    Raises:
        ExportError: If the name is unknown.
    """
    if name not in TARGETS:
        raise ExportError(f"no target {name!r}: it must be one of {', '.join(TARGETS)}")
    return TARGETS[name]


def default_opset(target: str | None) -> int:
    """Return the operator set for a target, or for a float file if None; that of float files for an unknown name."""
    found = None if target is None else TARGETS.get(target)
    return DEFAULT_OPSET if found is None else found.opset
