"""Command lines of NVIDIA's tools; that polygraphy takes them is tested with the command that prints them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from exporters.tensorrt.build import BuildOptions
from exporters.tensorrt.commands import format_command, polygraphy_command, trtexec_command
from exporters.tensorrt.profiles import parse_profiles

INPUTS = {"input_ids": ("batch", "seq"), "attention_mask": ("batch", "seq")}
ONE = parse_profiles(INPUTS, ["1x1"], ["2x8"], ["4x16"])
TWO = parse_profiles(INPUTS, ["1x1", "1x8"], ["2x8", "4x32"], ["4x16", "8x64"])
MODEL, PLAN = Path("a folder/model.onnx"), Path("m.plan")


def test_each_profile_has_its_number_and_its_shapes() -> None:
    line = trtexec_command(MODEL, PLAN, TWO)
    first, second = line.index("--profile=0"), line.index("--profile=1")
    assert first < line.index("--maxShapes=input_ids:4x16,attention_mask:4x16") < second
    assert line[second + 1] == "--minShapes=input_ids:1x8,attention_mask:1x8"
    assert "--profile=0" not in trtexec_command(MODEL, PLAN, ONE)
    assert polygraphy_command(MODEL, PLAN, TWO).count("--trt-opt-shapes") == 2


@pytest.mark.parametrize(
    ("options", "trtexec", "polygraphy"),
    [
        ({"timing_cache": Path("t.cache")}, "--timingCacheFile=t.cache", "--load-timing-cache t.cache"),
        ({"optimization_level": 5}, "--builderOptimizationLevel=5", "--builder-optimization-level 5"),
        ({"hardware": "ampere-plus"}, "--hardwareCompatibilityLevel=ampere+", "compatibility-level ampere_plus"),
        ({"version_compatible": True}, "--versionCompatible", "--version-compatible"),
        ({"refit": True}, "--refit", "--refittable"),
        ({"strip": True}, "--refit --stripWeights", "--refittable --strip-plan"),
        ({"workspace_mb": 64}, "--memPoolSize=workspace:64", "--pool-limit workspace:64M"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_have_their_spelling_in_both(options: dict[str, object], trtexec: str, polygraphy: str) -> None:
    chosen = BuildOptions(**options)  # type: ignore[arg-type]
    assert trtexec in " ".join(trtexec_command(MODEL, PLAN, ONE, chosen))
    assert polygraphy in " ".join(polygraphy_command(MODEL, PLAN, ONE, chosen))


def test_tf32_is_off_unless_asked_for() -> None:
    assert "--noTF32" in trtexec_command(MODEL, PLAN, ONE)
    assert "--tf32" not in polygraphy_command(MODEL, PLAN, ONE)
    asked = BuildOptions(tf32=True)
    assert "--noTF32" not in trtexec_command(MODEL, PLAN, ONE, asked)
    assert "--tf32" in polygraphy_command(MODEL, PLAN, ONE, asked)


def test_what_is_shown_is_what_a_shell_reads_back() -> None:
    for line in (trtexec_command(MODEL, PLAN, TWO), polygraphy_command(MODEL, PLAN, TWO)):
        assert shlex.split(format_command(line).replace("\\\n", " ")) == line


def test_the_mask_is_all_ones_and_ids_are_below_the_vocabulary() -> None:
    line = polygraphy_command(MODEL, PLAN, ONE, highest={"input_ids": 30521})
    at = line.index("--val-range")
    assert line[at + 1 : at + 3] == ["input_ids:[0,30521]", "attention_mask:[1,1]"]
