"""Open the model to evaluate: a runner with its configuration and tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, ConfigError
from qdq.models.huggingface import read_config
from qdq.models.registry import task_of
from qdq.storage import no_directory

if TYPE_CHECKING:
    from torch import nn

    from exporters.runners import Runner
    from qdq.models.config import ModelConfig

__all__ = [
    "EMBEDDING_TASKS",
    "RUNTIMES",
    "TASKS",
    "ModelUnderTest",
    "is_export",
    "model_under_test_of",
    "open_model_under_test",
]

RUNTIMES = ("onnxruntime", "openvino")

#: The tasks that compare embeddings of texts and need no head.
EMBEDDING_TASKS = ("sts", "retrieval")

#: The outputs that each task reads. Where a task has several choices, the first that the model has is read.
OUTPUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sts": (("sentence_embedding",), ("last_hidden_state",)),
    "retrieval": (("sentence_embedding",), ("last_hidden_state",)),
    "sequence-classification": (("logits",),),
    "token-classification": (("logits",),),
    "multiple-choice": (("logits",),),
    "question-answering": (("start_logits", "end_logits"),),
    "masked-lm": (("logits",), ("prediction_logits",)),
}

TASKS = tuple(OUTPUTS)

# Heads of other tasks that give the same logits.
_ALSO_SERVES = {"masked-lm": ("pre-training",), "sequence-classification": ("next-sentence",)}


@dataclass(frozen=True)
class ModelUnderTest:
    """A model that can be run for a task.

    Args:
        name: The name in reports.
        folder: The directory with config.json, the tokenizer, and the files of sentence-transformers.
        config: The configuration of the model.
        runner: Takes arrays and returns arrays.
        runtime: ``torch``, ``onnxruntime``, ``openvino`` or ``tensorrt``, or ``runner`` for a runner of the user.
    """

    name: str
    folder: Path
    config: ModelConfig
    runner: Runner
    runtime: str

    @property
    def max_length(self) -> int:
        """The longest sequence that the model has positions for."""
        return self.config.max_length


def open_model_under_test(
    path: str | Path, task: str, *, runtime: str | None = None, threads: int | None = None
) -> ModelUnderTest:
    """Open a float or quantized checkpoint, an exported directory, or an engine built from one, for a task.

    Args:
        path: The directory, or the file of the engine.
        task: One of :data:`TASKS`.
        runtime: The runtime of an exported directory, by default ``onnxruntime``.
        threads: The number of threads of the runtime; None leaves the choice to it. PyTorch has its own setting for the
            whole process.

    Raises:
        BuildError: There is no GPU for an engine, or it cannot be loaded.
        CheckpointError: There is no such model, or it is damaged.
        ConfigError: The model has no head for the task, or the runtime is unknown.
    """
    from exporters.tensorrt.record import is_plan

    path = Path(path)
    if is_plan(path):
        return _open_engine(path, task)
    if not path.is_dir():
        raise CheckpointError(no_directory(path, "give a checkpoint or an exported directory"))
    if runtime is not None and runtime not in RUNTIMES:
        raise ConfigError(f"no runtime {runtime!r}: it must be {' or '.join(RUNTIMES)}")
    config = read_config(path)
    _check_head(str(path), config, task)
    if is_export(path):
        return _open_export(path, task, config, runtime or RUNTIMES[0], threads)
    return _open_checkpoint(path, task)


def model_under_test_of(model: nn.Module | Runner, folder: str | Path, task: str) -> ModelUnderTest:
    """Take a model in memory or any runner, with the directory of its configuration and tokenizer.

    Raises:
        CheckpointError: The directory has no configuration.
        ConfigError: The model has no head for the task.
    """
    from torch import nn

    from exporters.runners import TorchRunner

    folder = Path(folder)
    if isinstance(model, nn.Module):
        config: Any = getattr(model, "config", None) or read_config(folder)
        name = type(model).__name__
        runner: Runner = TorchRunner(model)
        # A module of the user has no task; its outputs are checked when it runs.
        if hasattr(model, "task") and task not in EMBEDDING_TASKS:
            _check_head(name, config, task, head=model.task)  # type: ignore[arg-type]
        return ModelUnderTest(name, folder, config, runner, "torch")
    config, name = read_config(folder), type(model).__name__
    if model.output_names:
        _check_outputs(name, model.output_names, task, "the runner")
    return ModelUnderTest(name, folder, config, model, "runner")


def is_export(path: Path) -> bool:
    """Return whether a directory holds an exported model."""
    from exporters.directory import EXPORT_FILE, MODEL_FILE

    return (path / EXPORT_FILE).is_file() or (path / MODEL_FILE).is_file()


def _open_checkpoint(path: Path, task: str) -> ModelUnderTest:
    from exporters.runners import TorchRunner
    from qdq.checkpoint import is_quantized, load

    if task in EMBEDDING_TASKS:  # embeddings are made of token vectors, without the pooler
        model = load(path, "feature-extraction", allow_missing=("pooler",), **_attention(path))
    else:
        config = read_config(path)
        # Without architectures the checkpoint does not name its task, and the one asked for is tried.
        head = task_of(config)[0] if config.architectures else task
        model = load(path, head if head in _ALSO_SERVES.get(task, ()) else task, **_attention(path))
    kind = "quantized" if is_quantized(path) else "float"
    names = next((n for n in OUTPUTS[task] if n != ("sentence_embedding",) and _gives(model, n)), OUTPUTS[task][-1])
    return ModelUnderTest(
        f"{path} ({kind} checkpoint)", path, model.config, TorchRunner(model, output_names=names), "torch"
    )


def _attention(path: Path) -> dict[str, Any]:
    """Use fused attention for float models; quantizers need the operations of eager attention."""
    from qdq.checkpoint import is_quantized

    return {"attn_implementation": "eager" if is_quantized(path) else "sdpa"}


def _gives(model: Any, names: tuple[str, ...]) -> bool:
    return set(names) <= set(getattr(model, "returns", ("last_hidden_state",)))


def _open_export(path: Path, task: str, config: ModelConfig, runtime: str, threads: int | None) -> ModelUnderTest:
    from exporters.directory import MODEL_FILE
    from exporters.runners import OnnxRuntimeRunner, OpenVINORunner

    runners = {"onnxruntime": OnnxRuntimeRunner, "openvino": OpenVINORunner}
    runner: Any = runners[runtime](path / MODEL_FILE, threads=threads)
    _check_outputs(str(path / MODEL_FILE), runner.output_names, task, "the file")
    return ModelUnderTest(f"{path} ({_target(path)} export)", path, config, runner, runtime)


def _open_engine(path: Path, task: str) -> ModelUnderTest:
    """Open an engine with the configuration and tokenizer of the export beside it or that it was built from."""
    from exporters.tensorrt.record import read_record
    from exporters.tensorrt.runner import TensorRTRunner

    folder = path.parent
    if not (folder / "config.json").is_file():
        # An engine that was moved records the export that it was built from.
        folder = Path(read_record(path)["source"])
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{path}: its configuration and tokenizer are in {folder}, which does not exist: put the engine into the "
            "directory that it was built from"
        )
    config = read_config(folder)
    _check_head(str(path), config, task)
    runner = TensorRTRunner(path)
    _check_outputs(str(path), runner.output_names, task, "the engine")
    return ModelUnderTest(f"{path} (engine)", folder, config, runner, "tensorrt")


def _target(path: Path) -> str:
    from exporters.directory import EXPORT_FILE

    try:
        document = json.loads((path / EXPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "foreign"
    return str(document.get("target")) if isinstance(document, dict) else "foreign"


def _check_head(name: str, config: ModelConfig, task: str, *, head: str | None = None) -> None:
    """Raise if the model was made for another task; a model that does not name its task is tried."""
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
