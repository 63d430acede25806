"""The options that name the shapes of an engine, the same for every command that takes them."""

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
        help="Least shapes, as trtexec takes them: input_ids:1x8,attention_mask:1x8; 1x8 stands for all inputs. "
        "Repeatable: the first of each makes the first profile.",
        rich_help_panel=_PANEL,
    ),
]
OptShapesOption = Annotated[
    list[str] | None,
    typer.Option("--opt-shapes", metavar="SHAPES", help="Shapes that kernels are chosen for.", rich_help_panel=_PANEL),
]
MaxShapesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--max-shapes",
        metavar="SHAPES",
        help="Largest shapes. Without any of the three: from 1x1 to 32 rows of at most 512 tokens, best at 8x128.",
        rich_help_panel=_PANEL,
    ),
]


def chosen_profiles(
    source: OnnxFile, least: list[str] | None, best: list[str] | None, largest: list[str] | None
) -> list[Profile]:
    """The profiles that the options name, or the default one.

    Raises:
        BuildError: for text that is no shape, or options that do not come together.
    """
    from exporters.tensorrt.profiles import default_profile, parse_profiles

    if not (least or best or largest):
        return [default_profile(source.inputs, longest=source.longest or 512)]
    return parse_profiles(source.inputs, least or [], best or [], largest or [])
