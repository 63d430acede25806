"""One handle for a directory that holds a model: what it is, how its texts are tokenized, what its records say.

    directory = qdq.open("model/")
    directory.kind                            "float", "quantized" or "export"
    directory.config, directory.task          from config.json
    directory.tokenizer, directory.encoder    from the tokenizer's files
    directory.pooling, directory.max_length   from the files of sentence-transformers
    directory.quantization, directory.export  what quantization.json and export.json record

Nothing is read before it is asked for, and nothing is read twice. Importing this module loads no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from qdq.errors import CheckpointError, ConfigError, QDQError, describe_problems
from qdq.onnx_files import MODEL_FILE, find_model_file, model_file_of
from qdq.storage import missing_directory, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from qdq.data.tokenizer import TextEncoder
    from qdq.models.config import ModelConfig

__all__ = [
    "EXPORT_FILE",
    "MODEL_FILE",
    "POOLINGS",
    "QUANTIZATION_FILE",
    "QUANTIZERS_FILE",
    "Kind",
    "ModelDirectory",
    "Pooling",
    "open",
    "read_export",
    "read_quantization",
]

_CURE = "give the directory of a checkpoint or an export; models are not downloaded"

QUANTIZATION_FILE = "quantization.json"
QUANTIZERS_FILE = "quantizers.safetensors"
EXPORT_FILE = "export.json"

READABLE_QUANTIZATION = (1, 2, 3)
READABLE_EXPORT = 1

Kind = Literal["float", "quantized", "export"]
Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[str, ...] = get_args(Pooling)

# The names of sentence-transformers. A mean divided by the root of the length has the same direction as the mean.
_POOLING_MODES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "max": "max", "mean_sqrt_len_tokens": "mean"}
_OLD_POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The modules of a sentence-transformers directory that leave cosines as they are.
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class ModelDirectory:
    """The handle of a directory with a checkpoint or an export; :func:`open` returns one.

    Two handles are equal if their paths are. A handle keeps what it has read: take a new one after the directory has
    been written anew.

    Args:
        path: The directory.
    """

    path: Path

    @classmethod
    def of(cls, given: str | Path | ModelDirectory) -> ModelDirectory:
        """Return the handle of a directory; a handle is returned as it is.

        Raises:
            CheckpointError: There is no such directory.
        """
        if isinstance(given, ModelDirectory):
            return given
        path = Path(given)
        if not path.is_dir():
            raise CheckpointError(missing_directory(path, _CURE))
        return cls(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def kind(self) -> Kind:
        """What the directory holds."""
        return "export" if self.is_export else "quantized" if self.is_quantized else "float"

    @property
    def is_export(self) -> bool:
        """Whether an ONNX model lies here, ours or any other's."""
        if any((self.path / name).is_file() for name in (EXPORT_FILE, MODEL_FILE)):
            return True
        try:
            return find_model_file(self.path) is not None
        except CheckpointError:  # several files: whoever opens one gets the message
            return True

    @cached_property
    def is_quantized(self) -> bool:
        """Whether :func:`qdq.load` returns a quantized model: from a checkpoint of ours, or from any QDQBERT."""
        if self._is_ours:
            return True
        try:
            return self.config.model_type == "qdqbert"
        except QDQError:  # whoever loads it gets the message
            return False

    @property
    def _is_ours(self) -> bool:
        # Either file makes it one of ours: an incomplete checkpoint must not pass for a float model.
        return any((self.path / name).is_file() for name in (QUANTIZATION_FILE, QUANTIZERS_FILE))

    @cached_property
    def config(self) -> ModelConfig:
        """The configuration in ``config.json``.

        Raises:
            CheckpointError: There is no ``config.json``.
            ConfigError: It cannot be followed; all problems are listed.
        """
        from qdq.models.huggingface import read_config

        return read_config(self.path)

    @cached_property
    def head(self) -> str | None:
        """The task of the head that ``config.json`` names; None where it names no architecture.

        Raises:
            ConfigError: The architecture is unknown.
        """
        from qdq.models.registry import task_of

        return task_of(self.config)[0] if self.config.architectures else None

    @property
    def task(self) -> str:
        """The task of the head, or ``feature-extraction`` where ``config.json`` names none."""
        return self.head or "feature-extraction"

    @cached_property
    def quantization(self) -> dict[str, Any] | None:
        """What ``quantization.json`` records; None for float models and for a QDQBERT of another program.

        Raises:
            CheckpointError: The record is missing although the quantizers are there, or it is damaged.
        """
        return read_quantization(self.path) if self._is_ours else None

    @cached_property
    def export(self) -> dict[str, Any] | None:
        """What ``export.json`` records; None where there is none.

        Raises:
            CheckpointError: The record is damaged, or the model that belongs to it is missing.
        """
        return read_export(self.path) if (self.path / EXPORT_FILE).is_file() else None

    @property
    def target(self) -> str | None:
        """The target of an export; None where no readable record names one."""
        try:
            return None if self.export is None else str(self.export["target"])
        except CheckpointError:
            return None

    @property
    def model_file(self) -> Path:
        """The ONNX file of an export.

        Raises:
            CheckpointError: There is none, or there are several, and none of them is ``model.onnx``.
        """
        return self.path / MODEL_FILE if (self.path / EXPORT_FILE).is_file() else model_file_of(self.path)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without truncation and padding.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        from qdq.data.tokenizer import load_tokenizer

        return load_tokenizer(self.path)

    @cached_property
    def encoder(self) -> TextEncoder:
        """The tokenizer with its special ids and the length that the model takes.

        Raises:
            CheckpointError: There is no tokenizer or no configuration, or one of them is damaged.
        """
        from qdq.data.tokenizer import load_encoder

        return load_encoder(self.path, max_length=self.config.max_length, pad_id=self.config.pad_token_id)

    @cached_property
    def pooling(self) -> Pooling:
        """The pooling that the files of sentence-transformers ask for, ``mean`` where they say nothing.

        Raises:
            ConfigError: They ask for a pooling that is not supported, or for modules that change cosines.
        """
        file = self.path / "modules.json"
        kinds = [str(module.get("type", "")).rpartition(".")[-1] for module in _read_optional(file, [])]
        if foreign := [kind for kind in kinds if kind not in _KNOWN_MODULES]:
            raise ConfigError(
                f"{file}: the module {', '.join(foreign)} is not supported; --pooling {'|'.join(POOLINGS)} leaves it "
                "out"
            )
        file = self.path / "1_Pooling" / "config.json"
        config = _read_optional(file, {})
        modes = config.get("pooling_mode", [name for key, name in _OLD_POOLING_MODES.items() if config.get(key)])
        modes = [modes] if isinstance(modes, str) else modes
        if not modes:
            return "mean"
        if len(modes) > 1 or modes[0] not in _POOLING_MODES:
            pooling = " and ".join(map(str, modes))
            raise ConfigError(f"{file}: the pooling {pooling} is not supported; choose one with --pooling")
        return _POOLING_MODES[modes[0]]

    @cached_property
    def sentence_length(self) -> int | None:
        """The longest text in tokens that the files of sentence-transformers ask for; None where they do not say."""
        length = _read_optional(self.path / "sentence_bert_config.json", {}).get("max_seq_length")
        return length if isinstance(length, int) else None

    @property
    def max_length(self) -> int:
        """The longest text in tokens: what the model has positions for, or less if sentence-transformers says so."""
        return min(self.sentence_length or self.config.max_length, self.config.max_length)


