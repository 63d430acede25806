"""Open the model to evaluate: a runner with its configuration and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, ConfigError
from qdq.models.registry import task_of
from qdq.onnx_files import ONNX_FILE_ENDINGS, folder_with_tokenizer
from qdq.source import ModelDirectory

if TYPE_CHECKING:
    from torch import nn

    from exporters.runners import Runner
    from qdq.models.attention import AttentionImplementation
    from qdq.models.config import ModelConfig

__all__ = [
    "EMBEDDING_TASKS",
    "RUNTIMES",
    "TASKS",
    "ModelUnderTest",
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

# The outputs with a value, or a vector, for each token.
_OF_TOKENS = ("last_hidden_state", "start_logits", "end_logits", "prediction_logits")
_LOGITS_OF_TOKENS = ("token-classification", "masked-lm")

# Heads of other tasks that give the same logits.
_ALSO_SERVES = {"masked-lm": ("pre-training",), "sequence-classification": ("next-sentence",)}


@dataclass(frozen=True)
class ModelUnderTest:
    """A model that can be run for a task.

    Args:
        name: The name in reports.
        directory: The directory that configuration and tokenizer come from.
        config: The configuration of the model.
        runner: Takes arrays and returns arrays.
        runtime: ``torch``, ``onnxruntime``, ``openvino`` or ``tensorrt``, or ``runner`` for a runner of the user.
    """

    name: str
    directory: ModelDirectory
    config: ModelConfig
    runner: Runner
    runtime: str

    @property
    def max_length(self) -> int:
        """The longest sequence that the model has positions for, or that its file is fixed to."""
        fixed = getattr(self.runner, "length", None)
        return self.config.max_length if fixed is None else min(fixed, self.config.max_length)


def open_model_under_test(
    path: str | Path | ModelDirectory, task: str, *, runtime: str | None = None, threads: int | None = None
) -> ModelUnderTest:
    """Open a float or quantized checkpoint, an export, or an engine built from one, for a task.

    An ONNX file may come from another program: its configuration and its tokenizer lie beside it or in the folder
    above, and :func:`exporters.runners.adapter.adapted` feeds it.

    Args:
        path: The directory, or the ONNX file, or the file of the engine.
        task: One of :data:`TASKS`.
        runtime: The runtime of an exported directory, by default ``onnxruntime``.
        threads: The number of threads of the runtime; None leaves the choice to it. PyTorch has its own setting for the
            whole process.

    Raises:
        BuildError: There is no GPU for an engine, or it cannot be loaded.
        CheckpointError: There is no such model, or it is damaged.
        ConfigError: The model has no head for the task, or the runtime is unknown.
    """
    from exporters.tensorrt.plan_metadata import is_plan

    if not isinstance(path, ModelDirectory) and is_plan(Path(path)):
        return _open_engine(Path(path), task)
    file = None
    if not isinstance(path, ModelDirectory) and Path(path).is_file() and Path(path).suffix in ONNX_FILE_ENDINGS:
        file = Path(path)
        directory = ModelDirectory.of(folder_with_tokenizer(file))
    else:
        directory = ModelDirectory.of(path)
        if directory.is_export:
            file = directory.model_file
            directory = _with_config(directory, file)
    if runtime is not None and runtime not in RUNTIMES:
        raise ConfigError(f"no runtime {runtime!r}: it must be {' or '.join(RUNTIMES)}")
    _check_head(str(directory if file is None else path), directory.config, task)
    if file is not None:
        return _open_export(str(path), file, directory, task, runtime or RUNTIMES[0], threads)
    return _open_checkpoint(directory, task)


def model_under_test_of(model: nn.Module | Runner, folder: str | Path | ModelDirectory, task: str) -> ModelUnderTest:
    """Take a model in memory or any runner, with the directory of its configuration and tokenizer.

    Raises:
        CheckpointError: The directory has no configuration.
        ConfigError: The model has no head for the task.
    """
    from torch import nn

    from exporters.runners import TorchRunner

    directory = ModelDirectory.of(folder)
    if isinstance(model, nn.Module):
        config: Any = getattr(model, "config", None) or directory.config
        name = type(model).__name__
        runner: Runner = TorchRunner(model)
        # A module of the user has no task; its outputs are checked when it runs.
        if hasattr(model, "task") and task not in EMBEDDING_TASKS:
            _check_head(name, config, task, head=model.task)  # type: ignore[arg-type]
        return ModelUnderTest(name, directory, config, runner, "torch")
    name = type(model).__name__
    if model.output_names:
        _check_outputs(name, model.output_names, task, "the runner")
    return ModelUnderTest(name, directory, directory.config, model, "runner")


def _open_checkpoint(directory: ModelDirectory, task: str) -> ModelUnderTest:
    from exporters.runners import TorchRunner
    from qdq.checkpoint import load

    # Fused attention is faster, but quantizers need the operations of eager attention.
    attention: AttentionImplementation = "eager" if directory.is_quantized else "sdpa"
    if task in EMBEDDING_TASKS:  # embeddings are made of token vectors, so that a pooler is not needed
        model = load(directory, "feature-extraction", attn_implementation=attention)
    else:
        # A checkpoint that does not name its task is tried with the one that is asked for.
        head = directory.head or task
        head = head if head in _ALSO_SERVES.get(task, ()) else task
        model = load(directory, head, attn_implementation=attention)
    names = next((n for n in OUTPUTS[task] if n != ("sentence_embedding",) and _gives(model, n)), OUTPUTS[task][-1])
    name = f"{directory} ({directory.kind} checkpoint)"
    return ModelUnderTest(name, directory, model.config, TorchRunner(model, output_names=names), "torch")


def _gives(model: Any, names: tuple[str, ...]) -> bool:
    return set(names) <= set(getattr(model, "logits_fields", ("last_hidden_state",)))


def _with_config(directory: ModelDirectory, file: Path) -> ModelDirectory:
    """Return the handle of the directory that has the configuration and the tokenizer of an export's file."""
    if (directory.path / "config.json").is_file():
        return directory
    return replace(directory, path=folder_with_tokenizer(file))


