"""Run a file and its repaired copy on the same inputs, and compare what they give."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.benchmark.inputs import make_inputs
from exporters.benchmark.shapes import accepted_shape, chosen_shapes
from exporters.runners import OnnxRuntimeRunner
from qdq.errors import QDQError, VerificationError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["LEAST_COSINE", "check_same_results"]

_LOG = logging.getLogger(__name__)

LEAST_COSINE = 0.9
"""A symmetric range has steps up to twice as wide, which alone leaves cosines above this."""

_ROWS, _LENGTH = 4, 16


def check_same_results(original: Path, repaired: Path, *, name: str) -> None:
    """Check that two files give the same outputs, up to wider steps, on made-up texts of which some are padded.

    A file that ONNX Runtime cannot run, such as one with operators of TensorRT, is not compared; a warning says so.

    Args:
        original: The file.
        repaired: Its repaired copy.
        name: Name of the file, for messages.

    Raises:
        VerificationError: The copy cannot be run, gives NaN or infinity where the original gives numbers, or other
            numbers. All outputs are listed.
    """
    try:
        accepted = accepted_shape(original)
        (shape,) = chosen_shapes({name: accepted}, None, None, default_batch_sizes=[_ROWS])
        length = shape.seq_len if accepted.seq_len is not None else min(shape.seq_len, _LENGTH)
        runner = OnnxRuntimeRunner(original, optimize=False)
        inputs = _padded(make_inputs(runner.inputs, shape.batch_size, length))
        expected = runner(inputs)
    except QDQError as error:
        _LOG.warning("%s: the repaired copy was not compared with it: %s", name, error)
        return
    try:
        found = OnnxRuntimeRunner(repaired, optimize=False)(inputs)
    except QDQError as error:
        why = str(error).removeprefix(f"{repaired}: ")
        raise VerificationError(f"{name}: the repaired copy cannot be run, so it is not written: {why}") from error
    problems = [line for output, array in expected.items() if (line := _difference(output, array, found[output]))]
    if problems:
        heading = f"{name}: the repaired copy computes something else, so it is not written"
        raise VerificationError(describe_problems(heading, problems))


def _padded(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Hide the second half of every other text."""
    masks = {name: array.copy() for name, array in inputs.items() if "mask" in name.lower() and array.ndim > 1}
    for mask in masks.values():
        mask[1::2, ..., mask.shape[-1] // 2 :] = 0
    return {**inputs, **masks}


def _difference(name: str, expected: NDArray[Any], found: NDArray[Any]) -> str | None:
    if expected.dtype.kind != "f" and expected.dtype.name != "bfloat16":
        return None
    if expected.shape != found.shape:
        return f"{name} has the shape {found.shape}, it was {expected.shape}"
    one, other = (array.astype(np.float64) for array in (expected, found))
    known = np.isfinite(one)
    broken = int((known & ~np.isfinite(other)).sum())
    if broken:
        return f"{name} has NaN or infinity in {broken} of {one.size} places"
    one, other = one[known], other[known]
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / norms if norms else float(np.allclose(one, other))
    return None if cosine >= LEAST_COSINE else f"{name} has a cosine of {cosine:.3f} to the original"
