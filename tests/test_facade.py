"""The public surface: what ``qdq`` and its packages offer, where it comes from, and that offering it loads nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import calibration
import exporters
import qdq
import qdq.calibration
import qdq.exporters
import qdq.training

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnx_ir",
    "onnxscript",
    "numpy",
    "yaml",
    "safetensors",
    "tokenizers",
    "transformers",
)
PACKAGES = ("qdq", "calibration", "exporters", "qdq.training")
HOMES = {
    **{("qdq", name): home for name, home in qdq._HOMES.items()},
    **{("calibration", name): f"calibration.{home}" for name, home in calibration._HOMES.items()},
    **{("exporters", name): f"exporters.{home}" for name, home in exporters._HOMES.items()},
    **{("qdq.training", name): f"qdq.training.{home}" for name, home in qdq.training._MODULES.items()},
}


def in_public_order(names: Sequence[str]) -> list[str]:
    """CONSTANTS, then Classes, then the rest, each by the alphabet; the order ruff keeps too."""
    return sorted(names, key=lambda n: (0 if n.isupper() and len(n) > 1 else 1 if n[0].isupper() else 2, n))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_surface_is_sorted_and_complete(package: str) -> None:
    module = import_module(package)
    names = module.__all__
    assert list(names) == in_public_order(names)
    assert len(set(names)) == len(names)
    homes = {name for where, name in HOMES if where == package}
    assert set(names) == homes | ({"calibration", "exporters", "training"} if package == "qdq" else set())
    assert set(names) <= set(dir(module))
    defined_here = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == package
    }
    assert defined_here == set()


@pytest.mark.parametrize(("package", "name"), HOMES, ids=".".join)
def test_a_name_is_the_object_of_its_module(package: str, name: str) -> None:
    value = getattr(import_module(package), name)
    assert callable(value)
    assert value is getattr(import_module(HOMES[package, name]), name)
    assert value.__name__ == name


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    module = import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'quantise'"):
        module.quantise  # noqa: B018
    assert not hasattr(module, "__wrapped__")


@pytest.mark.parametrize("package", [calibration, exporters])
def test_the_documented_spelling_is_the_same_package(package: ModuleType) -> None:
    name = package.__name__
    spelling = import_module(f"qdq.{name}")
    assert spelling is getattr(qdq, name)
    assert spelling.__all__ == package.__all__
    assert all(getattr(spelling, each) is getattr(package, each) for each in package.__all__)
    assert set(package.__all__) <= set(dir(spelling))


def test_every_package_says_that_it_is_typed() -> None:
    folders = [Path(package.__path__[0]) for package in (qdq, calibration, exporters)]
    assert [folder.name for folder in folders if not (folder / "py.typed").is_file()] == []


def test_version_is_that_of_the_distribution() -> None:
    assert qdq.__version__ == version("qdq")


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import qdq",
        "import qdq.errors",
        "import qdq.source",
        "import qdq.quantization.spec",
        "import qdq; dir(qdq); qdq.QuantSpec()",
        "import qdq.calibration; qdq.calibration.CalibrationSettings()",
        "import qdq; qdq.TrainingSettings(); qdq.AnalysisSettings(); qdq.BuildOptions()",
        "from qdq.exporters import ExportInterface",
        "import qdq.cli.main",
    ],
)
def test_import_is_light(code: str) -> None:
    assert not loaded_after(code) & set(HEAVY)


def test_names_are_loaded_one_by_one() -> None:
    loaded = loaded_after("import qdq; qdq.load_recipe('linear')")
    assert "yaml" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime"}
    loaded = loaded_after("import qdq; qdq.quantize")
    assert "torch" in loaded
    assert not loaded & {"onnx", "onnxruntime", "transformers"}


def test_a_former_name_still_works() -> None:
    with pytest.warns(DeprecationWarning, match=r"qdq\.Form is named qdq\.ExportInterface now"):
        assert qdq.Form is qdq.ExportInterface


# --- modules of the user with the names of our packages ---


@pytest.mark.parametrize("package", ["calibration", "exporters"])
def test_a_module_of_the_user_does_not_win_silently(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text("print('the user')\n")
    done = subprocess.run(
        [sys.executable, "-m", "qdq", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    file = tmp_path / f"{package}.py"
    told = f"{file} hides the package {package} of qdq: rename it, or start from another directory"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {told}\n")


def test_nor_does_it_in_a_script(tmp_path: Path) -> None:
    (tmp_path / "calibration.py").write_text("")
    (tmp_path / "script.py").write_text("import qdq\nqdq.calibrate\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"ImportError: {tmp_path / 'calibration.py'} hides the package calibration of qdq" in done.stderr
