"""The generated pages name every command, option and name, and links between pages lead somewhere."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import qdq
from exporters.onnx.targets import TARGETS
from qdq.recipes.recipe import presets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_has_a_section(reference: ModuleType) -> None:
    text = reference.commands()
    sections = re.findall(r"^## (qdq .+)$", text, flags=re.MULTILINE)
    assert sections[:3] == ["qdq quickstart", "qdq calibrate", "qdq finetune"]
    assert {"qdq inspect", "qdq realm index", "qdq realm answer"} <= set(sections)
    assert len(sections) == len(set(sections)) == 15


def test_options_have_their_placeholder_default_and_panel(reference: ModuleType) -> None:
    section = re.split(r"^## ", reference.commands(), flags=re.MULTILINE)[3]
    assert section.startswith("qdq calibrate\n\n```text\nqdq calibrate [OPTIONS]\n```\n")
    assert re.search(r"^\| `--model DIR`, `-m DIR` \| .+ \*Required\.\* \|$", section, flags=re.MULTILINE)
    assert re.search(r"^\| `--seq-len L` \| .+ Default: `128`\. \|$", section, flags=re.MULTILINE)
    assert r"`--calibrator max\|percentile\|mse\|entropy\|auto`" in section
    assert re.search(r"^\| `--resume` \| .*\\<output\\>", section, flags=re.MULTILINE)
    assert "**Recipe**\n\n| option |" in section
    assert "`--json`" not in section


def test_what_every_command_accepts_is_said_once(reference: ModuleType) -> None:
    text = reference.commands()
    for option in ("`--json`", "`--verbose`, `-v`", "`--quiet`, `-q`", "`--seed N`"):
        assert text.count(f"| {option} |") == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("<output>.training *", r"\<output\>.training \*"),
        ("see `qdq export` and [1]", r"see `qdq export` and \[1\]"),
        ("a | b", r"a \| b"),
        ("one ` alone", r"one \` alone"),
    ],
)
def test_help_is_shown_as_it_is(reference: ModuleType, text: str, shown: str) -> None:
    assert reference._escaped(text) == shown


def test_every_public_name_has_a_directive(reference: ModuleType) -> None:
    text = reference.names_of("qdq")
    assert re.findall(r"^\.\. auto\w+:: qdq\.(\w+)$", text, flags=re.MULTILINE) == qdq.__all__
    assert ".. autofunction:: qdq.load\n" in text
    assert ".. autoclass:: qdq.Recipe\n" in text
    assert ".. autoexception:: qdq.QDQError\n" in text


def test_a_name_of_the_facade_is_documented_once(reference: ModuleType) -> None:
    text = reference.names_of("calibration")
    assert "Documented above: {py:obj}`qdq.CalibrationSettings`, {py:obj}`qdq.RangeAdjustments`, " in text
    assert ".. autoclass:: calibration.Percentile\n" in text
    assert ":: calibration.calibrate\n" not in text


def test_every_preset_says_what_it_is_for(reference: ModuleType) -> None:
    text = reference.presets()
    assert re.findall(r"^`([\w-]+)`\n: \w", text, flags=re.MULTILINE) == list(presets())


def test_every_request_is_known(reference: ModuleType, page: Path) -> None:
    assert "<!-- generated" not in reference.expanded(page.read_text(encoding="utf-8"))


def test_an_unknown_request_is_an_error(reference: ModuleType) -> None:
    with pytest.raises(ValueError, match="nothing is known about how to generate 'comands'"):
        reference.expanded("<!-- generated: comands -->")


def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_readme_lists_every_target_and_preset() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for kind, known in (("targets", TARGETS), ("presets", presets())):
        (row,) = re.findall(rf"^\| {kind} \| (.*) \|$", text, flags=re.MULTILINE)
        assert set(re.findall(r"`([\w-]+)`", row)) == set(known)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        assert name == "index" or re.search(rf"^{name}$", index, flags=re.MULTILINE), f"{name} is not in the index"


RETIRED = (
    *("bakes?", "baked", "prov(?:e|es|en|ing)", "proofs?", "journal", "snapshot", "subject", "equipment", "twins?"),
    *("companions", "seals?", "sealed", "faults?", "quietest", "unrest", "closeness", "scatters?", "spelled_out"),
    *("scratch", "what is put out", "somebody else's"),
)
DOCUMENTED = re.findall(
    r"^<!-- generated: names of (\S+) -->$",
    (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


def retired_in(text: str) -> list[str]:
    """The words of a text that were ours alone; see CONTRIBUTING."""
    return re.findall(rf"\b(?:{'|'.join(RETIRED)})\b", text, flags=re.IGNORECASE)


def docstrings_of(value: object) -> Iterator[str]:
    """Yield the docstring of a public object, and of what a class of ours defines under public names."""
    yield inspect.getdoc(value) or ""
    if inspect.isclass(value):
        for name, member in vars(value).items():
            if not name.startswith("_"):
                yield inspect.getdoc(member) or ""


def test_pages_use_the_words_of_the_field(page: Path) -> None:
    assert retired_in(page.read_text(encoding="utf-8")) == []


def test_help_uses_the_words_of_the_field(reference: ModuleType) -> None:
    assert retired_in(reference.commands()) == []
    assert retired_in("an engine that was sealed in Scratch") == ["sealed", "Scratch"]


@pytest.mark.parametrize("module", DOCUMENTED)
def test_docstrings_use_the_words_of_the_field(module: str) -> None:
    found = importlib.import_module(re.sub(r"^qdq\.(?=(?:calibration|exporters)\b)", "", module))
    texts = [inspect.getdoc(found) or ""]
    for name in found.__all__:
        texts += docstrings_of(getattr(found, name))
    assert [word for text in texts for word in retired_in(text)] == []


def test_every_field_of_a_configuration_is_on_its_page(reference: ModuleType) -> None:
    from qdq.models.config_fields import CONFIG_FIELDS
    from qdq.models.registry import FAMILIES, fields_of

    page = reference.expanded((ROOT / "docs" / "reference" / "fields.md").read_text(encoding="utf-8"))
    shown = set(re.findall(r"`(\w+)`", page))
    assert {name for family in FAMILIES.values() for name in fields_of(family.config)} <= shown
    rows = [
        line for line in page.splitlines() if re.search(r"\| (followed|warned|refused|ignored) \| (written|left)", line)
    ]
    assert len(rows) == len(CONFIG_FIELDS)
    assert "- `albert` also follows `classifier_dropout_prob`, `embedding_size`," in page
