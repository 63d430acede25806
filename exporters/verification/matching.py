"""Match the quantizers and outputs of a file with those of the checkpoint."""

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
    """Return the call of a quantizer that belongs to each cut. Cuts without a quantizer in ``model`` are left out.

    A module that is called several times may have several names, and the file uses them all. So calls are counted in
    graph order.
    """
    found: dict[Cut, Call] = {}
    calls: Counter[Quantizer] = Counter()
    for cut in cuts:
        try:
            module = model.get_submodule(cut.slot)
        except AttributeError:
            continue
        if isinstance(module, Quantizer):
            found[cut] = module, calls[module]
            calls[module] += 1
    return found


def quantizer_problems(model: nn.Module, cuts: Sequence[Cut], recorded: Mapping[Call, RecordedTensor]) -> list[str]:
    """Return why the file cannot be compared with the checkpoint segment by segment.

    Case 1: The file lacks a quantizer. Two equal quantizers of the same tensor may be one in the file.
    Case 2: The file has a quantizer that the checkpoint does not have.
    Case 3: A quantizer has another zero point. The file may store int8 as uint8, shifted by 128.
    """
    if recorded and not cuts:
        return ["the checkpoint is quantized, but the file has no quantizers"]  # case 1, all of them
    calls = calls_of(model, cuts)
    present = {call: cut for cut, call in calls.items() if call in recorded}
    names = {quantizer: name for name, quantizer in quantizers(model)}
    problems = [
        f"{names[call[0]]}: the checkpoint quantizes here, the file does not"  # case 1
        for call in recorded
        if not any(call == other or _is_same(recorded[call], recorded[other]) for other in present)
    ]
    problems += [
        f"{cut.slot}: the file quantizes here, the checkpoint does not"  # case 2
        for cut in cuts
        if calls.get(cut) not in present
    ]
    # A wrong zero point would make every integer of the segment differ, which says less than one line here.
    for call, cut in present.items():
        assert call[0].spec is not None
        shift = 128 if call[0].spec.signed and cut.dtype == np.uint8 else 0
        expected = int(recorded[call].zero_point.flat[0])  # a constant zero point is the same for all tokens
        if cut.zero_point is not None and cut.zero_point - shift != expected:  # case 3
            problems.append(
                f"{cut.slot}: the zero point is {cut.zero_point - shift} in the file, {expected} in the checkpoint"
            )
    return problems


def output_problems(outputs: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> list[str]:
    """Return the outputs that only the checkpoint or only the file has, or that differ in shape."""
    problems = []
    for name in dict.fromkeys((*outputs, *found)):
        ours, theirs = (tuple(side[name].shape) if name in side else None for side in (outputs, found))
        if ours != theirs:
            problems.append(
                f"{name}: the shape is {theirs} in the file, {ours} in the checkpoint (None: no such output)"
            )
    return problems


def _is_same(ours: RecordedTensor, theirs: RecordedTensor) -> bool:
    """Return whether both quantizers saw the same tensor and have the same parameters."""
    return (
        np.array_equal(ours.scale, theirs.scale)
        and np.array_equal(ours.zero_point, theirs.zero_point)
        and np.array_equal(ours.q, theirs.q)
    )
