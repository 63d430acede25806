"""Engines by TensorRT-RTX, which builds without a GPU; refusals need no TensorRT at all."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest

from exporters.tensorrt import backend as backends
from exporters.tensorrt import build as building
from exporters.tensorrt.build import BuildOptions, build, check_options
from exporters.tensorrt.nvidia_driver import driver_problem, require_driver
from exporters.tensorrt.onnx_file import read_onnx_file
from exporters.tensorrt.profiles import Profile, default_profile, parse_profiles
from qdq.errors import BuildError, CheckpointError, ConfigError, MissingPackageError
from tests.exporters.tensorrt import defects

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.tensorrt.backend import Backend
    from tests.exporters.conftest import TinyModels
    from tests.exporters.tensorrt.conftest import BuiltEngine, DefectPlanter

SHAPES = (["1x4"], ["2x16"], ["8x40"])


def test_an_engine_is_written_whole_with_its_sizes(built_engine: BuiltEngine, small_model: Path) -> None:
    engine, plan = built_engine
    assert plan.stat().st_size == engine.plan_bytes > 100_000
    assert engine.onnx_bytes == small_model.stat().st_size
    assert engine.float_bytes > engine.onnx_bytes
    assert engine.backend.startswith("tensorrt-rtx 1.")
    assert engine.warnings == ()
    assert [file.name for file in plan.parent.iterdir()] == ["model.plan"]


def test_several_profiles(small_model: Path, rtx: Backend, tmp_path: Path) -> None:
    profiles = parse_profiles(read_onnx_file(small_model).inputs, ["1x1", "1x8"], ["1x8", "8x32"], ["1x16", "16x40"])
    engine = build(small_model, tmp_path / "m.plan", profiles=profiles, backend=rtx)
    assert list(engine.profiles) == profiles
    assert engine.to_dict()["profiles"][1]["max"]["input_ids"] == [16, 40]


def test_options_arrive(small_model: Path, rtx: Backend, tmp_path: Path) -> None:
    profiles = parse_profiles(read_onnx_file(small_model).inputs, *SHAPES)
    options = BuildOptions(workspace_mb=64, optimization_level=1, version_compatible=False, tf32=True)
    engine = build(small_model, tmp_path / "m.plan", profiles=profiles, backend=rtx, options=options)
    assert engine.options == options


def test_progress_is_told(small_model: Path, rtx: Backend, tmp_path: Path) -> None:
    profiles = parse_profiles(read_onnx_file(small_model).inputs, *SHAPES)
    heard: list[tuple[str, int, int]] = []
    told = lambda *step: heard.append(step)  # noqa: E731
    build(small_model, tmp_path / "m.plan", profiles=profiles, backend=rtx, progress=told)
    assert len(heard) > 10
    assert all(0 < done <= max(total, done) for _, done, total in heard)


_INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from exporters.tensorrt.backend import find_backend
from exporters.tensorrt.build import build
from exporters.tensorrt.profiles import parse_profiles
from exporters.tensorrt.onnx_file import read_onnx_file

source, plan = map(Path, sys.argv[1:])
before, steps = signal.getsignal(signal.SIGINT), 0

def interrupt(phase, done, total):
    global steps
    steps += 1
    if steps == 3:
        os.kill(os.getpid(), signal.SIGINT)

profiles = parse_profiles(read_onnx_file(source).inputs, ["1x4"], ["2x16"], ["8x40"])
try:
    build(source, plan, profiles=profiles, backend=find_backend("tensorrt-rtx"), progress=interrupt)
except KeyboardInterrupt:
    print("interrupted", steps < 50, signal.getsignal(signal.SIGINT) is before)
"""