def open(path: str | Path | ModelDirectory) -> ModelDirectory:  # noqa: A001 (it is read as qdq.open)
    """Open the directory of a checkpoint or an export; see :class:`ModelDirectory` for what it tells.

    Raises:
        CheckpointError: There is no such directory.
    """
    return ModelDirectory.of(path)


def read_quantization(folder: str | Path) -> dict[str, Any]:
    """Read ``quantization.json``.

    Raises:
        CheckpointError: It is missing, not JSON, incomplete, or of a newer format.
        StorageError: It cannot be read.
    """
    file = Path(folder) / QUANTIZATION_FILE
    missing = f"{folder} has no {QUANTIZATION_FILE}: it is not a quantized checkpoint, or an incomplete one"
    document = read_json(file, missing=missing)
    if document.get("format") not in READABLE_QUANTIZATION:
        raise CheckpointError(
            f"{file}: format {document.get('format')!r} is not supported, this version reads "
            f"{READABLE_QUANTIZATION[-1]} and older"
        )
    problems = [
        f"{key} is missing" for key in ("recipe", "slots", "calibration") if not isinstance(document.get(key), dict)
    ]
    if problems:
        raise CheckpointError(describe_problems(str(file), problems))
    return document


def read_export(folder: str | Path) -> dict[str, Any]:
    """Read ``export.json`` of an exported directory.

    Raises:
        CheckpointError: The directory is not an export of ours, its record is damaged or of a newer format, or the
            model is missing.
        StorageError: The record cannot be read.
    """
    folder = ModelDirectory.of(folder).path
    file = folder / EXPORT_FILE
    document = read_json(
        file,
        missing=f"{folder} is not an export of qdq: it has no {EXPORT_FILE}; give a directory that qdq export wrote",
    )
    if document.get("format") != READABLE_EXPORT:
        raise CheckpointError(f"{file}: not a format that this version reads ({READABLE_EXPORT})")
    missing = [f"{key} is missing" for key in ("target", "recipe", "inputs") if key not in document]
    if missing:
        raise CheckpointError(describe_problems(str(file), missing))
    if not (folder / MODEL_FILE).is_file():
        raise CheckpointError(f"{folder}: {MODEL_FILE} is missing")
    return document


def _read_optional(file: Path, default: Any) -> Any:
    """Read a JSON file that may be missing; it must hold the same kind of value as ``default``."""
    if not file.is_file():
        return default
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(document, type(default)):
        raise ConfigError(f"{file}: must hold a JSON {'object' if default == {} else 'list'}")
    return document
