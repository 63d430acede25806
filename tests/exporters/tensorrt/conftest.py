"""A small exported BERT, the defects that can be planted into it, and TensorRT-RTX if it is installed."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir as ir
import pytest

from exporters.onnx.export import export_onnx
from exporters.tensorrt.backend import Backend, find_backend, messages
from exporters.tensorrt.build import build
from exporters.tensorrt.onnx_file import OnnxFile, read_onnx_file
from exporters.tensorrt.profiles import Profile, default_profile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from exporters.tensorrt.build import BuildResult
    from tests.exporters.conftest import TinyModels

SMALL = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}


@pytest.fixture(scope="session")
def small_model(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a model with one layer, 64 wide, with two heads, for TensorRT; read only."""
    path = tmp_path_factory.mktemp("tensorrt") / "model.onnx"
    export_onnx(tiny_models.calibrated("tensorrt", **SMALL), path, target="tensorrt")
    return path


@pytest.fixture(scope="session")
def rtx() -> Backend:
    """Return TensorRT-RTX, which parses and builds on a machine without a GPU."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("needs TensorRT-RTX: pip install 'qdq[tensorrt-rtx]'")
    return find_backend("tensorrt-rtx")


BuiltEngine: TypeAlias = "tuple[BuildResult, Path]"
"""What was built, and the path of its plan."""


class DefectPlanter:
    """Plant defects into the small model, and let TensorRT read the result.

    Args:
        path: The small model.
        folder: Directory for the file with a defect.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder

    def planted(self, plant: Callable[[ir.Model], None]) -> OnnxFile:
        """Write the small model with a defect, and read it."""
        model = ir.load(self.path)
        plant(model)
        path = self.folder / "planted.onnx"
        ir.save(model, path)
        return read_onnx_file(path)

    def profiles(self, source: OnnxFile, options: dict[str, Any]) -> list[Profile]:
        """Return the profiles of a defect, or the default one."""
        if "shapes" not in options:
            return [default_profile(source.inputs, longest=40)]
        return [] if options["shapes"] is None else [Profile(*options["shapes"])]

    def verdict(self, backend: Backend, source: OnnxFile, profiles: Sequence[Profile], *, upto: str = "build") -> str:
        """Return what TensorRT does: it cannot ``parse`` the file, cannot ``build`` it, or ``accepts`` it."""
        trt = backend.trt
        logger, _ = messages(backend)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        if not trt.OnnxParser(network, logger).parse_from_file(str(source.path)):
            return "parse"
        if upto == "parse":
            return "accepts"
        config = builder.create_builder_config()
        for profile in profiles:
            made = builder.create_optimization_profile()
            for name in profile.opt:
                made.set_shape(name, profile.min[name], profile.opt[name], profile.max[name])
            config.add_optimization_profile(made)
        return "build" if builder.build_serialized_network(network, config) is None else "accepts"


@pytest.fixture
def defect_planter(small_model: Path, tmp_path: Path) -> DefectPlanter:
    return DefectPlanter(small_model, tmp_path)


@pytest.fixture(scope="session")
def built_engine(small_model: Path, rtx: Backend, tmp_path_factory: pytest.TempPathFactory) -> BuiltEngine:
    """Build the engine of the small model once; read only."""
    plan = tmp_path_factory.mktemp("plan") / "model.plan"
    source = read_onnx_file(small_model)
    return build(small_model, plan, profiles=[default_profile(source.inputs, longest=40)], backend=rtx), plan
