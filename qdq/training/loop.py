"""The loop: batches in, steps of the optimizer, evaluations, states to resume from.

What concerns devices, processes and precision is accelerate's: ``accelerate launch`` and ``torchrun`` start it as is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import ConfigError, DataError, TrainingError
from qdq.training.data import part_of
from qdq.training.interruption import Interruption
from qdq.training.launch import launched, prepare, release
from qdq.training.log import Log
from qdq.training.objective import model_loss, weight_of
from qdq.training.optimizer import groups, make_optimizer, make_scheduler, parameters_of
from qdq.training.quantization import QuantizerSchedule, keep_ranges
from qdq.training.settings import TrainingSettings
from qdq.training.state import Position, Store, get_random, ranges_of, set_random, set_ranges

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qdq.training.objective import Loss

__all__ = ["Evaluate", "Loader", "TrainingResult", "finetune"]

Loader = Iterable[Mapping[str, Any]] | Callable[[int], Iterable[Mapping[str, Any]]]
"""Batches: a DataLoader or a list, or what gives those of an epoch (0 the first)."""

Evaluate = Callable[[Any], Mapping[str, float] | float]
"""The figures of a model that is in eval mode and quantizes as it will when deployed; the first one counts."""

LOG_STEPS = 10


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Args:
        steps: that were done.
        epochs: that were finished.
        stopped_early: for want of progress.
        metric: of the best evaluation; None without evaluations.
        best_step: when that was.
        history: the figures of every evaluation, with its step.
        seconds: of this run; what it was resumed from does not count.
        log: the table of figures, as CSV.
    """

    steps: int
    epochs: int
    stopped_early: bool
    metric: float | None
    best_step: int
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    log: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the table aside."""
        return {name: value for name, value in asdict(self).items() if name != "log"}


def finetune(
    model: nn.Module,
    loader: Loader,
    *,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    better: str = "higher",
    settings: TrainingSettings | None = None,
    state: str | Path | None = None,
    identity: Mapping[str, str] | None = None,
    resume: bool = False,
    keep_best: bool = True,
    on_best: Callable[[Any, Position], None] | None = None,
    evaluate_first: bool = False,
    log: Log | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    accelerator: Any = None,
    **options: Any,
) -> TrainingResult:
    """Train a model in place: a float one, or one that quantizes, with the gradient straight through.

    A quantizing model is to be made ready with :func:`qdq.training.quantization.ready_for_training` if it was refined
    or if its scales are to be trained.

    Args:
        model: any module; if it has quantizers, calibrated ones. It ends on the device it was trained on, quantizing.
        loader: mappings of tensors that have the batch as first axis. A DataLoader is shared out to several processes
            by accelerate, anything else by rows.
        loss: of the model and a batch, a mean; the one that the model returns itself when None.
        evaluate: see :data:`Evaluate`; called after every epoch, or as ``eval_steps`` says.
        better: ``higher`` or ``lower``, which way the first figure gets better.
        settings: how to train; or its fields by name.
        state: folder for what an interrupted training goes on from; None: nothing is kept.
        identity: what ``state`` belongs to besides the settings: model, data, ...
        resume: go on from ``state`` where there is one.
        keep_best: end with the weights of the best evaluation, not with the last ones.
        on_best: called in the first process with the model and how far it is, when an evaluation was the best so far.
        evaluate_first: count the model as it comes as the first evaluation.
        log: that takes the figures.
        progress: told steps done, steps in all, and how it goes.
        accelerator: of yours; one is made when None.
        **options: fields of :class:`TrainingSettings`.

    Raises:
        CalibrationError: slots are not calibrated.
        ConfigError: settings that do not go together or with the model.
        DataError: no batches, or batches that do not fit the model.
        TrainingError: a loss that is no number, or a state of another training.
        MissingPackageError: accelerate is not installed.
        StorageError: the state cannot be written.
        KeyboardInterrupt: interrupted by Ctrl-C or SIGTERM, at the end of a step, after the state was written.
    """
    if settings is None:
        settings = TrainingSettings(**options)
    elif options:
        raise ConfigError(f"give settings, or {', '.join(options)} by name, not both")
    if better not in {"higher", "lower"}:
        raise ConfigError(f"better is {better!r}, must be higher or lower")
    if settings.patience is not None and evaluate is None:
        raise ConfigError("patience needs evaluations: without them nobody knows whether there is progress")
    with launched(settings, accelerator) as launch:
        batches = _Batches(loader, launch)
        run = _Run(
            model,
            batches,
            settings,
            launch,
            loss=loss or model_loss,
            evaluate=evaluate,
            better=better,
            keep_best=keep_best and evaluate is not None,
            on_best=on_best,
            log=log or Log(),
            progress=progress,
        )
        store = None
        if state is not None:
            plain = {name: str(value) for name, value in settings.to_dict().items() if name not in _FREE}
            shared = {"processes": str(launch.num_processes), "steps": str(run.total)}
            store = Store(Path(state).absolute(), {**plain, **shared, **(identity or {})})
        try:
            return run.all(store, resume=resume, evaluate_first=evaluate_first)
        finally:
            run.close()


_FREE = ("save_steps", "patience")  # do not change what a step does


class _Batches:
    """The batches of every epoch, those of this process."""

    def __init__(self, loader: Any, launch: Any) -> None:
        self.count = launch.num_processes
        self.rank = launch.process_index
        self._loader = loader
        if self.count > 1 and isinstance(loader, torch.utils.data.DataLoader):
            self._loader, self.count, self.rank = launch.prepare(loader), 1, 0
        self.length = len(loader) if hasattr(loader, "__len__") else None
        if hasattr(self._loader, "__len__"):
            self.length = len(self._loader)
        if self.length == 0:
            raise DataError("there is no batch to train on")
        if not callable(loader) and iter(loader) is loader:
            raise ConfigError("batches come from an iterator, which can be read once: give a list or a DataLoader")

    def __call__(self, epoch: int) -> Iterator[tuple[Any, int]]:
        """The batches of an epoch, with the number of labels in each; 0 for one that does not count."""
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(epoch)
        source = self._loader(epoch) if callable(self._loader) else self._loader
        for batch in source:
            if not isinstance(batch, Mapping):
                raise DataError(
                    f"a batch is a {type(batch).__name__}, must be a mapping of the model's arguments to tensors"
                )
            part, counts = part_of(batch, self.rank, self.count)
            yield part, weight_of(part) if counts else 0


class _Run:
    """One training, from its first step or a state to its end."""

    def __init__(
        self,
        model: nn.Module,
        batches: _Batches,
        settings: TrainingSettings,
        launch: Any,
        *,
        loss: Loss,
        evaluate: Evaluate | None,
        better: str,
        keep_best: bool,
        on_best: Callable[[Any, Position], None] | None,
        log: Log,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self.settings, self.launch, self.batches = settings, launch, batches
        self.loss, self.evaluate, self.better, self.on_best = loss, evaluate, better, on_best
        self.keep_best, self.log, self.progress = keep_best, log, progress
        self.model = model
        self.per_epoch, self.total = _lengths(batches.length, settings)
        self.quantization = QuantizerSchedule(model, self.total, settings, whole_weights=not launch.is_sharded)
        if settings.gradient_checkpointing:
            _enable_checkpointing(model)
        found = groups(model, settings)
        self.wrapped, self.twin = prepare(launch, model, is_own_loss=loss is not model_loss, settings=settings)
        parameters = parameters_of(self.wrapped, found)
        self.weights = [p for g, own in zip(found, parameters, strict=True) if not g.is_scales for p in own]
        self.scales = [p for g, own in zip(found, parameters, strict=True) if g.is_scales for p in own]
        plain = make_optimizer(found, parameters)
        self.optimizer = launch.prepare(plain)
        self.scheduler = make_scheduler(plain, found, self.total, settings)
        self.position = Position()
        self.best: dict[str, Any] | None = None
        self.epoch_random: Any = None

    # --- the whole

    def all(self, store: Store | None, *, resume: bool, evaluate_first: bool) -> TrainingResult:
        """Everything that is left to do."""
        began = time.perf_counter()
        here = self.position
        random: Any = None
        if store is not None and self.launch.is_sharded:
            if resume:
                raise ConfigError("a training with sharded weights (FSDP) cannot be resumed: begin anew")
            store = None
        if store is not None and resume and store.is_there:
            random = self._restore(store)
            here = self.position
        elif evaluate_first and self.evaluate is not None:
            self._evaluate()
        with Interruption(active=store is not None and self.launch.num_processes == 1) as interruption:
            while here.step < self.total and not here.stopped:
                self._epoch(store, interruption, random)
                random = None
        self._load_best()
        self._tell("")
        return TrainingResult(
            steps=here.step,
            epochs=here.epoch,
            stopped_early=here.stopped,
            metric=here.best,
            best_step=here.best_step,
            history=here.history,
            seconds=time.perf_counter() - began,
            log=self.log.to_csv(),
        )

    def close(self) -> None:
        """Leave the model as its owner expects it."""
        self.quantization.close()
        release(self.launch, self.wrapped)
        self.log.close()

    def _epoch(self, store: Store | None, interruption: Interruption, random: Any) -> None:
        """The rest of an epoch. ``random``: of a state, the generators at its beginning and at that step."""
        here, device = self.position, self.launch.device
        if random is None:
            self.epoch_random = get_random(device)
        else:
            self.epoch_random = random[0]
            set_random(self.epoch_random, device)
        batches = self.batches(here.epoch)
        if here.batches:
            for _ in islice(batches, here.batches):
                pass
        if random is not None:
            set_random(random[1], device)
        while group := list(islice(batches, self.settings.accumulation)):
            self._step(group)
            here.step += 1
            here.batches += len(group)
            is_end = here.step == self.total or (
                self.per_epoch is not None and here.step % self.per_epoch == 0 and self.settings.eval_steps is None
            )
            self._write_row(is_end=is_end)
            every = self.settings.eval_steps
            if self.evaluate is not None and (is_end or (every is not None and here.step % every == 0)):
                self._evaluate()
                self._save(store)
            elif self.settings.save_steps is not None and here.step % self.settings.save_steps == 0:
                self._save(store)
            if interruption.came:
                self._save(store)
                raise KeyboardInterrupt
            if here.step == self.total or here.stopped:
                break
        else:
            if here.batches == 0:
                raise DataError(f"epoch {here.epoch + 1} has no batch to train on")
            here.epoch += 1
            here.batches = 0
            return
        if self.per_epoch is not None and here.batches >= (self.batches.length or 0):
            here.epoch += 1
            here.batches = 0

    # --- a step

    def _step(self, group: list[tuple[Any, int]]) -> None:
        """Gradients of some batches, as of one that holds them all, and what the optimizer makes of them."""
        self.quantization.before_step(self.position.step)
        self.wrapped.train()
        total = self._sum(sum(weight for _, weight in group))
        value = torch.zeros((), device=self.launch.device)
        for number, (batch, weight) in enumerate(group):
            is_last = number == len(group) - 1
            with nullcontext() if is_last else self.launch.no_sync(self.wrapped):
                part = self._part(batch, weight, total)
                self.launch.backward(part)
            value += part.detach().to(torch.float32)
        if self.launch.num_processes > 1:
            value = self.launch.reduce(value, "mean")
        figure = float(value)
        if not math.isfinite(figure):
            raise TrainingError(self._not_finite(figure))
        self._clip()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.quantization.after_step()
        losses, count = self.position.losses
        self.position.losses = (losses + figure, count + 1)
        self._tell(f"loss {(losses + figure) / (count + 1):.4f}")

    def _clip(self) -> None:
        """Shorten the gradient of the weights; that of scales is averaged here where FSDP leaves it alone."""
        longest = self.settings.max_grad_norm
        if not self.launch.is_sharded:
            if longest:
                self.launch.clip_grad_norm_(self.weights, longest)
            return
        if longest:
            self.launch.unscale_gradients()
        averaged = [None if p.grad is None else self.launch.reduce(p.grad, "mean") for p in self.scales]
        if longest:
            for parameter in self.scales:  # out of sight: FSDP clips all that there is
                parameter.grad = None
            sharded: Any = self.wrapped
            sharded.clip_grad_norm_(longest)  # by the norm over all processes
        for parameter, gradient in zip(self.scales, averaged, strict=True):
            parameter.grad = gradient

    def _part(self, batch: Mapping[str, Any], weight: int, total: float) -> Tensor:
        """The loss of one batch, scaled so that the sum over all batches and processes is their mean."""
        _check_labels(self.model, batch, self.launch.device)
        placed = {name: value.to(self.launch.device) if isinstance(value, torch.Tensor) else value
                  for name, value in batch.items()}  # fmt: skip
        loss = self.loss(self.wrapped, placed)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise ConfigError(f"the loss must be one number in a tensor, is {_shown(loss)}")
        if not loss.requires_grad:
            raise ConfigError("the loss has no gradient: was it computed without one, or with a frozen model?")
        share = weight * self.launch.num_processes / total if total else 1.0
        return loss.reshape(()) * share

    def _sum(self, count: int) -> float:
        if self.launch.num_processes == 1:
            return float(count)
        return float(self.launch.reduce(torch.tensor(float(count), device=self.launch.device), "sum"))

    def _not_finite(self, figure: float) -> str:
        here = self.position
        good = "no evaluation has come before"
        if here.best is not None:
            good = f"the last good model is that of step {here.best_step}, metric {here.best:.4f}"
        what = "not a number" if math.isnan(figure) else "infinite"
        return (
            f"step {here.step + 1} (epoch {here.epoch + 1}): the loss is {what}; {good}. A smaller learning rate, more "
            "warm-up or another precision may help"
        )

    # --- between steps

    def _write_row(self, *, is_end: bool) -> None:
        here = self.position
        if here.step % LOG_STEPS and not is_end:
            return
        losses, count = here.losses
        epoch = here.step / self.per_epoch if self.per_epoch else 0.0
        rate = self.scheduler.get_last_lr()[0]
        self.log.add(here.step, {"epoch": round(epoch, 4), "loss": losses / max(count, 1), "lr": rate})
        here.losses = (0.0, 0)

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        here = self.position
        random = get_random(self.launch.device)
        self.quantization.deployed()
        self.wrapped.eval()
        with _plain_forward(self.model):
            found = self.evaluate(self.wrapped if self.launch.is_sharded else self.model)
        set_random(random, self.launch.device)
        figures = dict(found) if isinstance(found, Mapping) else {"metric": float(found)}
        metric = float(next(iter(figures.values())))
        here.history.append({"step": here.step, **{name: float(value) for name, value in figures.items()}})
        self.log.add(here.step, figures)
        is_better = here.best is None or (metric > here.best if self.better == "higher" else metric < here.best)
        if math.isfinite(metric) and is_better:
            here.best, here.best_step, here.waited = metric, here.step, 0
            self._take_best()
        else:
            here.waited += 1
            here.stopped = self.settings.patience is not None and here.waited >= self.settings.patience
        self._tell("")

    def _take_best(self) -> None:
        model = self.model
        if self.launch.is_sharded:
            weights = self.launch.get_state_dict(self.wrapped)
            if self.twin is not None:
                model = self.twin
                model.load_state_dict(weights)
        if self.launch.is_main_process and self.on_best is not None:
            keep_ranges(model)
            self.on_best(model, self.position)
        if self.keep_best and not self.launch.is_sharded:
            keep_ranges(model)
            weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
            self.best = {"model": weights, "ranges": ranges_of(self.model)}
        self.launch.wait_for_everyone()

    def _load_best(self) -> None:
        if self.best is not None:
            self.model.load_state_dict(self.best["model"])
            set_ranges(self.model, self.best["ranges"])

    def _tell(self, text: str) -> None:
        here = self.position
        if self.progress is None or not self.launch.is_main_process:
            return
        if here.history:
            name, value = list(here.history[-1].items())[1]
            text = f"{text}, {name} {value:.4f}".removeprefix(", ")
        self.progress(here.step, self.total, text)

    # --- on disk

    def _save(self, store: Store | None) -> None:
        if store is None:
            return
        from accelerate.utils import gather_object

        mine = [{"epoch": self.epoch_random, "step": get_random(self.launch.device)}]
        everybody = gather_object(mine) if self.launch.num_processes > 1 else mine
        if self.launch.is_main_process:
            scaler = getattr(self.launch, "scaler", None)
            state = {
                "position": asdict(self.position),
                "model": {name: t.detach() for name, t in self.model.state_dict(keep_vars=True).items()},
                "ranges": ranges_of(self.model),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict()["last_epoch"],
                "random": everybody,
                "scaler": None if scaler is None else scaler.state_dict(),
                "best": self.best,
            }
            store.write(state, self.log.to_csv())
        self.launch.wait_for_everyone()

    def _restore(self, store: Store) -> tuple[Any, Any]:
        state = store.read()
        self.position = Position(**state["position"])
        losses, count = self.position.losses
        self.position.losses = (losses, count)
        self.model.load_state_dict(state["model"])
        set_ranges(self.model, state["ranges"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.last_epoch = state["scheduler"]
        self.scheduler._last_lr = [group["lr"] for group in self.scheduler.optimizer.param_groups]
        if state["scaler"] is not None and getattr(self.launch, "scaler", None) is not None:
            self.launch.scaler.load_state_dict(state["scaler"])
        self.best = state["best"]
        self.log.restore(store.read_log())
        random = state["random"][self.launch.process_index]
        return random["epoch"], random["step"]


def _lengths(batches: int | None, settings: TrainingSettings) -> tuple[int | None, int]:
    """Steps of an epoch, and of all."""
    per_epoch = None if batches is None else -(-batches // settings.accumulation)
    if per_epoch is None and settings.max_steps is None:
        raise ConfigError("the loader does not say how many batches it has: give max_steps")
    total = settings.max_steps if per_epoch is None else per_epoch * settings.epochs
    assert total is not None
    return per_epoch, total if settings.max_steps is None else min(total, settings.max_steps)


def _enable_checkpointing(model: nn.Module) -> None:
    enable = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        raise ConfigError(f"{type(model).__name__} offers no gradient checkpointing")
    enable()


def _check_labels(model: nn.Module, batch: Mapping[str, Any], device: torch.device) -> None:
    """On an accelerator a class that does not exist would end the process; the CPU's model says it itself."""
    labels, config = batch.get("labels"), getattr(model, "config", None)
    task = getattr(model, "task", None)
    if device.type == "cpu" or config is None or task not in {"sequence-classification", "token-classification"}:
        return
    if isinstance(labels, torch.Tensor) and labels.device.type == "cpu" and not labels.is_floating_point():
        from qdq.models.inputs import check_range

        if config.problem_type in (None, "single_label_classification"):
            check_range("labels", labels, config.num_labels, what="the classes", ignored=-100)


@contextmanager
def _plain_forward(model: nn.Module) -> Iterator[None]:
    """For as long as it lasts, without the mixed precision that accelerate puts around ``forward``."""
    patched = model.__dict__.get("forward")
    with suppress(AttributeError):
        if patched is not None:
            model.forward = model._original_forward  # type: ignore[assignment]
    try:
        yield
    finally:
        if patched is not None:
            model.forward = patched


def _shown(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
