"""Polygraphy, NVIDIA's own tool, on our files."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from exporters.tensorrt.backend import Backend
    from tests.exporters.tensorrt.conftest import BuiltEngine


def polygraphy(*arguments: Any) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec("polygraphy") is None:
        pytest.skip("needs polygraphy: pip install polygraphy")
    tool = Path(sys.executable).with_name("polygraphy")
    command = [str(tool), *map(str, arguments)]
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_its_lint_finds_nothing(small_model: Path, tmp_path: Path) -> None:
    shapes = [f"{name}:[2,8]" for name in ("input_ids", "attention_mask", "token_type_ids")]
    done = polygraphy("check", "lint", small_model, "-o", tmp_path / "report.json", "--input-shapes", *shapes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'level': 'exception'" not in done.stdout


def test_it_calls_everything_supported(small_model: Path, rtx: Backend, tmp_path: Path) -> None:
    done = polygraphy("inspect", "capability", small_model, "-o", tmp_path / "capability")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Graph is fully supported by TensorRT" in done.stdout


def test_it_builds_the_same_engine(small_model: Path, built_engine: BuiltEngine, tmp_path: Path) -> None:
    engine, _ = built_engine
    (profile,) = engine.profiles
    shapes = []
    for bound in ("min", "opt", "max"):
        shapes += [f"--trt-{bound}-shapes"]
        shapes += [f"{name}:[{','.join(map(str, shape))}]" for name, shape in getattr(profile, bound).items()]
    done = polygraphy("convert", small_model, "-o", tmp_path / "m.plan", "--strongly-typed", *shapes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "m.plan").stat().st_size == pytest.approx(engine.plan_bytes, rel=0.05)
