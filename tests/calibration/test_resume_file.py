"""Interrupted calibrations: what they write, what can be resumed from it, and that the result is the same."""

from __future__ import annotations

import logging
import os
import resource
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibration import Max, Percentile, calibrate, calibrate_and_refine
from calibration.distributed import ProcessRank
from calibration.resume_file import ResumeFile, StageProgress
from qdq.errors import CalibrationError, StorageError
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, quantizers
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.refinement import Refinement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from calibration import CalibrationSummary
    from calibration.methods.method import Method
    from qdq.models.model import Model

WORKER = Path(__file__).with_name("resume_worker.py")
METHODS = [pytest.param(Max(), id="max"), pytest.param(Percentile(99.0), id="percentile")]
COUNT = 7
Batch = dict[str, Tensor]


def tiny(preset: str = "qdqbert", **fields: Any) -> Model:
    torch.manual_seed(2)
    sizes = {"vocab_size": 97, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    config = configure("bert", **{**sizes, "num_hidden_layers": 2, "initializer_range": 0.3, **fields})
    return quantize(build(config), preset)


def batches(seed: int = 9, count: int = COUNT) -> list[Batch]:
    """Ever larger values, so that ranges grow and histograms widen to the end."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        ids = torch.randint(5, 97, (3, 8), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 5:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def interrupted(data: list[Batch], before: int, error: type[BaseException] = KeyboardInterrupt) -> Iterator[Batch]:
    yield from data[:before]
    raise error("stop")


def state(model: Model) -> dict[str, Any]:
    """All that a calibration finds: ranges and, of slots with a spec, scales, transforms and rounding."""
    found = {}
    for name, quantizer in quantizers(model):
        found |= {f"{name}.{key}": value.tolist() for key, value in quantizer.named_buffers()}
    for slot, q in named_slots(model):
        if q.range is not None:
            found[f"{slot}.range"] = [bound.tolist() for bound in (q.range.lower, q.range.upper, q.range.amax)]
        module = model.get_submodule(slot.module)
        correction = getattr(module, "bias_correction", None)
        if correction is not None:
            found[f"{slot.module}.correction"] = correction.tolist()
    return found


def count_forwards(model: Model) -> list[int]:
    """Count the batches that are run to collect statistics, not those that are compared with the float model."""
    calls: list[int] = []
    collects = [quantizer for _, quantizer in quantizers(model)]

    def note(*_: object) -> None:
        if all(quantizer.mode is Mode.COLLECT for quantizer in collects):
            calls.append(1)

    model.embeddings.register_forward_pre_hook(note)
    return calls


# --- to the bit ---


@pytest.mark.parametrize("before", [1, 4, COUNT])
@pytest.mark.parametrize("method", METHODS)
def test_interrupted_and_resumed_is_as_if_nothing_had_happened(method: Method, before: int, tmp_path: Path) -> None:
    whole = tiny()
    want = calibrate(whole, batches(), method=method)
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny(), interrupted(batches(), before), method=method, resume_file=ResumeFile(tmp_path / "j"))
    model, calls = tiny(), []
    resume_file = ResumeFile(tmp_path / "j", resume=True)
    forwards = count_forwards(model)
    got = calibrate(model, batches(), method=method, resume_file=resume_file, progress=calls.append)
    assert state(model) == state(whole)
    assert got == want
    assert len(forwards) == COUNT - before
    assert calls == list(range(before + 1, COUNT + 1))
    resume_file.remove()
    assert list(tmp_path.iterdir()) == []


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    whole, model = tiny(), tiny()
    want = calibrate(whole, batches(), method=Percentile(99.0))
    for before in (2, 2, 3, 6):
        data = interrupted(batches(), before)
        with pytest.raises(KeyboardInterrupt):
            calibrate(tiny(), data, method=Percentile(99.0), resume_file=ResumeFile(tmp_path / "j", resume=True))
    assert (
        calibrate(model, batches(), method=Percentile(99.0), resume_file=ResumeFile(tmp_path / "j", resume=True))
        == want
    )
    assert state(model) == state(whole)


def test_an_interrupt_inside_of_a_batch_forgets_that_batch_alone(tmp_path: Path) -> None:
    whole, model = tiny(), tiny()
    calibrate(whole, batches())
    calls: list[int] = []

    def stop(*_: object) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    broken = tiny()
    broken.encoder.layers[1].register_forward_pre_hook(stop)  # some slots have seen the batch then, others have not
    with pytest.raises(KeyboardInterrupt):
        calibrate(broken, batches(), resume_file=ResumeFile(tmp_path / "j"))
    assert StageProgress.read(tmp_path / "j" / "ranges-0-of-1.safetensors").data_count["batches"] == 3
    calibrate(model, batches(), resume_file=ResumeFile(tmp_path / "j", resume=True))
    assert state(model) == state(whole)


@pytest.mark.parametrize("stage", ["channels", "ranges", "layers"])
def test_every_stage_of_a_refined_calibration(stage: str, tmp_path: Path) -> None:
    """``channels`` and ``ranges`` are interrupted in their fourth batch, ``layers`` after its first layer."""
    refinement = Refinement(smoothing=0.8, shift=True, bias_correction=True, rounding="gptq")

    def run(model: Model, resume_file: ResumeFile | None, stop_in: str | None) -> CalibrationSummary:
        def begin(name: str) -> Callable[..., None]:
            def progress(done: int, *_: int) -> None:
                if name == stop_in and done == (1 if name == "layers" else 4):
                    raise KeyboardInterrupt

            return progress

        return calibrate_and_refine(model, batches, refinement, resume_file=resume_file, stage=begin)

    whole, model = tiny("linear"), tiny("linear")
    want = run(whole, None, None)
    with pytest.raises(KeyboardInterrupt):
        run(tiny("linear"), ResumeFile(tmp_path / "j"), stage)
    files = {path.name.partition("-")[0] for path in (tmp_path / "j").iterdir()}
    assert files == ({"channels"} if stage == "channels" else {"channels", "ranges"})
    assert run(model, ResumeFile(tmp_path / "j", resume=True), None) == want
    assert state(model) == state(whole)


@pytest.mark.parametrize("method", METHODS)
def test_processes_that_came_to_different_batches(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other here, each with what those before it gave; the last one knows all."""
    whole = tiny()
    want = calibrate(whole, batches(), method=method)
    for rank, before in ((0, 2), (1, 5)):
        data, process = interrupted(batches(), before), ProcessRank(rank, 2)
        with pytest.raises(KeyboardInterrupt):
            calibrate(
                tiny(), data, method=method, process=process, resume_file=ResumeFile(tmp_path / "j", process=process)
            )
    assert {path.name for path in (tmp_path / "j").iterdir()} == {f"ranges-{n}-of-2.safetensors" for n in (0, 1)}
    given: list[Any] = []

    def gather(_: ProcessRank, value: Any) -> list[Any]:
        given.append(value)
        return given if len(given) == 2 else [value, value]

    monkeypatch.setattr(ProcessRank, "gather", gather)
    for rank in range(2):
        process, model = ProcessRank(rank, 2), tiny()
        got = calibrate(
            model,
            batches(),
            method=method,
            process=process,
            resume_file=ResumeFile(tmp_path / "j", resume=True, process=process),
        )
    assert state(model) == state(whole)
    assert got == want


# --- when it is written ---


@pytest.mark.parametrize(("interval", "written"), [(0.0, 5), (3600.0, 0)], ids=["always", "never"])
def test_while_batches_run(interval: float, written: int, tmp_path: Path) -> None:
    """What would be there after a loss of power: nothing that an end in good order writes."""
    file = tmp_path / "j" / "ranges-0-of-1.safetensors"
    found: list[int] = []

    def look(done: int) -> None:
        if done == 5:
            found.append(StageProgress.read(file).data_count["batches"] if file.exists() else 0)

    calibrate(tiny(), batches(), resume_file=ResumeFile(tmp_path / "j", interval=interval), progress=look)
    assert found == [written]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError, StorageError])
