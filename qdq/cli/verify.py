"""``qdq verify``: verify that an exported directory computes what the checkpoint computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdq.cli.loading import opened
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.errors import VerificationError, describe_problems
from qdq.load_settings import DEFAULT_LOADING, LoadSettings

if TYPE_CHECKING:
    from rich.table import Table

    from exporters.verification.verify import VerificationReport

__all__ = ["verify"]


@command
def verify(
    exported: Annotated[
        Path, typer.Argument(metavar="OUT_DIR", help="Exported directory to verify, or an .onnx file in it.")
    ],
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="Checkpoint that OUT_DIR was exported from.")
    ],
    engine: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TensorRT engine that was built from OUT_DIR, to compare end to end on the GPU."
        ),
    ] = None,
    isa: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Instruction set of the CPU to verify for: any, avx2, avx512, vnni, arm or auto; by default the one "
            "it "
            "was exported for. Saturation of integer products on that CPU is simulated.",
        ),
    ] = None,
    loading: LoadSettings = DEFAULT_LOADING,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Verify that an export computes what its checkpoint computes. Exit code 1 means that it does not.

    Example: qdq verify -m quantized/ exported/
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)

    from exporters import directory

    with session.progress("verifying"):
        verification = directory.verify(opened(model, loading, seed=seed), exported, engine=engine, isa=isa)
    error = None
    if not verification.holds:
        error = VerificationError(describe_problems(f"{exported} is not what {model} computes", verification.problems))
    session.result(
        verification.to_dict(),
        *_by_segment(verification, full=verbose > 0),
        *_saturation(verification),
        *_end_to_end(verification),
        error=error,
    )


def _by_segment(verification: VerificationReport, *, full: bool) -> list[Table | str]:
    from exporters.verification.similarity import EQUAL_DB

    rows = verification.segments
    shown = rows if full else [row for row in rows if not row.holds] or sorted(rows, key=lambda row: -row.largest)[:5]
    table = new_table("segment up to", "values", "at a\ntie", "wrong", "off by\nat most", "SQNR\ndB")
    for row in shown:
        slot = row.name.removesuffix("_quantizer")
        largest = (
            f"{row.largest:.3g} {'step' if row.largest == 1 else 'steps'}"
            if row.unit == "steps"
            else f"{row.largest:.1e}"
        )
        sqnr = "equal" if row.sqnr_db >= EQUAL_DB else f"{row.sqnr_db:.0f}"
        table.add_row(slot, f"{row.values:,}", f"{row.ties:,}", f"{row.wrong:,}", largest, sqnr)
    table.add_section()
    total = (sum(getattr(row, name) for row in rows) for name in ("values", "ties", "wrong"))
    table.add_row(f"all {len(rows)} segments", *(f"{value:,}" for value in total), "", "")
    hidden = "" if len(shown) == len(rows) else f"; {len(shown)} of {len(rows)} segments shown, -v shows all"
    return [
        "By segment: given the integers of torch, each must return those of torch",
        table,
        f"differences of outputs are relative to the largest magnitude{hidden}",
        *([f"first segment that differs: {verification.first_wrong}"] if verification.first_wrong else []),
        "",
    ]


def _saturation(verification: VerificationReport) -> list[Table | str]:
    """Return the table of files whose products could saturate; other files have none."""
    if not verification.saturation:
        return []
    table = new_table("product", "pairs", "beyond\n16 bits", "largest\nsum", "possible")
    for row in verification.saturation:
        table.add_row(row.name, f"{row.pairs:,}", f"{row.saturated:,}", f"{row.worst:,}", f"{row.possible:,}")
    return ["Sums of two products, which CPUs without VNNI hold in 16 bits (at most 32,767)", table, ""]


def _end_to_end(verification: VerificationReport) -> list[Table | str]:
    bounds = verification.bounds
    table = new_table(
        "output",
        "shape",
        "SQNR\ndB",
        "cosine",
        "to float\ndB",
        "check-\npoint",
        "cosine\nto float",
    )
    whole = []
    for row in verification.end_to_end:
        if row.agreement is not None:
            whole.append(f"{row.output} at {row.batch_size} x {row.seq_len}: {row.agreement:.1%} as in the checkpoint")
            continue
        table.add_row(
            row.output,
            f"{row.batch_size} x {row.seq_len}",
            f"{row.sqnr_db:.1f}",
            f"{row.cosine:.4f}",
            f"{row.float_sqnr_db:.1f}",
            f"{row.expected_float_sqnr_db:.1f}",
            f"{row.float_cosine:.4f}",
        )
    return [
        f"End to end, in {verification.runtime}",
        table,
        *whole,
        f"required: SQNR {bounds.sqnr_db:g} dB and cosine {bounds.cosine:g} to the checkpoint in torch,",
        f"SQNR to float at most {bounds.float_loss_db:g} dB below the checkpoint's",
        *_chance(verification),
    ]


def _chance(verification: VerificationReport) -> list[str]:
    found = [row.sqnr_spread_db for row in verification.end_to_end if row.sqnr_spread_db]
    if not found:
        return []
    low, high = (f"{value:.0f}" for value in (min(found), max(found)))
    return [
        f"the SQNR of a few logits varies by chance: {low if low == high else f'{low} to {high}'} dB less is "
        "allowed for it"
    ]
