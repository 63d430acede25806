"""Give a tokenizer the text cleaning, the splitting and the frame of a tokenizer class."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors

from qdq.data.tokenizer_files import special_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.data.tokenizer_classes import TokenizerClass

__all__ = ["complete", "copied", "gives_token_types", "lowercases", "without_token_types"]


def complete(
    tokenizer: Tokenizer, followed: TokenizerClass, settings: Mapping[str, Any], *, charsmap: bytes = b""
) -> None:
    """Set everything but the vocabulary to what a tokenizer class has, in place.

    Args:
        tokenizer: A tokenizer with the vocabulary of the class, which has its tokens ``cls`` and ``sep``.
        followed: The class, one of :data:`qdq.data.tokenizer_classes.FOLLOWED`.
        settings: The contents of ``tokenizer_config.json``, which go above the defaults of the class.
        charsmap: The compiled text normalization of a SentencePiece model; empty if there is none.
    """
    special = special_tokens(settings, followed.special)
    cls, sep = ((special[role], tokenizer.token_to_id(special[role]) or 0) for role in ("cls", "sep"))
    if followed.kind in ("bert", "mpnet"):
        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=lowercases(followed, settings),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=_setting(settings, "tokenize_chinese_chars", True),
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    elif followed.kind == "herbert":
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    elif followed.kind == "albert":
        tokenizer.normalizer = _alberts_cleaning(followed, settings, charsmap)
        scheme = "always" if _setting(settings, "add_prefix_space", True) else "never"
        words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
        tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    else:
        prefix = _setting(settings, "add_prefix_space", False)
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        tokenizer.decoder = decoders.ByteLevel()
    if followed.kind == "roberta":
        trim = _setting(settings, "trim_offsets", True)
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, trim, prefix)
    elif followed.kind == "mpnet":
        tokenizer.post_processor = processors.RobertaProcessing(sep, cls, True, False)
    else:
        tokenizer.post_processor = processors.BertProcessing(sep, cls)


def lowercases(followed: TokenizerClass, settings: Mapping[str, Any]) -> bool:
    """Return whether the cleaning of a tokenizer class makes capitals small."""
    return _setting(settings, "do_lower_case", followed.lowercase)


def _setting(settings: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a setting, or the default of its class where it is missing or null."""
    value = settings.get(name)
    return default if value is None else bool(value)


def _alberts_cleaning(followed: TokenizerClass, settings: Mapping[str, Any], charsmap: bytes) -> normalizers.Normalizer:
    """Return the text cleaning of ALBERT's authors, which comes before SentencePiece's own."""
    cleaning: list[normalizers.Normalizer] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not _setting(settings, "keep_accents", False):
        cleaning += [normalizers.NFKD(), normalizers.StripAccents()]
    if lowercases(followed, settings):
        cleaning.append(normalizers.Lowercase())
    if charsmap:
        cleaning.append(normalizers.Precompiled(charsmap))
    return normalizers.Sequence(cleaning)


# --- token types ---


def gives_token_types(tokenizer: Tokenizer) -> bool:
    """Return whether the second text of a pair has another token type than the first."""
    return any(tokenizer.encode("a", "a").type_ids)


def without_token_types(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the same ids that gives every token the type 0."""
    document = json.loads(tokenizer.to_str())
    processor = _of_one_type(document["post_processor"])
    if processor is None or processor["type"] == "ByteLevel":
        # Without a template, tokenizers gives the second text the type 1.
        template = {
            "type": "TemplateProcessing",
            "single": [_text("A")],
            "pair": [_text("A"), _text("B")],
            "special_tokens": {},
        }
        processor = {"type": "Sequence", "processors": [*([processor] if processor else []), template]}
    return copied(tokenizer, json.dumps({**document, "post_processor": processor}))


def copied(tokenizer: Tokenizer, text: str | None = None) -> Tokenizer:
    """Return a copy of a tokenizer.

    Args:
        tokenizer: The tokenizer.
        text: Its JSON, if something in it is to be changed.
    """
    copy = Tokenizer.from_str(tokenizer.to_str() if text is None else text)
    copy.encode_special_tokens = tokenizer.encode_special_tokens  # the JSON does not hold this one
    return copy


def _of_one_type(processor: Any) -> Any:
    """Return the JSON of a post-processor with the types 0."""
    if isinstance(processor, list):
        return [_of_one_type(part) for part in processor]
    if not isinstance(processor, dict):
        return processor
    if processor.get("type") == "BertProcessing":
        (cls, cls_id), (sep, sep_id) = processor["cls"], processor["sep"]
        tokens = {
            name: {"id": name, "ids": [index], "tokens": [name]} for name, index in ((cls, cls_id), (sep, sep_id))
        }
        single = [_special(cls), _text("A"), _special(sep)]
        pair = [*single, _text("B"), _special(sep)]
        return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    return {key: 0 if key == "type_id" else _of_one_type(value) for key, value in processor.items()}


def _text(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _special(name: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": 0}}
