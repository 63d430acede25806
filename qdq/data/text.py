"""Plain sentences and sentence pairs: read from any source in constant memory, and encoded as batches of token ids.

For calibration and verification, which need no labels. The source may be written for any task (see
:mod:`qdq.data.source`); rows without text are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from qdq.data.batches import padded
from qdq.data.columns import Columns
from qdq.data.examples import TextExample, read_examples
from qdq.data.tokenizer import TextEncoder, UnknownTokens, check_room, check_vectors, with_truncation
from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenizers import Tokenizer

    from qdq.data.source import SourceLike

__all__ = ["TextSample", "encode_batches", "read_samples", "sample_text"]


@dataclass(frozen=True)
class TextSample:
    """A sentence, or a pair of sentences that the model reads together."""

    text: str
    text_pair: str | None = None
    #: The file and the line, for messages; two samples are equal wherever they come from.
    location: str = field(default="", compare=False, repr=False)


def read_samples(
    source: SourceLike, *, text_column: str | None = None, text_pair_column: str | None = None, split: str | None = None
) -> Iterator[TextSample]:
    """Read the texts of a source, in order.

    The call itself raises the problems of the file name, the header and the first row. Problems of later rows are
    raised together at the end of the iteration.

    Args:
        source: A file, a directory that ``datasets`` saved, ``random:N``, or a Python iterable.
        text_column: The column or key of the text; the usual names are tried when it is not given.
        text_pair_column: The column or key of the second sentence. Without it, ``text_column`` is read alone.
        split: The split of a saved data set that has several.

    Raises:
        DataError: The source is missing, empty, binary or of an unknown format, has no such column, or has damaged
            rows.
        StorageError: A file exists and cannot be read.
    """
    columns = Columns(text=text_column, text_pair=text_pair_column)
    examples = read_examples(source, "feature-extraction", columns=columns, split=split)
    samples = _samples(iter(examples), examples.name)
    return chain([next(samples)], samples)


def _samples(examples: Iterator[object], name: str) -> Iterator[TextSample]:
    for example in examples:
        if isinstance(example, TextExample):
            yield TextSample(example.text, example.text_pair, f"{name}, {example.location}")
        else:
            raise ConfigError("rows of token ids have no text; make batches of them with qdq.data.batches.make_batches")


def sample_text(name: Literal["calibration", "heldout"]) -> Path:
    """Return the path of a text that comes with the package.

    Args:
        name: ``calibration``, 256 sentences to calibrate with, or ``heldout``, 96 others to check the result with.

    Raises:
        ConfigError: There is no such text.
    """
    names = ("calibration", "heldout")
    if name not in names:
        raise ConfigError(f"there is no sample text {name!r}; there are {', '.join(names)}")
    return Path(str(resources.files("qdq.data") / "samples" / f"{name}.txt"))


def encode_batches(
    samples: Iterable[TextSample],
    tokenizer: Tokenizer | TextEncoder,
    *,
    batch_size: int,
    seq_len: int,
    pad_token_id: int = 0,
    pad_to: int | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of token ids in the order of the samples; the last batch may be smaller.

    Each batch is a dict of int64 tensors ``input_ids``, ``attention_mask`` and ``token_type_ids`` of shape
    ``(batch, seq)``, where ``seq`` is the longest row of the batch, or ``pad_to``. Rows longer than ``seq_len`` are cut
    at their end (of a pair, the longer text first), or at their beginning if the ``truncation_side`` of an encoder says
    so. The tokenizer itself is not changed. When the samples are used up and the vocabulary knows less than half of
    their text, a warning is logged.

    Args:
        samples: The texts, which are read one batch at a time.
        tokenizer: From :func:`qdq.data.tokenizer.load_tokenizer`, or an encoder from
            :func:`qdq.data.tokenizer.load_encoder`, which also knows how many tokens the model has vectors for.
        batch_size: The number of samples in a batch.
        seq_len: The largest number of tokens in a row, special tokens included.
        pad_token_id: The padding token of the model (``config.pad_token_id``).
        pad_to: A fixed ``seq`` for all batches.

    Raises:
        ConfigError: ``batch_size``, ``seq_len`` or ``pad_to`` is too small.
        DataError: While iterating: a text has a token that the model of an encoder has no vector for.
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
    encoder = tokenizer if isinstance(tokenizer, TextEncoder) else TextEncoder(tokenizer)
    encoder = replace(encoder, tokenizer=with_truncation(encoder.tokenizer, seq_len, side=encoder.truncation_side))
    return _encode(
        iter(samples), encoder, batch_size=batch_size, seq_len=seq_len, pad_token_id=pad_token_id, pad_to=pad_to
    )


def _encode(
    samples: Iterator[TextSample],
    encoder: TextEncoder,
    *,
    batch_size: int,
    seq_len: int,
    pad_token_id: int,
    pad_to: int | None,
) -> Iterator[dict[str, torch.Tensor]]:
    tokenizer = encoder.tokenizer
    unknown = UnknownTokens(tokenizer)
    while batch := list(islice(samples, batch_size)):
        check_room(tokenizer, seq_len, is_pair=any(sample.text_pair is not None for sample in batch))
        encodings = tokenizer.encode_batch(
            [sample.text if sample.text_pair is None else (sample.text, sample.text_pair) for sample in batch]
        )
        rows = ((sample.location, encoding.ids) for sample, encoding in zip(batch, encodings, strict=True))
        check_vectors(encoder, rows, source="texts")
        for encoding in encodings:
            unknown.count(np.array(encoding.ids), np.array(encoding.special_tokens_mask))
        length = pad_to or max(len(encoding) for encoding in encodings)
        yield {
            "input_ids": torch.from_numpy(padded([encoding.ids for encoding in encodings], length, pad_token_id)),
            "attention_mask": torch.from_numpy(padded([encoding.attention_mask for encoding in encodings], length, 0)),
            "token_type_ids": torch.from_numpy(padded([encoding.type_ids for encoding in encodings], length, 0)),
        }
    unknown.warn()
