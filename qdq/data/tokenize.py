"""Text samples -> batches of token ids, with the tokenizer that lies beside the checkpoint."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer

from qdq.data.padding import padded
from qdq.data.truncation import check_room, truncating
from qdq.data.unknown import UnknownTokens
from qdq.data.vocabularies import byte_level_pairs, read_settings, read_text, unigrams, wordpieces
from qdq.errors import CheckpointError, ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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


def load_tokenizer(model_dir: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint directory, without the truncation and padding that its file may carry.

    1. ``tokenizer.json``, in the format of the ``tokenizers`` package; what ``tokenizer_config.json`` says of BERT's
       text cleaning (``do_lower_case``, ...) goes above it.
    2. ``vocab.txt``: WordPiece, with BERT's text cleaning as ``tokenizer_config.json`` sets it.
    3. ``spiece.model``: SentencePiece, with ALBERT's text cleaning as ``tokenizer_config.json`` sets it.
    4. ``vocab.json`` and ``merges.txt``: byte-level pairs, as RoBERTa has them.

    Raises:
        CheckpointError: There is none of them, or it is damaged.
        StorageError: A file exists and cannot be read.
    """
    model_dir = Path(model_dir)
    if (model_dir / "tokenizer.json").is_file():
        tokenizer = _from_json(model_dir / "tokenizer.json")
        _apply_settings(tokenizer, read_settings(model_dir))
    elif (model_dir / "vocab.txt").is_file():
        tokenizer = wordpieces(model_dir)
    elif (model_dir / "spiece.model").is_file():
        tokenizer = unigrams(model_dir)
    elif (model_dir / "vocab.json").is_file() and (model_dir / "merges.txt").is_file():
        tokenizer = byte_level_pairs(model_dir)
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
    problems = []
    if batch_size < 1:
        problems.append(f"batch_size must be at least 1, not {batch_size}")
    if seq_len < 3:
        problems.append(f"seq_len must be at least 3 (a token between two special ones), not {seq_len}")
    if pad_to is not None and pad_to < seq_len:
        problems.append(f"pad_to must be at least seq_len ({seq_len}), not {pad_to}")
    if problems:
        raise ConfigError(describe_problems("batches of text", problems))
    tokenizer = truncating(tokenizer, seq_len)
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
    unknown = UnknownTokens(tokenizer)
    while batch := list(islice(samples, batch_size)):
        check_room(tokenizer, seq_len, is_pair=any(sample.text_pair is not None for sample in batch))
        encodings = tokenizer.encode_batch(
            [sample.text if sample.text_pair is None else (sample.text, sample.text_pair) for sample in batch]
        )
        for encoding in encodings:
            unknown.count(np.array(encoding.ids), np.array(encoding.special_tokens_mask))
        length = pad_to or max(len(encoding) for encoding in encodings)
        yield {
            "input_ids": torch.from_numpy(padded([encoding.ids for encoding in encodings], length, pad_token_id)),
            "attention_mask": torch.from_numpy(padded([encoding.attention_mask for encoding in encodings], length, 0)),
            "token_type_ids": torch.from_numpy(padded([encoding.type_ids for encoding in encodings], length, 0)),
        }
    unknown.warn()


def _from_json(path: Path) -> Tokenizer:
    text = read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing more specific
        raise CheckpointError(f"{path}: is damaged or of an unknown format: {error}") from error


def _apply_settings(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
    cleaning = tokenizer.normalizer
    if isinstance(cleaning, BertNormalizer):
        tokenizer.normalizer = BertNormalizer(
            clean_text=cleaning.clean_text,
            lowercase=settings.get("do_lower_case", cleaning.lowercase),
            strip_accents=settings.get("strip_accents", cleaning.strip_accents),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", cleaning.handle_chinese_chars),
        )


def _no_tokenizer(model_dir: Path) -> str:
    looked_for = "tokenizer.json, vocab.txt, spiece.model, vocab.json with merges.txt"
    message = f"{model_dir}: no tokenizer: none of {looked_for} is there"
    others = [name for name in ("sentencepiece.bpe.model", "vocab.json") if (model_dir / name).is_file()]
    if others:
        message += (
            f"; {others[0]} has to be converted once: "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes tokenizer.json"
        )
    return message
