"""Engines on a GPU; and that nothing is tried, and nothing crashes, where there is none."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from exporters.runners import OnnxRuntimeRunner
from exporters.tensorrt.backend import find_backend
from exporters.tensorrt.build import BuildOptions, build
from exporters.tensorrt.nvidia_driver import driver_problem
from exporters.tensorrt.onnx_file import read_onnx_file
from exporters.tensorrt.plan_metadata import write_metadata
from exporters.tensorrt.profiles import parse_profiles
from exporters.tensorrt.report import engine_report
from exporters.tensorrt.runner import TensorRTRunner, choose_profile
from qdq.errors import BuildError, CheckpointError, DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.tensorrt.conftest import BuiltEngine

SPANS = [
    {"input_ids": ((1, 1), (4, 16)), "attention_mask": ((1, 1), (4, 16))},
    {"input_ids": ((1, 8), (32, 64)), "attention_mask": ((1, 8), (32, 64))},
]


@pytest.mark.parametrize(("shape", "expected"), [((1, 1), 0), ((4, 16), 0), ((5, 16), 1), ((32, 64), 1)])
def test_the_first_profile_that_fits_is_taken(shape: tuple[int, int], expected: int) -> None:
    assert choose_profile(SPANS, {"input_ids": shape, "attention_mask": shape}) == expected


def test_a_shape_that_no_profile_allows_is_told_with_all_of_them() -> None:
    with pytest.raises(DataError) as caught:
        choose_profile(SPANS, {"input_ids": (40, 8), "attention_mask": (40, 8)})
    message = str(caught.value)
    assert "input_ids 40x8" in message
    assert "profile 0: input_ids 1x1 to 4x16" in message
    assert "profile 1: input_ids 1x8 to 32x64" in message


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        TensorRTRunner(tmp_path / "m.plan")


@pytest.mark.skipif(driver_problem() is None, reason="there is a GPU")
def test_without_a_gpu_the_process_lives_on_and_says_why(built_engine: BuiltEngine) -> None:
    _, plan = built_engine
    code = f"""
from pathlib import Path
from exporters.tensorrt.runner import TensorRTRunner
from qdq.errors import BuildError
try:
    TensorRTRunner(Path({str(plan)!r}))
except BuildError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("running an engine needs an NVIDIA GPU, and ")


