"""``qdq generate``: continue texts with a causal language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.loading import opened
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.load_settings import DEFAULT_LOADING, LoadSettings

if TYPE_CHECKING:
    from qdq.generation import Decoder
    from qdq.source import ModelDirectory

__all__ = ["generate"]


@command
def generate(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts to continue.")],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "-m",
            metavar="DIR",
            help="Causal language model: a checkpoint, or an export made with --cache step.",
        ),
    ],
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Largest number of tokens to generate.", min=1)] = 20,
    num_beams: Annotated[int, typer.Option(metavar="N", help="Number of beams; 1 is greedy search.", min=1)] = 1,
    length_penalty: Annotated[
        float,
        typer.Option(
            metavar="X", help="With several beams: values above 0 prefer longer texts, values below 0 shorter ones."
        ),
    ] = 1.0,
    early_stopping: Annotated[
        bool,
        typer.Option("--early-stopping", metavar="", help="Stop as soon as as many texts as beams are finished."),
    ] = False,
    num_return_sequences: Annotated[
        int, typer.Option(metavar="N", help="Number of continuations to print for each text.", min=1)
    ] = 1,
    loading: LoadSettings = DEFAULT_LOADING,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Continue texts with a causal language model, greedily or with beam search.

    Example: qdq generate -m causal-lm/ "the cat sat on" --num-beams 4
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    import torch

    from qdq.data.tokenizer import TextEncoder, check_vectors
    from qdq.errors import DataError
    from qdq.generation import GenerationSettings, visible_tokens
    from qdq.generation import generate as run
    from qdq.generation.settings import SpecialTokens, mention_other_settings

    settings = GenerationSettings(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        num_return_sequences=num_return_sequences,
    )
    with session.progress("loading"):
        directory = opened(model, loading, seed=seed)
        decoder, tokenizer = _decoder(directory), directory.tokenizer
    mention_other_settings(directory.path, decoder.config, settings)
    rows = []
    for text in texts:
        encoding = tokenizer.encode(text)
        # The tokenizer adds an end token ([SEP]), after which nothing would be continued.
        end = next((n for n in range(len(encoding.ids), 0, -1) if not encoding.special_tokens_mask[n - 1]), 0)
        if not end:
            raise DataError(f"nothing to continue in {text!r}: give at least one word")
        rows.append(encoding.ids[:end])
    limits = TextEncoder(tokenizer, word_rows=decoder.config.vocab_size)
    check_vectors(limits, zip(map(repr, texts), rows, strict=True), source="texts")
    longest = max(map(len, rows))
    pad = decoder.config.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    with session.progress("generating"):
        found = run(decoder, ids, mask, settings=settings).tolist()
    ends = SpecialTokens.of(decoder.config, settings).eos
    results: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        own = found[number * num_return_sequences : (number + 1) * num_return_sequences]
        added = [visible_tokens(row, longest, ends) for row in own]
        shown = [tokenizer.decode(rows[number] + tokens) for tokens in added]
        results.append({"text": text, "continued": shown, "added_ids": added})
    session.result({"model": model, "results": results}, *(line for entry in results for line in entry["continued"]))


def _decoder(directory: ModelDirectory) -> Decoder:
    from exporters.runners import OnnxRuntimeRunner
    from qdq.checkpoint import load
    from qdq.generation import RunnerDecoder, TorchDecoder

    if directory.export is not None:
        return RunnerDecoder(OnnxRuntimeRunner(directory.model_file), directory.config)
    return TorchDecoder(load(directory))
