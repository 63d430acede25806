"""``qdq verify``: prove that an exported directory computes what the checkpoint computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.errors import VerificationError, describe_faults

if TYPE_CHECKING:
    from exporters.verify import Verification

__all__ = ["verify"]


@command
def verify(
    exported: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Directory that qdq export wrote.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="The checkpoint that it was exported from.")],
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (the texts are fixed: a proof is repeatable)
) -> None:
    """Prove that an export computes what its checkpoint computes; exit code 1 when it does not.

    Example: qdq verify -m quantized/ exported/
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from exporters import folder

    with session.progress("verifying"):
        verification = folder.verify(model, exported)
    session.result(verification.to_dict(), _segments(verification, full=verbose > 0), _end_to_end(verification))
    if not verification.holds:
        if json:
            raise typer.Exit(VerificationError.exit_code)
        raise VerificationError(describe_faults(f"{exported} is not what {model} computes", verification.faults))


def _segments(verification: Verification, *, full: bool) -> Table:
    table = Table(title="By segment: torch's integers in, the same integers out", title_justify="left")
    for column in ("segment in front of", "values", "at a tie", "wrong", "largest difference"):
        table.add_column(column, justify="left" if column.startswith("segment") else "right")
    rows = verification.segments
    shown = rows if full else [row for row in rows if row.wrong] or sorted(rows, key=lambda row: -row.largest)[:5]
    for row in shown:
        table.add_row(row.name, f"{row.values:,}", str(row.ties), str(row.wrong), f"{row.largest:.3g} {row.unit}")
    if len(shown) < len(rows):
        table.caption = f"{len(shown)} of {len(rows)} segments; -v shows all"
    total = (sum(getattr(row, name) for row in rows) for name in ("values", "ties", "wrong"))
    table.add_section()
    table.add_row(f"all {len(rows)}", *(f"{value:,}" for value in total), "")
    return table


def _end_to_end(verification: Verification) -> Table:
    bounds = verification.bounds
    table = Table(title=f"End to end, in {verification.runtime}", title_justify="left")
    for column in ("output", "shape", "SQNR", "cosine", "SQNR to float", "expected", "cosine to float"):
        table.add_column(column, justify="left" if column == "output" else "right")
    for row in verification.end_to_end:
        table.add_row(
            row.output,
            f"{row.batch_size}x{row.seq_len}",
            f"{row.sqnr_db:.1f} dB",
            f"{row.cosine:.4f}",
            f"{row.float_sqnr_db:.1f} dB",
            f"{row.expected_float_sqnr_db:.1f} dB",
            f"{row.float_cosine:.4f}",
        )
    table.caption = (
        f"needed: SQNR {bounds.sqnr_db:g} dB and cosine {bounds.cosine:g} to the checkpoint in torch, "
        f"SQNR to float at most {bounds.float_loss_db:g} dB below the checkpoint's"
    )
    return table
