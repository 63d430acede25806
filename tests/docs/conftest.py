"""The blocks of README, CONTRIBUTING and the pages of ``docs/``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))

_FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        page: Path of the page, relative to the repository.
        line: Line of the fence.
        language: What follows the fence: ``python``, ``shell``, ``console``, ``yaml``, ``text``.
        text: What stands inside.
        reason: Why it is not run; empty for a block that is.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(ROOT).as_posix()
    return [
        Block(
            page=name,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            text=found["text"],
            reason=found["reason"] or "",
        )
        for found in _FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes ``<language>_block`` for every block of that language, ``page`` for every page."""
    for name in metafunc.fixturenames:
        if name == "page":
            metafunc.parametrize(name, PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
        elif name.endswith("_block"):
            languages = {"shell_block": ("shell", "console")}.get(name, (name.removesuffix("_block"),))
            metafunc.parametrize(name, [block for block in BLOCKS if block.language in languages], ids=str)


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The extension of Sphinx that writes the reference pages."""
    spec = spec_from_file_location("reference", ROOT / "docs" / "extensions" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def blocks() -> list[Block]:
    """Every block of every page."""
    return BLOCKS
