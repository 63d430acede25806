"""``qdq inspect --profile``: which operators a runtime runs in int8, and which products stay in float."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

    from exporters.onnx.inspect import GraphReport, Product
    from exporters.profile import Profile

__all__ = ["ProfileOption", "RuntimeOption", "ShapeOption", "ThreadsOption", "parse_shape", "profiled", "runtime_of"]

_PANEL = "Profile"

ProfileOption = Annotated[
    bool,
    typer.Option(
        "--profile",
        metavar="",
        help="Run the ONNX file and show what the runtime computes in int8.",
        rich_help_panel=_PANEL,
    ),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Runtime to profile: onnxruntime or openvino; by default the one that was exported for.",
        rich_help_panel=_PANEL,
    ),
]
ShapeOption = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="BxL",
        help="Batch size and length in tokens to profile; by default 8x128, or what the file takes.",
        rich_help_panel=_PANEL,
    ),
]
ThreadsOption = Annotated[int, typer.Option(metavar="N", help="Number of threads.", min=1, rich_help_panel=_PANEL)]

_SHOWN = 12


def parse_shape(shape: str) -> tuple[int, int]:
    """Return the rows and tokens of a shape such as ``8x128``.

    Raises:
        ConfigError: The text is not a shape.
    """
    from qdq.errors import ConfigError

    try:
        batch_size, seq_len = (int(part) for part in shape.split("x"))
    except ValueError as error:
        raise ConfigError(f"--shape {shape}: it must be rows and tokens, as in 8x128") from error
    return batch_size, seq_len


def profiled(
    path: Path, report: GraphReport, *, runtime: str | None, shape: str | None, threads: int, full: bool
) -> tuple[dict[str, Any], list[Table | str]]:
    """Profile a file, and return the document and the tables."""
    from exporters.profile import profile

    batch_size, seq_len = (None, None) if shape is None else parse_shape(shape)
    found = profile(path, runtime=runtime or runtime_of(path), batch_size=batch_size, seq_len=seq_len, threads=threads)
    left = [(node.name, _why(node.name, report.products)) for node in found.products_in_float()]
    document = {**found.to_dict(), "in_float": [{"name": name, "why": why} for name, why in left]}
    return document, _shown(found, left, full=full)


def runtime_of(file: Path) -> str:
    """Return the runtime that an ONNX file was exported for, ``openvino`` or else ``onnxruntime``."""
    from qdq.source import ModelDirectory

    return "openvino" if ModelDirectory(file.parent).target == "openvino" else "onnxruntime"


def _why(name: str, products: list[Product]) -> str:
    """Return what keeps a product in float. The runtime's name contains that of the file, fused or not."""
    named = [product for product in products if product.runs_in == "float" and product.name in name]
    named = named or [product for product in products if product.name in name]
    # The longest name is the right one: MatMul_1 is also in MatMul_10.
    known = max(named, key=lambda product: len(product.name), default=None)
    if known is None:
        return "the runtime made it; the file has no product of that name"
    return known.why or "its operands are quantized, but the runtime has no kernel for them in this form"


def _shown(found: Profile, left: list[tuple[str, str]], *, full: bool) -> list[Table | str]:
    table = new_table("operator", "in", "nodes", "ms", "share of\ntime", words=2)
    rows = found.by_operator()
    for operator, in_int8, count, seconds in rows if full else rows[:_SHOWN]:
        share = seconds / found.seconds if found.seconds else 0.0
        table.add_row(operator, "int8" if in_int8 else "float", str(count), f"{1e3 * seconds:.3f}", f"{share:.1%}")
    if not full and len(rows) > _SHOWN:
        rest = sum(row[3] for row in rows[_SHOWN:])
        table.add_row(f"{len(rows) - _SHOWN} others", "", "", f"{1e3 * rest:.3f}", f"{rest / found.seconds:.1%}")
    lines: list[Table | str] = [
        "",
        f"Run in {found.runtime} at {found.batch_size} x {found.seq_len}: {1e3 * found.seconds:.2f} ms in all nodes, "
        f"{found.share_of_time:.1%} of it in int8; {found.share_of_macs:.1%} of {found.macs / 1e6:,.0f} M "
        "multiplications in int8",
        table,
    ]
    if left:
        lines += ["", "products in float:", *(f"  {name}: {why}" for name, why in (left if full else left[:_SHOWN]))]
    if not full and len(left) > _SHOWN:
        lines.append(f"  ... and {len(left) - _SHOWN} more, -v shows all")
    return lines
