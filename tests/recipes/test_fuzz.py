"""Mutated recipes end as a recipe or as a RecipeError, in the library and on the command line; nothing else."""

from __future__ import annotations

import copy
import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from qdq.cli.main import main
from qdq.errors import RecipeError
from qdq.models.registry import configure
from qdq.recipes.plan import plan, skeleton
from qdq.recipes.recipe import Recipe, load_recipe, presets

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qdq.models.model import Model

SIZES = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9}
TEXTS = [path.read_text(encoding="utf-8") for path in presets().values()]
TEXTS.append(
    """name: anchors
specs:
  base: &base {bits: 8, signed: true}
  weight: {<<: *base, granularity: per-axis(0)}
rules:
  - &rule {module: "encoder.*", kind: [linear, matmul], slot: input, spec: base}
  - {<<: *rule, kind: linear, slot: weight, spec: weight}
  - *rule
include: ["encoder.*"]
exclude: ["*.layers.1.*"]
"""
)

SNIPPETS = [
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "-",
        "#",
        "&a ",
        "*a",
        "*base",
        "<<: *base",
        "? ",
        "!!int ",
        "!!python/name:os.x ",
        "!x",
    ),
    *(
        "'",
        '"',
        "|",
        ">",
        "%",
        "@",
        "`",
        "\t",
        "\n",
        "\n\n  ",
        "\r",
        "\0",
        "\x85",
        "\ufeff",
        "\ud7ff",
        "é",
        "---\n",
        "...\n",
    ),
    *(
        "off",
        "null",
        "~",
        "true",
        "yes",
        "0",
        "-1",
        "1e999",
        ".nan",
        "9" * 5000,
        "0x",
        "010",
        "1:30",
        "2020-13-45",
        "=",
        "<<",
    ),
    *(
        "per-axis(0)",
        "per-axis(-3)",
        "per-axis(99)",
        "per-group(0)",
        "per-group(3)",
        "per-group(999999999)",
        "per-token",
    ),
    *("bits: 3", "dynamic: true", "learned_scale: true", "arithmetic: pytorch-quantization", "overflow_safe: true"),
    *(
        "xx",
        "coder",
        "[" * 500,
        "{a: " * 200,
        "*" * 50,
        "[!",
        "[]",
        "[a-",
        "?",
        "encoder.layers.*",
        "(((",
        "\\",
        "embedding",
        "add",
    ),
]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    2.5,
    float("nan"),
    10**30,
    "",
    "*",
    "off",
    "[",
    "per-token",
    [],
    {},
    [[]],
    {"a": {}},
]
VALUES += [
    "per-group(4)",
    "per-axis(1)",
    ["linear"],
    [None],
    {"bits": None},
    {"bits": 4, "signed": False},
    {1: 2},
    "x" * 10_000,
]


def mutated_text(rng: random.Random) -> str:
    text = rng.choice(TEXTS)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        begin = rng.randrange(len(text) + 1)
        end = min(len(text), begin + rng.choice([0, 0, 1, 3, 20]))
        lines = text.split("\n")
        match rng.randrange(5):
            case 0:
                text = text[:begin] + text[end:]
            case 1:
                rng.shuffle(lines)
                text = "\n".join(lines)
            case 2:
                line = rng.randrange(len(lines))
                text = "\n".join([*lines[:line], rng.choice(lines), *lines[line:]])
            case _:
                text = text[:begin] + rng.choice(SNIPPETS) + text[end:]
    return text


def mutated_values(rng: random.Random) -> Any:
    values = copy.deepcopy(yaml.safe_load(rng.choice(TEXTS)))
    for _ in range(rng.choice([1, 1, 2, 3])):
        containers: list[Any] = [values]
        for container in containers:
            containers += [
                item
                for item in (container.values() if isinstance(container, dict) else container)
                if isinstance(item, dict | list)
            ]
        container = rng.choice([container for container in containers if container])
        key = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
        if rng.random() < 0.2:
            del container[key]
        else:
            container[key] = copy.deepcopy(
                rng.choice([*VALUES, values["rules"] if isinstance(values.get("rules"), list) else 1])
            )
        if values == {}:
            break
    return values


def settles(read: Callable[[], Recipe], model: Model) -> str:
    """How it ends: refused when read, refused for the model, or fine."""
    try:
        recipe = read()
    except RecipeError as error:
        return "not read" if 0 < len(str(error)) < 100_000 else "an endless message"
    assert isinstance(recipe, Recipe)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    try:
        assert plan(model, recipe).recipe is recipe
    except RecipeError:
        return "does not fit"
    return "fine"


@pytest.fixture(scope="module")
def model() -> Model:
    return skeleton(configure("bert", **SIZES))


def test_mutated_text(model: Model, tmp_path: Path) -> None:
    rng = random.Random(0)
    ends = []
    for _ in range(400):
        text = mutated_text(rng)
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        ends.append(settles(lambda: load_recipe(tmp_path / "recipe.yaml"), model))
    counts = {end: ends.count(end) for end in ("not read", "does not fit", "fine")}
    assert sum(counts.values()) == len(ends)
    assert min(counts["not read"], counts["does not fit"] * 30, counts["fine"]) >= 30, counts


def test_mutated_values(model: Model) -> None:
    rng = random.Random(0)
    ends = []
    for _ in range(400):
        values = mutated_values(rng)
        ends.append(settles(lambda values=values: Recipe.from_dict(values), model))
    counts = {end: ends.count(end) for end in ("not read", "does not fit", "fine")}
    assert sum(counts.values()) == len(ends)
    assert min(counts["not read"], counts["does not fit"] * 30, counts["fine"]) >= 30, counts


def test_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The exit code is 0 or 2, and the message one that was written for people."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **SIZES}))
    rng = random.Random(1)
    codes = []
    for _ in range(30):
        (tmp_path / "recipe.yaml").write_text(mutated_text(rng), encoding="utf-8", errors="surrogatepass", newline="")
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(tmp_path / "config.json"), "--recipe", str(tmp_path / "recipe.yaml"), "--json"])
        captured = capfd.readouterr()
        codes.append(ended.value.code or 0)
        document = json.loads(captured.out)
        assert "Traceback" not in captured.err
        if codes[-1]:
            assert (codes[-1], document["kind"]) == (2, "RecipeError")
            assert captured.err.startswith("error: ")
        else:
            assert (document["kind"], captured.err) == ("plan", "")
    assert min(codes.count(0), codes.count(2)) >= 5