def test_whatever_interrupts(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        calibrate(tiny(), interrupted(batches(), 3, error), resume_file=ResumeFile(tmp_path / "j"))
    assert ResumeFile(tmp_path / "j").describe_progress() == "ranges after batch 3"


def test_bad_data_is_no_interruption(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="batch 2 is empty"):
        calibrate(tiny(), [*batches()[:2], {}], resume_file=ResumeFile(tmp_path / "j"))
    assert list(tmp_path.iterdir()) == []


def test_without_resuming_everything_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny(), interrupted(batches(), 3), resume_file=ResumeFile(tmp_path / "j"))
    model = tiny()
    forwards = count_forwards(model)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, interrupted(batches(seed=1), 0), resume_file=ResumeFile(tmp_path / "j"))
    assert ResumeFile(tmp_path / "j").describe_progress() is None, "the old progress does not count as that of this run"
    calibrate(model, batches(), resume_file=ResumeFile(tmp_path / "j"))
    assert len(forwards) == COUNT


def test_nothing_to_resume_is_a_beginning(tmp_path: Path) -> None:
    model, whole = tiny(), tiny()
    calibrate(model, batches(), resume_file=ResumeFile(tmp_path / "j", resume=True))
    calibrate(whole, batches())
    assert state(model) == state(whole)


