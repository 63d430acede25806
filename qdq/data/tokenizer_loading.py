"""Load the tokenizer of a checkpoint directory as transformers does, or refuse it."""

from __future__ import annotations

import base64
import json
import logging
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tokenizers import Tokenizer, models, normalizers

from qdq.data.added_tokens import add_tokens
from qdq.data.tokenizer_classes import FILE_DECIDES, FOLLOWED, SAVE_CURE, TokenizerClass, class_of
from qdq.data.tokenizer_files import (
    SPECIAL_ROLES,
    read_config,
    read_settings,
    read_text,
    special_tokens,
)
from qdq.data.tokenizer_parts import complete, gives_token_types, lowercases, without_token_types
from qdq.data.vocabularies import foreign_words, unigrams, vocabulary_pairs, wordpieces
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["TOKENIZER_FILES", "Side", "SourceTokenizer", "load_tokenizer", "read_tokenizer"]

_LOG = logging.getLogger(__name__)

Side: TypeAlias = Literal["left", "right"]

#: The files of a tokenizer in a checkpoint directory, which are copied with the checkpoint.
TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)

_BUILDERS: Mapping[str, Callable[[Path, TokenizerClass, Mapping[str, Any]], Tokenizer]] = {
    "bert": wordpieces,
    "mpnet": wordpieces,
    "albert": unigrams,
    "roberta": vocabulary_pairs,
    "herbert": vocabulary_pairs,
}

# The model types of transformers whose positions count from 0 whether or not a token is padding.
_ABSOLUTE = {"bert", "qdqbert", "albert", "megatron-bert", "realm"}

#: A share of the vocabulary that no text can reach and that an uncased vocabulary never has.
_MANY = 0.05


@dataclass(frozen=True)
class SourceTokenizer:
    """The tokenizer of a directory, and what its files say beside it.

    Args:
        tokenizer: The tokenizer, without truncation and padding.
        special: The special tokens that the files name, by role.
        truncation_side: The end at which long texts are cut.
        usual_length: ``model_max_length``; None where it sets no limit.
        pair_note: What to tell about pairs of texts, where transformers gives them other token types.
    """

    tokenizer: Tokenizer
    special: Mapping[str, str]
    truncation_side: Side = "right"
    usual_length: int | None = None
    pair_note: str | None = None


