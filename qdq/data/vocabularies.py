"""Build tokenizers from the vocabulary files of checkpoints that are older than ``tokenizer.json``.

1. ``vocab.txt``: word pieces, with the cleaning and the frame of BERT or MPNet.
2. ``spiece.model``: SentencePiece unigrams, with ALBERT's text cleaning.
3. ``vocab.json`` and ``merges.txt``: RoBERTa's pairs of bytes, or HerBERT's pairs of characters.

A vocabulary of another kind under one of these names is refused, since every text would then have other ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, models, pre_tokenizers

from qdq.data.added_tokens import add_tokens
from qdq.data.sentencepiece import UNIGRAM, parse_sentencepiece
from qdq.data.tokenizer_classes import SAVE_CURE
from qdq.data.tokenizer_files import read_bytes, read_lines, read_object, special_tokens
from qdq.data.tokenizer_parts import complete
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from qdq.data.tokenizer_classes import TokenizerClass

__all__ = ["foreign_words", "unigrams", "vocabulary_pairs", "wordpieces"]


def wordpieces(model_dir: Path, followed: TokenizerClass, settings: Mapping[str, Any]) -> Tokenizer:
    """Build a WordPiece tokenizer from ``vocab.txt``, which has one token on each line in the order of the ids.

    Raises:
        CheckpointError: The vocabulary is not one of word pieces, or a file beside it is damaged.
        StorageError: A file cannot be read.
    """
    path = model_dir / "vocab.txt"
    special = special_tokens(settings, followed.special)
    if reason := foreign_words(path):
        raise CheckpointError(f"{path}: {reason}; {SAVE_CURE}")
    vocabulary = {token: index for index, token in enumerate(read_lines(path))}
    _require(path, followed.name, [special[role] for role in ("unk", "cls", "sep")], vocabulary)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    complete(tokenizer, followed, settings)
    add_tokens(tokenizer, followed, settings, model_dir)
    return tokenizer


def unigrams(model_dir: Path, followed: TokenizerClass, settings: Mapping[str, Any]) -> Tokenizer:
    """Build a unigram tokenizer from ``spiece.model``; user-defined symbols are ordinary pieces, as in SentencePiece.

    Raises:
        CheckpointError: The file is not a SentencePiece model of unigrams, or a file beside it is damaged.
        StorageError: A file cannot be read.
    """
    path = model_dir / "spiece.model"
    special = special_tokens(settings, followed.special)
    data = read_bytes(path)
    try:
        model = parse_sentencepiece(data)
    except ValueError as error:
        raise CheckpointError(f"{path}: is not a SentencePiece model, or it is damaged: {error}") from error
    if model.kind != UNIGRAM:
        raise CheckpointError(f"{path}: is a SentencePiece model, but not of unigrams, which ALBERT uses")
    vocabulary = {piece: index for index, (piece, _) in enumerate(model.pieces)}
    _require(path, followed.name, [special[role] for role in ("cls", "sep")], vocabulary)
    tokenizer = Tokenizer(models.Unigram(list(model.pieces), unk_id=model.unknown_id, byte_fallback=False))
    complete(tokenizer, followed, settings, charsmap=model.charsmap)
    add_tokens(tokenizer, followed, settings, model_dir, control=model.control)
    return tokenizer


def vocabulary_pairs(model_dir: Path, followed: TokenizerClass, settings: Mapping[str, Any]) -> Tokenizer:
    """Build a BPE tokenizer from ``vocab.json`` (ids by token) and ``merges.txt`` (one pair on each line).

    Raises:
        CheckpointError: The files do not hold the pairs of this class, or a file beside them is damaged.
        StorageError: A file cannot be read.
    """
    path, merges_path = model_dir / "vocab.json", model_dir / "merges.txt"
    special = special_tokens(settings, followed.special)
    vocabulary = read_object(path)
    if not all(type(index) is int for index in vocabulary.values()):
        raise CheckpointError(f"{path}: is not a vocabulary: not every token has a whole number")
    of_characters = followed.kind == "herbert"
    _check_pairs(path, vocabulary, of_characters=of_characters)
    _require(path, followed.name, [special[role] for role in ("cls", "sep")], vocabulary)
    merges = []
    for number, line in enumerate(read_lines(merges_path), start=1):
        if number == 1 and line.startswith("#version"):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise CheckpointError(f"{merges_path}: line {number} is not a pair of tokens separated by a blank")
        merges.append((pair[0], pair[1]))
    options = {"unk_token": special["unk"], "end_of_word_suffix": _END_OF_WORD} if of_characters else {}
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, **options))
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"{merges_path}: does not fit {path.name}: {error}") from error
    complete(tokenizer, followed, settings)
    add_tokens(tokenizer, followed, settings, model_dir)
    return tokenizer


def _require(path: Path, name: str, tokens: Iterable[str], vocabulary: Mapping[str, int]) -> None:
    if missing := [token for token in tokens if token not in vocabulary]:
        raise CheckpointError(f"{path}: is not a vocabulary of {name}: it lacks the special tokens {' '.join(missing)}")


# --- vocabularies of another kind ---


_END_OF_WORD = "</w>"

#: How tokens of other algorithms look: what marks them, and where such vocabularies come from.
_FOREIGN: tuple[tuple[Callable[[str], bool], str, str], ...] = (
    (lambda token: token[0] == "▁", "begin with ▁", "SentencePiece's do"),
    (lambda token: token[0] == "Ġ", "begin with Ġ", "pairs of bytes do"),
    (lambda token: token.endswith((_END_OF_WORD, "@@")), "end in </w> or @@", "pairs of characters do"),
    (
        lambda token: " " in token and token.rpartition(" ")[2].isdecimal(),
        "end in a count",
        "those of a fairseq dictionary do",
    ),
)


def foreign_words(path: Path) -> str | None:
    """Return why the lines of ``vocab.txt`` are not word pieces; None where they may be.

    They are not if more of them have the mark of another algorithm than of this one.
    """
    tokens = read_lines(path)
    words = [token for token in tokens if len(token) > 1]
    pieces = sum(token.startswith("##") for token in words)
    for is_marked, looks, as_these in _FOREIGN:
        marked = [token for token in words if is_marked(token)]
        # A mark may be an ordinary character in a few words of a vocabulary.
        if len(marked) > max(pieces, len(words) // 20, 2):
            return (
                f"is not a vocabulary of word pieces: {len(marked)} of its {len(tokens)} tokens {looks} "
                f"(such as {marked[0]!r}), as {as_these}"
            )
    return None


def _check_pairs(path: Path, vocabulary: Mapping[str, int], *, of_characters: bool) -> None:
    """Raise if a vocabulary has pairs of characters where pairs of bytes are expected, or the other way round.

    Raises:
        CheckpointError: It is one of the other kind.
    """
    whole = [token for token in vocabulary if len(token) > len(_END_OF_WORD) and token.endswith(_END_OF_WORD)]
    if of_characters:
        if not whole:
            raise CheckpointError(
                f"{path}: is not a vocabulary of HerbertTokenizer: no token ends in {_END_OF_WORD}, as its pairs of "
                f"characters do; {SAVE_CURE}"
            )
        return
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    others = [token for token in vocabulary if not letters.issuperset(token)]
    for found, looks in ((whole, f"end in {_END_OF_WORD}"), (others, "have characters that stand for no byte")):
        # Tokens that were added later may hold any text.
        if len(found) > len(vocabulary) // 20:
            raise CheckpointError(
                f"{path}: is not a vocabulary of pairs of bytes, as RoBERTa's is: {len(found)} of its "
                f"{len(vocabulary)} tokens {looks} (such as {found[0]!r}). If the tokenizer is HerBERT's, write "
                f'"tokenizer_class": "HerbertTokenizer" into tokenizer_config.json; otherwise {SAVE_CURE}'
            )
