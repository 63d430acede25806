"""Smooth activations: shift and scale their channels, so that outlier channels cost the others no resolution.

Encoders have a few channels that are a hundred times larger than the others, so that one scale for all channels leaves
the others a handful of steps. A channel's size can be moved into the weights that read it, exactly:
``x W = (x / s) (s W)``.

1. The input of linear layers: the activation is multiplied by ``1 / s``, every weight that reads it by ``s``. Export
   folds the smoothing scale into a norm that nothing else reads (pre-norm); otherwise it costs one multiplication by a
   vector.
2. The input of attention's output projection: the rows of the value projection are multiplied by ``1 / s``, the
   columns of the output projection by ``s``. Attention weights mix positions and never channels, so this costs nothing.
   If the values are quantized too, ``s`` is computed from their sizes, since attention only averages them.
3. ``shift`` moves the midpoint of each channel to zero, and biases add it back. It is for outputs of a LayerNorm, where
   a residual addition that reads the same LayerNorm (post-norm) gets the same shift, so that export can fold it into
   the norm; and for outputs of an activation function with symmetric integers, because these outputs are not symmetric.

A weight that several depths share (ALBERT) has one ``s``, for all depths together. The memory of cross-attention comes
from outside the encoder and is not changed.

Source: SmoothQuant (Xiao et al. 2022, arXiv 2211.10438); Outlier Suppression+ (Wei et al. 2023, arXiv 2304.09145).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from calibration.distributed import SINGLE_PROCESS
from calibration.statistics.channels import channel_ranges
from qdq.errors import CalibrationError
from qdq.quantization.graph import QuantizedRead, quantized_reads
from qdq.quantization.modules.weight import set_weight_scale
from qdq.quantization.transform import Transform
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from calibration.distributed import ProcessRank
    from calibration.resume_file import ResumeFile
    from qdq.quantization.quantizer import Quantizer

__all__ = ["check_strength", "smooth"]

_MIN_MAGNITUDE = 1e-5  # for channels that are hardly used, whose smoothing scale would become huge

_Bounds = tuple["Tensor", "Tensor"]


def check_strength(strength: float) -> None:
    """Check the strength of smoothing.

    Raises:
        CalibrationError: It is not between 0 and 1.
    """
    if not 0 <= strength <= 1:
        raise CalibrationError(
            f"the strength of smoothing is {strength}, must be from 0 (for even weights) to 1 (for even activations)"
        )


def smooth(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    strength: float | None = 0.9,
    shift: bool = True,
    process: ProcessRank = SINGLE_PROCESS,
    progress: Callable[[int], object] | None = None,
    resume_file: ResumeFile | None = None,
) -> list[str]:
    """Set the transforms of a wrapped model in place. Its ranges have to be calibrated afterwards.

    Inputs that are not quantized, or quantized dynamically, are not changed.

    Args:
        model: A model wrapped by ``qdq.quantize``, without transforms.
        batches: Keyword arguments of the model, as for :func:`calibration.calibrate`. One pass finds the extremes of
            every channel.
        strength: ``a`` in ``s = max|x| ** a / max|w| ** (1 - a)``, for each channel. None does not scale channels.
        shift: Whether to shift channels.
        process: Which of several processes this one is, and thereby which batches are its own.
        progress: Called with the number of finished batches.
        resume_file: Stores the extremes, so that an interrupted run can be continued.

    Returns:
        The names of the first linear layers that read each changed input.

    Raises:
        CalibrationError: The strength is out of range, there is no data, or values are NaN or infinite.
    """
    if strength is not None:
        check_strength(strength)
    groups = _groups(model)
    # Channels of the values are observed under a name of their own, if they are quantized.
    wanted = {
        quantizer: name
        for group in groups
        for read in group
        for name, quantizer in zip((read.name, f"{read.name} (values)"), _observed_quantizers(read), strict=False)
    }
    if not wanted or (strength is None and not shift):
        return []
    bounds = channel_ranges(model, batches, wanted, process=process, progress=progress, resume_file=resume_file)
    for group in groups:
        shifts = [_midpoint(bounds[_input(read)]) if shift and _can_shift(read) else None for read in group]
        scales = None
        if strength is not None:
            # One ``s`` for the group: the largest size that a channel has at any of its depths.
            sizes = [_size(bounds[_observed_quantizers(read)[-1]], z) for read, z in zip(group, shifts, strict=True)]
            scales = _scales(torch.stack(sizes).amax(0), _weight_sizes(group), strength)
        for read, z in zip(group, shifts, strict=True):
            _set_transforms(read, z, scales)
    _set_weight_scales(groups)
    return [read.name for group in groups for read in group]


def _groups(model: nn.Module) -> list[list[QuantizedRead]]:
    """Return the inputs that can be transformed, in groups that the same weights read."""
    users: dict[int, int] = {}  # how many layers of the whole model, heads included, read a weight
    for slot, _ in named_slots(model):
        if slot.name == "weight":
            weight = id(model.get_submodule(slot.module).weight)
            users[weight] = users.get(weight, 0) + 1
    groups: dict[tuple[int, ...], list[QuantizedRead]] = {}
    for read in quantized_reads(model):
        spec = _input(read).spec
        if spec is not None and not spec.dynamic:
            groups.setdefault(tuple(id(linear.weight) for linear in read.linears), []).append(read)
    # A weight that something else uses as well has to stay the same.
    exclusive = (group for weights, group in groups.items() if all(users[weight] == len(group) for weight in weights))
    return [group for group in exclusive if all(map(_has_known_origin, group))]


def _has_known_origin(read: QuantizedRead) -> bool:
    """Return whether the module that computes the tensor is known."""
    return any(maker is not None for maker in (read.norm, read.value, read.activation, read.source))


def _input(read: QuantizedRead) -> Quantizer:
    return read.linears[0].input_quantizer


def _observed_quantizers(read: QuantizedRead) -> list[Quantizer]:
    """Return the quantizers whose channels are observed: the first for the shift, the last for the sizes."""
    values = [] if read.context is None else [read.context.other_quantizer]
    return [_input(read), *(quantizer for quantizer in values if quantizer.spec is not None)]


def _can_shift(read: QuantizedRead) -> bool:
    """Return whether case 3 applies."""
    spec = _input(read).spec
    assert spec is not None
    if read.norm is not None:
        return getattr(read.norm, "bias", None) is not None  # an RMSNorm cannot absorb a shift
    return read.activation is not None and spec.symmetric and spec.signed


def _midpoint(bounds: _Bounds) -> Tensor:
    return (bounds[0] + bounds[1]) / 2


def _size(bounds: _Bounds, shift: Tensor | None) -> Tensor:
    """Return the largest magnitude of every channel after the shift, ``(channels,)``."""
    lower, upper = bounds if shift is None else (bounds[0] - shift, bounds[1] - shift)
    return torch.maximum(lower.abs(), upper.abs())


def _weight_sizes(group: Sequence[QuantizedRead]) -> Tensor:
    """Return the largest magnitude of the weights that read every channel, ``(channels,)``."""
    weights = [linear.weight.detach().float().abs().amax(0) for linear in group[0].linears]
    return torch.stack(weights).amax(0)


def _scales(activations: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return ``s``, ``(channels,)``, with a geometric mean of 1, which keeps the overall size of the tensor."""
    sizes, weight_sizes = activations.clamp(min=_MIN_MAGNITUDE), weights.clamp(min=_MIN_MAGNITUDE)
    log = sizes.log() * strength - weight_sizes.log() * (1 - strength)
    return (log - log.mean()).exp()


