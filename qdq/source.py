"""One handle for a directory that holds a model: what it is, how its texts are tokenized, what its records say.

    directory = qdq.open("model/")
    directory.kind                            "float", "quantized" or "export"
    directory.config, directory.task          from config.json
    directory.tokenizer, directory.encoder    from the tokenizer's files
    directory.sentence, directory.pooling     from the files of sentence-transformers
    directory.quantization, directory.export  what quantization.json and export.json record

Nothing is read before it is asked for, and nothing is read twice. Importing this module loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qdq.errors import CheckpointError, ConfigError, QDQError, describe_problems
from qdq.load_settings import DEFAULT_LOADING, LoadSettings
from qdq.onnx_files import MODEL_FILE, find_model_file, model_file_of
from qdq.sentence.folder import POOLINGS, Pooling, SentenceFolder
from qdq.sentence.modules_file import transformer_folder
from qdq.storage import missing_directory, read_json

if TYPE_CHECKING:
    from collections.abc import Iterable

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


@dataclass(frozen=True)
class ModelDirectory:
    """The handle of a directory with a checkpoint or an export; :func:`open` returns one.

    Two handles are equal if their paths and their settings of loading are. A handle keeps what it has read: take a new
    one after the directory has been written anew.

    Args:
        path: The directory of the configuration, the weights and the tokenizer.
        root: The directory of sentence-transformers around it; None if that is ``path`` itself.
        loading: How its model is loaded, and where the tokenizer comes from. Every job that gets the handle follows it.
    """

    path: Path
    root: Path | None = None
    loading: LoadSettings = DEFAULT_LOADING

    @classmethod
    def of(cls, given: str | Path | ModelDirectory, loading: LoadSettings | None = None) -> ModelDirectory:
        """Return the handle of a directory; a handle is returned as it is, unless ``loading`` says otherwise.

        Args:
            given: The directory or its handle.
            loading: How its model is loaded; None takes the settings of the handle, or the defaults.

        Raises:
            CheckpointError: There is no such directory, or none for the tokenizer.
            ConfigError: Its ``modules.json``, which may place the model below it, is damaged.
        """
        if isinstance(given, ModelDirectory):
            return given if loading in (None, given.loading) else cls.of(given.root or given.path, loading)
        path, loading = Path(given), loading or DEFAULT_LOADING
        if not path.is_dir():
            raise CheckpointError(missing_directory(path, _CURE))
        model = transformer_folder(path)
        directory = cls(model, None if model == path else path, loading)
        if not directory.tokenizer_folder.is_dir():
            raise CheckpointError(
                missing_directory(directory.tokenizer_folder, "give a directory with tokenizer files")
            )
        return directory

    def __str__(self) -> str:
        return str(self.root or self.path)

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
    def has_pooler(self) -> bool:
        """Whether a feature extractor that is loaded from here has a pooler: one that is stored, or drawn."""
        from qdq.models.weights import stores_pooler

        drawn = "pooler" in self.loading.allow_missing
        return drawn or stores_pooler(self.path, self.config, ignore_keys=self.loading.ignore_keys)

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

    @property
    def tokenizer_folder(self) -> Path:
        """The directory of the tokenizer's files: this one, unless the settings of loading name another."""
        return self.path if self.loading.tokenizer is None else Path(self.loading.tokenizer)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, without truncation and padding.

        Raises:
            CheckpointError: There is none, or it is damaged.
        """
        from qdq.data.tokenizer import load_tokenizer

        return self.sentence.lowercased(load_tokenizer(self.tokenizer_folder))

    @cached_property
    def encoder(self) -> TextEncoder:
        """The tokenizer with its special ids and the length that the model takes.

        Raises:
            CheckpointError: There is no tokenizer or no configuration, or one of them is damaged.
        """
        from qdq.data.tokenizer import load_encoder

        config = self.config
        encoder = load_encoder(
            self.tokenizer_folder,
            max_length=config.max_length,
            pad_id=config.pad_token_id,
            word_rows=config.vocab_size,
            type_rows=getattr(config, "type_vocab_size", None),
        )
        return replace(encoder, tokenizer=self.sentence.lowercased(encoder.tokenizer))

    @cached_property
    def sentence(self) -> SentenceFolder:
        """What the files of sentence-transformers say of texts and vectors."""
        return SentenceFolder(self.root or self.path, self.path)

    @cached_property
    def pooling(self) -> Pooling:
        """The one pooling that makes the vector of a text, ``mean`` where ``modules.json`` does not exist.

        Raises:
            ConfigError: The vector is made of several poolings, or by further modules, or not supported.
        """
        sentence = self.sentence
        cure = f"--pooling {'|'.join(POOLINGS)}"
        if others := sentence.changes_vectors:
            raise ConfigError(
                f"{sentence.file}: the vectors of this model are not those of a pooling alone, they are made with "
                f"{', '.join(map(str, others))}; {cure} leaves it out, and an export without --pooling takes it along"
            )
        modes = sentence.pooling.modes
        if len(modes) > 1:
            raise ConfigError(
                f"{sentence.file}: the poolings {' and '.join(modes)} are joined; {cure} takes one of them"
            )
        return modes[0]

    @property
    def sentence_length(self) -> int | None:
        """The longest text in tokens that sentence-transformers or the tokenizer asks for; None if they do not say."""
        return self.sentence.max_length

    @property
    def max_length(self) -> int:
        """The longest text in tokens: what the model has positions for, or less if sentence-transformers says so."""
        return min(self.sentence_length or self.config.max_length, self.config.max_length)


def open(  # noqa: A001 (it is read as qdq.open)
    path: str | Path | ModelDirectory,
    *,
    allow_missing: Iterable[str] = (),
    ignore_keys: Iterable[str] = (),
    tokenizer: str | Path | None = None,
    seed: int | None = None,
) -> ModelDirectory:
    """Open the directory of a checkpoint or an export; see :class:`ModelDirectory` for what it tells.

    Every job that gets the handle instead of a path follows its settings of loading.

    Args:
        path: The directory.
        allow_missing: ``head`` or ``pooler``: modules that may be missing from the checkpoint and are then drawn.
        ignore_keys: Patterns of names of tensors to leave out, such as ``"fit_dense.*"``.
        tokenizer: Directory whose tokenizer files are used instead of those of ``path``.
        seed: Seed of the weights that ``allow_missing`` draws; None takes torch's random numbers as they come.

    Raises:
        CheckpointError: There is no such directory.
        ConfigError: Its ``modules.json``, which may place the model below it, is damaged, or a setting breaks its rule.
    """
    loading = LoadSettings(
        allow_missing=tuple(allow_missing),
        ignore_keys=tuple(ignore_keys),
        tokenizer=None if tokenizer is None else str(tokenizer),
        seed=seed,
    )
    # Without settings a handle stays as it is.
    return ModelDirectory.of(path, None if loading == DEFAULT_LOADING else loading)


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
