"""A recipe's YAML: values, lines, and mistakes that are gathered instead of ending the reading."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from qdq.errors import RecipeError, StorageError
from qdq.recipes.recipe import load_recipe
from qdq.recipes.yaml_reader import MAX_BYTES, UNREADABLE, read_yaml

if TYPE_CHECKING:
    from pathlib import Path


def read(text: str, tmp_path: Path) -> tuple[Any, list[tuple[int, str]]]:
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    return read_yaml(tmp_path / "a.yaml")


SAME_AS_PYYAML = """
text: plain
quoted: "8"
numbers: [1, -2, +3, 1.5, -0.5, .inf, 1.0e+3]
truth: [true, false]
nothing: [~, null]
empty:
base: &base {a: 1, b: [x, {y: z}]}
again: *base
merged: {<<: *base, b: 2}
several: {<<: [*base, {a: 3, c: 4}], d: 5}
block: |
  two
  lines
"""


def test_values_are_those_of_pyyaml(tmp_path: Path) -> None:
    values, problems = read(SAME_AS_PYYAML, tmp_path)
    assert (values, problems) == (yaml.safe_load(SAME_AS_PYYAML), [])


def test_types_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    values, problems = read("[off, yes, True, 010, 1:30, 2020-13-45, 0x1f, 1_000, 1e3, .nan]", tmp_path)
    assert values[:-1] == ["off", "yes", "True", 10, "1:30", "2020-13-45", "0x1f", "1_000", 1000.0]
    assert math.isnan(values[-1])
    assert problems == []


def test_lines_of_keys_and_items(tmp_path: Path) -> None:
    values, _ = read("a: 1\nb:\n  c: 2\n  d:\n    - x\n\n    - y\ne: &e {f: 1,\n  g: 2}\nh: {<<: *e}\n", tmp_path)
    assert (values.own, values.of) == (1, {"a": 1, "b": 2, "e": 8, "h": 10})
    assert (values["b"].own, values["b"].of) == (3, {"c": 3, "d": 4})
    assert values["b"]["d"].of == [5, 7]
    assert values["h"].of == {"f": 8, "g": 9}, "what is merged keeps the lines where it stands"


def test_mistakes_are_gathered(tmp_path: Path) -> None:
    text = (
        "a: !!int x\na: 2\nb: !!timestamp now\n? [c]\n: 1\nd: &d [*d]\ne: {<<: 1}\nf: !mine {}\ng: !!float ''\nh: 1\n"
    )
    values, problems = read(text, tmp_path)
    assert values["h"] == 1, "reading went on"
    assert values["a"] is values["b"] is values["f"] is values["g"] is UNREADABLE
    expected = {
        1: "'x' is not a valid int",
        2: "the key 'a' is given more than once, first in line 1",
        3: "the type !!timestamp is not allowed",
        4: "a key must be text",
        6: "an alias stands inside what it refers to",
        7: "what << merges must be a mapping",
        8: "the type !mine is not allowed",
        9: "'' is not a valid float",
    }
    assert {line: expected.get(line, "-") in problem for line, problem in problems} == dict.fromkeys(expected, True)


def test_what_several_aliases_name_is_wrong_once(tmp_path: Path) -> None:
    text = "name: a\nspecs: {x: &x {bits: 99}, y: *x}\nrules:\n  - &r {module: a, slot: nowhere, spec: *x}\n  - *r\n"
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "a.yaml")
    found = [line.strip(" -") for line in str(caught.value).splitlines()[1:]]
    assert [line.partition(", must")[0] for line in found] == [
        "line 2: x: bits is 99",
        "line 2: y: bits is 99",
        "line 2: spec: bits is 99",
        "line 4: slot is 'nowhere'",
    ]


def test_short_files_that_stand_for_huge_values(tmp_path: Path) -> None:
    lists = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    merges = "\n".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 30))
    text = f"a0: &a0 [x]\n{lists}\nm0: &m0 {{k: *a29}}\n{merges}\nname: *a29\nspecs: {{s: {{bits: *m29}}, t: *a29}}\n"
    (tmp_path / "a.yaml").write_text(f"{text}rules: [*a29, {{module: *m29, kind: *a29, slot: *a29, spec: *a29}}]\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "a.yaml")
    assert len(str(caught.value)) < 50_000


@pytest.mark.parametrize(
    "content", [b"a: [1\nb", b"\x00", b"\xff\xfe", b"a: *b", b"a: 1\n---\nb: 2", b"[" * 3000, b"'a"], ids=range(7)
)
def test_what_is_not_yaml(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"a\.yaml: not a YAML file: "):
        read_yaml(tmp_path / "a.yaml")


def test_a_large_file_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RecipeError, match="more than 250,000 bytes"):
        read_yaml(tmp_path / "a.yaml")


def test_a_file_that_went_away(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        read_yaml(tmp_path / "a.yaml")
