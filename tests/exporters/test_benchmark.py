"""The numbers are consistent, the rounds interleaved, the failures named. No test here asks how fast anything is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.benchmark import BenchmarkResult, Candidate, Machine, Shape, Timing, benchmark
from exporters.benchmark.inputs import make_inputs
from exporters.benchmark.worker import measure
from exporters.runners import TensorInfo
from qdq.errors import CheckpointError, ConfigError, ExportError, MissingPackageError, QDQError

if TYPE_CHECKING:
    from collections.abc import Mapping

SMALL, LARGE = Shape(1, 4), Shape(3, 16)
QUICK: dict[str, Any] = {"threads": 1, "min_seconds": 0, "warmup": 0}  # one run per round and shape


def save_model(path: Path, *, vocabulary: int = 32, batch: int | str = "batch") -> Path:
    """A look-up table: ids beyond ``vocabulary`` fail while running."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, [batch, "sequence"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [batch, "sequence", 8])],
        [numpy_helper.from_array(np.zeros((vocabulary, 8), dtype=np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model.onnx")


def test_numbers_are_consistent_and_rounds_interleaved(model: Path) -> None:
    candidates = [Candidate("float", model), Candidate("int8", model), Candidate("other", model, "openvino")]
    steps: list[tuple[int, int, str]] = []
    result = benchmark(candidates, [SMALL, LARGE], rounds=3, progress=lambda *step: steps.append(step), **QUICK)

    order = ["float", "int8", "other", "int8", "other", "float", "other", "float", "int8", ""]
    assert steps == [(done, 9, name) for done, name in enumerate(order)]

    assert [(t.name, t.shape) for t in result.timings] == [(c.name, s) for c in candidates for s in (SMALL, LARGE)]
    assert all((t.runs, t.rounds) == (3, 3) for t in result.timings)
    assert all(0 < t.p10_s <= t.median_s <= t.p90_s for t in result.timings)
    for timing in result.timings:
        medians = result.round_medians_s[timing.name, timing.shape]
        assert len(medians) == 3
        assert timing.median_s == np.median(medians)

    document = json.loads(json.dumps(result.to_dict()))
    assert document["threads"] == 1
    assert document["machine"]["logical_cores"] == os.cpu_count()
    assert [row["name"] for row in document["timings"]] == [t.name for t in result.timings]
    assert document["timings"][1]["shape"] == {"batch_size": 3, "seq_len": 16}
    assert document["timings"][0]["round_medians_s"] == list(result.round_medians_s["float", SMALL])


def test_peak_memory_is_the_workers_own(model: Path) -> None:
    ballast = np.ones(100_000_000, dtype=np.float64)  # 800 MB that the parent has and the worker has not
    result = benchmark([Candidate("model", model)], [SMALL], rounds=1, **QUICK)
    assert 0 < result.peak_rss_bytes["model"] < ballast.nbytes


def test_speedup_pairs_the_rounds() -> None:
    """The rounds say 2, 4 and 2 times, whatever the machine did meanwhile, and the result is their median."""
    medians = {("float", SMALL): (2.0, 8.0, 6.0), ("int8", SMALL): (1.0, 2.0, 3.0)}
    result = result_of(medians)
    assert result.speedup("int8", "float", SMALL) == 2.0  # the ratio of the medians would be 3
    assert result.speedup("float", "int8", SMALL) == 0.5
    assert result.speedup("int8", "int8", SMALL) == 1.0


@pytest.mark.parametrize(
    ("name", "baseline", "shape", "match"),
    [
        ("int4", "float", SMALL, "int4 at 1 x 4 was not measured; measured were float at 1 x 4"),
        ("float", "int4", SMALL, "int4 at 1 x 4"),
        ("float", "float", LARGE, "float and float at 3 x 16"),
    ],
    ids=["name", "baseline", "shape"],
)
def test_speedup_of_what_was_not_measured(name: str, baseline: str, shape: Shape, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        result_of({("float", SMALL): (1.0,)}).speedup(name, baseline, shape)


def result_of(medians: Mapping[tuple[str, Shape], tuple[float, ...]]) -> BenchmarkResult:
    timings = tuple(
        Timing(name, shape, 1.0, 1.0, 1.0, 1.0, 1, len(rounds)) for (name, shape), rounds in medians.items()
    )
    return BenchmarkResult(timings, 1, Machine("cpu", 1, ()), medians, {name: 1 for name, _ in medians})


def test_every_problem_of_the_request_is_named(model: Path) -> None:
    candidates = [Candidate("same", model), Candidate("same", model, "abacus")]  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        benchmark(candidates, [SMALL, SMALL, Shape(0, 4)], threads=0, rounds=0, min_seconds=-1, warmup=-1)
    message = str(caught.value)
    for part in (
        "names must differ",
        "shapes must differ",
        "0 x 4 must be",
        "'abacus'",
        "threads = 0",
        "rounds = 0",
        "min_seconds = -1",
        "warmup = -1",
    ):
        assert part in message
    with pytest.raises(ConfigError, match=r"no model to time\n.*no shape to time"):
        benchmark([], [])


def test_missing_files_are_named_together_before_anything_runs(model: Path, tmp_path: Path) -> None:
    candidates = [Candidate("here", model), Candidate("a", tmp_path / "a.onnx"), Candidate("b", tmp_path / "b.onnx")]
    with pytest.raises(CheckpointError, match=r"(?s)a: no such model file.*b: no such model file") as caught:
        benchmark(candidates, [SMALL], progress=lambda *_: pytest.fail("a worker was started"))
    assert "here" not in str(caught.value)


def test_openvino_missing_is_told_before_anything_runs(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what an import sees when there is no such package
    with pytest.raises(MissingPackageError, match=r"pip install 'qdq\[openvino\]'"):
        benchmark([Candidate("m", model, "openvino")], [SMALL], progress=lambda *_: pytest.fail("a worker was started"))


def test_a_failing_worker_names_the_model_and_the_reason(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model at all")
    with pytest.raises(QDQError, match=r"timing mine \(.*damaged\.onnx\) failed: .*cannot read it") as caught:
        benchmark([Candidate("mine", damaged)], [SMALL], rounds=1, **QUICK)
    assert "\n" not in str(caught.value)


def test_a_model_that_fails_while_running(tmp_path: Path) -> None:
    path = save_model(tmp_path / "tiny.onnx", vocabulary=2)
    with pytest.raises(QDQError, match=r"timing tiny .*a Gather looks up a number beyond the end of its table"):
        benchmark([Candidate("tiny", path)], [LARGE], rounds=1, **QUICK)


def test_a_fixed_batch_is_not_timed_as_another(tmp_path: Path) -> None:
    path = save_model(tmp_path / "one.onnx", batch=1)
    with pytest.raises(QDQError, match=r"timing one .*input_ids has the fixed shape \(1, 16\), it cannot run 3 x 16"):
        benchmark([Candidate("one", path)], [LARGE], rounds=1, **QUICK)


def test_files_of_the_current_directory_do_not_get_in_the_way(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    assert benchmark([Candidate("model", model)], [SMALL], rounds=1, **QUICK).timings[0].runs == 1


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the worker through /proc")
def test_an_interrupt_ends_the_worker(model: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from exporters.benchmark import *\n"
        "benchmark([Candidate('m', Path(sys.argv[1]))], [Shape(1, 4)], threads=1, min_seconds=600)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # SIGINT is blocked in some background shells, and a child would inherit that: the script sets its own handler.
    script = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + script
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(model)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        worker = wait_for(lambda: child_of(parent.pid))
        parent.send_signal(signal.SIGINT)  # to the parent alone, as `kill -INT` would
        _, stderr = parent.communicate(timeout=30)
    finally:
        parent.kill()
    assert "KeyboardInterrupt" in stderr
    # The worker is killed before its parent ends, but the kernel may need a moment to take it away.
    wait_for(lambda: not Path(f"/proc/{worker}").exists())


def child_of(pid: int) -> int | None:
    """The child of ``pid`` that already runs the worker."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"exporters.benchmark.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    return None


def wait_for(condition: Any) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := condition():
            return int(found)
        time.sleep(0.02)
    pytest.fail("the worker did not start, or did not end, within a minute")


def test_the_worker_does_not_import_torch() -> None:
    code = "import sys, exporters.benchmark.worker; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("info", "shape", "values"),
    [
        (TensorInfo("input_ids", np.dtype("int64"), ("batch_size", "sequence_length")), (2, 5), range(32)),
        (TensorInfo("attention_mask", np.dtype("int64"), (None, None)), (2, 5), {1}),
        (TensorInfo("token_type_ids", np.dtype("int32"), ("a", "b")), (2, 5), {0}),
        (TensorInfo("position_ids", np.dtype("int64"), (1, "s")), (1, 5), range(5)),
        (TensorInfo("attention_mask", np.dtype("float32"), (None, 1, 1, None)), (2, 1, 1, 5), {1}),
        (TensorInfo("choice_mask", np.dtype("bool"), ("batch", "choices", "seq")), (2, 2, 5), {True}),
        (TensorInfo("encoder_hidden", np.dtype("float32"), (None, None, 4)), (2, 5, 4), None),
        (TensorInfo("past_key_values.0.key", np.dtype("float32"), ("batch", 4, "past_seq", 8)), (2, 4, 5, 8), None),
        (TensorInfo("attention_mask", np.dtype("int64"), ("batch", "past_seq + seq")), (2, 10), {1}),
        (TensorInfo("seq_first_mask", np.dtype("float32"), ("seq", "batch")), (5, 2), {1}),
    ],
    ids=[
        "ids",
        "mask",
        "types",
        "positions",
        "float-mask",
        "choices",
        "float",
        "past",
        "past-mask",
        "names-before-position",
    ],
)
def test_inputs_follow_the_signature(info: TensorInfo, shape: tuple[int, ...], values: Any) -> None:
    array = make_inputs([info], 2, 5)[info.name]
    assert array.shape == shape
    assert array.dtype == info.dtype
    assert values is None or set(array.ravel().tolist()) <= set(values)


def test_a_fixed_length_is_not_timed_as_another() -> None:
    with pytest.raises(ExportError, match=r"attention_mask has the fixed shape \(2, 8\), it cannot run 2 x 5"):
        make_inputs([TensorInfo("attention_mask", np.dtype("int64"), ("batch", 8))], 2, 5)


def test_measure_counts_all_runs_but_the_warm_up() -> None:
    calls = []

    class Sleeper:
        input_names = output_names = ()

        def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            calls.append(inputs)
            time.sleep(0.002)
            return {}

    seconds = measure(Sleeper(), {}, warmup=3, min_seconds=0.02)
    assert len(calls) == 3 + len(seconds)
    assert sum(seconds) >= 0.02
    assert sum(seconds[:-1]) < 0.02
    assert min(seconds) >= 0.002


CPUINFO = """\
processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni amx_int8

processor\t: 1
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu
"""


def test_machine_reads_the_instruction_sets(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    machine = Machine.this(tmp_path / "cpuinfo")
    assert machine.cpu == "Some CPU @ 2.00GHz"
    assert machine.int8_instructions == ("avx2", "avx512_vnni", "amx_int8")
    assert machine.logical_cores == os.cpu_count()


def test_machine_without_cpuinfo(tmp_path: Path) -> None:
    machine = Machine.this(tmp_path / "nothing")
    assert machine.int8_instructions == ()
    assert machine.cpu