@pytest.mark.usefixtures("rtx")
def test_an_interrupt_ends_the_build_and_leaves_nothing(small_model: Path, tmp_path: Path) -> None:
    """In a process of its own: the signal would end a test runner that runs tests beside its main thread."""
    plan = tmp_path / "m.plan"
    plan.write_bytes(b"old")
    command = [sys.executable, "-c", _INTERRUPTED, str(small_model), str(plan)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split() == ["interrupted", "True", "True"], done.stderr
    assert plan.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["m.plan"]


def test_a_build_in_another_thread_leaves_signals_alone(small_model: Path, rtx: Backend, tmp_path: Path) -> None:
    profiles = parse_profiles(read_onnx_file(small_model).inputs, *SHAPES)
    thread = threading.Thread(target=build, args=(small_model, tmp_path / "m.plan"), kwargs={"profiles": profiles})
    thread.start()
    thread.join()
    assert (tmp_path / "m.plan").is_file()


def test_what_tensorrt_refuses_is_told_with_the_node(
    defect_planter: DefectPlanter, rtx: Backend, tmp_path: Path
) -> None:
    source = defect_planter.planted(next(d.plant for d in defects.DEFECTS if d.name == "int32 bias"))
    profiles = [default_profile(source.inputs, longest=40)]
    with pytest.raises(BuildError, match=r"cannot read .*bias/DequantizeLinear"):
        build(source.path, tmp_path / "m.plan", profiles=profiles, backend=rtx)
    assert not (tmp_path / "m.plan").exists()


def test_what_the_builder_refuses_is_told(defect_planter: DefectPlanter, rtx: Backend, tmp_path: Path) -> None:
    source = defect_planter.planted(next(d.plant for d in defects.DEFECTS if d.name == "lookup in an int8 table"))
    profiles = [default_profile(source.inputs, longest=40)]
    with pytest.raises(BuildError, match=r"cannot build .*Quantized constant"):
        build(source.path, tmp_path / "m.plan", profiles=profiles, backend=rtx)
    build(defect_planter.path, tmp_path / "m.plan", profiles=profiles, backend=rtx)  # nothing of it sticks


def test_problems_of_shapes_and_options_are_told_together_before_anything_is_built(
    small_model: Path, tmp_path: Path
) -> None:
    profile = Profile({"input_ids": (4, 8)}, {"input_ids": (2, 8)}, {"input_ids": (1, 8)})
    with pytest.raises(BuildError) as caught:
        build(
            small_model,
            tmp_path / "m.plan",
            profiles=[profile],
            options=BuildOptions(optimization_level=9, refit=True, hardware="volta", workspace_mb=0),
        )
    message = str(caught.value)
    for words in (
        "the input attention_mask is missing",
        "must grow from min to max",
        "optimization level 9",
        "cannot be refitted",
        "no hardware compatibility 'volta'",
        "0 MiB",
    ):
        assert words in message


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(refit=True),
        BuildOptions(strip=True),
        BuildOptions(hardware="ampere-plus"),
        BuildOptions(version_compatible=True),
        BuildOptions(timing_cache="cache"),  # type: ignore[arg-type]
    ],
    ids=["refit", "strip", "hardware", "version", "timing cache"],
)
def test_what_rtx_cannot_do_is_refused(options: BuildOptions, rtx: Backend) -> None:
    (problem,) = check_options(options, backend=rtx)
    assert "TensorRT-RTX" in problem
    full = backends.Backend("tensorrt", rtx.trt)
    assert check_options(options, backend=full) == []


@pytest.mark.parametrize("content", [b"xx", b"", b"\x00\x01garbage" * 50])
def test_garbage_never_reaches_the_parser_which_says_yes_to_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        build(path, tmp_path / "m.plan")


