"""Channel-wise shift and scale in front of quantizers, so that outlier channels cost the others no resolution.

Encoders have a few channels that are a hundred times larger than the rest, and one scale for all of them leaves the
rest a handful of steps. A channel's size can be moved into the weights that read it, exactly: ``x W = (x / s) (s W)``.

1. The input of linear layers: ``factor = 1 / s`` on the activation, ``s`` on every weight that reads it. Export folds
   the factor into a LayerNorm that nobody else reads (pre-norm), otherwise it costs one multiplication by a vector.
2. The input of attention's output projection: ``1 / s`` on the rows of the value projection, ``s`` on the columns of
   the output projection. The rows of softmax mix positions, never channels, so nothing is left to compute. Where the
   values are quantized too, their sizes decide: attention only averages them.
3. ``shift``: the channels' middles are moved to zero; biases take them back. For LayerNorm outputs, where a residual
   addition that reads the same LayerNorm (post-norm) is shifted likewise, so that export can fold it into the norm; and
   for what an activation function puts out, if its integers are symmetric, for it is not.

A weight that several depths share (ALBERT) has one ``s``, that of all depths together. The memory of cross attention
comes from elsewhere and is left alone.

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

_SMALLEST = 1e-5  # of a channel or a column that is hardly used, so that no factor explodes

_Bounds = tuple["Tensor", "Tensor"]


def check_strength(strength: float) -> None:
    """Refuse a share that is none.

    Raises:
        CalibrationError: when it does not lie between 0 and 1.
    """
    if not 0 <= strength <= 1:
        raise CalibrationError(
            f"the strength of smoothing is {strength}, must be from 0 (weights stay even) to 1 (activations do)"
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
    """Give the places of a wrapped model their transforms, in read; ranges are to be calibrated afterwards.

    Inputs whose input is not quantized, or with a range found in every call, are left alone.

    Args:
        model: wrapped by ``qdq.quantize``, without transforms so far.
        batches: as for :func:`calibration.calibrate`; one pass finds the extremes of every channel.
        strength: ``a`` in ``s = max|x| ** a / max|w| ** (1 - a)``, for each channel; None leaves the sizes alone.
        shift: whether LayerNorm outputs are centred.
        process: of several processes, which batches are for this one.
        progress: called with the number of batches done.
        resume_file: keeps the extremes on disk, and gives those of an interrupted run to go on from.

    Returns:
        The names of the inputs that were changed.

    Raises:
        CalibrationError: for a strength out of range, no data, or values that are NaN or infinite.
    """
    if strength is not None:
        check_strength(strength)
    groups = _groups(model)
    wanted = {
        quantizer: name
        for group in groups
        for read in group
        for name, quantizer in zip((read.name, f"{read.name} (values)"), _looked_at(read), strict=False)
    }
    if not wanted or (strength is None and not shift):
        return []
    bounds = channel_ranges(model, batches, wanted, process=process, progress=progress, resume_file=resume_file)
    for group in groups:
        shifts = [_middle(bounds[_input(read)]) if shift and _is_to_shift(read) else None for read in group]
        scales = None
        if strength is not None:
            sizes = [_size(bounds[_looked_at(read)[-1]], z) for read, z in zip(group, shifts, strict=True)]
            scales = _scales(torch.stack(sizes).amax(0), _columns(group), strength)
        for read, z in zip(group, shifts, strict=True):
            _assign(read, z, scales)
    _set_weight_scales(groups)
    return [read.name for group in groups for read in group]


def _groups(model: nn.Module) -> list[list[QuantizedRead]]:
    """Inputs that share weights, together; those that can be transformed."""
    users: dict[int, int] = {}
    for slot, _ in named_slots(model):
        if slot.name == "weight":
            weight = id(model.get_submodule(slot.module).weight)
            users[weight] = users.get(weight, 0) + 1
    groups: dict[tuple[int, ...], list[QuantizedRead]] = {}
    for read in quantized_reads(model):
        spec = _input(read).spec
        if spec is not None and not spec.dynamic:
            groups.setdefault(tuple(id(linear.weight) for linear in read.linears), []).append(read)
    # a weight that somebody else reads, too, has to stay as it is
    alone = (group for weights, group in groups.items() if all(users[weight] == len(group) for weight in weights))
    return [group for group in alone if all(map(_is_known, group))]


def _is_known(read: QuantizedRead) -> bool:
    """Whether it is known what puts the tensor out."""
    return any(maker is not None for maker in (read.norm, read.value, read.activation, read.source))


def _input(read: QuantizedRead) -> Quantizer:
    return read.linears[0].input_quantizer


def _looked_at(read: QuantizedRead) -> list[Quantizer]:
    """The quantizers whose channels count for a read; the last for their sizes."""
    values = [] if read.context is None else [read.context.other_quantizer]
    return [_input(read), *(quantizer for quantizer in values if quantizer.spec is not None)]


def _is_to_shift(read: QuantizedRead) -> bool:
    """Whether a read is of case 3."""
    spec = _input(read).spec
    assert spec is not None
    if read.norm is not None:
        return getattr(read.norm, "bias", None) is not None  # an RMSNorm cannot take the shift in
    return read.activation is not None and spec.symmetric and spec.signed


def _middle(bounds: _Bounds) -> Tensor:
    return (bounds[0] + bounds[1]) / 2


def _size(bounds: _Bounds, shift: Tensor | None) -> Tensor:
    lower, upper = bounds if shift is None else (bounds[0] - shift, bounds[1] - shift)
    return torch.maximum(lower.abs(), upper.abs())


def _columns(group: Sequence[QuantizedRead]) -> Tensor:
    """The largest magnitude that each input channel meets in the weights, ``(channels,)``."""
    weights = [linear.weight.detach().float().abs().amax(0) for linear in group[0].linears]
    return torch.stack(weights).amax(0)


def _scales(activations: Tensor, weights: Tensor, strength: float) -> Tensor:
    """``s``, with a geometric mean of 1."""
    log = activations.clamp(min=_SMALLEST).log() * strength - weights.clamp(min=_SMALLEST).log() * (1 - strength)
    return (log - log.mean()).exp()


def _assign(read: QuantizedRead, shift: Tensor | None, scales: Tensor | None) -> None:
    if read.value is not None and scales is not None:  # case 2
        _extend(read.value.weight_quantizer, rows=1 / scales)
    elif shift is not None or scales is not None:  # cases 1 and 3
        transform = Transform(shift=shift, factor=None if scales is None else 1 / scales)
        for linear in read.linears:
            linear.input_quantizer.transform = transform
        if read.add is not None and shift is not None:
            read.add.other_quantizer.transform = Transform(shift=shift)
    if scales is not None:
        for linear in read.linears:
            _extend(linear.weight_quantizer, factor=scales)


def _extend(quantizer: Quantizer, **parts: Tensor) -> None:
    """Add parts to the transform of a weight."""
    known = quantizer.transform
    kept = {} if known is None else {name: getattr(known, name) for name in ("factor", "rows")}
    quantizer.transform = Transform(**{**kept, **parts})


def _set_weight_scales(groups: Iterable[Sequence[QuantizedRead]]) -> None:
    for linear in (linear for group in groups for read in group for linear in read.linears):
        set_weight_scale(linear.weight_quantizer, linear.weight)