def test_only_resume_files_are_removed(tmp_path: Path) -> None:
    resume_file = ResumeFile(tmp_path / "j")
    calibrate(tiny(), batches(), resume_file=resume_file)
    (tmp_path / "j" / "notes.txt").write_text("precious")
    resume_file.remove()
    assert [path.name for path in (tmp_path / "j").iterdir()] == ["notes.txt"]


# --- what cannot be resumed ---


def other_weights() -> Model:
    model = tiny()
    with torch.no_grad():
        model.encoder.layers[0].attention.query.weight[0, 0] += 1e-3
    return model


@pytest.mark.parametrize(
    ("make", "method", "identity", "words"),
    [
        pytest.param(other_weights, Max(), {}, ["model: "], id="weights"),
        pytest.param(lambda: tiny(layer_norm_eps=1e-3), Max(), {}, ["model: "], id="configuration"),
        pytest.param(lambda: tiny("linear"), Max(), {}, ["slots: "], id="recipe"),
        pytest.param(tiny, Percentile(99.0), {}, ['method: {"name": "max"} there, {"name": "perc'], id="method"),
        pytest.param(tiny, Max(), {"data": "b"}, ["data: a there, b here"], id="options"),
        pytest.param(
            lambda: tiny("linear", hidden_act="relu"),
            Percentile(99.0),
            {"data": "b", "seed": "1"},
            ["5 problems", "data: a there, b here", "seed: nothing there, 1 here", "model: ", "slots: ", "method: "],
            id="everything",
        ),
    ],
)
def test_another_calibration_is_refused_with_what_differs(
    make: Callable[[], Model], method: Method, identity: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny(), interrupted(batches(), 3), resume_file=ResumeFile(tmp_path / "j", {"data": "a"}))
    file = tmp_path / "j" / "ranges-0-of-1.safetensors"
    before, model = file.read_bytes(), make()
    was = state(model)
    resume_file = ResumeFile(tmp_path / "j", {"data": "a", **identity}, resume=True)
    with pytest.raises(CalibrationError) as caught:
        calibrate(model, batches(), method=method, resume_file=resume_file)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert ("processes" in text, text.count(" there, ")) == (False, len([word for word in words if ":" in word]))
    assert "start again without resuming" in text
    assert file.read_bytes() == before
    assert str(state(model)) == str(was)


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    process = ProcessRank(1, 2)
    with pytest.raises(KeyboardInterrupt):
        calibrate(
            tiny(), interrupted(batches(), 3), process=process, resume_file=ResumeFile(tmp_path / "j", process=process)
        )
    with pytest.raises(CalibrationError, match="processes: 2 there, 1 here"):
        calibrate(tiny(), batches(), resume_file=ResumeFile(tmp_path / "j", resume=True))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(batches(seed=1), id="other"),
        pytest.param(batches()[1:], id="later"),
        pytest.param(batches()[:2], id="fewer"),
        pytest.param([{name: x[:2] for name, x in batch.items()} for batch in batches()], id="smaller"),
    ],
)
def test_other_batches_are_refused(data: list[Batch], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny(), interrupted(batches(), 3), resume_file=ResumeFile(tmp_path / "j"))
    with pytest.raises(CalibrationError, match=r"are not those of this run: (\d problems\n  - \w+: |data_sha256: )"):
        calibrate(tiny(), data, resume_file=ResumeFile(tmp_path / "j", resume=True))