def test_the_parser_alone_would_say_yes(rtx: Backend) -> None:
    logger, _ = backends.messages(rtx)
    network = rtx.trt.Builder(logger).create_network(1 << int(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.trt.OnnxParser(network, logger).parse(b"xx")


def test_without_tensorrt_both_pip_commands_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def absent(name: str, *more: Any) -> Any:
        if name in backends.BACKENDS.values():
            raise ModuleNotFoundError(name)
        return real(name, *more)

    monkeypatch.setattr(backends.importlib, "import_module", absent)
    for name in ("auto", "tensorrt", "tensorrt-rtx"):
        with pytest.raises(MissingPackageError) as caught:
            backends.find_backend(name)
        assert "pip install 'qdq[tensorrt-rtx]'" in str(caught.value)
        assert "pip install tensorrt;" in str(caught.value)
        assert caught.value.exit_code == 3


def test_an_unknown_backend_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no backend 'cuda': it must be one of auto, tensorrt, tensorrt-rtx"):
        backends.find_backend("cuda")


@pytest.mark.parametrize(("name", "version"), [("tensorrt", "10.0.1"), ("tensorrt-rtx", "1.4.0.76")])
def test_a_version_that_is_too_old_is_refused(name: str, version: str) -> None:
    class Module:
        __version__ = version

    with pytest.raises(ConfigError, match=f"{version} .*must be"):
        backends._checked(backends.Backend(name, Module()))  # type: ignore[arg-type]


def test_the_driver_is_asked_in_a_way_that_cannot_crash() -> None:
    code = "from exporters.tensorrt.nvidia_driver import driver_problem; print(driver_problem())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(driver_problem())
    if driver_problem() is None:
        require_driver("a test")
    else:
        with pytest.raises(BuildError, match="a test needs an NVIDIA GPU, and the"):
            require_driver("a test")


def test_a_float_model_builds_too(tiny_models: TinyModels, rtx: Backend, tmp_path: Path) -> None:
    _, path, _ = tiny_models.exported(None)
    engine = build(
        path, tmp_path / "m.plan", backend=rtx, profiles=[default_profile(read_onnx_file(path).inputs, longest=40)]
    )
    assert engine.plan_bytes > 0
    assert "int8" not in {kind for kernel in engine.kernels for kind in kernel.inputs}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ('{"model_type": "bert", "max_position_embeddings": 40}', 40),
        ('{"model_type": "roberta", "max_position_embeddings": 42, "pad_token_id": 1}', 40),
        ('{"model_type": "mpnet", "max_position_embeddings": 514}', 514),  # not ours, but its ONNX file can be built
        ('{"model_type": "mpnet"}', 40),  # the rows of the table in the graph
        ("{", 40),
        (None, 40),
    ],
)
def test_the_longest_text_is_that_of_the_configuration_beside_the_file(
    small_model: Path, tmp_path: Path, config: str | None, longest: int | None
) -> None:
    (tmp_path / "model.onnx").write_bytes(small_model.read_bytes())
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert read_onnx_file(tmp_path).longest == longest


def test_the_timing_cache_is_read_combined_and_written(tmp_path: Path) -> None:
    """The order of calls, on a configuration that keeps what it is given."""

    class Cache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return self.content

        def combine(self, other: Cache, ignore_mismatch: bool) -> bool:
            self.content += other.content
            return True

    class Config:
        def create_timing_cache(self, content: bytes) -> Cache:
            return Cache(content)

        def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
            self.cache = cache
            return True

        def get_timing_cache(self) -> Cache:
            return self.cache

    path = tmp_path / "cache"
    config: Any = Config()
    with building._timing_cache(config, path):
        config.cache.content += b"[measured]"
    assert path.read_bytes() == b"[measured]"
    with building._timing_cache(config, path):
        assert config.cache.content == b"[measured]"
        path.write_bytes(b"[by another]")
    assert path.read_bytes() == b"[measured][by another]"


@pytest.mark.slow
def test_minilm_runs_in_int8_from_end_to_end(
    minilm_dir: Path, rtx: Backend, tmp_path: Path, tiny_models: TinyModels
) -> None:
    from calibration import calibrate
    from exporters.onnx.export import export_onnx
    from exporters.tensorrt.report import engine_report
    from qdq.models.huggingface import load_model
    from qdq.recipes.apply import quantize

    model = load_model(minilm_dir).eval()
    quantize(model, "tensorrt")
    calibrate(model, [tiny_models.batches(model)[0]])
    export_onnx(model, tmp_path / "model.onnx", target="tensorrt")
    engine = build(tmp_path / "model.onnx", tmp_path / "m.plan", backend=rtx)
    report = engine_report(ir.load(tmp_path / "model.onnx"), engine.kernels)
    assert report.count("linear") == (36, 36, 37)
    assert report.count("attention") == (12, 12, 12)
    assert [row.fused and row.runs_in == "int8" for row in report.attentions] == [True] * 6
    assert [row.merged for row in report.merged] == [True] * 6
    assert [row.fused for row in report.residuals] == [True] * 12


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_full_tensorrt_is_not_tried_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        __version__ = "11.1.0.106"

    monkeypatch.setattr(backends, "_imported", lambda package: Module() if package == "tensorrt" else None)
    for name in ("auto", "tensorrt"):
        with pytest.raises(
            BuildError, match=r"full TensorRT .*pip install 'qdq\[tensorrt-rtx\]'.* needs an NVIDIA GPU"
        ):
            backends.find_backend(name)
