"""What a directory of sentence-transformers says of its texts and vectors; weights are not read.

1. ``modules.json`` decides. Without it the directory is one of transformers: the vector of a text is the mean of its
   token vectors, and no other file of sentence-transformers is read.
2. ``config_sentence_transformers.json``: prompts, the similarity of vectors, and how many of their numbers are kept.
3. ``sentence_bert_config.json`` beside the transformer: the longest text, and whether texts are lowercased first.
4. ``tokenizer_config.json``: the longest text where 3. does not say it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from qdq.errors import ConfigError, describe_problems
from qdq.sentence.modules_file import MODULES_FILE, ModuleEntry, read_json_file, read_modules

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

__all__ = [
    "POOLINGS",
    "SETTINGS_FILE",
    "SIMILARITIES",
    "TRANSFORMER_FILES",
    "Pooling",
    "PoolingSettings",
    "SentenceFolder",
]

_LOG = logging.getLogger(__name__)

SETTINGS_FILE = "config_sentence_transformers.json"
#: The settings of the transformer's module; the first file that exists and is not empty counts.
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# Releases before 6 have one flag for each pooling; vectors of several are joined in this order.
_FLAGS: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SUPPORTED = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
# What has no effect on the vectors, or is the only value that this package computes.
_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_FOLLOWED = {"max_seq_length", "do_lower_case", "unpad_inputs", "modality_config", *_ARGUMENTS}
_USUAL = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
_USUAL_METHOD = {"method": "forward", "method_output_name": "last_hidden_state"}
_HARMLESS_ARGUMENTS = (
    "attn_implementation",
    "low_cpu_mem_usage",
    "use_safetensors",
    "trust_remote_code",
    "add_pooling_layer",
)


@dataclass(frozen=True)
class PoolingSettings:
    """How token vectors become one vector.

    Args:
        modes: The poolings, whose vectors are joined.
        include_prompt: Whether the tokens of a prompt count.
    """

    modes: tuple[Pooling, ...] = ("mean",)
    include_prompt: bool = True

    def __str__(self) -> str:
        """Return the names of the poolings."""
        return "+".join(self.modes)


@dataclass(frozen=True)
class SentenceFolder:
    """The files of sentence-transformers in and around a model's directory.

    Args:
        root: The directory of ``modules.json``.
        model: The directory of configuration, weights and tokenizer; ``root``, or one below it.
    """

    root: Path
    model: Path
    _told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    # --- modules ---

    @cached_property
    def modules(self) -> tuple[ModuleEntry, ...] | None:
        """The modules in order; None for a directory of transformers, and for one of another kind of model.

        A cross encoder or a sparse encoder is read as sentence-transformers converts it to a sentence transformer: as
        the transformer alone.

        Raises:
            ConfigError: ``modules.json`` or ``config_sentence_transformers.json`` is damaged.
        """
        found = read_modules(self.root)
        kind = (read_json_file(self.root / SETTINGS_FILE, dict, missing={}) if found else {}).get("model_type")
        return None if kind not in (None, "SentenceTransformer") else found

    @property
    def file(self) -> Path:
        """The file that names the modules."""
        return self.root / MODULES_FILE

    @cached_property
    def after_transformer(self) -> tuple[ModuleEntry, ...]:
        """The modules behind the transformer; none without ``modules.json``."""
        return tuple(entry for entry in self.modules or () if not (entry.is_transformer and not entry.is_custom))

    @cached_property
    def unsupported(self) -> tuple[ModuleEntry, ...]:
        """The modules that this package cannot compute: custom code, and such as LSTM or Router."""
        return tuple(entry for entry in self.after_transformer if entry.is_custom or entry.kind not in _SUPPORTED)

    @cached_property
    def changes_vectors(self) -> tuple[ModuleEntry, ...]:
        """The modules that change the pooled vector by more than its length."""
        plain = ("Pooling", "Normalize", "Dropout")
        return tuple(entry for entry in self.after_transformer if entry.is_custom or entry.kind not in plain)

    @cached_property
    def normalizes(self) -> bool:
        """Whether the vectors have length 1."""
        return any(entry.kind == "Normalize" and not entry.is_custom for entry in self.after_transformer)

    @cached_property
    def pooling(self) -> PoolingSettings:
        """How token vectors become one vector: the mean, where there is no ``modules.json``.

        Raises:
            ConfigError: ``modules.json`` names no pooling or several, its settings are missing or wrong.
        """
        if self.modules is None:
            self._tell_unused()
            return PoolingSettings()
        found = [entry for entry in self.after_transformer if entry.kind == "Pooling" and not entry.is_custom]
        if len(found) != 1:
            what = "no pooling" if not found else f"{len(found)} poolings"
            raise ConfigError(f"{self.file}: it names {what}, and a vector for a text needs one; {self._cure}")
        return _pooling(self.root / found[0].path / "config.json", self._cure)

    def left_out_by(self, pooling: str) -> list[str]:
        """Return how vectors of one pooling alone differ from those of the directory, in sentences."""
        if self.modules is None:
            return []
        if others := self.changes_vectors:
            left_out = ", ".join(map(str, others))
            return [f"the pooling {pooling} alone makes the vectors: {left_out} of {MODULES_FILE} is left out"]
        stated = self.stated_pooling
        if stated is None or stated.modes != (pooling,):
            return [f"the pooling {pooling} makes the vectors, {MODULES_FILE} asks for {stated or 'another'}"]
        return []

    def left_out_of_file(self, pooling: str, *, normalize: bool, cuts: bool = False) -> list[str]:
        """Return how the vectors of a file that pools by itself differ from those of the directory, in sentences.

        Args:
            pooling: The pooling inside the file.
            normalize: Whether the file scales its vectors to length 1.
            cuts: Whether its caller keeps as many numbers of a vector as the directory says.
        """
        notes = self.left_out_by(pooling)
        if self.normalizes and not normalize:
            notes.append(f"the vectors of the file do not have length 1, as {MODULES_FILE} asks for: give --normalize")
        stated = self.stated_pooling
        if stated is not None and not stated.include_prompt and any(self.prompts.values()):
            notes.append("the tokens of a prompt count in the vectors of the file, although include_prompt is false")
        if self.truncate_dim is not None and not cuts:
            notes.append(f"cut the vectors of the file to {self.truncate_dim} numbers, as {SETTINGS_FILE} says")
        return notes

    @cached_property
    def stated_pooling(self) -> PoolingSettings | None:
        """The pooling that ``modules.json`` asks for; None where it asks for none that is supported."""
        try:
            return None if self.modules is None else self.pooling
        except ConfigError:
            return None

    @property
    def _cure(self) -> str:
        return f"choose one with --pooling ({', '.join(POOLINGS)})"

    def _tell_unused(self) -> None:
        """Warn where another pooling lies here that nothing names."""
        file = self.root / "1_Pooling" / "config.json"
        if read_modules(self.root) is None and file.is_file():
            found = _pooling(file, self._cure)
            if found.modes != ("mean",):
                self._warn(
                    f"{file} asks for the pooling {found}, but without {MODULES_FILE} nothing names it: the mean is "
                    f"taken, as sentence-transformers does; --pooling {found.modes[0]} takes another"
                )

    # --- texts ---

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return {} if self.modules is None else read_json_file(self.root / SETTINGS_FILE, dict, missing={})

    @cached_property
    def _transformer(self) -> dict[str, Any]:
        """The settings of the transformer's module.

        Settings that are not followed and would change the vectors are warned of.
        """
        if self.modules is None:
            return {}
        files = [self.model / name for name in TRANSFORMER_FILES]
        file, values = next(
            ((file, found) for file in files if (found := read_json_file(file, dict, missing={}))), (files[0], {})
        )
        if ignored := _not_followed(values):
            self._warn(f"{file}: {', '.join(ignored)} is not followed: sentence-transformers may give other vectors")
        return values

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The prompts by name; ``query`` and ``document`` always exist, and are empty where the file has none.

        Raises:
            ConfigError: They are not texts by name.
        """
        given = self._settings.get("prompts") or {}
        wrong = not isinstance(given, dict) or any(not isinstance(text, str | None) for text in given.values())
        if wrong:
            raise ConfigError(f"{self.root / SETTINGS_FILE}: prompts must be an object of texts by name")
        return {name: text or "" for name, text in {"query": "", "document": "", **given}.items()}

    @cached_property
    def default_prompt(self) -> str:
        """What is put in front of a text of no special role; empty for nothing.

        Raises:
            ConfigError: The default prompt is not one of the prompts.
        """
        name = self._settings.get("default_prompt_name")
        if name is None:
            return ""
        if name not in self.prompts:
            raise ConfigError(
                f"{self.root / SETTINGS_FILE}: default_prompt_name is {name!r}, but there are only the prompts "
                f"{', '.join(self.prompts)}"
            )
        return self.prompts[name]

    @property
    def query_prompt(self) -> str:
        """What is put in front of a query. The default prompt plays no part, even if this one is empty."""
        return self.prompts["query"]

    @property
    def document_prompt(self) -> str:
        """What is put in front of a passage.

        sentence-transformers looks for ``document``, ``passage`` and ``corpus`` in this order, and always has a
        ``document``, if only an empty one.
        """
        return self.prompts["document"]

    @property
    def unused_passage_prompt(self) -> str | None:
        """The name of a prompt for passages that is not applied because ``document`` is looked for first."""
        if self.prompts["document"]:
            return None
        return next((name for name in ("passage", "corpus") if self.prompts.get(name)), None)

    @cached_property
    def lowercases(self) -> bool:
        """Whether texts are lowercased before the tokenizer reads them."""
        return bool(self._transformer.get("do_lower_case"))

    def lowercased(self, tokenizer: Tokenizer) -> Tokenizer:
        """Let a tokenizer lowercase its texts first, if the directory asks for it; return the tokenizer."""
        from tokenizers import normalizers

        if self.lowercases:
            own = tokenizer.normalizer
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([] if own is None else [own])])
        return tokenizer

    @cached_property
    def max_length(self) -> int | None:
        """The longest text in tokens; None where no file says it.

        Raises:
            ConfigError: It is not a whole number of at least 3: a token between two special ones.
        """
        arguments: dict[str, Any] = {}
        for name in ("tokenizer_args", "processor_kwargs"):
            values = self._transformer.get(name)
            arguments |= values if isinstance(values, dict) else {}
        tokenizer = read_json_file(self.model / "tokenizer_config.json", dict, missing={})
        given = (
            (TRANSFORMER_FILES[0], "model_max_length", arguments.get("model_max_length")),
            (TRANSFORMER_FILES[0], "max_seq_length", self._transformer.get("max_seq_length")),
            ("tokenizer_config.json", "model_max_length", tokenizer.get("model_max_length", tokenizer.get("max_len"))),
        )
        name, key, value = next((entry for entry in given if entry[2] is not None), ("", "", None))
        # Tokenizers without a limit hold a number like 1e30.
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 3):
            raise ConfigError(f"{self.model / name}: {key} is {value!r}, must be a whole number of at least 3")
        return None if value is None else int(value)

    # --- vectors ---

    @cached_property
    def similarity(self) -> str:
        """How vectors are compared: one of :data:`SIMILARITIES`, ``cosine`` where the file names none of them."""
        name = self._settings.get("similarity_fn_name")
        return name if name in SIMILARITIES else "cosine"

    @cached_property
    def truncate_dim(self) -> int | None:
        """How many numbers of a vector are kept, the first ones; None for all.

        Raises:
            ConfigError: It is not a whole number of at least 1.
        """
        value = self._settings.get("truncate_dim")
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(
                f"{self.root / SETTINGS_FILE}: truncate_dim is {value!r}, must be a whole number of at least 1"
            )
        return value

    def _warn(self, message: str) -> None:
        """Log a warning once."""
        if message not in self._told:
            self._told.add(message)
            _LOG.warning("%s", message)