def load_tokenizer(model_dir: str | Path, *, type_rows: int | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory, without the truncation and padding that its file may set.

    The first of these files that exists is read:

    1. ``tokenizer.json``, in the format of the package ``tokenizers``.
    2. The vocabulary of the tokenizer class, where a file names one or ``model_type`` implies it.
    3. ``vocab.txt``: WordPiece, with BERT's text cleaning.
    4. ``spiece.model``: SentencePiece, with ALBERT's text cleaning.
    5. ``vocab.json`` and ``merges.txt``: pairs of bytes, as RoBERTa has them.

    Settings in ``tokenizer_config.json`` (``do_lower_case``, ...) are followed as transformers follows them. Where
    ``model_input_names`` leaves out token types, or the model has one type, all types are 0.

    Args:
        model_dir: The directory.
        type_rows: The number of token types of the model; by default what its ``config.json`` says.

    Raises:
        CheckpointError: The directory has none of these files, one is damaged, or the tokenizer class is not followed.
        StorageError: A file exists and cannot be read.
    """
    return read_tokenizer(model_dir, type_rows=type_rows).tokenizer


def read_tokenizer(model_dir: str | Path, *, type_rows: int | None = None) -> SourceTokenizer:
    """Load a tokenizer as :func:`load_tokenizer` does, with what its files say beside it."""
    model_dir = Path(model_dir)
    settings, config = read_settings(model_dir), read_config(model_dir)
    given = class_of(model_dir, settings, config)
    if (model_dir / "tokenizer.json").is_file():
        tokenizer = _from_json(model_dir / "tokenizer.json")
        cut = tokenizer.truncation or {}
        settings = {"truncation_side": str(cut.get("direction", "right")).lower(), **settings}
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _apply_class(tokenizer, given, settings, model_dir)
        _warn_of_code(given, settings, model_dir)
    else:
        found = _class_by_files(model_dir, given)
        tokenizer = _BUILDERS[found.kind](model_dir, found, settings)
        _warn_of_unreachable(tokenizer, found, settings, model_dir)
    tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens"))
    tokenizer, note = _token_types(tokenizer, given, settings, model_dir, type_rows or config.get("type_vocab_size"))
    _warn_of_padding(settings, config, model_dir)
    named = {role: token for role, token in special_tokens(settings, dict.fromkeys(SPECIAL_ROLES, "")).items() if token}
    # A followed class has its special tokens without saying so.
    defaults = {} if given is None else given.special
    return SourceTokenizer(
        tokenizer,
        special={**defaults, **named} if given is not None and given.kind != "file" else named,
        truncation_side="left" if settings.get("truncation_side") == "left" else "right",
        usual_length=_usual_length(settings),
        pair_note=note,
    )


def _from_json(path: Path) -> Tokenizer:
    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"{path}: is damaged or of an unknown format: {error}") from error


def _usual_length(settings: Mapping[str, Any]) -> int | None:
    length = settings.get("model_max_length")
    # transformers writes a number like 1e30 where there is no limit.
    return int(length) if isinstance(length, int | float) and 0 < length < 1e6 else None


# --- vocabulary files ---


def _class_by_files(model_dir: Path, given: TokenizerClass | None) -> TokenizerClass:
    """Return the class to build a tokenizer of from vocabulary files.

    1. The given class, where its files are there.
    2. Otherwise the class whose files are there, with a warning if another one is named.
    """
    if given is not None and given.kind != "file" and _has(model_dir, given):
        return given
    usual = [FOLLOWED[name] for name in ("BertTokenizer", "AlbertTokenizer", "RobertaTokenizer")]
    found = next((one for one in usual if _has(model_dir, one)), None)
    if given is not None and given.kind == "file" and given.name not in (FILE_DECIDES.name, "TokenizersBackend"):
        reason = foreign_words(model_dir / "vocab.txt") if (model_dir / "vocab.txt").is_file() else None
        raise CheckpointError(
            f"{model_dir}: the tokenizer class {given.name} is followed only with a tokenizer.json, which is missing"
            + (f", and vocab.txt {reason}" if reason else "")
            + f"; {SAVE_CURE}"
        )
    if found is None:
        raise CheckpointError(_no_tokenizer(model_dir))
    if given is not None and given.is_explicit:
        _warn(
            f"{model_dir}: the tokenizer class {given.name} needs {' and '.join(given.files)}, and transformers does "
            f"not load it without; {' and '.join(found.files)} is read as {found.name} instead"
        )
    return found


def _has(model_dir: Path, followed: TokenizerClass) -> bool:
    return all((model_dir / name).is_file() for name in followed.files)


def _no_tokenizer(model_dir: Path) -> str:
    looked_for = "tokenizer.json, vocab.txt, spiece.model, or vocab.json with merges.txt"
    message = f"{model_dir}: no tokenizer; put one of these files there: {looked_for}"
    if (model_dir / "config.json").is_file():  # a trainer saves a model so, if it is given no tokenizer
        message += "; copy those of the model that the training began with, or name its directory with --tokenizer DIR"
    others = ("sentencepiece.bpe.model", "spm.model", "tokenizer.model", "bpe.codes", "vocab.json")
    if found := [name for name in others if (model_dir / name).is_file()]:
        message += f"; {found[0]} has to be converted once: {SAVE_CURE}"
    return message


# --- tokenizer.json and its class ---


_MODELS: Mapping[str, type] = {
    "bert": models.WordPiece,
    "mpnet": models.WordPiece,
    "albert": models.Unigram,
    "roberta": models.BPE,
    "herbert": models.BPE,
}


def _apply_class(
    tokenizer: Tokenizer, given: TokenizerClass | None, settings: Mapping[str, Any], model_dir: Path
) -> None:
    """Change a tokenizer of tokenizer.json as its class does.

    1. Without a class, settings of BERT's text cleaning go above those of the file.
    2. A class that is not followed leaves the file as it is.
    3. A followed class puts its own text cleaning and frame in place of those of the file. Where the file is built in
       another way, it stays as it is: version 4 of transformers follows it, and version 5 follows the class.
    """
    if given is None:
        _apply_cleaning(tokenizer, settings)  # case 1
    elif given.kind != "file" and not given.file_first:
        before = json.loads(tokenizer.to_str())
        if difference := _difference(tokenizer, given, settings, before):
            _warn(
                f"{model_dir}: tokenizer.json {difference}, unlike {given.name}; the file is followed, but "
                "transformers 5 follows the class and gives other ids; if the file is right, name "
                "PreTrainedTokenizerFast as tokenizer_class in tokenizer_config.json"
            )
            _apply_cleaning(tokenizer, settings)
        else:
            complete(tokenizer, given, settings, charsmap=_charsmap(before["normalizer"]))
            _warn_of_default(before, given, settings, model_dir)
            _warn_of_unreachable(tokenizer, given, settings, model_dir)
    add_tokens(tokenizer, given or FILE_DECIDES, settings, model_dir, to_file=True)


def _apply_cleaning(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    cleaning = tokenizer.normalizer
    if isinstance(cleaning, normalizers.BertNormalizer):
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=cleaning.clean_text,
            lowercase=settings.get("do_lower_case", cleaning.lowercase),
            strip_accents=settings.get("strip_accents", cleaning.strip_accents),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", cleaning.handle_chinese_chars),
        )


def _difference(
    tokenizer: Tokenizer, followed: TokenizerClass, settings: Mapping[str, Any], document: Mapping[str, Any]
) -> str | None:
    """Return in which way the file is not built like its class; None where it is."""
    kind = followed.kind
    special = special_tokens(settings, followed.special)
    cls, sep = (tokenizer.token_to_id(special[role]) for role in ("cls", "sep"))
    if not isinstance(tokenizer.model, _MODELS[kind]):
        return f"has the algorithm {type(tokenizer.model).__name__}"
    if cls is None or sep is None:
        return f"has no tokens {special['cls']} and {special['sep']}"
    model = document["model"]
    if kind in ("bert", "mpnet") and (
        model.get("continuing_subword_prefix", "##"),
        model.get("max_input_chars_per_word", 100),
        model.get("unk_token"),
    ) != ("##", 100, special["unk"]):
        return "has other settings of its word pieces"
    if kind == "roberta" and (model.get("dropout") or model.get("unk_token") not in (None, special["unk"])):
        return "has other settings of its pairs"
    names = {"albert": ("Sequence", "Sequence"), "roberta": (None, "ByteLevel")}
    cleaning, splitting = names.get(kind, ("BertNormalizer", "BertPreTokenizer"))
    if (document["normalizer"] or {}).get("type") != cleaning:
        return "cleans texts in another way"
    if (document["pre_tokenizer"] or {}).get("type") != splitting:
        return "splits texts in another way"
    expected = [cls, sep, sep, sep] if kind in ("mpnet", "roberta") else [cls, sep, sep]
    if tokenizer.encode("", "").ids != expected or tokenizer.encode("").ids != [cls, sep]:
        return "puts other special tokens around texts"
    return None


def _charsmap(normalizer: Any) -> bytes:
    """Return the compiled text normalization of SentencePiece within the JSON of a normalizer; empty without one."""
    parts = (normalizer or {}).get("normalizers", [normalizer or {}])
    return next(
        (base64.b64decode(part["precompiled_charsmap"]) for part in parts if "precompiled_charsmap" in part), b""
    )


# --- token types ---


def _token_types(
    tokenizer: Tokenizer,
    given: TokenizerClass | None,
    settings: Mapping[str, Any],
    model_dir: Path,
    type_rows: object,
) -> tuple[Tokenizer, str | None]:
    """Return the tokenizer with the token types that the model gets, and a note where transformers gives others.

    1. ``model_input_names`` decides where it is given; a model of one type has the type 0.
    2. Then the class decides.
    3. Version 5 of transformers gives no types for some classes whose models were trained with them. They are kept.
    """
    names = settings.get("model_input_names")
    wanted = "token_type_ids" in names if isinstance(names, list) else None
    if wanted is None and given is not None:
        wanted = given.token_types
    if (wanted is True and type_rows != 1) or not gives_token_types(tokenizer):
        return tokenizer, None
    if wanted is False or type_rows == 1:
        return without_token_types(tokenizer), None
    if given is None:
        return tokenizer, None
    return tokenizer, (
        f"{model_dir}: the second text of a pair has token type 1, as in transformers 4; version 5 gives "
        f"{given.name} no token types, so that all are 0. model_input_names in tokenizer_config.json decides: with "
        '"token_type_ids" both give types, without it neither does'
    )


# --- warnings ---


@lru_cache(maxsize=256)
def _warn(message: str) -> None:
    """Log a warning once: a command may load one tokenizer several times."""
    _LOG.warning(message)


def _warn_of_default(
    document: Mapping[str, Any], followed: TokenizerClass, settings: Mapping[str, Any], model_dir: Path
) -> None:
    """Warn where the class makes capitals small that the file keeps, and no setting asks for it."""
    kept = (document["normalizer"] or {}).get("lowercase") is False
    if kept and settings.get("do_lower_case") is None and lowercases(followed, settings):
        _warn(
            f"{model_dir}: tokenizer.json keeps capitals, but {followed.name} makes them small unless "
            "tokenizer_config.json says do_lower_case: false; the class is followed, as in transformers"
        )


def _warn_of_unreachable(
    tokenizer: Tokenizer, followed: TokenizerClass, settings: Mapping[str, Any], model_dir: Path
) -> None:
    """Warn where the default text cleaning makes many words of the vocabulary unreachable."""
    if settings.get("do_lower_case") is not None or not lowercases(followed, settings):
        return
    added = tokenizer.get_added_tokens_decoder().values()
    words = set(tokenizer.get_vocab(with_added_tokens=False)) - {token.content for token in added}
    words = {word for word in words if not word.startswith(("[unused", "<"))}
    capital = sorted(word for word in words if word != word.lower() and _has_capital(word))
    if len(capital) > _MANY * len(words):
        _warn(
            f"{model_dir}: {100 * len(capital) / len(words):.0f} % of the words of the vocabulary ({len(capital)} of "
            f"{len(words)}, such as {capital[0]!r}) have capitals, which no text reaches, since {followed.name} makes "
            'capitals small. If the model knows capitals, write "do_lower_case": false into tokenizer_config.json; '
            "otherwise write true"
        )


def _has_capital(word: str) -> bool:
    return any(unicodedata.category(letter) in ("Lu", "Lt") for letter in word)


def _warn_of_code(given: TokenizerClass | None, settings: Mapping[str, Any], model_dir: Path) -> None:
    """Warn where the class is Python code of the folder, which is never run."""
    if given is not None and given.kind == "file" and "AutoTokenizer" in (settings.get("auto_map") or ()):
        _warn(
            f"{model_dir}: the tokenizer class {given.name} is code of this folder (auto_map), which is not run: "
            "tokenizer.json is followed. With trust_remote_code, transformers runs the code, which may give other ids"
        )


def _warn_of_padding(settings: Mapping[str, Any], config: Mapping[str, Any], model_dir: Path) -> None:
    if settings.get("padding_side") == "left" and config.get("model_type") in _ABSOLUTE:
        _warn(
            f"{model_dir}: padding_side is left, but batches are padded at the right: every text gets the output that "
            "it has alone. transformers pads at the left, which moves the positions of shorter texts"
        )
