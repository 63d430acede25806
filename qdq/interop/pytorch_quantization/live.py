"""Modules of pytorch-quantization that are held in memory: to ours, and back."""

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
# Of the process that made the configuration, not of the model.
_PASSING = ("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version")


def from_live(module: nn.Module) -> nn.Module:
    """``module`` with our QuantLinear for every QuantLinear of pytorch-quantization, and our Quantizer for every other
    TensorQuantizer.

    In place, sharing the Parameters; bits, sign, narrow range, axis and range are kept, a range that is not there is
    dynamic. A quantizer that is disabled, or whose quantization is, becomes one that passes its input on, and keeps its
    range. A subclass of ``nn.Linear`` that holds both quantizers counts as a QuantLinear.

    A model of transformers' QDQBERT is not changed: a model of ours that computes the same is returned, with the very
    same weights in memory.

    Raises:
        RecipeError: for quantizers that have no counterpart, all of them at once: several axes, an axis for the input
            of a linear layer, learn_amax, scale_amax, if_clip, if_calib, integers as results (fake_quant false), more
            than 8 bits, or a range that is negative or not finite. ``module`` is then as it was.
        ConfigError: for a QDQBERT whose configuration or class we cannot follow.
        MissingPackageError: pytorch-quantization is not installed.
    """
    toolkit = _toolkit()
    if getattr(getattr(module, "config", None), "model_type", None) == "qdqbert":
        return _from_qdqbert(module, toolkit)
    return _replace_all(module, lambda part: _to_ours(part, toolkit), RecipeError)


def to_live(module: nn.Module) -> nn.Module:
    """``module`` with QuantLinear and TensorQuantizer of pytorch-quantization for ours: the way back.

    In place, sharing the Parameters. Slots without spec become disabled quantizers. A whole QDQBERT goes back as a
    checkpoint, see :func:`qdq.interop.pytorch_quantization.save`.

    Raises:
        ExportError: for what pytorch-quantization cannot express, all of it at once: affine, in groups, per token,
            learned or uncalibrated, and quantized additions, products of activations or tables. ``module`` is then as
            it was.
        MissingPackageError: pytorch-quantization is not installed.
    """
    toolkit = _toolkit()
    return _replace_all(module, lambda part: _to_theirs(part, toolkit), ExportError)


def _toolkit() -> Any:
    try:
        import pytorch_quantization.nn as toolkit
    except ImportError as error:
        purpose = "converting modules of pytorch-quantization"
        raise MissingPackageError(_ARITHMETIC, extra=_ARITHMETIC, purpose=purpose) from error
    return toolkit


class _UnlikeError(Exception):
    """A module that has no counterpart, for the reasons that it carries."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems


def _replace_all(
    module: nn.Module,
    convert: Callable[[nn.Module], nn.Module | None],
    error: type[RecipeError | ExportError],
) -> nn.Module:
    """Put the counterpart, where ``convert`` has one, in place of each module; none when a single one is refused."""
    made: dict[int, nn.Module] = {}
    replaced: dict[str, nn.Module] = {}
    problems: list[str] = []
    for name, part in module.named_modules(remove_duplicate=False):
        if name.startswith(tuple(f"{outer}." for outer in replaced)) or (name and "" in replaced):
            continue  # inside one that is replaced as a whole
        try:
            new = made.get(id(part)) or convert(part)
        except _UnlikeError as unlike:
            problems += [f"{name or type(part).__name__}: {problem}" for problem in unlike.problems]
            new = part
        if new is not None:
            made[id(part)] = replaced[name] = new
    if problems:
        raise error(describe_problems(type(module).__name__, problems))
    for name, new in replaced.items():
        if name:
            module.set_submodule(name, new)
    return replaced.get("", module)


# --- from theirs ---


def _to_ours(part: nn.Module, toolkit: Any) -> nn.Module | None:
    if isinstance(part, toolkit.TensorQuantizer):
        return _quantizer(*_read(part))
    own = [getattr(part, f"_{slot}_quantizer", None) for slot in QuantLinear.slots]
    if not isinstance(part, nn.Linear) or not all(isinstance(q, toolkit.TensorQuantizer) for q in own):
        return None
    linear, problems = QuantLinear.from_float(part), []
    for slot, quantizer in zip(QuantLinear.slots, own, strict=True):
        weight = part.weight if slot == "weight" else None
        try:
            spec, amax = _read(quantizer, weight=weight, one_range=weight is None)
        except _UnlikeError as unlike:
            problems += [f"{slot}: {problem}" for problem in unlike.problems]
        else:
            linear.add_module(f"{slot}_quantizer", _quantizer(spec, amax))
    if problems:
        raise _UnlikeError(*problems)
    return linear


def _quantizer(spec: QuantSpec | None, amax: Tensor | None) -> Quantizer:
    """Our quantizer, switched on where it has something to do."""
    ours = Quantizer(spec, shape=() if amax is None else tuple(amax.shape))
    if amax is not None:
        ours.to(amax.device)
        ours.set_range(Range(-amax, amax, amax))
    ours.mode = Mode.OFF if spec is None else Mode.QUANTIZE
    return ours


def _read(
    theirs: Any, *, weight: Tensor | None = None, one_range: bool = False
) -> tuple[QuantSpec | None, Tensor | None]:
    """Spec and range of a TensorQuantizer; no spec when it passes its input on, no range when that is dynamic.

    Args:
        theirs: the quantizer.
        weight: what it quantizes, where that is known.
        one_range: whether it may have no axis.

    Raises:
        _UnlikeError: it has no counterpart.
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
            narrow_range=bool(theirs._narrow_range and not theirs._unsigned),  # which it leaves out of account
            granularity=PerTensor() if axis is None else PerAxis(axis),
            dynamic=amax is None,
            arithmetic=_ARITHMETIC,
        )
    except RecipeError as error:
        problems.append(str(error))
    if problems:
        raise _UnlikeError(*problems)
    return spec, None if amax is None else amax.detach().float().reshape([] if axis is None else [-1])


