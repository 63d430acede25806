"""Convert modules of pytorch-quantization in memory to ours, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from qdq.errors import ExportError, MissingPackageError, RecipeError, describe_problems
from qdq.interop.pytorch_quantization.checkpoint import amax_of, amax_shape, apply_amax, is_quantizer_key, value_problem
from qdq.interop.pytorch_quantization.slot_names import prefix_of, qdqbert_names
from qdq.models.huggingface import load_weights
from qdq.models.model import EncoderModel
from qdq.models.registry import configure, construct
from qdq.quantization.modules import WRAPPED, QuantLinear
from qdq.quantization.quantizer import Mode, Quantizer, Range, quantizers
from qdq.quantization.spec import PerAxis, PerTensor, QuantSpec
from qdq.quantization.wrap import slots, wrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdq.models.model import Model
    from qdq.quantization.slot import Slot

__all__ = ["from_live", "to_live"]

_ARITHMETIC = "pytorch-quantization"
# Entries that describe how the configuration was made, and not the model.
_PASSING = ("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version")


def from_live(module: nn.Module) -> nn.Module:
    """Replace every QuantLinear and TensorQuantizer of pytorch-quantization by our QuantLinear and Quantizer.

    Modules are replaced in place and share the Parameters. Bits, sign, narrow range, axis and range are kept;
    quantizers without a range are dynamic. A quantizer that is disabled, or does not quantize, becomes one that passes
    its input on and keeps its range. A subclass of ``nn.Linear`` with both quantizers is treated as a QuantLinear.

    A QDQBERT of transformers is not changed. A model of this package that computes the same is returned, with the same
    weights in memory.

    Args:
        module: The module to convert.

    Returns:
        The module, or its replacement.

    Raises:
        RecipeError: Quantizers have no counterpart; the message lists all of them, and the module is not changed. These
            are quantizers with several axes, an axis for the input of a linear layer, learn_amax, scale_amax, if_clip,
            if_calib, integer results (fake_quant false), more than 8 bits, or a range that is negative or not finite.
        ConfigError: The configuration or class of a QDQBERT is not supported.
        MissingPackageError: pytorch-quantization is not installed.
    """
    toolkit = _toolkit()
    if getattr(getattr(module, "config", None), "model_type", None) == "qdqbert":
        return _from_qdqbert(module, toolkit)
    return _replace_all(module, lambda child: _to_ours(child, toolkit), RecipeError)


def to_live(module: nn.Module) -> nn.Module:
    """Replace our QuantLinear and Quantizer by QuantLinear and TensorQuantizer of pytorch-quantization.

    Modules are replaced in place and share the Parameters. Slots without a spec become disabled quantizers. To convert
    a whole QDQBERT, write a checkpoint with :func:`qdq.interop.pytorch_quantization.save`.

    Args:
        module: The module to convert.

    Returns:
        The module, or its replacement.

    Raises:
        ExportError: pytorch-quantization cannot express some quantizers; the message lists all of them, and the module
            is not changed. These are affine, grouped, per-token, learned and uncalibrated quantizers, and quantized
            additions, products of activations and embedding tables.
        MissingPackageError: pytorch-quantization is not installed.
    """
    toolkit = _toolkit()
    return _replace_all(module, lambda child: _to_theirs(child, toolkit), ExportError)


def _toolkit() -> Any:
    try:
        import pytorch_quantization.nn as toolkit
    except ImportError as error:
        purpose = "converting modules of pytorch-quantization"
        raise MissingPackageError(_ARITHMETIC, extra=_ARITHMETIC, purpose=purpose) from error
    return toolkit


class _NoCounterpartError(Exception):
    """A module has no counterpart, for the reasons in ``problems``."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems


def _replace_all(
    module: nn.Module,
    convert: Callable[[nn.Module], nn.Module | None],
    error: type[RecipeError | ExportError],
) -> nn.Module:
    """Replace every module that has a counterpart, or none at all if one is refused.

    Args:
        module: The module whose children are replaced.
        convert: Returns the counterpart of a module, None if it stays, or raises ``_NoCounterpartError``.
        error: The type of the error that lists the problems.
    """
    made: dict[int, nn.Module] = {}
    replaced: dict[str, nn.Module] = {}
    problems: list[str] = []
    for name, child in module.named_modules(remove_duplicate=False):
        if name.startswith(tuple(f"{outer}." for outer in replaced)) or (name and "" in replaced):
            continue  # it is inside a module that is replaced as a whole
        try:
            new = made.get(id(child)) or convert(child)
        except _NoCounterpartError as refused:
            problems += [f"{name or type(child).__name__}: {problem}" for problem in refused.problems]
            new = child
        if new is not None:
            made[id(child)] = replaced[name] = new
    if problems:
        raise error(describe_problems(type(module).__name__, problems))
    for name, new in replaced.items():
        if name:
            module.set_submodule(name, new)
    return replaced.get("", module)