@pytest.mark.gpu
class TestOnAGpu:
    """Against ONNX Runtime, which computes the same file on the CPU."""

    @pytest.fixture(scope="class")
    def plan(self, small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        problem = driver_problem()
        if problem is not None:
            pytest.skip(f"needs an NVIDIA GPU: {problem}")
        plan = tmp_path_factory.mktemp("gpu") / "m.plan"
        profiles = parse_profiles(read_onnx_file(small_model).inputs, ["1x1", "1x8"], ["2x8", "4x32"], ["4x16", "8x40"])
        build(small_model, plan, profiles=profiles)
        return plan

    def inputs(self, batch: int, seq: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(batch * seq)
        mask = np.ones((batch, seq), np.int64)
        mask[-1, seq // 2 :] = 0
        ids = random.integers(1, 83, (batch, seq)) * mask
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    @pytest.mark.parametrize("graphs", [False, True], ids=["plain", "CUDA graphs"])
    def test_it_computes_what_onnx_runtime_computes(self, small_model: Path, plan: Path, graphs: bool) -> None:
        runner = TensorRTRunner(plan, cuda_graphs=graphs)
        reference = OnnxRuntimeRunner(small_model, optimize=False)
        assert set(runner.input_names) == set(reference.input_names)
        for shape in ((1, 4), (4, 16), (8, 40), (1, 4)):
            feed = self.inputs(*shape)
            found, expected = runner(feed), reference(feed)
            assert set(found) == set(expected)
            for name, array in expected.items():
                assert found[name].shape == array.shape
                assert np.abs(found[name] - array).mean() < 0.05 * np.abs(array).mean() + 1e-3

    def test_tensors_stay_on_the_gpu(self, plan: Path) -> None:
        runner = TensorRTRunner(plan)
        feed = {name: torch.from_numpy(array).cuda() for name, array in self.inputs(2, 8).items()}
        found = runner.run(feed)
        assert all(value.is_cuda for value in found.values())
        assert found["last_hidden_state"].shape == (2, 8, 64)

    def test_what_does_not_fit_is_refused(self, plan: Path) -> None:
        runner = TensorRTRunner(plan)
        with pytest.raises(DataError, match="no profile of the engine allows"):
            runner(self.inputs(64, 8))
        feed = self.inputs(2, 8)
        feed["input_ids"] = feed["input_ids"].astype(np.int32)
        del feed["attention_mask"]
        with pytest.raises(DataError) as caught:
            runner(feed)
        assert "attention_mask is missing" in str(caught.value)
        assert "input_ids is int32, the model takes int64" in str(caught.value)
        there = {name: torch.from_numpy(array).cuda() for name, array in feed.items()}
        with pytest.raises(DataError) as caught:
            runner.run(there)
        assert "attention_mask is missing" in str(caught.value)
        assert "input_ids is int32, the engine takes int64" in str(caught.value)

    @pytest.mark.parametrize("graphs", [False, True], ids=["plain", "CUDA graphs"])
    def test_calls_on_several_streams_do_not_meet(self, plan: Path, graphs: bool) -> None:
        """Two shapes of one profile, and one of another, in turn: each keeps the memory that it computes in."""
        runner = TensorRTRunner(plan, cuda_graphs=graphs)
        feeds = [self.inputs(*shape) for shape in ((1, 4), (4, 16), (8, 40))]
        expected = [runner(feed) for feed in feeds]
        given = [{name: torch.from_numpy(array).cuda() for name, array in feed.items()} for feed in feeds]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in feeds]
        kept = []
        for _ in range(5):
            kept = []
            for stream, inputs in zip(streams, given, strict=True):
                with torch.cuda.stream(stream):
                    kept.append(runner.run(inputs))
        torch.cuda.synchronize()
        for found, reference in zip(kept, expected, strict=True):
            for name, array in reference.items():
                np.testing.assert_array_equal(found[name].cpu().numpy(), array)

    def test_parts_of_tensors_are_taken(self, plan: Path) -> None:
        """Their addresses are none that TensorRT may read from."""
        runner = TensorRTRunner(plan)
        feed = {name: torch.from_numpy(array).cuda() for name, array in self.inputs(4, 9).items()}
        parts = {name: x[1:3, 1:] for name, x in feed.items()}
        rows = {name: x[1:] for name, x in feed.items()}
        for given in (parts, rows):
            whole = runner.run({name: x.clone() for name, x in given.items()})
            found = runner.run(given)
            assert all(torch.equal(found[name], whole[name]) for name in whole)

    def test_few_graphs_are_kept(self, plan: Path) -> None:
        runner = TensorRTRunner(plan, cuda_graphs=True)
        for length in range(1, 30):
            found = runner(self.inputs(1, length))
            assert found["last_hidden_state"].shape == (1, length, 64)
        assert len(runner._graphs) == 16

    def test_a_version_compatible_plan_is_loaded_by_its_record(
        self, small_model: Path, plan: Path, tmp_path: Path
    ) -> None:
        """Without its record, nobody says that the code in it is trusted."""
        if find_backend().is_rtx:
            pytest.skip("TensorRT-RTX has no lean runtime")
        source, engine = read_onnx_file(small_model), tmp_path / "m.plan"
        options = BuildOptions(version_compatible=True)
        built = build(
            small_model, engine, profiles=parse_profiles(source.inputs, ["1x1"], ["2x8"], ["4x16"]), options=options
        )
        with pytest.raises(BuildError, match="cannot load"):
            TensorRTRunner(engine)
        write_metadata(engine, built, engine_report(source.model, built.kernels), source=small_model)
        assert TensorRTRunner(engine)(self.inputs(1, 4)).keys() == TensorRTRunner(plan)(self.inputs(1, 4)).keys()

    def test_a_damaged_plan_is_refused(self, plan: Path, tmp_path: Path) -> None:
        (tmp_path / "m.plan").write_bytes(plan.read_bytes()[:1000])
        with pytest.raises(BuildError, match="cannot load"):
            TensorRTRunner(tmp_path / "m.plan")
