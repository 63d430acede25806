"""The state of a training between two steps: taken from all its parts, and put back into them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.training.resume_file import Position, get_random, ranges_of, set_ranges

if TYPE_CHECKING:
    from qdq.training.components import Components
    from qdq.training.log import Log
    from qdq.training.resume_file import Store

__all__ = ["Restored", "Snapshots"]


@dataclass(frozen=True)
class Restored:
    """What the parts of a training do not hold themselves.

    Args:
        position: how far it had come.
        best: weights and ranges of the best evaluation, where they were kept.
        epoch_random: the generators at the beginning of the epoch.
        step_random: and at the step.
    """

    position: Position
    best: dict[str, Any] | None
    epoch_random: Any
    step_random: Any


@dataclass(frozen=True)
class Snapshots:
    """Writes and reads them.

    Args:
        store: where they lie.
        components: what is trained.
        log: the figures so far.
    """

    store: Store
    components: Components
    log: Log

    def save(self, position: Position, *, best: dict[str, Any] | None, epoch_random: Any) -> None:
        """Write the state; every process calls this, the first one writes.

        Raises:
            StorageError: it cannot be written.
        """
        from accelerate.utils import gather_object

        parts, launch = self.components, self.components.launch
        mine = [{"epoch": epoch_random, "step": get_random(launch.device)}]
        everybody = gather_object(mine) if launch.num_processes > 1 else mine
        if launch.is_main_process:
            scaler = getattr(launch, "scaler", None)
            state = {
                "position": asdict(position),
                "model": {name: t.detach() for name, t in parts.model.state_dict(keep_vars=True).items()},
                "ranges": ranges_of(parts.model),
                "optimizer": parts.optimizer.state_dict(),
                "scheduler": parts.scheduler.state_dict()["last_epoch"],
                "random": everybody,
                "scaler": None if scaler is None else scaler.state_dict(),
                "best": best,
            }
            self.store.write(state, self.log.to_csv())
        launch.wait_for_everyone()

    def restore(self) -> Restored:
        """Put the last state back; the generators are left to the caller.

        Raises:
            CheckpointError: it is damaged.
            TrainingError: it belongs to another training.
        """
        parts, launch = self.components, self.components.launch
        state = self.store.read()
        parts.model.load_state_dict(state["model"])
        set_ranges(parts.model, state["ranges"])
        parts.optimizer.load_state_dict(state["optimizer"])
        scheduler = parts.scheduler
        scheduler.last_epoch = state["scheduler"]
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]
        if state["scaler"] is not None and getattr(launch, "scaler", None) is not None:
            launch.scaler.load_state_dict(state["scaler"])
        self.log.restore(self.store.read_log())
        random = state["random"][launch.process_index]
        return Restored(Position(**state["position"]), state["best"], random["epoch"], random["step"])
