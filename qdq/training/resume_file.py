"""The resume file of a training: a training that is killed at any step can go on, with the same result.

It is a directory, ``state.pt`` and ``log.csv``, that appears whole or not at all, and it is read without running code.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import CheckpointError, StorageError, TrainingError
from qdq.storage import atomic_directory, resume_mismatch
from qdq.training.progress import TrainingProgress
from qdq.training.quantization import get_ranges, set_ranges
from qdq.training.random_state import get_random_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qdq.training.components import Components
    from qdq.training.training_log import TrainingLog

__all__ = ["RestoredTraining", "ResumableTraining", "ResumeFile"]

FORMAT = 1
STATE_FILE = "state.pt"
LOG_FILE = "log.csv"
KIND = "training"
_ADDED = ("evaluation data",)  # what the first version did not record


@dataclass(frozen=True)
class ResumeFile:
    """The folder of a resume file, and the training that it belongs to.

    Args:
        folder: The folder; it is made by the first write.
        identity: What has to be the same for a training to go on, as text by name.
    """

    folder: Path
    identity: Mapping[str, str]

    @property
    def exists(self) -> bool:
        """Whether something was written."""
        return (self.folder / STATE_FILE).is_file()

    def write(self, content: Mapping[str, Any], log: str) -> None:
        """Write the state of a training and its log, in place of what was written before.

        Raises:
            ConfigError: If the folder holds something that was not written here.
            StorageError: If writing fails.
        """
        with atomic_directory(self.folder, kind=KIND) as folder:
            torch.save({"format": FORMAT, "identity": dict(self.identity), **content}, folder / STATE_FILE)
            (folder / LOG_FILE).write_text(log, encoding="utf-8")

    def read(self) -> dict[str, Any]:
        """Return what :meth:`write` wrote last; tensors are on the CPU.

        Raises:
            CheckpointError: If the file is damaged.
            StorageError: If reading fails.
            TrainingError: If it belongs to another training; all differences are named.
        """
        path = self.folder / STATE_FILE
        try:
            # weights_only: a file that somebody else made must not be able to run code.
            content = torch.load(path, map_location="cpu", weights_only=True)
            theirs = dict(content["identity"])
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, this version reads {FORMAT}")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path}: damaged or of another version ({error}); train from the beginning, without resuming"
            ) from error
        # A file of an earlier version does not say everything that is compared now.
        ours = {name: value for name, value in self.identity.items() if name in theirs or name not in _ADDED}
        if problem := resume_mismatch(self.folder, theirs, ours, what="training"):
            raise TrainingError(problem)
        return dict(content)

    def read_log(self) -> str:
        """Return the log that was written last.

        Raises:
            StorageError: If reading fails.
        """
        path = self.folder / LOG_FILE
        try:
            return path.read_text(encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from error

    def remove(self) -> None:
        """Remove the files that were written, and the folder if nothing else is in it."""
        for name in (STATE_FILE, LOG_FILE, ".qdq.json"):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


@dataclass(frozen=True)
class RestoredTraining:
    """What :meth:`ResumableTraining.restore` leaves to its caller.

    Args:
        progress: How far the training had come.
        best: Weights and ranges of the best evaluation, if they were kept.
        epoch_random: States of the random generators at the beginning of the epoch.
        step_random: States of the random generators when the file was written.
    """

    progress: TrainingProgress
    best: dict[str, Any] | None
    epoch_random: Any
    step_random: Any


@dataclass(frozen=True)
class ResumableTraining:
    """A training whose state is written to a resume file between two steps, and read back.

    Args:
        file: The resume file.
        components: Model, optimizer and scheduler of the training.
        log: Log of the training.
    """

    file: ResumeFile
    components: Components
    log: TrainingLog

    def save(self, progress: TrainingProgress, *, best: dict[str, Any] | None, epoch_random: Any) -> None:
        """Write the resume file. Every process has to call this; the first one writes.

        Raises:
            StorageError: If writing fails.
        """
        from accelerate.utils import gather_object

        components, accelerator = self.components, self.components.accelerator
        # Every process draws its own dropout, so the file holds the generators of all processes.
        own = [{"epoch": epoch_random, "step": get_random_state(accelerator.device)}]
        random_of_all = gather_object(own) if accelerator.num_processes > 1 else own
        if accelerator.is_main_process:
            scaler = getattr(accelerator, "scaler", None)
            content = {
                "position": asdict(progress),
                "model": {name: t.detach() for name, t in components.model.state_dict(keep_vars=True).items()},
                "ranges": get_ranges(components.model),
                "optimizer": components.optimizer.state_dict(),
                "scheduler": components.scheduler.state_dict()["last_epoch"],
                "random": random_of_all,
                "scaler": None if scaler is None else scaler.state_dict(),
                "best": best,
            }
            self.file.write(content, self.log.to_csv())
        accelerator.wait_for_everyone()

    def restore(self) -> RestoredTraining:
        """Read the resume file into the components and the log; the caller sets the random generators.

        Raises:
            CheckpointError: If the file is damaged.
            StorageError: If reading fails.
            TrainingError: If it belongs to another training.
        """
        components, accelerator = self.components, self.components.accelerator
        content = self.file.read()
        components.model.load_state_dict(content["model"])
        set_ranges(components.model, content["ranges"])
        components.optimizer.load_state_dict(content["optimizer"])
        # The functions of a scheduler follow from the settings; only its count of steps is restored.
        scheduler = components.scheduler
        scheduler.last_epoch = content["scheduler"]
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
        if content["scaler"] is not None and getattr(accelerator, "scaler", None) is not None:
            accelerator.scaler.load_state_dict(content["scaler"])
        self.log.restore(self.file.read_log())
        random = content["random"][accelerator.process_index]
        return RestoredTraining(
            TrainingProgress(**content["position"]), content["best"], random["epoch"], random["step"]
        )
