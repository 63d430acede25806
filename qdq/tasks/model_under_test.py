"""What is evaluated: a runner, with the configuration and the tokenizer that belong to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, ConfigError
from qdq.models.registry import task_of
from qdq.source import ModelDirectory

if TYPE_CHECKING:
    from torch import nn

    from exporters.runners import Runner
    from qdq.models.attention import AttentionImplementation
    from qdq.models.config import ModelConfig

__all__ = ["EMBEDDING_TASKS", "RUNTIMES", "TASKS", "Subject", "open_subject", "subject_of"]

RUNTIMES = ("onnxruntime", "openvino")

EMBEDDING_TASKS = ("sts", "retrieval")
"""Tasks that compare embeddings of texts and need no head."""

OUTPUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sts": (("sentence_embedding",), ("last_hidden_state",)),
    "retrieval": (("sentence_embedding",), ("last_hidden_state",)),
    "sequence-classification": (("logits",),),
    "token-classification": (("logits",),),
    "multiple-choice": (("logits",),),
    "question-answering": (("start_logits", "end_logits"),),
    "masked-lm": (("logits",), ("prediction_logits",)),
}
"""For every task the outputs that it reads; where there are several choices, the first that the model has."""

TASKS = tuple(OUTPUTS)

# Heads under another name that give the same logits.
_ALSO_SERVES = {"masked-lm": ("pre-training",), "sequence-classification": ("next-sentence",)}


@dataclass(frozen=True)
class Subject:
    """A model that can be run for a task.

    Args:
        name: for reports.
        directory: The directory that configuration and tokenizer come from.
        config: the model's configuration.
        runner: arrays in, arrays out.
        runtime: what computes: ``torch``, ``onnxruntime``, ``openvino``, ``tensorrt``, or ``runner`` for a foreign one.
    """

    name: str
    directory: ModelDirectory
    config: ModelConfig
    runner: Runner
    runtime: str

    @property
    def max_length(self) -> int:
        """The longest sequence that the model has positions for."""
        return self.config.max_length


def open_subject(
    path: str | Path | ModelDirectory, task: str, *, runtime: str | None = None, threads: int | None = None
) -> Subject:
    """A checkpoint, float or quantized, an exported directory, or an engine built from one, ready for ``task``.

    Args:
        path: the directory, or the engine's file.
        task: one of :data:`TASKS`.
        runtime: that runs an exported directory, ``onnxruntime`` when None.
        threads: of the runtime; None leaves the choice to it. torch has its own setting for the whole process.

    Raises:
        BuildError: there is no GPU for an engine, or it cannot be loaded.
        CheckpointError: there is no such model, or it is damaged.
        ConfigError: the model has no head for the task, or ``runtime`` is unknown.
    """
    from exporters.tensorrt.record import is_plan

    if not isinstance(path, ModelDirectory) and is_plan(Path(path)):
        return _open_engine(Path(path), task)
    directory = ModelDirectory.of(path)
    if runtime is not None and runtime not in RUNTIMES:
        raise ConfigError(f"no runtime {runtime!r}: it must be {' or '.join(RUNTIMES)}")
    _check_head(str(directory), directory.config, task)
    if directory.is_export:
        return _open_export(directory, task, runtime or RUNTIMES[0], threads)
    return _open_checkpoint(directory, task)


def subject_of(model: nn.Module | Runner, folder: str | Path | ModelDirectory, task: str) -> Subject:
    """A model in memory, or any runner, with the directory that its configuration and tokenizer come from.

    Raises:
        CheckpointError: the directory has no configuration.
        ConfigError: the model has no head for the task.
    """
    from torch import nn

    from exporters.runners import TorchRunner

    directory = ModelDirectory.of(folder)
    if isinstance(model, nn.Module):
        config: Any = getattr(model, "config", None) or directory.config
        name = type(model).__name__
        runner: Runner = TorchRunner(model)
        if hasattr(model, "task") and task not in EMBEDDING_TASKS:
            _check_head(name, config, task, head=model.task)  # type: ignore[arg-type]
        return Subject(name, directory, config, runner, "torch")
    name = type(model).__name__
    if model.output_names:
        _check_outputs(name, model.output_names, task, "the runner")
    return Subject(name, directory, directory.config, model, "runner")


def _open_checkpoint(directory: ModelDirectory, task: str) -> Subject:
    from exporters.runners import TorchRunner
    from qdq.checkpoint import load

    # Fused attention is faster, but leaves quantizers no tensors to quantize.
    attention: AttentionImplementation = "eager" if directory.is_quantized else "sdpa"
    if task in EMBEDDING_TASKS:  # the pooler is not read
        model = load(directory, "feature-extraction", allow_missing=("pooler",), attn_implementation=attention)
    else:
        head = directory.head or task
        head = head if head in _ALSO_SERVES.get(task, ()) else task
        model = load(directory, head, attn_implementation=attention)
    names = next((n for n in OUTPUTS[task] if n != ("sentence_embedding",) and _gives(model, n)), OUTPUTS[task][-1])
    name = f"{directory} ({directory.kind} checkpoint)"
    return Subject(name, directory, model.config, TorchRunner(model, output_names=names), "torch")


def _gives(model: Any, names: tuple[str, ...]) -> bool:
    return set(names) <= set(getattr(model, "returns", ("last_hidden_state",)))


def _open_export(directory: ModelDirectory, task: str, runtime: str, threads: int | None) -> Subject:
    from exporters.runners import OnnxRuntimeRunner, OpenVINORunner

    runners = {"onnxruntime": OnnxRuntimeRunner, "openvino": OpenVINORunner}
    runner: Any = runners[runtime](directory.model_file, threads=threads)
    _check_outputs(str(directory.model_file), runner.output_names, task, "the file")
    return Subject(
        f"{directory} ({directory.target or 'foreign'} export)", directory, directory.config, runner, runtime
    )


def _open_engine(path: Path, task: str) -> Subject:
    """An engine; configuration and tokenizer are those of the export that it lies in, or was built from."""
    from exporters.tensorrt.record import read_record
    from exporters.tensorrt.runner import TensorRTRunner

    folder = path.parent
    if not (folder / "config.json").is_file():
        folder = Path(read_record(path)["source"])
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{path}: its configuration and tokenizer are in {folder}, which is not there: put the engine into the "
            "directory that it was built from"
        )
    directory = ModelDirectory.of(folder)
    _check_head(str(path), directory.config, task)
    runner = TensorRTRunner(path)
    _check_outputs(str(path), runner.output_names, task, "the engine")
    return Subject(f"{path} (engine)", directory, directory.config, runner, "tensorrt")


def _check_head(name: str, config: ModelConfig, task: str, *, head: str | None = None) -> None:
    """Refuse a model that was made for another task; one that does not say its task is tried."""
    if task not in OUTPUTS:
        raise ConfigError(f"no task {task!r} to evaluate; there are {', '.join(TASKS)}")
    if task in EMBEDDING_TASKS or (head is None and not config.architectures):
        return
    head = task_of(config)[0] if head is None else head
    if head != task and head not in _ALSO_SERVES.get(task, ()):
        made = f"{head} ({', '.join(config.architectures)})" if config.architectures else head
        has = "no head, only the encoder" if head in {"feature-extraction", *EMBEDDING_TASKS} else f"a head for {made}"
        raise ConfigError(f"{name} has {has}: it cannot be evaluated with the task {task}")


def _check_outputs(name: str, given: tuple[str, ...], task: str, what: str) -> None:
    if not any(set(names) <= set(given) for names in OUTPUTS[task]):
        wanted = " or ".join(" and ".join(names) for names in OUTPUTS[task])
        raise ConfigError(f"{name}: the task {task} needs {wanted}, {what} gives {', '.join(given)}")
