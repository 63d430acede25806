"""Text samples -> batches of token ids, with the tokenizer that lies beside the checkpoint."""

from __future__ import annotations

import json
import logging
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from qdq.errors import CheckpointError, ConfigError, StorageError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tokenizers import Encoding

    from qdq.data.text import TextSample

__all__ = ["TOKENIZER_FILES", "encode_batches", "load_tokenizer"]

#: What belongs to a tokenizer in a checkpoint directory and travels with every copy of the checkpoint.
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

_LOG = logging.getLogger(__name__)


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory, without the truncation and padding that its file may carry.

    1. ``tokenizer.json``, in the format of the ``tokenizers`` package.
    2. ``vocab.txt``: WordPiece, with BERT's text cleaning as ``tokenizer_config.json`` sets it.

    Raises:
        CheckpointError: There is neither file, or it is damaged.
        StorageError: A file exists and cannot be read.
    """
    if (model_dir / "tokenizer.json").is_file():
        tokenizer = _from_json(model_dir / "tokenizer.json")
    elif (model_dir / "vocab.txt").is_file():
        tokenizer = _from_vocabulary(model_dir)
    else:
        raise CheckpointError(_no_tokenizer(model_dir))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_batches(
    samples: Iterable[TextSample],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    seq_len: int,
    pad_token_id: int = 0,
    pad_to: int | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of token ids, in the samples' order; the last one may be smaller.

    Each is a dict of int64 tensors ``input_ids``, ``attention_mask`` and ``token_type_ids`` of shape ``(batch, seq)``:
    ``seq`` is the longest of the batch, or ``pad_to``. What is longer than ``seq_len`` is cut at its end (of a pair,
    the longer text first). The given tokenizer stays as it is. Text that is mostly unknown to the vocabulary is logged
    as a warning when the samples are used up.

    Args:
        samples: Read one batch at a time.
        tokenizer: From :func:`load_tokenizer`.
        batch_size: Samples in a batch.
        seq_len: Most tokens of a sample, special tokens included.
        pad_token_id: The model's own (``config.pad_token_id``).
        pad_to: A fixed ``seq`` instead of the longest in the batch.

    Raises:
        ConfigError: ``batch_size``, ``seq_len`` or ``pad_to`` is too small.
    """
    faults = []
    if batch_size < 1:
        faults.append(f"batch_size must be at least 1, not {batch_size}")
    if seq_len < 3:
        faults.append(f"seq_len must be at least 3 (a token between two special ones), not {seq_len}")
    if pad_to is not None and pad_to < seq_len:
        faults.append(f"pad_to must be at least seq_len ({seq_len}), not {pad_to}")
    if faults:
        raise ConfigError(describe_faults("batches of text", faults))
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(seq_len, strategy="longest_first")
    return _encode(
        iter(samples), tokenizer, batch_size=batch_size, seq_len=seq_len, pad_token_id=pad_token_id, pad_to=pad_to
    )


def _encode(
    samples: Iterator[TextSample],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    seq_len: int,
    pad_token_id: int,
    pad_to: int | None,
) -> Iterator[dict[str, torch.Tensor]]:
    unknown = _UnknownTokens(tokenizer)
    while batch := list(islice(samples, batch_size)):
        _check_room_for_specials(batch, tokenizer, seq_len)
        encodings = tokenizer.encode_batch(
            [sample.text if sample.text_pair is None else (sample.text, sample.text_pair) for sample in batch]
        )
        unknown.count(encodings)
        length = pad_to or max(len(encoding) for encoding in encodings)
        for encoding in encodings:
            encoding.pad(length, pad_id=pad_token_id)
        yield {
            "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
            "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
            "token_type_ids": torch.tensor([encoding.type_ids for encoding in encodings]),
        }
    unknown.warn()


def _check_room_for_specials(batch: list[TextSample], tokenizer: Tokenizer, seq_len: int) -> None:
    # tokenizers does not truncate at all where the special tokens alone are too many
    is_pair = any(sample.text_pair is not None for sample in batch)
    specials = tokenizer.num_special_tokens_to_add(is_pair)
    if specials > seq_len:
        what = "a pair of texts" if is_pair else "a text"
        raise ConfigError(f"seq_len {seq_len} has no room for {what}: the special tokens alone are {specials}")


class _UnknownTokens:
    """How much of the text the vocabulary does not know."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        model = json.loads(tokenizer.to_str())["model"]
        self._token = model.get("unk_token")
        self._id = tokenizer.token_to_id(self._token) if self._token else model.get("unk_id")
        self._unknown = self._total = 0

    def count(self, encodings: list[Encoding]) -> None:
        if self._id is None:  # a byte-level vocabulary knows every text
            return
        for encoding in encodings:
            self._unknown += encoding.ids.count(self._id)
            self._total += len(encoding) - sum(encoding.special_tokens_mask)

    def warn(self) -> None:
        if self._unknown * 2 > self._total:
            _LOG.warning(
                "%.0f %% of the tokens (%d of %d) are unknown to the tokenizer's vocabulary: "
                "is this text in the language of the model?",
                100 * self._unknown / self._total,
                self._unknown,
                self._total,
            )


def _from_json(path: Path) -> Tokenizer:
    text = _read(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"{path}: is damaged or of an unknown format: {error}") from error


def _from_vocabulary(model_dir: Path) -> Tokenizer:
    """BERT's own tokenizer, out of the vocabulary file and the settings beside it."""
    path = model_dir / "vocab.txt"
    vocabulary = {token: index for index, token in enumerate(_read(path).removesuffix("\n").split("\n"))}
    settings = _settings(model_dir / "tokenizer_config.json")
    special = {
        role: _content(settings.get(f"{role}_token"), default)
        for role, default in {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}.items()
    }
    if missing := [special[role] for role in ("unk", "cls", "sep") if special[role] not in vocabulary]:
        raise CheckpointError(f"{path}: is no vocabulary of BERT's kind: lacks the special tokens {' '.join(missing)}")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        (special["sep"], vocabulary[special["sep"]]), (special["cls"], vocabulary[special["cls"]])
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in special.values() if token in vocabulary]
    )
    return tokenizer


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: holds no JSON object")
    return settings


def _content(token: Any, default: str) -> str:
    """The text of a special token, which configurations write as a string or as an object around it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else default


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is damaged: not UTF-8 text") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _no_tokenizer(model_dir: Path) -> str:
    message = f"{model_dir}: no tokenizer: neither tokenizer.json nor vocab.txt is there"
    others = [
        name for name in ("vocab.json", "spiece.model", "sentencepiece.bpe.model") if (model_dir / name).is_file()
    ]
    if others:
        message += (
            f"; {others[0]} has to be converted once: "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json"
        )
    return message
