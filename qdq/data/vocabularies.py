"""Build tokenizers from the vocabulary files of checkpoints that are older than ``tokenizer.json``.

1. ``vocab.txt``: WordPiece, with BERT's text cleaning.
2. ``spiece.model``: SentencePiece unigrams, with ALBERT's text cleaning.
3. ``vocab.json`` and ``merges.txt``: byte-level pairs, as RoBERTa has them.

Settings come from ``tokenizer_config.json`` and ``special_tokens_map.json``. The defaults are those of the families'
own tokenizers.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from qdq.errors import CheckpointError, StorageError
from qdq.protobuf import VARINT, read_fields, read_varint
from qdq.storage import refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = [
    "SPECIAL_ROLES",
    "byte_level_pairs",
    "parse_sentencepiece",
    "read_settings",
    "read_text",
    "special_tokens",
    "unigrams",
    "wordpieces",
]


SPECIAL_ROLES = ("pad", "unk", "cls", "sep", "mask")

_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ALBERT = {**_BERT, "pad": "<pad>", "unk": "<unk>"}
_ROBERTA = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}


def wordpieces(model_dir: Path) -> Tokenizer:
    """Build a WordPiece tokenizer from ``vocab.txt``, which has one token on each line in the order of the ids.

    Raises:
        CheckpointError: The vocabulary is not BERT's, or a file beside it is damaged.
        StorageError: A file cannot be read.
    """
    path = model_dir / "vocab.txt"
    settings = read_settings(model_dir)
    special = special_tokens(settings, _BERT)
    vocabulary = {token: index for index, token in enumerate(_lines(path))}
    _require(path, "BERT", [special[role] for role in ("unk", "cls", "sep")], vocabulary)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(
        (special["sep"], vocabulary[special["sep"]]), (special["cls"], vocabulary[special["cls"]])
    )
    _add(tokenizer, special.values(), settings, model_dir)
    return tokenizer


def unigrams(model_dir: Path) -> Tokenizer:
    """Build a unigram tokenizer from ``spiece.model``; user-defined symbols are ordinary pieces, as in SentencePiece.

    Raises:
        CheckpointError: The file is not a SentencePiece model of unigrams, or a file beside it is damaged.
        StorageError: A file cannot be read.
    """
    path = model_dir / "spiece.model"
    settings = read_settings(model_dir)
    special = special_tokens(settings, _ALBERT)
    refuse_pointer(path)
    try:
        model = parse_sentencepiece(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: is not a SentencePiece model, or it is damaged: {error}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if model.kind != _UNIGRAM:
        raise CheckpointError(f"{path}: is a SentencePiece model, but not of unigrams, which ALBERT uses")
    vocabulary = {piece: index for index, (piece, _) in enumerate(model.pieces)}
    _require(path, "ALBERT", [special[role] for role in ("cls", "sep")], vocabulary)
    tokenizer = Tokenizer(models.Unigram(list(model.pieces), unk_id=model.unknown_id, byte_fallback=False))
    # The text cleaning of ALBERT's authors, which comes before SentencePiece's own.
    cleaning: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        cleaning += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        cleaning.append(normalizers.Lowercase())
    if model.charsmap:
        cleaning.append(normalizers.Precompiled(model.charsmap))
    tokenizer.normalizer = normalizers.Sequence(cleaning)
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    cls, sep = special["cls"], special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    _add(tokenizer, [*special.values(), *model.control], settings, model_dir)
    return tokenizer


def byte_level_pairs(model_dir: Path) -> Tokenizer:
    """Build a byte-level BPE tokenizer from ``vocab.json`` (ids by token) and ``merges.txt`` (one pair on each line).

    Raises:
        CheckpointError: The files are not RoBERTa's, or a file beside them is damaged.
        StorageError: A file cannot be read.
    """
    path, merges_path = model_dir / "vocab.json", model_dir / "merges.txt"
    settings = read_settings(model_dir)
    special = special_tokens(settings, _ROBERTA)
    vocabulary = _json_object(path)
    if not all(type(index) is int for index in vocabulary.values()):
        raise CheckpointError(f"{path}: is not a vocabulary: not every token has a whole number")
    _require(path, "RoBERTa", [special[role] for role in ("cls", "sep")], vocabulary)
    merges = []
    for number, line in enumerate(_lines(merges_path), start=1):
        if number == 1 and line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise CheckpointError(f"{merges_path}: line {number} is not a pair of tokens separated by a blank")
        merges.append((pair[0], pair[1]))
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"{merges_path}: does not fit {path.name}: {error}") from error
    prefix, trim = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (special["sep"], vocabulary[special["sep"]]), (special["cls"], vocabulary[special["cls"]]), trim, prefix
    )
    _add(tokenizer, special.values(), settings, model_dir)
    return tokenizer


def read_settings(model_dir: Path) -> dict[str, Any]:
    """Read ``special_tokens_map.json`` and ``tokenizer_config.json``, which wins; empty if there is neither.

    Raises:
        CheckpointError: One of them is damaged.
        StorageError: One of them cannot be read.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (model_dir / name).is_file():
            settings |= _json_object(model_dir / name)
    return settings


