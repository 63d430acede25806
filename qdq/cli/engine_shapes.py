"""Options that name the shapes of an engine, shared by several commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from exporters.tensorrt.onnx_file import OnnxFile
    from exporters.tensorrt.profiles import Profile

__all__ = ["MaxShapesOption", "MinShapesOption", "OptShapesOption", "chosen_profiles"]

_PANEL = "Shapes"

MinShapesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--min-shapes",
        metavar="SHAPES",
        help="Smallest input shapes, for all inputs (batch x tokens, as in 1x8) or by name as in trtexec "
        "(input_ids:1x8,attention_mask:1x8). Repeat the three options for more optimization profiles.",
        rich_help_panel=_PANEL,
    ),
]
OptShapesOption = Annotated[
    list[str] | None,
    typer.Option("--opt-shapes", metavar="SHAPES", help="Input shapes to optimize for.", rich_help_panel=_PANEL),
]
MaxShapesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--max-shapes",
        metavar="SHAPES",
        help="Largest input shapes. By default from 1x1 to 32x512, or 32 times the longest input "
        "of the model, optimized for 8x128.",
        rich_help_panel=_PANEL,
    ),
]


def chosen_profiles(
    source: OnnxFile, least: list[str] | None, best: list[str] | None, largest: list[str] | None
) -> list[Profile]:
    """Return the profiles that the options name, or the default one.

    Raises:
        BuildError: A text is not a shape, or one of the three options is missing.
    """
    from exporters.tensorrt.profiles import default_profile, parse_profiles

    if not (least or best or largest):
        return [default_profile(source.inputs, longest=source.longest or 512)]
    return parse_profiles(source.inputs, least or [], best or [], largest or [])
