"""Add the special tokens and the added tokens of a tokenizer's files to its vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from qdq.data.tokenizer_files import read_object, special_tokens, token_text
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from qdq.data.tokenizer_classes import TokenizerClass

__all__ = ["add_tokens"]

# The order in which transformers adds the tokens of roles.
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def add_tokens(
    tokenizer: Tokenizer,
    followed: TokenizerClass,
    settings: Mapping[str, Any],
    model_dir: Path,
    *,
    control: Iterable[str] = (),
    to_file: bool = False,
) -> None:
    """Mark the special tokens, and add the tokens that files beside the vocabulary name.

    1. The special tokens of all roles that the vocabulary has.
    2. ``added_tokens_decoder``, or, without it, ``added_tokens.json``, in the order of their ids.
    3. Special tokens that settings name and the vocabulary lacks.
    4. ``additional_special_tokens`` and ``extra_special_tokens``, after all others.

    Args:
        tokenizer: The tokenizer, which is changed.
        followed: Its class.
        settings: The contents of ``tokenizer_config.json``.
        model_dir: The directory with the files.
        control: Pieces of SentencePiece that no text contains.
        to_file: The tokenizer comes from tokenizer.json, whose ids stand where the other files name others.

    Raises:
        CheckpointError: A token has another id than its file says.
    """
    names = [*special_tokens(settings, followed.special).values(), *control]
    given = {token_text(settings.get(f"{role}_token"), ""): settings.get(f"{role}_token") for role in _ROLES}
    given |= {token_text(entry, ""): entry for name, entry in settings.items() if name.endswith("_token")}
    # What tokenizer.json says of its special tokens stands, even where the settings differ.
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    known = [_special(given.get(name, name), name) for name in dict.fromkeys(names) if name not in present]
    tokenizer.add_special_tokens([token for token in known if tokenizer.token_to_id(token.content) is not None])
    # tokenizers numbers added tokens itself, so they must be added in the order of their ids.
    for index, token in sorted(_numbered(settings, model_dir, set(names)).items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        found = tokenizer.token_to_id(token.content)
        if found != index and not to_file:
            raise CheckpointError(
                f"{model_dir}: the added token {token.content!r} has id {index} in its files, but is token {found} of "
                f"the vocabulary: added tokens follow the vocabulary and each other without gaps; name the tokens "
                f"between, or put a tokenizer.json there"
            )
    for text, entry in given.items():
        if text and tokenizer.token_to_id(text) is None:
            tokenizer.add_special_tokens([_special(entry, text)])
    tokenizer.add_special_tokens(list(_unnumbered(settings)))


def _special(entry: Any, name: str) -> AddedToken:
    flags = {flag: entry[flag] for flag in _FLAGS if flag in entry} if isinstance(entry, dict) else {}
    return AddedToken(name, special=True, **{"normalized": False, **flags})


def _numbered(settings: Mapping[str, Any], model_dir: Path, special: set[str]) -> dict[int, AddedToken]:
    """Return the added tokens by their ids."""
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        path = model_dir / "tokenizer_config.json"
        for index, entry in (settings["added_tokens_decoder"] or {}).items():
            if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not str(index).isdigit():
                raise CheckpointError(f"{path}: added_tokens_decoder: {index!r} is not a token")
            flags = {name: entry[name] for name in _FLAGS if name in entry}
            added[int(index)] = AddedToken(entry["content"], special=entry.get("special", False), **flags)
    elif (path := model_dir / "added_tokens.json").is_file():
        special = special | {token.content for token in _unnumbered(settings)}
        for token, index in read_object(path).items():
            if type(index) is not int:
                raise CheckpointError(f"{path}: the token {token!r} must have a whole number, not {index!r}")
            is_special = token in special
            added[index] = AddedToken(token, normalized=not is_special, special=is_special)
    return added


def _unnumbered(settings: Mapping[str, Any]) -> Iterable[AddedToken]:
    """Yield the further special tokens, which settings write as a list, or as an object by role."""
    for name in ("additional_special_tokens", "extra_special_tokens"):
        entries = settings.get(name) or []
        for entry in entries.values() if isinstance(entries, dict) else entries:
            if text := token_text(entry, ""):
                yield _special(entry, text)
