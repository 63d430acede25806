"""Know transformers' tokenizer classes: which are followed, which are refused, and which leave it to tokenizer.json.

``tokenizer_config.json`` names the class, or else ``config.json``, or else the class is that of the ``model_type``.

1. A followed class (:data:`FOLLOWED`) decides how texts are cleaned, split and framed, whatever file the vocabulary
   comes from.
2. A class of Python code (:data:`REFUSED`) is refused: ``tokenizer.json`` cannot express what it does, and transformers
   does not read that file for it.
3. Every other class needs ``tokenizer.json``, which is followed as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["FILE_DECIDES", "FOLLOWED", "REFUSED", "SAVE_CURE", "Kind", "TokenizerClass", "class_of"]

#: The algorithm and the frame of a class: BERT's and MPNet's word pieces, ALBERT's unigrams, RoBERTa's pairs of bytes,
#: HerBERT's pairs of characters; ``file`` where tokenizer.json alone decides.
Kind: TypeAlias = Literal["bert", "mpnet", "albert", "roberta", "herbert", "file"]


@dataclass(frozen=True)
class TokenizerClass:
    """What a tokenizer class does where its settings say nothing.

    Args:
        name: Its name, without the ending ``Fast``.
        kind: Algorithm and frame.
        special: The special tokens by role.
        files: The files of its vocabulary.
        lowercase: The default of ``do_lower_case``.
        token_types: Whether transformers gives token types. None: its version 4 does, and version 5 gives none unless
            ``model_input_names`` asks for them.
        file_first: Whether tokenizer.json is followed as it is, where there is one.
        is_explicit: Whether a file names the class; otherwise it is the class of the ``model_type``, or unknown.
    """

    name: str
    kind: Kind
    special: Mapping[str, str]
    files: tuple[str, ...]
    lowercase: bool = True
    token_types: bool | None = True
    file_first: bool = False
    is_explicit: bool = True


_BERT = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ALBERT = {**_BERT, "pad": "<pad>", "unk": "<unk>"}
_ROBERTA = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
_MPNET = {**_ROBERTA, "unk": "[UNK]"}
_PAIRS = ("vocab.json", "merges.txt")

_NAMES_OF_BERT = (
    "BertTokenizer",
    "DPRContextEncoderTokenizer",
    "DPRQuestionEncoderTokenizer",
    "ElectraTokenizer",
    "LayoutLMTokenizer",
    "LxmertTokenizer",
    "MobileBertTokenizer",
    "RealmTokenizer",
    "RetriBertTokenizer",
    "SqueezeBertTokenizer",
)

#: The classes that are followed, by name.
FOLLOWED: Mapping[str, TokenizerClass] = {
    found.name: found
    for found in (
        *(TokenizerClass(name, "bert", _BERT, ("vocab.txt",)) for name in _NAMES_OF_BERT),
        TokenizerClass("ConvBertTokenizer", "bert", _BERT, ("vocab.txt",), file_first=True),
        TokenizerClass("DistilBertTokenizer", "bert", _BERT, ("vocab.txt",), token_types=False),
        TokenizerClass("MPNetTokenizer", "mpnet", _MPNET, ("vocab.txt",), token_types=False),
        TokenizerClass("AlbertTokenizer", "albert", _ALBERT, ("spiece.model",), token_types=None),
        *(
            TokenizerClass(name, "roberta", _ROBERTA, _PAIRS, lowercase=False, token_types=False)
            for name in ("RobertaTokenizer", "BartTokenizer", "LongformerTokenizer")
        ),
        TokenizerClass("HerbertTokenizer", "herbert", _ROBERTA, _PAIRS, lowercase=False, token_types=None),
    )
}

#: Stands for every class that is neither followed nor refused.
FILE_DECIDES = TokenizerClass("PreTrainedTokenizer", "file", {}, ("tokenizer.json",), token_types=None)

_WORDS = "splits texts into words of Japanese with MeCab, Sudachi or Juman++"
_CODES = "has a BPE of its own (bpe.codes)"
_CHARACTERS = "reads characters or bytes without a vocabulary"

#: The classes of Python code, with what they do that is not followed.
REFUSED: Mapping[str, str] = {
    "BertJapaneseTokenizer": _WORDS,
    "BertweetTokenizer": _CODES,
    "PhobertTokenizer": _CODES,
    "BartphoTokenizer": "joins a SentencePiece model with a dictionary",
    "BertGenerationTokenizer": "runs the SentencePiece library",
    "ByT5Tokenizer": _CHARACTERS,
    "CanineTokenizer": _CHARACTERS,
    "PerceiverTokenizer": _CHARACTERS,
    "DPRReaderTokenizer": "reads questions, titles and passages together",
    "EsmTokenizer": "splits sequences of proteins",
    "FlaubertTokenizer": "splits texts with Moses",
    "XLMTokenizer": "splits texts with Moses",
    "MyT5Tokenizer": _CHARACTERS,
    "ProphetNetTokenizer": "has a frame of its own",
    "RoCBertTokenizer": "gives shapes and sounds beside the ids",
    "RoFormerTokenizer": "splits texts into words of Chinese with jieba",
    "TapasTokenizer": "reads tables",
}

#: How a vocabulary that cannot be read here gets a tokenizer.json.
SAVE_CURE = (
    "transformers writes a tokenizer.json that is followed: "
    "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
)

_PYTHON_CURE = (
    "Another tokenizer would give other ids. Either split the texts into words with blanks yourself, and name in "
    "tokenizer_config.json the class that is right for them (BertTokenizer with do_lower_case false for word pieces); "
    "or make a tokenizer.json that gives the same ids, and name PreTrainedTokenizerFast there"
)

_OF_MODEL_TYPE = {
    "bert": "BertTokenizer",
    "qdqbert": "BertTokenizer",
    "megatron-bert": "BertTokenizer",
    "realm": "BertTokenizer",
    "albert": "AlbertTokenizer",
    "roberta": "RobertaTokenizer",
    "roberta-prelayernorm": "RobertaTokenizer",
}


def class_of(model_dir: Path, settings: Mapping[str, Any], config: Mapping[str, Any]) -> TokenizerClass | None:
    """Return the tokenizer class of a directory; None where neither a file nor the ``model_type`` tells.

    Args:
        model_dir: The directory.
        settings: The contents of ``tokenizer_config.json``.
        config: The contents of ``config.json``.

    Raises:
        CheckpointError: The class is one of :data:`REFUSED`.
    """
    for source, document in (("tokenizer_config.json", settings), ("config.json", config)):
        given = document.get("tokenizer_class")
        if not isinstance(given, str) or not given:
            continue
        name = given.removesuffix("Fast")
        if name in REFUSED:
            raise CheckpointError(
                f"{model_dir / source}: the tokenizer class {given} is not supported: it {REFUSED[name]}. "
                f"{_PYTHON_CURE}"
            )
        if name in FOLLOWED:
            return FOLLOWED[name]
        return replace(FILE_DECIDES, name=name)
    name = _OF_MODEL_TYPE.get(str(config.get("model_type")), "")
    return replace(FOLLOWED[name], is_explicit=False) if name in FOLLOWED else None
