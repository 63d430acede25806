"""Make inputs for verification: text that ships with the package, in the shapes of a signature."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from exporters.export_model import cache_names, wrap_for_export
from exporters.interface import ExportInterface
from exporters.io_signature import PAST_AND_SEQ, SIZES, TOKEN_INPUTS, InputSpec, example_inputs
from qdq.data.source import draw
from qdq.data.text import TextSample, encode_batches, read_samples, sample_text
from qdq.data.tokenizer import TextEncoder
from qdq.errors import CheckpointError
from qdq.source import ModelDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from exporters.export_model import ExportModel

__all__ = ["VERIFICATION_SHAPES", "verification_batches"]

VERIFICATION_SHAPES = ((1, 128), (8, 32), (3, 64))
"""Batch sizes and lengths of the default inputs. The first text of a batch has that length, shorter ones are padded.

The batches are small, because everything that the quantizers of a large model see in one batch is in memory at once.
"""

_LOG = logging.getLogger(__name__)

_SENTENCES = 40  # together longer than any of the lengths


def verification_batches(
    checkpoint: str | Path | ModelDirectory,
    export_model: ExportModel,
    shapes: tuple[tuple[int, int], ...] = VERIFICATION_SHAPES,
) -> list[dict[str, Tensor]]:
    """Make a batch for each shape: sample text, or random token ids if the checkpoint has no tokenizer.

    Args:
        checkpoint: Directory with the tokenizer.
        export_model: The model to verify.
        shapes: Batch sizes and lengths. Lengths are limited to what the model takes.

    Returns:
        The tensors of ``export_model.signature``, by name, for each shape.

    Raises:
        QDQError: If the files of the tokenizer cannot be read.
    """
    config: Any = export_model.model.config
    encode = _encoder(checkpoint, config)
    return [
        fill(export_model, batch_size, max(min(seq_len, config.max_length), config.min_length), encode, seed=index)
        for index, (batch_size, seq_len) in enumerate(shapes)
    ]


def _encoder(checkpoint: str | Path | ModelDirectory, config: Any) -> Callable[[int, int, int], Mapping[str, Tensor]]:
    """Return a function that makes the token inputs from the number of texts, the length and the seed."""
    try:
        tokenizer = ModelDirectory.of(checkpoint).tokenizer
    except CheckpointError:
        encoder = None
    else:
        encoder = TextEncoder(tokenizer, word_rows=config.vocab_size)
    if encoder is not None and encoder.has_more_tokens:
        _LOG.warning(
            "%s: the tokenizer has %d tokens, and the model has vectors for %d: the texts to verify with keep to "
            "these; other texts that use more are refused",
            checkpoint,
            encoder.vocab_size,
            config.vocab_size,
        )

    def encode(rows: int, seq_len: int, seed: int) -> Mapping[str, Tensor]:
        if encoder is None:
            plain = tuple(InputSpec(name) for name in TOKEN_INPUTS)
            return example_inputs(
                plain,
                batch_size=rows,
                seq_len=seq_len,
                vocab_size=config.vocab_size,
                padding=seq_len // 4,
                seed=seq_len + 1000 * seed,
            )
        sentences = list(read_samples(sample_text("heldout")))
        whole = TextSample(" ".join(sample.text for sample in draw(sentences, _SENTENCES, seed=seed)))
        samples = [whole, *(draw(sentences, rows - 1, seed=seed) if rows > 1 else ())]
        pad = config.pad_token_id or 0
        # The tokenizer alone knows no limit, so that no text is refused.
        (batch,) = encode_batches(samples, encoder.tokenizer, batch_size=rows, seq_len=seq_len, pad_token_id=pad)
        return {**batch, "input_ids": batch["input_ids"].clamp(max=config.vocab_size - 1)}

    return encode


def fill(
    export_model: ExportModel,
    batch_size: int,
    seq_len: int,
    encode: Callable[[int, int, int], Mapping[str, Tensor]],
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Fill the signature of a model with values.

    Case 1: Tokens are texts, as many as the leading axes ask for. Candidates are other texts.
    Case 2: Embedded tokens come from the word embedding of the model.
    Case 3: A cache is what the model itself computes for the first half of the text.
    Case 4: Other masks are those of the tokens, other floats are normally distributed.

    Args:
        export_model: The model.
        batch_size: Length of the axis ``batch``.
        seq_len: Length of the texts.
        encode: Function that returns the token inputs for a number of texts, a length and a seed.
        seed: Seed of the choice of texts.
    """
    model: Any = export_model.model
    groups: dict[tuple[str | int, ...], Mapping[str, Tensor]] = {}
    sizes = {**SIZES, "batch": batch_size}

    def tokens(axes: tuple[str | int, ...]) -> Mapping[str, Tensor]:
        if axes not in groups:
            leading = [axis if isinstance(axis, int) else sizes[axis] for axis in axes[:-1]]
            batch = encode(math.prod(leading), seq_len, seed + len(groups))
            groups[axes] = {name: value.reshape(*leading, -1) for name, value in batch.items()}
        return groups[axes]

    found: dict[str, Tensor] = {}
    others = []
    for entry in export_model.signature.inputs:
        kind = getattr(torch, entry.dtype)
        name = entry.name.removeprefix("candidate_")
        axes = tuple("seq" if axis == PAST_AND_SEQ else axis for axis in entry.axes)
        if name in TOKEN_INPUTS:  # case 1
            found[entry.name] = tokens(axes)[name].to(kind)
        elif entry.name == "block_mask":  # case 4
            found[entry.name] = tokens(axes)["attention_mask"].to(kind)
        elif entry.name == "inputs_embeds":  # case 2
            with torch.no_grad():
                found[entry.name] = model.embeddings.word(tokens(axes[:-1])["input_ids"]).to(kind)
        else:
            others.append(entry)
    if export_model.interface.cache == "step":  # case 3
        found |= _after_half(export_model, found)
    remaining = tuple(entry for entry in others if entry.name not in found)
    width = next((value.shape[-1] for name, value in found.items() if name == "input_ids"), seq_len)
    found |= example_inputs(remaining, batch_size=batch_size, seq_len=width, padding=2, seed=seed)
    return {name: found[name].contiguous() for name in export_model.signature.input_names}


