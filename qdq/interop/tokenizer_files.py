"""Find the vocabulary that lies with a foreign checkpoint, and give it the name under which it is read here."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from qdq.data.tokenizer import TOKENIZER_FILES
from qdq.data.tokenizer_files import read_text
from qdq.storage import refuse_pointer, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["take_vocabulary"]

_SETTINGS = "tokenizer_config.json"
_READ_FROM = (
    "tokenizer.json",
    "vocab.txt",
    "spiece.model",
    "vocab.json",
)  # each is a whole tokenizer, or the core of one
_CASED = 0.01  # the least share of words with capitals in a vocabulary of cased text; an uncased one has next to none


def take_vocabulary(folders: Sequence[Path], target: Path, *, model_type: str, lowercase: bool | None = None) -> str:
    """Copy the vocabulary of a checkpoint into ``target``, unless a tokenizer is there.

    1. ``vocab.txt``, or the only other file ``*vocab*.txt``, is WordPiece.
    2. ``spiece.model``, or the only other file ``*.model``, is SentencePiece, which ALBERT uses.

    Where no file says whether text is lowercased, that is written down too: WordPiece lowercases by default, and a
    vocabulary of cased text would then give other tokens.

    Args:
        folders: The directories to look in, the nearest one first.
        target: The directory of the converted checkpoint.
        model_type: The family of the model.
        lowercase: Whether the training lowercased text; None tells by the vocabulary.

    Returns:
        What was done, as a note for the report; empty if there is nothing to say.

    Raises:
        CheckpointError: The vocabulary is a pointer of Git LFS, or is not UTF-8.
        StorageError: A file cannot be read.
    """
    note = ""
    if not any((target / name).is_file() for name in _READ_FROM):
        found = _find(folders, model_type)
        if found is None:
            wanted = "spiece.model or vocab.txt" if model_type == "albert" else "vocab.txt"
            return f"no tokenizer lies with the checkpoint: copy its {wanted} into the directory before you use it"
        source, name = found
        refuse_pointer(source)
        shutil.copyfile(source, target / name)
        beside = source.with_name(_SETTINGS)
        if beside.is_file():
            shutil.copyfile(beside, target / _SETTINGS)
        note = f"tokenizer: {source}" + (f", as {name}" if source.name != name else "")
    is_silent = not any((target / name).is_file() for name in ("tokenizer.json", _SETTINGS))
    if is_silent and (target / "vocab.txt").is_file():
        cased = _is_cased(target / "vocab.txt") if lowercase is None else not lowercase
        write_json(target / _SETTINGS, {"do_lower_case": not cased, "tokenizer_class": "BertTokenizer"})
        why = "as its words have capitals" if lowercase is None else "as in the training"
        if cased:
            note = f"{note or 'tokenizer: vocab.txt'}, without lowercasing, {why}"
    return note


def _find(folders: Sequence[Path], model_type: str) -> tuple[Path, str] | None:
    """Return the vocabulary and the name that it gets."""
    for folder in folders:
        for name in TOKENIZER_FILES:
            if name in _READ_FROM and (folder / name).is_file():
                return folder / name, name
        words = sorted(folder.glob("*vocab*.txt"))
        pieces = sorted(folder.glob("*.model")) if model_type == "albert" else []
        if len(words) == 1 and not pieces:
            return words[0], "vocab.txt"
        if len(pieces) == 1:
            return pieces[0], "spiece.model"
    return None


def _is_cased(vocabulary: Path) -> bool:
    # Special tokens such as [CLS] are written in capitals in every vocabulary.
    words = [word for word in read_text(vocabulary).splitlines() if not word.startswith("[")]
    return sum(word != word.lower() for word in words) > _CASED * len(words)
