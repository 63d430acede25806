"""``qdq realm``: index blocks of text, and answer questions from the index."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.loading import opened, opened_beside
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.cli.threads import ThreadsOption, set_threads
from qdq.load_settings import DEFAULT_LOADING, LoadSettings

if TYPE_CHECKING:
    from qdq.retrieval.embedding import TextEmbedder
    from qdq.source import ModelDirectory

__all__ = ["answer", "app", "index"]

_LOG = logging.getLogger(__name__)

app = typer.Typer(help="Answer questions from a collection of texts with REALM: index its blocks, then ask.")


@app.command()
@command
def index(
    model: Annotated[
        Path,
        typer.Option("--model", "-m", metavar="DIR", help="Embedder: a checkpoint, float or quantized, or an export."),
    ],
    records: Annotated[
        str,
        typer.Option(metavar="FILE", help="File of the blocks: .jsonl, .parquet, .txt, ..., or the published .npy."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="INDEX", help="Directory of the index to write.")],
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column or key of the text; by default the usual names are tried."),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", metavar="", help="Read a .npy file of pickled objects, which can run code of its author."
        ),
    ] = False,
    faiss: Annotated[
        list[str] | None, typer.Option(metavar="flat|int8", help="Also write a FAISS index of this kind. Repeatable.")
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(
            metavar="L",
            help="Longest block in tokens; by default as long as the reader accepts together with a question.",
            min=3,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="B", help="Number of blocks in a batch.", min=1)] = 32,
    loading: LoadSettings = DEFAULT_LOADING,
    threads: ThreadsOption = None,
    no_resume: Annotated[
        bool,
        typer.Option(
            "--no-resume", metavar="", help="Start from the beginning instead of continuing an interrupted run."
        ),
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Embed blocks of text for qdq realm answer. Run the same command again to continue an interrupted run.

    To use several processes, replace "qdq" by "torchrun --nproc-per-node N -m qdq".

    Example: qdq realm index -m embedder/ --records blocks.jsonl -o blocks.index
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from qdq.retrieval.index import Shard, build_index, weights_digest
    from qdq.retrieval.records import read_texts

    shard = Shard.of_torchrun()
    directory = opened(model, loading, seed=seed)
    embed, length = _embedder(directory, seq_len=seq_len, batch_size=batch_size, threads=threads)
    about = {
        "records": str(records),
        "records_bytes": Path(records).stat().st_size if Path(records).is_file() else None,
        "column": column,
        "model": str(model),
        "model_digest": weights_digest(model),
        "seq_len": length,
    }
    with session.progress("embedding", total=1) as advance:
        count = build_index(
            embed,
            lambda: read_texts(records, column=column, allow_pickle=allow_pickle),
            output,
            metadata=about,
            faiss=faiss or (),
            batch=8 * batch_size,
            shard=shard,
            resume=not no_resume,
            progress=lambda done, total: advance(
                done, f"embedding share {shard.rank + 1} of {shard.world_size}", total
            ),
        )
    if embed.cut:
        _LOG.warning(
            "%d blocks are longer than %d tokens: their vectors are those of their beginnings; split the texts, or "
            "give --seq-len",
            *(embed.cut, length),
        )
    if shard.rank:
        return
    document = {"output": output, "blocks": count, "width": embed.width, "seq_len": length, "faiss": faiss or []}
    session.result(document, f"{output}: {count:,} blocks, {embed.width} numbers each")


@app.command()
@command
def answer(
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="Questions to answer.")],
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "-m",
            metavar="DIR",
            help="Checkpoint of RealmForOpenQA, or a directory with embedder/ and reader/.",
        ),
    ],
    index_folder: Annotated[Path, typer.Option("--index", metavar="INDEX", help="Index that qdq realm index wrote.")],
    reader: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkpoint of the reader; by default the one in --model.")
    ] = None,
    searcher: Annotated[
        str,
        typer.Option(
            metavar="exact|flat|int8",
            help="Search for blocks: exact, or with a FAISS index that qdq realm index --faiss wrote, flat or int8.",
        ),
    ] = "exact",
    top_k: Annotated[
        int,
        typer.Option(
            metavar="K", help="Number of answers to print for each question, each from a different block.", min=1
        ),
    ] = 1,
    loading: LoadSettings = DEFAULT_LOADING,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Answer questions from an index of text blocks.

    Example: qdq realm answer -m openqa/ --index blocks.index "Who invented the telephone?"
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from dataclasses import asdict

    from qdq.errors import DataError
    from qdq.retrieval.index import Index
    from qdq.retrieval.open_qa import load

    if any(not question.strip() for question in questions):
        raise DataError("the question is empty")
    set_threads(threads)
    with session.progress("loading"):
        blocks = Index(index_folder)
        answering = load(
            opened(model, loading, seed=seed),
            blocks.records,
            blocks.searcher(searcher),
            reader=None if reader is None else opened_beside(reader, loading, seed=seed),
        )
    found: list[dict[str, Any]] = []
    with session.progress("answering", total=len(questions)) as advance:
        for number, question in enumerate(questions, start=1):
            found.append(
                {"question": question, "answers": [asdict(a) for a in answering.answer(question, top_k=top_k)]}
            )
            advance(number)
    table = new_table("question", "answer", "score", "block", words=2)
    for entry in found:
        for place, given in enumerate(entry["answers"]):
            table.add_row(
                "" if place else entry["question"], given["text"], f"{given['score']:.3f}", str(given["block"])
            )
    best = found[0]["answers"][0]
    shown: list[Any] = [table]
    if len(found) == 1:
        shown.append(f"block {best['block']}: {best['context']}")
    session.result({"model": model, "index": index_folder, "results": found}, *shown)


def _embedder(
    given: ModelDirectory, *, seq_len: int | None, batch_size: int, threads: int | None
) -> tuple[TextEmbedder, int]:
    """Return the embedder, in torch or an export in ONNX Runtime, and the longest block in tokens."""
    from exporters.runners import OnnxRuntimeRunner
    from qdq.models.realm_config import RealmConfig
    from qdq.retrieval.embedding import TextEmbedder, torch_runner
    from qdq.retrieval.open_qa import load_component
    from qdq.source import ModelDirectory

    set_threads(threads)
    inner = given.path / "embedder"
    directory = ModelDirectory.of(inner, given.loading) if (inner / "config.json").is_file() else given
    config = directory.config
    run: Any
    if directory.export is not None:
        run = OnnxRuntimeRunner(directory.model_file, threads=threads)
    else:
        run = torch_runner(load_component(given, "retrieval"))
    length = config.max_length
    if isinstance(config, RealmConfig):
        # Room that the reader has beside a question: 288 of 320 tokens in the published models.
        length = min(length, max(3, config.reader_seq_len - 32))
    length = min(seq_len or length, config.max_length)
    return TextEmbedder(run, directory.tokenizer, max_length=length, batch_size=batch_size), length
