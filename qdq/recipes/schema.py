"""The JSON schema of a recipe, with which editors complete and check a YAML file.

The schema accepts everything that ``load_recipe`` accepts. It cannot check whether the spec of a rule is one of
``specs``, or whether patterns match a model. To write the file that ships with the package, run


    python -m qdq.recipes.schema
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qdq.quantization.slot import KINDS, SLOTS
from qdq.quantization.spec import PER_AXIS_PATTERN, PER_GROUP_PATTERN, QuantSpec
from qdq.recipes.refinement import Refinement
from qdq.settings import json_schema

__all__ = ["SCHEMA_FILE", "recipe_schema"]

SCHEMA_FILE = Path(__file__).parent / "presets" / "recipe.schema.json"


def recipe_schema() -> dict[str, Any]:
    """Return the schema, in draft 7, which editors support best."""
    patterns = {"type": "array", "items": {"type": "string"}}
    kind = {"enum": list(KINDS)}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "qdq recipe",
        "description": "Which slots of a model are quantized, and how.",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "rules"],
        "properties": {
            "name": {"type": "string", "minLength": 1},
            "specs": {
                "description": "Named specs, for use in rules.",
                "type": "object",
                "propertyNames": {"not": {"const": "off"}},
                "additionalProperties": {"$ref": "#/definitions/spec"},
            },
            "rules": {
                "description": "The last rule that matches a slot decides. A slot without a rule stays float.",
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/definitions/rule"},
            },
            "include": {**patterns, "description": "Quantize only slots or modules that match one of these patterns."},
            "exclude": {**patterns, "description": "Keep slots and modules that match one of these patterns in float."},
            "refinement": {
                "description": "What calibration does besides finding ranges.",
                "type": "object",
                "additionalProperties": False,
                "properties": _settings_schema(Refinement),
            },
        },
        "definitions": {
            "rule": {
                "type": "object",
                "additionalProperties": False,
                "required": ["module", "slot", "spec"],
                "properties": {
                    "module": {"type": "string", "description": "A shell pattern that module names must match."},
                    "kind": {
                        "description": "The kind of module, or a list of kinds.",
                        "anyOf": [kind, {"type": "array", "minItems": 1, "items": kind}],
                    },
                    "slot": {"enum": [*SLOTS, "*"], "description": "The slot of the module, or * for all of them."},
                    "spec": {
                        "description": "The name of a spec, off to stay float, or a spec.",
                        "anyOf": [{"type": "string"}, {"$ref": "#/definitions/spec"}],
                    },
                    "optional": {
                        "type": "boolean",
                        "default": False,
                        "description": "Allow the rule to match no slot.",
                    },
                },
            },
            "spec": {
                "type": "object",
                "additionalProperties": False,
                "properties": _settings_schema(QuantSpec),
                "allOf": _contradictions(),
            },
        },
    }


def _settings_schema(group: type) -> dict[str, dict[str, Any]]:
    """Return the properties of a settings dataclass, with defaults as recipes spell them."""
    properties = json_schema(group)
    for entry in properties.values():
        if not isinstance(entry["default"], bool | int | str | None):
            entry["default"] = str(entry["default"])  # a granularity
    return properties


def _contradictions() -> list[dict[str, Any]]:
    """Return conditions for settings that exclude each other, as :class:`QuantSpec` checks them."""
    on, off = {"const": True}, {"const": False}
    axis, token, group = {"pattern": PER_AXIS_PATTERN}, {"const": "per-token"}, {"pattern": PER_GROUP_PATTERN}
    return [
        _when({"narrow_range": on}, then={"signed": on}),
        _when(
            {"overflow_safe": on},
            then={"signed": on, "symmetric": on, "granularity": axis},
            needs=["granularity"],
        ),
        _when({"granularity": token}, then={"dynamic": on}, needs=["dynamic"]),
        _when({"learned_scale": on}, then={"dynamic": off, "granularity": {"not": group}}),
        _when(
            {"format": {"const": "float8e4m3fn"}},
            then={
                **dict.fromkeys(("signed", "symmetric"), on),
                **dict.fromkeys(("narrow_range", "overflow_safe", "dynamic", "learned_scale"), off),
                "bits": {"const": 8},
                "arithmetic": {"const": "onnx"},
                "granularity": {"not": {"anyOf": [token, group]}},
            },
        ),
        _when(
            {"arithmetic": {"const": "pytorch-quantization"}},
            then={
                "symmetric": on,
                "overflow_safe": off,
                "learned_scale": off,
                "granularity": {"not": {"anyOf": [token, group]}},
            },
        ),
    ]


def _when(
    condition: dict[str, Any], *, then: dict[str, Any], needs: list[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return a condition: where ``condition`` holds, ``then`` must hold too, and ``needs`` must be given."""
    return {
        "if": {"properties": condition, "required": list(condition)},
        "then": {"properties": then, **({"required": needs} if needs else {})},
    }


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(recipe_schema(), indent=2) + "\n", encoding="utf-8")
