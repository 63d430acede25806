"""Inputs for a proof: text that ships with the package, in the shapes that a signature wants."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporters.export_model import cache_names, deploy
from exporters.interface import Form
from exporters.io_signature import PAST_AND_SEQ, SIZES, TEXTS, Input, example_inputs
from qdq.data.source import draw
from qdq.data.text import TextSample, encode_batches, read_samples, sample_text
from qdq.data.tokenizer import load_tokenizer
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from exporters.export_model import Deployed

__all__ = ["PROOF_SHAPES", "verification_batches"]

PROOF_SHAPES = ((1, 128), (8, 32), (3, 64))
"""Batch sizes and lengths that a verification runs by default; the first text is that long, shorter ones are padded.

None has many tokens: what every quantizer of a large model saw in one batch is held at once.
"""

_SENTENCES = 40  # together longer than any of the lengths


def verification_batches(
    checkpoint: str | Path, deployed: Deployed, shapes: tuple[tuple[int, int], ...] = PROOF_SHAPES
) -> list[dict[str, Tensor]]:
    """Several shapes with padding: sample text, or random token ids where the checkpoint has no tokenizer.

    Args:
        checkpoint: directory with the tokenizer.
        deployed: what is to be proven.
        shapes: batch sizes and longest lengths, cut to what the model takes.

    Returns:
        For each shape the tensors of ``deployed.signature``.

    Raises:
        CheckpointError: for a tokenizer with more tokens than the model.
    """
    config: Any = deployed.model.config
    encode = _encoder(checkpoint, config)
    return [
        fill(deployed, batch_size, max(min(seq_len, config.max_length), config.min_length), encode, seed=index)
        for index, (batch_size, seq_len) in enumerate(shapes)
    ]


def _encoder(checkpoint: str | Path, config: Any) -> Callable[[int, int, int], Mapping[str, Tensor]]:
    """A function from number of texts, longest length and seed to the three tensors of tokens."""
    try:
        tokenizer = load_tokenizer(Path(checkpoint))
    except CheckpointError:
        tokenizer = None
    if tokenizer is not None and tokenizer.get_vocab_size() > config.vocab_size:
        raise CheckpointError(
            f"{checkpoint}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {config.vocab_size}"
        )

    def encode(rows: int, seq_len: int, seed: int) -> Mapping[str, Tensor]:
        if tokenizer is None:
            plain = tuple(Input(name) for name in TEXTS)
            return example_inputs(
                plain,
                batch_size=rows,
                seq_len=seq_len,
                vocab_size=config.vocab_size,
                padding=seq_len // 4,
                seed=seq_len + 1000 * seed,
            )
        texts = list(read_samples(sample_text("heldout")))
        whole = TextSample(" ".join(sample.text for sample in draw(texts, _SENTENCES, seed=seed)))
        samples = [whole, *(draw(texts, rows - 1, seed=seed) if rows > 1 else ())]
        pad = config.pad_token_id or 0
        (batch,) = encode_batches(samples, tokenizer, batch_size=rows, seq_len=seq_len, pad_token_id=pad)
        return batch

    return encode


def fill(
    deployed: Deployed,
    batch_size: int,
    seq_len: int,
    encode: Callable[[int, int, int], Mapping[str, Tensor]],
    *,
    seed: int,
) -> dict[str, Tensor]:
    """A batch for the signature.

    1. Tokens: texts, as many as the leading axes ask for; side texts (candidates) have texts of their own.
    2. Embedded tokens: from the model's table. 3. A cache: what the model itself makes of the first half of the text.
    4. Other floats: normal numbers; other masks: that of the tokens.
    """
    model: Any = deployed.model
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
    for entry in deployed.signature.inputs:
        kind = getattr(torch, entry.dtype)
        name = entry.name.removeprefix("candidate_")
        axes = tuple("seq" if axis == PAST_AND_SEQ else axis for axis in entry.axes)
        if name in TEXTS:  # case 1
            found[entry.name] = tokens(axes)[name].to(kind)
        elif entry.name == "block_mask":  # case 4
            found[entry.name] = tokens(axes)["attention_mask"].to(kind)
        elif entry.name == "inputs_embeds":  # case 2
            with torch.no_grad():
                found[entry.name] = model.embeddings.word(tokens(axes[:-1])["input_ids"]).to(kind)
        else:
            others.append(entry)
    if deployed.form.cache == "step":  # case 3
        found |= _after_half(deployed, found)
    rest = tuple(entry for entry in others if entry.name not in found)
    width = next((value.shape[-1] for name, value in found.items() if name == "input_ids"), seq_len)
    found |= example_inputs(rest, batch_size=batch_size, seq_len=width, padding=2, seed=seed)
    return {name: found[name].contiguous() for name in deployed.signature.input_names}


def _after_half(deployed: Deployed, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The second half of the text, and the cache of the first."""
    first = deploy(deployed.model, _first(deployed.form))
    half = max(1, found["attention_mask"].shape[1] // 2)
    entries = {entry.name: entry for entry in first.signature.inputs}
    head = {name: value[:, :half] for name, value in found.items() if name in entries}
    head |= example_inputs(
        tuple(entry for name, entry in entries.items() if name not in head), batch_size=len(found["attention_mask"])
    )
    outputs = first.run(head)
    crossed = bool(deployed.model.config.add_cross_attention)  # type: ignore[union-attr]
    tail = {name: value if name == "attention_mask" else value[:, half:] for name, value in found.items()}
    for n in range(len(deployed.model.encoder.layers)):  # type: ignore[union-attr, arg-type]
        names = zip(cache_names(n, crossed=crossed), cache_names(n, "present", crossed=crossed), strict=True)
        tail |= {into: outputs[out] for into, out in names}
    if "encoder_attention_mask" in head:
        tail["encoder_attention_mask"] = head["encoder_attention_mask"]
    return tail


def _first(form: Form) -> Form:
    """The form that makes the cache which ``form`` takes."""
    return Form(
        cache="first",
        token_type_ids=form.token_type_ids,
        int32_ids=form.int32_ids,
        inputs_embeds=form.inputs_embeds,
        dtype=form.dtype,
    )
