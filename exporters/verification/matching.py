"""Whether file and checkpoint have the same quantizers and outputs, and which cut is which quantizer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from qdq.quantization.quantizer import Quantizer, quantizers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import nn

    from exporters.onnx.segments import Cut
    from exporters.verification.recording import Call, RecordedTensor

__all__ = ["calls_of", "output_problems", "quantizer_problems"]


def calls_of(model: nn.Module, cuts: Iterable[Cut]) -> dict[Cut, Call]:
    """For every cut at a quantizer that the checkpoint has: that quantizer, and which of its calls it is.

    A module may have several names, and the file those of its calls; the order is that of the graph.
    """
    found: dict[Cut, Call] = {}
    calls: Counter[Quantizer] = Counter()
    for piece in cuts:
        try:
            module = model.get_submodule(piece.slot)
        except AttributeError:
            continue
        if isinstance(module, Quantizer):
            found[piece] = module, calls[module]
            calls[module] += 1
    return found


def quantizer_problems(model: nn.Module, cuts: Sequence[Cut], recorded: Mapping[Call, RecordedTensor]) -> list[str]:
    """What keeps the file from being compared with the checkpoint piece by piece.

    Case 1: it lacks a quantizer. Two of the checkpoint that read one tensor on one grid may be one in the file.
    Case 2: it has a quantizer that the checkpoint has not.
    Case 3: a quantizer has another zero point; int8 may be held as uint8, shifted by 128.
    """
    if recorded and not cuts:
        return ["the checkpoint is quantized, but the file has no quantizers"]  # case 1, all of them
    calls = calls_of(model, cuts)
    present = {call: piece for piece, call in calls.items() if call in recorded}
    names = {quantizer: name for name, quantizer in quantizers(model)}
    problems = [
        f"{names[call[0]]}: the checkpoint quantizes here, the file does not"  # case 1
        for call in recorded
        if not any(call == other or _is_same(recorded[call], recorded[other]) for other in present)
    ]
    problems += [
        f"{piece.slot}: the file quantizes here, the checkpoint does not"  # case 2
        for piece in cuts
        if calls.get(piece) not in present
    ]
    for call, piece in present.items():
        assert call[0].spec is not None
        shift = 128 if call[0].spec.signed and piece.dtype == np.uint8 else 0
        expected = int(recorded[call].zero_point.flat[0])  # tokens, too, have one for all where the file has a constant
        if piece.zero_point is not None and piece.zero_point - shift != expected:  # case 3
            problems.append(
                f"{piece.slot}: the zero point is {piece.zero_point - shift} in the file, {expected} in the checkpoint"
            )
    return problems


def output_problems(outputs: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> list[str]:
    """Outputs of the checkpoint or the file that the other has not, or in another shape."""
    problems = []
    for name in dict.fromkeys((*outputs, *found)):
        ours, theirs = (tuple(side[name].shape) if name in side else None for side in (outputs, found))
        if ours != theirs:
            problems.append(
                f"{name}: the shape is {theirs} in the file, {ours} in the checkpoint (None: no such output)"
            )
    return problems


def _is_same(ours: RecordedTensor, theirs: RecordedTensor) -> bool:
    """Whether both put the same tensor on the same grid."""
    return (
        np.array_equal(ours.scale, theirs.scale)
        and np.array_equal(ours.zero_point, theirs.zero_point)
        and np.array_equal(ours.q, theirs.q)
    )