def _after_half(export_model: ExportModel, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the second half of the text, and the cache of the first half."""
    first = wrap_for_export(export_model.model, _first(export_model.interface))
    half = max(1, found["attention_mask"].shape[1] // 2)
    entries = {entry.name: entry for entry in first.signature.inputs}
    head = {name: value[:, :half] for name, value in found.items() if name in entries}
    head |= example_inputs(
        tuple(entry for name, entry in entries.items() if name not in head), batch_size=len(found["attention_mask"])
    )
    outputs = first.run(head)
    crossed = bool(export_model.model.config.add_cross_attention)  # type: ignore[union-attr]
    tail = {name: value if name == "attention_mask" else value[:, half:] for name, value in found.items()}
    for n in range(len(export_model.model.encoder.layers)):  # type: ignore[union-attr, arg-type]
        names = zip(cache_names(n, crossed=crossed), cache_names(n, "present", crossed=crossed), strict=True)
        tail |= {into: outputs[out] for into, out in names}
    if "encoder_attention_mask" in head:
        tail["encoder_attention_mask"] = head["encoder_attention_mask"]
    return tail


def _first(interface: ExportInterface) -> ExportInterface:
    """Return the interface of the file that computes the cache which a file with ``interface`` takes."""
    return ExportInterface(
        cache="first",
        token_type_ids=interface.token_type_ids,
        int32_ids=interface.int32_ids,
        inputs_embeds=interface.inputs_embeds,
        dtype=interface.dtype,
    )
