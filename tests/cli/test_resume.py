"""``qdq calibrate --resume``: what is said, kept, refused and removed, and that the checkpoint is the same."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from calibration import batches

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended, ModelFolders, Refused, Run

BATCHES = 5  # of 40 sentences


def deliver(number: signal.Signals) -> None:
    """What Python does when the signal arrives. Processes of their own get real ones, in test_calibrate.py: here, one
    would be delivered on the small stack that pytest's faulthandler keeps, beside the native libraries of all tests.
    """
    handler = signal.getsignal(number)
    assert callable(handler), f"nobody waits for {number.name}"
    handler(number, None)


@pytest.fixture
def stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs a command that gets a signal as its ``batch``-th batch comes, counted over all passes."""

    def stopped(*arguments: object, batch: int, by: signal.Signals = signal.SIGINT) -> Ended:
        seen = []
        check = batches.check_batch

        def check_or_stop(*given: Any) -> None:
            seen.append(given)
            if len(seen) == batch:
                deliver(by)
            check(*given)

        with monkeypatch.context() as patch:
            patch.setattr(batches, "check_batch", check_or_stop)
            before = signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                return run(*arguments)
            finally:
                signal.signal(signal.SIGINT, before)

    return stopped


@pytest.fixture
def request_(model: Path, text: Path, tmp_path: Path) -> list[object]:
    return ["calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", text]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=lambda by: by.name)
@pytest.mark.parametrize(
    ("recipe", "batch", "stage"),
    [
        pytest.param(
            ["-r", "linear", "--no-refinement", "--calibrator", "auto"], 4, "ranges after batch 3", id="plain"
        ),
        pytest.param(["-r", "onnxruntime"], BATCHES + 3, "channels after batch 5, ranges after batch 2", id="refined"),
    ],
)
def test_stopped_and_resumed(
    recipe: list[str],
    batch: int,
    stage: str,
    by: signal.Signals,
    request_: list[object],
    run: Run,
    stopped: Callable[..., Ended],
    model_folders: ModelFolders,
    tmp_path: Path,
) -> None:
    assert run(*request_, *recipe).code == 0
    want = model_folders.contents(tmp_path / "out")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    (tmp_path / "out").rename(tmp_path / "whole")

    ended = stopped(*request_, *recipe, batch=batch, by=by)
    assert (ended.code, ended.out) == (130, "")
    kept = tmp_path / "out.calibration"
    told = f"interrupted; {kept} keeps what was collected ({stage}): the same command with --resume goes on"
    assert ended.err == f"error: {told}\n"
    assert names(tmp_path) == ["out.calibration", "whole"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    again = run(*request_, *recipe, "--resume")
    assert again.code == 0, again.err
    for line in stage.split(", "):
        assert line.replace(" after", ": resumed after") in again.err
    assert names(tmp_path) == ["out", "whole"]
    assert model_folders.contents(tmp_path / "out") == want


def test_before_the_first_batch_nothing_is_kept(
    request_: list[object], stopped: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = stopped(*request_, batch=1)
    assert (ended.code, ended.err) == (130, "error: interrupted; nothing was changed\n")
    assert names(tmp_path) == []


def test_nothing_to_resume(request_: list[object], run: Run, tmp_path: Path) -> None:
    ended = run(*request_, "--resume")
    assert ended.code == 0
    assert f"nothing to resume in {tmp_path / 'out.calibration'}: the calibration starts" in ended.err
    assert names(tmp_path) == ["out"]


def test_leftovers_are_told_and_begun_anew(
    request_: list[object], run: Run, stopped: Callable[..., Ended], tmp_path: Path
) -> None:
    stopped(*request_, "--no-refinement", batch=3)
    ended = run(*request_, "--no-refinement", "--seed", 1)
    assert ended.code == 0
    assert "warning: " in ended.err
    assert "an interrupted calibration (ranges after batch 2) starts from the beginning; --resume" in ended.err
    assert names(tmp_path) == ["out"]


def test_another_calibration_is_refused_with_all_that_differs(
    request_: list[object], stopped: Callable[..., Ended], refused: Refused, tmp_path: Path
) -> None:
    stopped(*request_, "--no-refinement", batch=3)
    options = [
        "--seed",
        1,
        "--calibrator",
        "mse",
        "--seq-len",
        16,
        "--batch-size",
        4,
        "--num-samples",
        7,
        "-r",
        "linear",
    ]
    message = refused(*request_, "--no-refinement", *options, "--resume", kind="CalibrationError")
    for words in (
        "out.calibration: the interrupted calibration there differs from this one: 7 problems",
        "recipe: onnxruntime ",
        "data: 40 samples ",
        " there, 7 samples ",
        "seed: 0 there, 1 here",
        "seq_len: 128 there, 16 here",
        "batch_size: 8 there, 4 here",
        'method: {"name": "max"} there, {"name": "mse"} here',
        "slots: ",
        "start again without resuming",
    ):
        assert words in message
    assert "model" not in message
    assert names(tmp_path) == ["out.calibration"]


def test_another_model_is_refused(
    request_: list[object], stopped: Callable[..., Ended], refused: Refused, model_folders: ModelFolders, tmp_path: Path
) -> None:
    stopped(*request_, "--no-refinement", batch=3)
    other = model_folders.model(tmp_path / "other", layer_norm_eps=1e-3)
    request_[2] = other
    message = refused(*request_, "--no-refinement", "--resume", kind="CalibrationError")
    assert "model: " in message
    assert "slots" not in message


def test_damaged_progress_is_refused_and_can_be_begun_anew(
    request_: list[object], run: Run, stopped: Callable[..., Ended], refused: Refused, tmp_path: Path
) -> None:
    stopped(*request_, "--no-refinement", batch=3)
    (file,) = (tmp_path / "out.calibration").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert file.name in refused(*request_, "--no-refinement", "--resume", kind="CalibrationError")
    assert run(*request_, "--no-refinement").code == 0
    assert names(tmp_path) == ["out"]


def test_what_a_later_stage_would_refuse_is_refused_and_kept(
    request_: list[object], run: Run, stopped: Callable[..., Ended], refused: Refused, tmp_path: Path
) -> None:
    """The channels of another calibrator are the same, its ranges are not."""
    stopped(*request_, batch=BATCHES + 3)
    assert "method: " in refused(*request_, "--calibrator", "mse", "--resume", kind="CalibrationError")
    assert run(*request_, "--resume").code == 0