def _axis_of(amax: Tensor) -> int | tuple[int, ...] | None:
    """The axes that keep ranges of their own, from the shape; what the descriptor says no longer counts."""
    axes = tuple(index for index, size in enumerate(amax.shape) if size != 1)
    return axes if len(axes) > 1 else next(iter(axes), None)


def _from_qdqbert(module: Any, toolkit: Any) -> Model:
    """Our QDQBERT with the weights of a live one, its quantizers one by one."""
    values = {name: value for name, value in module.config.to_dict().items() if name not in _PASSING}
    name = type(module).__name__
    model = construct(configure("qdqbert", **values, architectures=[name]))
    if isinstance(model, EncoderModel) and getattr(module, "pooler", model) is None:
        model.pooler = None
    weights = {key: tensor for key, tensor in module.state_dict().items() if not is_quantizer_key(key)}
    load_weights(model, weights, source=name, dtype=next(module.parameters()).dtype)
    wrap(model)
    prefix = prefix_of(model)
    known = {f"{prefix}{place}": slot for slot, place in qdqbert_names(model).items()}
    specs: dict[Slot, QuantSpec | None] = dict.fromkeys(slots(model))
    amax: dict[Slot, Tensor] = {}
    problems: list[str] = []
    for path, part in module.named_modules():
        if not isinstance(part, toolkit.TensorQuantizer):
            continue
        slot = known.get(path)
        if slot is None:
            problems.append(f"{path}: QDQBERT has no such quantizer")
            continue
        weight = model.get_parameter(f"{slot.module}.weight") if slot.name == "weight" else None
        try:
            specs[slot], range_ = _read(part, weight=weight, one_range=weight is None)
        except _UnlikeError as unlike:
            problems += [f"{path}: {problem}" for problem in unlike.problems]
            continue
        if range_ is not None:
            amax[slot] = range_
    if problems:
        raise RecipeError(describe_problems(name, problems))
    apply_amax(model, specs, amax, source=name)
    return model.train(module.training)


# --- to theirs ---


def _to_theirs(part: nn.Module, toolkit: Any) -> nn.Module | None:
    if isinstance(part, Quantizer):
        return _tensor_quantizer(part, toolkit)
    if not isinstance(part, tuple(WRAPPED.values())):
        return None
    if not isinstance(part, QuantLinear):
        if all(quantizer.spec is None for _, quantizer in quantizers(part)):
            return part
        raise _UnlikeError(f"pytorch-quantization has no counterpart of a quantized {type(part).__name__}")
    pair, problems = {}, []
    for slot in part.slots:
        try:
            quantizer = getattr(part, f"{slot}_quantizer")
            pair[slot] = _tensor_quantizer(quantizer, toolkit, weight=part.weight if slot == "weight" else None)
        except _UnlikeError as unlike:
            problems += [f"{slot}: {problem}" for problem in unlike.problems]
    if problems:
        raise _UnlikeError(*problems)
    linear = toolkit.QuantLinear(1, 1, bias=part.bias is not None)
    linear.in_features, linear.out_features = part.in_features, part.out_features
    linear.weight, linear.bias = part.weight, part.bias
    linear._input_quantizer, linear._weight_quantizer = pair["input"], pair["weight"]
    assert isinstance(linear, nn.Linear)
    return linear.train(part.training)


def _tensor_quantizer(ours: Quantizer, toolkit: Any, *, weight: Tensor | None = None) -> nn.Module:
    from pytorch_quantization.tensor_quant import QuantDescriptor

    spec, amax = ours.spec, None
    if spec is None:
        quantizer = toolkit.TensorQuantizer(QuantDescriptor(), disabled=True)
        amax = None if ours.range is None else ours.range.amax.reshape(())
    else:
        if problems := _inexpressible(ours, spec, weight):
            raise _UnlikeError(*problems)
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
        problems.append(f"{spec}: pytorch-quantization knows symmetric ranges around a zero point of 0")
    if spec.is_float8:
        problems.append(f"{spec}: integers alone are exchanged with pytorch-quantization")
    if not isinstance(spec.granularity, PerTensor | PerAxis):
        problems.append(f"{spec}: pytorch-quantization has no granularity {spec.granularity}")
    if spec.learned_scale:
        problems.append(f"{spec}: a trained scale has no counterpart")
    if not ours.is_calibrated:
        problems.append("not calibrated")
    if spec.axis is not None and not spec.dynamic and weight is None:
        problems.append(f"{spec}: whose tensor has an unknown number of axes")
    return problems