# --- from theirs ---


def _to_ours(module: nn.Module, toolkit: Any) -> nn.Module | None:
    if isinstance(module, toolkit.TensorQuantizer):
        return _quantizer(*_read(module))
    own = [getattr(module, f"_{slot}_quantizer", None) for slot in QuantLinear.slots]
    if not isinstance(module, nn.Linear) or not all(isinstance(q, toolkit.TensorQuantizer) for q in own):
        return None
    linear, problems = QuantLinear.from_float(module), []
    for slot, quantizer in zip(QuantLinear.slots, own, strict=True):
        weight = module.weight if slot == "weight" else None
        try:
            spec, amax = _read(quantizer, weight=weight, one_range=weight is None)
        except _NoCounterpartError as refused:
            problems += [f"{slot}: {problem}" for problem in refused.problems]
        else:
            linear.add_module(f"{slot}_quantizer", _quantizer(spec, amax))
    if problems:
        raise _NoCounterpartError(*problems)
    return linear


def _quantizer(spec: QuantSpec | None, amax: Tensor | None) -> Quantizer:
    """Make our quantizer, which is switched on if it has a spec."""
    ours = Quantizer(spec, shape=() if amax is None else tuple(amax.shape))
    if amax is not None:
        ours.to(amax.device)
        ours.set_range(Range(-amax, amax, amax))
    ours.mode = Mode.OFF if spec is None else Mode.QUANTIZE
    return ours


def _read(
    theirs: Any, *, weight: Tensor | None = None, one_range: bool = False
) -> tuple[QuantSpec | None, Tensor | None]:
    """Read a TensorQuantizer.

    Args:
        theirs: The quantizer.
        weight: The weight that it quantizes, if that is known.
        one_range: Whether it must have one range for the whole tensor.

    Returns:
        The spec, or None if the quantizer passes its input on; and the range, or None if it is dynamic.

    Raises:
        _NoCounterpartError: The quantizer has no counterpart.
    """
    amax: Tensor | None = theirs._buffers.get("_amax")
    if theirs._disabled or not (theirs._if_quant or theirs._if_calib):
        fits = amax is not None and amax.numel() == 1 and value_problem(amax) is None
        return None, amax.detach().float().reshape(()) if fits and amax is not None else None
    problems = [
        problem
        for problem, holds in {
            "its range is learned (learn_amax)": theirs._learn_amax,
            "it clips its input (if_clip)": theirs._if_clip,
            "its range is scaled (scale_amax)": theirs._scale_amax is not None,
            "it is being calibrated (if_calib): load the range and disable that first": theirs._if_calib,
            "it gives integers (fake_quant is false)": not theirs._fake_quant,
        }.items()
        if holds
    ]
    # Once there is a range, its shape decides about the axis, not the descriptor.
    axis = theirs._axis if amax is None else _axis_of(amax)
    axis = axis[0] if isinstance(axis, tuple | list) and len(axis) == 1 else axis
    if not (axis is None or (isinstance(axis, int) and axis >= 0)):
        problems.append(f"its axis is {axis}, must be one, counted from the front")
        axis = None
    elif axis is not None and one_range:
        problems.append(f"its axis is {axis}, an activation has one range")
    elif axis is not None and weight is not None:
        if axis >= weight.dim():
            problems.append(f"its axis is {axis}, of a weight of shape {list(weight.shape)}")
        elif amax is not None and amax.numel() != weight.shape[axis]:
            problems.append(f"it has {amax.numel()} ranges for axis {axis} of a weight of shape {list(weight.shape)}")
    if amax is not None and (problem := value_problem(amax)):
        problems.append(f"its range is {problem}")
    spec = None
    try:
        spec = QuantSpec(
            bits=theirs._num_bits,
            signed=not theirs._unsigned,
            # pytorch-quantization ignores narrow_range for unsigned integers.
            narrow_range=bool(theirs._narrow_range and not theirs._unsigned),
            granularity=PerTensor() if axis is None else PerAxis(axis),
            dynamic=amax is None,
            arithmetic=_ARITHMETIC,
        )
    except RecipeError as error:
        problems.append(str(error))
    if problems:
        raise _NoCounterpartError(*problems)
    return spec, None if amax is None else amax.detach().float().reshape([] if axis is None else [-1])


def _axis_of(amax: Tensor) -> int | tuple[int, ...] | None:
    """Return the axes with more than one range. Once there is a range, the descriptor's axis no longer counts."""
    axes = tuple(index for index, size in enumerate(amax.shape) if size != 1)
    return axes if len(axes) > 1 else next(iter(axes), None)