def special_tokens(settings: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str]:
    """Return the special tokens by role, which settings write as a string or as an object with ``content``."""
    return {role: _content(settings.get(f"{role}_token"), default) for role, default in defaults.items()}


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        CheckpointError: The file is not UTF-8, or is a pointer of Git LFS.
        StorageError: The file cannot be read.
    """
    refuse_pointer(path)
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is damaged: not UTF-8 text") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _content(token: Any, default: str) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else default


def _add(tokenizer: Tokenizer, special: Iterable[str], settings: Mapping[str, Any], model_dir: Path) -> None:
    """Mark the special tokens, and add the tokens that other files name, in the order of their ids."""
    known = [AddedToken(token, normalized=False, special=True) for token in dict.fromkeys(special)]
    tokenizer.add_special_tokens([token for token in known if tokenizer.token_to_id(token.content) is not None])
    added: dict[int, AddedToken] = {}
    if (model_dir / "added_tokens.json").is_file():
        for token, index in _json_object(model_dir / "added_tokens.json").items():
            added[int(index)] = AddedToken(token, normalized=False)
    for index, entry in settings.get("added_tokens_decoder", {}).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not str(index).isdigit():
            raise CheckpointError(
                f"{model_dir / 'tokenizer_config.json'}: added_tokens_decoder: {index!r} is not a token"
            )
        flags = {name: entry[name] for name in ("lstrip", "rstrip", "single_word", "normalized") if name in entry}
        added[int(index)] = AddedToken(entry["content"], special=entry.get("special", False), **flags)
    # tokenizers numbers added tokens itself, so they must be added in the order of their ids.
    for index, added_token in sorted(added.items()):
        (tokenizer.add_special_tokens if added_token.special else tokenizer.add_tokens)([added_token])
        found = tokenizer.token_to_id(added_token.content)
        if found != index:
            raise CheckpointError(
                f"{model_dir}: the added token {added_token.content!r} has id {index} in its files, "
                f"but is token {found} of the vocabulary"
            )


def _require(path: Path, family: str, tokens: Iterable[str], vocabulary: Mapping[str, int]) -> None:
    if missing := [token for token in tokens if token not in vocabulary]:
        raise CheckpointError(
            f"{path}: is not a vocabulary of {family}: it lacks the special tokens {' '.join(missing)}"
        )


def _lines(path: Path) -> list[str]:
    return read_text(path).removesuffix("\n").split("\n")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return value


# --- SentencePiece's model files ---


_UNIGRAM = 1  # model_type of TrainerSpec
_CONTROL, _UNKNOWN = 3, 2  # types of pieces


@dataclass(frozen=True)
class SentencePieceModel:
    """The contents of a SentencePiece model file.

    Args:
        pieces: The pieces with their scores (the logarithms of their probabilities), in the order of their ids.
        control: Pieces that no text contains, such as ``[CLS]``.
        unknown_id: The id of text that no piece covers.
        kind: The algorithm; 1 for unigrams.
        charsmap: The compiled table of the text normalization; empty if there is none.
    """

    pieces: tuple[tuple[str, float], ...]
    control: tuple[str, ...]
    unknown_id: int
    kind: int
    charsmap: bytes


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """Parse a SentencePiece model file.

    The file is one message in the wire format of Protocol Buffers (``sentencepiece_model.proto``): fields with a number
    and a type, one after another. Unknown fields are skipped.

    Raises:
        ValueError: The bytes are not such a file, or they are damaged.
    """
    pieces: list[tuple[str, float]] = []
    control: list[str] = []
    unknown_id, kind, charsmap = 0, _UNIGRAM, b""
    for number, value in _fields(data):
        if number == 1:  # SentencePiece: 1 piece, 2 score, 3 type
            entry = dict(_fields(_bytes(value)))
            piece, piece_type = _bytes(entry.get(1, b"")).decode("utf-8"), entry.get(3, 1)
            if piece_type == _UNKNOWN:
                unknown_id = len(pieces)
            elif piece_type == _CONTROL:
                control.append(piece)
            pieces.append((piece, struct.unpack("<f", _bytes(entry.get(2, bytes(4))))[0]))
        elif number == 2:  # TrainerSpec: 3 model_type
            found = dict(_fields(_bytes(value))).get(3, _UNIGRAM)
            kind = found if isinstance(found, int) else _UNIGRAM
        elif number == 3:  # NormalizerSpec: 2 precompiled_charsmap
            charsmap = _bytes(dict(_fields(_bytes(value))).get(2, b""))
    if not pieces:
        raise ValueError("it holds no pieces")
    return SentencePieceModel(tuple(pieces), tuple(control), unknown_id, kind, charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message: the number, and the value as an integer or, for all other types, as bytes."""
    for field in read_fields(data):
        if field.wire_type == VARINT:
            yield field.number, read_varint(data, field.begin, field.end)[0]
        else:
            yield field.number, data[field.begin : field.end]


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value
