"""What each target needs: which specs it can run, which recipe serves it best, which passes give it its form.

To add a target: a :class:`Target` here, its passes in ``passes/``, its recipe in ``qdq/recipes/``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_ir.passes import common

from exporters.onnx.isa import ANY, Isa
from exporters.onnx.passes.fold_weights import FoldWeightsPass
from exporters.onnx.passes.four_bits import FourBitsPass
from exporters.onnx.passes.gather_before_dequantize import GatherBeforeDequantizePass
from exporters.onnx.passes.integer_gemm import IntegerGemmPass
from exporters.onnx.passes.quantize_after_transpose import QuantizeAfterTransposePass
from exporters.onnx.passes.residual_sum import ResidualSumPass
from exporters.onnx.passes.scale_query import ScaleQueryPass
from exporters.onnx.passes.signed_activations import SignedActivationsPass
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

__all__ = ["TARGETS", "Target", "target_named", "tidy"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A runtime to export for.

    Args:
        name: as on the command line.
        recipe: the preset that serves it best.
        runtime: that verification runs the file in, end to end; see :func:`exporters.verification.verify.verify`.
        passes: made afresh for each export, for an instruction set; run in order on the traced graph.
        refuses: a reason why the target cannot run a slot with this spec, None when it can.
        whole_groups: scales per group must not leave a rest.
        dtypes: of what is computed in float.
        dtypes_why: why there are no others.
        takes_isa: whether there is a form for each instruction set; else there is one for all.
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

    def problems(self, specs: Mapping[Slot, QuantSpec | None]) -> list[str]:
        """What the target cannot run, one line for each slot."""
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
        return f"ranges found in every call are symmetric, or uint8 with all of its values; this is {spec}"
    return None


def _openvino_refuses(slot: Slot, spec: QuantSpec) -> str | None:
    if spec.is_float8:
        return f"{_NO_FLOAT8} openvino"
    if spec.dynamic and slot.name != "weight":
        return f"OpenVINO takes ranges that are known beforehand, this is {spec}"
    return _onnxruntime_refuses(slot, spec)


def _tensorrt(slot: Slot, spec: QuantSpec) -> str | None:
    """TensorRT's importer: int8 with all its values, or float8; zero points of 0, tables in float."""
    if slot.kind == "embedding":
        return "TensorRT cannot look up quantized tables"
    if not spec.signed or not spec.symmetric:
        return f"TensorRT takes symmetric int8, this is {spec}"
    if spec.bits != 8 or spec.narrow_range:
        return f"TensorRT takes int8 with all of its values, this is {spec}"
    if spec.dynamic and slot.name != "weight":
        return f"TensorRT takes ranges that are known beforehand, this is {spec}"
    if spec.group:
        return f"TensorRT takes scales per tensor or per axis, this is {spec}"
    return None


def _folded() -> list[ir_passes.InPlacePass]:
    """Where every target begins: everything once, weights stored in int8, products right behind their quantizers."""
    return [
        common.CommonSubexpressionEliminationPass(),
        FoldWeightsPass(),
        TransposeWeightsPass(),
        QuantizeAfterTransposePass(),
    ]


def _tensorrt_form(isa: Isa = ANY) -> list[ir_passes.InPlacePass]:  # noqa: ARG001
    """QuantizeLinear and DequantizeLinear nodes as they are, and attention in the form that is fused."""
    return [
        *_folded(),
        ScaleQueryPass(),
        *tidy(),
    ]


def _onnxruntime(isa: Isa = ANY) -> list[ir_passes.InPlacePass]:
    """Integer products written out, so that nothing is left to the runtime's pattern matching."""
    return [
        *_folded(),
        TokenScalesPass(),
        SignedActivationsPass() if isa.signed_activations else UnsignedActivationsPass(),
        UnsignedTablesPass(isa),
        GatherBeforeDequantizePass(),
        TransposeBeforeDequantizePass(),
        IntegerGemmPass(isa),
        WeightOnlyGemmPass(),
        ResidualSumPass(),
        *tidy(),
    ]


def _openvino(isa: Isa = ANY) -> list[ir_passes.InPlacePass]:  # noqa: ARG001
    """QuantizeLinear and DequantizeLinear nodes in the form for which x86 CPUs have kernels that are exact."""
    return [
        *_folded(),
        UnsignedActivationsPass(),
        UnsignedWeightsPass(),
        FourBitsPass(),
        *tidy(),
    ]


def tidy() -> list[ir_passes.InPlacePass]:
    """Nothing unused, nothing twice, and no trace of the machine that exported."""
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
            passes=_onnxruntime,
            refuses=_onnxruntime_refuses,
            dtypes_why="its kernels on CPUs compute in float32",
            takes_isa=True,
        ),
        Target(
            name="openvino",
            recipe="openvino",
            runtime="openvino",
            passes=_openvino,
            refuses=_openvino_refuses,
            whole_groups=True,
            dtypes_why="OpenVINO itself chooses the type of what is not quantized",
        ),
        Target(
            name="tensorrt",
            recipe="tensorrt",
            runtime="reference",
            passes=_tensorrt_form,
            refuses=_tensorrt,
            dtypes=("fp32", "fp16", "bf16"),
        ),
    )
}


def target_named(name: str) -> Target:
    """The target of the command line's ``--target``.

    Raises:
        ExportError: for a name that is not known.
    """
    if name not in TARGETS:
        raise ExportError(f"no target {name!r}: it must be one of {', '.join(TARGETS)}")
    return TARGETS[name]