def cut(content: bytes, path: Path) -> None:
    path.write_bytes(content[: len(content) // 2])


def without_a_tensor(_: bytes, path: Path) -> None:
    progress = StageProgress.read(path)
    StageProgress(
        progress.stage, progress.identity, progress.data_count, dict(list(progress.tensors.items())[1:])
    ).write(path)


def of_another_shape(_: bytes, path: Path) -> None:
    progress = StageProgress.read(path)
    changed = {name: x[:5].clone() if x.dim() else x for name, x in progress.tensors.items()}
    StageProgress(progress.stage, progress.identity, progress.data_count, changed).write(path)


@pytest.mark.parametrize("damage", [cut, without_a_tensor, of_another_shape])
def test_damaged_files_are_refused(damage: Callable[[bytes, Path], None], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny(), interrupted(batches(), 3), method=Percentile(99.0), resume_file=ResumeFile(tmp_path / "j"))
    file = tmp_path / "j" / "ranges-0-of-1.safetensors"
    damage(file.read_bytes(), file)
    with pytest.raises(CalibrationError, match=r"again"):
        calibrate(tiny(), batches(), method=Percentile(99.0), resume_file=ResumeFile(tmp_path / "j", resume=True))
    model, whole = tiny(), tiny()
    calibrate(model, batches(), method=Percentile(99.0), resume_file=ResumeFile(tmp_path / "j"))
    calibrate(whole, batches(), method=Percentile(99.0))
    assert state(model) == state(whole), "without resuming it does not matter"


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "j" / "ranges-0-of-1.safetensors")
    with pytest.raises(CalibrationError, match="collect them again"):
        calibrate(tiny(), batches(), resume_file=ResumeFile(tmp_path / "j", resume=True))


# --- the world outside ---


def test_where_nothing_can_be_written_the_work_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "j").write_text("a file in the way")
    model, whole = tiny(), tiny()
    with caplog.at_level(logging.WARNING, logger="calibration"):
        calibrate(model, batches(), resume_file=ResumeFile(tmp_path / "j", interval=0.0))
    calibrate(whole, batches())
    assert state(model) == state(whole)
    (record,) = caplog.records
    assert record.getMessage().startswith("progress cannot be saved: ")


def test_a_disk_that_fills_up_leaves_the_last_whole_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    progress = StageProgress("ranges", {"a": "b"}, {"batches": 1}, {"x": torch.zeros(10)})
    path = tmp_path / "ranges-0-of-1.safetensors"
    progress.write(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            StageProgress("ranges", {"a": "b"}, {"batches": 2}, {"x": torch.zeros(10**6)}).write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert StageProgress.read(path).data_count == {"batches": 1}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert caplog.records == []


def worker(*arguments: object, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), str(WORKER), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    ("processes", "doomed", "batch"),
    [pytest.param(1, 0, 6, id="alone"), pytest.param(2, 1, 5, id="one-of-two", marks=pytest.mark.slow)],
)
def test_a_process_that_was_killed_is_resumed_to_the_bit(
    processes: int, doomed: int, batch: int, tmp_path: Path
) -> None:
    """Without notice: SIGKILL."""
    worker_code = runpy.run_path(str(WORKER))
    model = worker_code["tiny"]()
    calibrate(model, worker_code["data"](ProcessRank(), None), method=Percentile(99.0))
    want = worker_code["found"](model)
    folder, output = tmp_path / "resume_file", tmp_path / "output"
    killed = worker(folder, output, doomed, batch, processes=processes)
    assert killed.returncode != 0
    assert not output.exists()
    assert StageProgress.read(folder / f"ranges-{doomed}-of-{processes}.safetensors").data_count["batches"] == batch
    done = worker(folder, output, processes=processes)
    assert done.returncode == 0, done.stderr
    got = load_file(output)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[slot], want[slot]) for slot in want)
    assert not folder.exists()
