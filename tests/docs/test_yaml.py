"""Every YAML block is a recipe, or settings that a recipe takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import yaml

from qdq.models.registry import configure
from qdq.quantization.wrap import slots
from qdq.recipes.plan import skeleton
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

RULE = {"module": "encoder.*", "kind": "linear", "slot": "weight", "spec": {"bits": 8}}


class YamlBlock(Protocol):
    """A block of YAML; see ``conftest.py``."""

    text: str


def test_yaml_block(yaml_block: YamlBlock, tmp_path: Path) -> None:
    """A block that is not a whole recipe is completed with a name and a rule."""
    text = yaml_block.text
    missing = {"name": "completed", "rules": [RULE]}
    lines = [yaml.safe_dump({key: value}) for key, value in missing.items() if f"{key}:" not in text.split()]
    file = tmp_path / "recipe.yaml"
    file.write_text(text + "".join(lines), encoding="utf-8")
    decoder = configure("bert", num_hidden_layers=1, is_decoder=True)
    assert load_recipe(file).assign(slots(skeleton(decoder, "causal-lm")))