def _pooling(file: Path, cure: str) -> PoolingSettings:
    config = read_json_file(file, dict)
    if config is None:
        raise ConfigError(f"{file}: no such file, and it says how token vectors become one vector; {cure}")
    flags = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
    modes = config.get("pooling_mode", flags) or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    problems = []
    if not isinstance(modes, list) or (unknown := [mode for mode in modes if mode not in POOLINGS]):
        named = " and ".join(map(str, unknown)) if isinstance(modes, list) else repr(modes)
        problems.append(f"the pooling {named} is not supported; {cure}")
    include = config.get("include_prompt", True)
    if not isinstance(include, bool):
        problems.append(f"include_prompt is {include!r}, must be true or false")
    if problems:
        raise ConfigError(describe_problems(str(file), problems))
    return PoolingSettings(tuple(modes), include)


def _not_followed(values: dict[str, Any]) -> list[str]:
    """Return the settings of the transformer's module that change the vectors and are not followed."""
    ignored = [
        f"{name} {value!r}"
        for name, value in values.items()
        if value not in (None, {}, []) and name not in _FOLLOWED and value != _USUAL.get(name)
    ]
    modality = values.get("modality_config")
    if isinstance(modality, dict) and (method := modality.get("text", _USUAL_METHOD)) != _USUAL_METHOD:
        ignored.append(f"modality_config of text {method!r}")
    for name in _ARGUMENTS:
        arguments = values.get(name)
        for key, value in (arguments if isinstance(arguments, dict) else {}).items():
            is_float32 = key in ("dtype", "torch_dtype") and value in ("float32", "auto")
            if not is_float32 and key not in (*_HARMLESS_ARGUMENTS, "model_max_length") and value is not None:
                ignored.append(f"{name}.{key} {value!r}")
    return ignored
