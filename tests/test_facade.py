from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.metadata import version

import pytest

import qdq

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


def test_all_is_sorted_and_complete() -> None:
    assert qdq.__all__ == sorted(qdq.__all__)
    assert len(set(qdq.__all__)) == len(qdq.__all__)
    assert set(qdq.__all__) == set(qdq._HOMES)


@pytest.mark.parametrize("name", qdq.__all__)
def test_name_resolves_to_the_object_of_its_module(name: str) -> None:
    value = getattr(qdq, name)
    assert callable(value)
    assert value is getattr(import_module(qdq._HOMES[name]), name)
    assert value.__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'qdq' has no attribute 'quantise'"):
        qdq.quantise  # noqa: B018
    assert not hasattr(qdq, "__wrapped__")


def test_dir_lists_everything() -> None:
    assert set(qdq.__all__) <= set(dir(qdq))


def test_version_is_that_of_the_distribution() -> None:
    assert qdq.__version__ == version("qdq")


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(*sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "code", ["import qdq", "import qdq.errors", "import qdq.quantization.spec", "import qdq; dir(qdq); qdq.QuantSpec()"]
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
