"""Write the same build as a command line of NVIDIA's tools trtexec and polygraphy."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from exporters.tensorrt.build import HARDWARE, BuildOptions
from exporters.tensorrt.profiles import format_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from exporters.tensorrt.profiles import Profile

__all__ = ["format_command", "polygraphy_command", "trtexec_command"]

_TRTEXEC_HARDWARE = {"ampere-plus": "ampere+", "same-compute-capability": "sameComputeCapability"}


def trtexec_command(
    model: Path, output: Path, profiles: Sequence[Profile], options: BuildOptions | None = None
) -> list[str]:
    """Return the ``trtexec`` command, 10.13 to 11.x, that builds the same engine and writes its layers beside it.

    Args:
        model: The ONNX file.
        output: The plan.
        profiles: The optimization profiles, in order.
        options: Options of the build, the default ones if None.
    """
    options = options or BuildOptions()
    line = ["trtexec", f"--onnx={model}", "--stronglyTyped", f"--saveEngine={output}"]
    for index, profile in enumerate(profiles):
        if len(profiles) > 1:
            line.append(f"--profile={index}")
        line += [
            f"--minShapes={format_shapes(profile.min)}",
            f"--optShapes={format_shapes(profile.opt)}",
            f"--maxShapes={format_shapes(profile.max)}",
        ]
    if options.workspace_mb is not None:
        line.append(f"--memPoolSize=workspace:{options.workspace_mb}")
    if options.optimization_level is not None:
        line.append(f"--builderOptimizationLevel={options.optimization_level}")
    if options.timing_cache is not None:
        line.append(f"--timingCacheFile={options.timing_cache}")
    if options.hardware != "none":
        line.append(f"--hardwareCompatibilityLevel={_TRTEXEC_HARDWARE[options.hardware]}")
    if options.version_compatible:
        line.append("--versionCompatible")
    if options.refit or options.strip:
        line.append("--refit")
    if options.strip:
        line.append("--stripWeights")
    if not options.tf32:
        line.append("--noTF32")
    return [*line, "--profilingVerbosity=detailed", f"--exportLayerInfo={output}.layers.json", "--skipInference"]


def polygraphy_command(
    model: Path,
    output: Path,
    profiles: Sequence[Profile],
    options: BuildOptions | None = None,
    *,
    highest: Mapping[str, int] | None = None,
) -> list[str]:
    """Return the ``polygraphy`` command that builds the same engine and compares it with ONNX Runtime.

    Single values of quantized outputs differ when a value rounds to the other neighbor, so polygraphy compares the
    mean of the differences.

    Args:
        model: The ONNX file.
        output: The plan.
        profiles: The optimization profiles, in order.
        options: Options of the build, the default ones if None.
        highest: Largest value of an input, by name; 0 for inputs without an entry. The mask is always 1.
    """
    options = options or BuildOptions()
    line = ["polygraphy", "run", str(model), "--onnxrt", "--trt", "--strongly-typed"]
    for profile in profiles:
        for bound in ("min", "opt", "max"):
            line += [f"--trt-{bound}-shapes", *_shapes(getattr(profile, bound))]
    if options.workspace_mb is not None:
        line += ["--pool-limit", f"workspace:{options.workspace_mb}M"]
    if options.optimization_level is not None:
        line += ["--builder-optimization-level", str(options.optimization_level)]
    if options.timing_cache is not None:
        line += ["--load-timing-cache", str(options.timing_cache), "--save-timing-cache", str(options.timing_cache)]
    if options.hardware != "none":
        line += ["--hardware-compatibility-level", HARDWARE[options.hardware].lower()]
    switches = {
        "--version-compatible": options.version_compatible,
        "--refittable": options.refit or options.strip,
        "--strip-plan": options.strip,
        "--tf32": options.tf32,
    }
    line += [switch for switch, wanted in switches.items() if wanted]
    line += ["--save-engine", str(output)]
    shapes = profiles[0].opt if profiles else {}
    line += ["--input-shapes", *_shapes(shapes)]
    line += ["--val-range", *(f"{name}:{_range(name, highest or {})}" for name in shapes)]
    line += ["--seed", "42", "--check-error-stat", "mean", "--atol", "1e-2", "--rtol", "1e-2", "--validate"]
    return line


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [f"{name}:[{','.join(map(str, shape))}]" for name, shape in shapes.items()]


def _range(name: str, highest: Mapping[str, int]) -> str:
    if name == "attention_mask":
        return "[1,1]"
    return f"[0,{highest.get(name, 0)}]"


def format_command(line: Sequence[str]) -> str:
    """Format a command for a shell, one option per line."""
    rows: list[list[str]] = [[]]
    for word in line:
        if word.startswith("--"):
            rows.append([])
        rows[-1].append(word)
    return " \\\n    ".join(shlex.join(row) for row in rows if row)