def _set_transforms(read: QuantizedRead, shift: Tensor | None, scales: Tensor | None) -> None:
    if read.value is not None and scales is not None:  # case 2
        _extend_transform(read.value.weight_quantizer, row_scale=1 / scales)
    elif shift is not None or scales is not None:  # cases 1 and 3
        transform = Transform(shift=shift, smoothing_scale=None if scales is None else 1 / scales)
        for linear in read.linears:
            linear.input_quantizer.transform = transform
        if read.add is not None and shift is not None:
            read.add.other_quantizer.transform = Transform(shift=shift)
    if scales is not None:
        for linear in read.linears:
            _extend_transform(linear.weight_quantizer, smoothing_scale=scales)


def _extend_transform(quantizer: Quantizer, **added: Tensor) -> None:
    """Add tensors to the transform of a weight, which may have one from another of the cases already."""
    known = quantizer.transform
    kept = {} if known is None else {name: getattr(known, name) for name in ("smoothing_scale", "row_scale")}
    quantizer.transform = Transform(**{**kept, **added})


def _set_weight_scales(groups: Iterable[Sequence[QuantizedRead]]) -> None:
    """Compute the scales of all weights that read a changed input, from the transformed weights."""
    for linear in (linear for group in groups for read in group for linear in read.linears):
        set_weight_scale(linear.weight_quantizer, linear.weight)