def _from_qdqbert(module: Any, toolkit: Any) -> Model:
    """Convert a QDQBERT of transformers, one quantizer after the other."""
    values = {name: value for name, value in module.config.to_dict().items() if name not in _PASSING}
    name = type(module).__name__
    model = construct(configure("qdqbert", **values, architectures=[name]))
    if isinstance(model, EncoderModel) and getattr(module, "pooler", model) is None:
        model.pooler = None
    weights = {key: tensor for key, tensor in module.state_dict().items() if not is_quantizer_key(key)}
    load_weights(model, weights, source=name, dtype=next(module.parameters()).dtype)
    wrap(model)
    prefix = prefix_of(model)
    known = {f"{prefix}{name}": slot for slot, name in qdqbert_names(model).items()}
    specs: dict[Slot, QuantSpec | None] = dict.fromkeys(slots(model))
    amax: dict[Slot, Tensor] = {}
    problems: list[str] = []
    for path, child in module.named_modules():
        if not isinstance(child, toolkit.TensorQuantizer):
            continue
        slot = known.get(path)
        if slot is None:
            problems.append(f"{path}: QDQBERT has no such quantizer")
            continue
        weight = model.get_parameter(f"{slot.module}.weight") if slot.name == "weight" else None
        try:
            specs[slot], range_ = _read(child, weight=weight, one_range=weight is None)
        except _NoCounterpartError as refused:
            problems += [f"{path}: {problem}" for problem in refused.problems]
            continue
        if range_ is not None:
            amax[slot] = range_
    if problems:
        raise RecipeError(describe_problems(name, problems))
    apply_amax(model, specs, amax, source=name)
    return model.train(module.training)


# --- to theirs ---


def _to_theirs(module: nn.Module, toolkit: Any) -> nn.Module | None:
    if isinstance(module, Quantizer):
        return _tensor_quantizer(module, toolkit)
    if not isinstance(module, tuple(WRAPPED.values())):
        return None
    if not isinstance(module, QuantLinear):
        if all(quantizer.spec is None for _, quantizer in quantizers(module)):
            return module
        raise _NoCounterpartError(f"pytorch-quantization has no counterpart of a quantized {type(module).__name__}")
    pair, problems = {}, []
    for slot in module.slots:
        try:
            quantizer = getattr(module, f"{slot}_quantizer")
            pair[slot] = _tensor_quantizer(quantizer, toolkit, weight=module.weight if slot == "weight" else None)
        except _NoCounterpartError as refused:
            problems += [f"{slot}: {problem}" for problem in refused.problems]
    if problems:
        raise _NoCounterpartError(*problems)
    # A tiny layer, whose sizes and parameters are then replaced: a large one would be initialized in vain.
    linear = toolkit.QuantLinear(1, 1, bias=module.bias is not None)
    linear.in_features, linear.out_features = module.in_features, module.out_features
    linear.weight, linear.bias = module.weight, module.bias
    linear._input_quantizer, linear._weight_quantizer = pair["input"], pair["weight"]
    assert isinstance(linear, nn.Linear)
    return linear.train(module.training)


def _tensor_quantizer(ours: Quantizer, toolkit: Any, *, weight: Tensor | None = None) -> nn.Module:
    from pytorch_quantization.tensor_quant import QuantDescriptor

    spec, amax = ours.spec, None
    if spec is None:
        quantizer = toolkit.TensorQuantizer(QuantDescriptor(), disabled=True)
        amax = None if ours.range is None else ours.range.amax.reshape(())
    else:
        if problems := _inexpressible(ours, spec, weight):
            raise _NoCounterpartError(*problems)
        axis = spec.axis if weight is None or spec.axis is None else spec.axis % weight.dim()
        descriptor = QuantDescriptor(
            num_bits=spec.bits, axis=axis, unsigned=not spec.signed, narrow_range=spec.narrow_range
        )
        quantizer = toolkit.TensorQuantizer(descriptor, if_quant=ours.mode is Mode.QUANTIZE)
        if not spec.dynamic:
            amax = amax_of(ours).reshape(amax_shape(axis))
    if amax is not None:
        quantizer.register_buffer("_amax", amax.detach().clone())
    assert isinstance(quantizer, nn.Module)
    return quantizer.train(ours.training)


def _inexpressible(ours: Quantizer, spec: QuantSpec, weight: Tensor | None) -> list[str]:
    problems = []
    if not spec.symmetric or spec.middle:
        problems.append(f"{spec}: pytorch-quantization has only symmetric ranges with a zero point of 0")
    if spec.is_float8:
        problems.append(f"{spec}: pytorch-quantization has only integers")
    if not isinstance(spec.granularity, PerTensor | PerAxis):
        problems.append(f"{spec}: pytorch-quantization has no granularity {spec.granularity}")
    if spec.learned_scale:
        problems.append(f"{spec}: pytorch-quantization has no trained scales")
    if not ours.is_calibrated:
        problems.append("not calibrated")
    if spec.axis is not None and not spec.dynamic and weight is None:
        problems.append(f"{spec}: the number of axes of its tensor is unknown")
    return problems