def _open_export(
    given: str, file: Path, directory: ModelDirectory, task: str, runtime: str, threads: int | None
) -> ModelUnderTest:
    from exporters.runners import OnnxRuntimeRunner, OpenVINORunner
    from exporters.runners.adapter import TextFacts, adapted

    config = directory.config
    runner_class: Any = {"onnxruntime": OnnxRuntimeRunner, "openvino": OpenVINORunner}[runtime]
    facts = TextFacts(
        pad_id=config.pad_token_id or 0,
        first_position=config.first_position,
        token_types=getattr(config, "type_vocab_size", 0) or 0,
    )
    runner = adapted(
        runner_class(file, threads=threads),
        str(file),
        wanted=OUTPUTS[task],
        of_tokens=(*_OF_TOKENS, *(("logits",) if task in _LOGITS_OF_TOKENS else ())),
        facts=facts,
    )
    _check_outputs(str(file), runner.output_names, task, "the file")
    name = f"{given} ({ModelDirectory(file.parent).target or 'foreign'} export)"
    return ModelUnderTest(name, directory, config, runner, runtime)


def _open_engine(path: Path, task: str) -> ModelUnderTest:
    """Open an engine with the configuration and tokenizer of the export beside it or that it was built from."""
    from exporters.tensorrt.plan_metadata import read_metadata
    from exporters.tensorrt.runner import TensorRTRunner

    folder = path.parent
    if not (folder / "config.json").is_file():
        # An engine that was moved records the export that it was built from.
        folder = Path(read_metadata(path)["source"])
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{path}: its configuration and tokenizer are in {folder}, which does not exist: put the engine into the "
            "directory that it was built from"
        )
    directory = ModelDirectory.of(folder)
    _check_head(str(path), directory.config, task)
    runner = TensorRTRunner(path)
    _check_outputs(str(path), runner.output_names, task, "the engine")
    return ModelUnderTest(f"{path} (engine)", directory, directory.config, runner, "tensorrt")


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
        raise ConfigError(f"{name} has {has}: it cannot be evaluated with the task {task}; give a model for it")


def _check_outputs(name: str, given: tuple[str, ...], task: str, what: str) -> None:
    if not any(set(names) <= set(given) for names in OUTPUTS[task]):
        wanted = " or ".join(" and ".join(names) for names in OUTPUTS[task])
        raise ConfigError(f"{name}: the task {task} needs {wanted}, {what} gives {', '.join(given)}")
