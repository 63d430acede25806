"""The JSON schema of a recipe, for editors: what completes and checks a YAML file while it is written.

It says what a schema can say, and refuses nothing that :func:`qdq.recipes.recipe.load_recipe` reads. Whether a rule's
spec is one of ``specs``, and whether patterns match a model, only the reader knows. The file that ships is what this
writes:

    python -m qdq.recipes.schema
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from qdq.quantization.slot import KINDS, SLOTS
from qdq.quantization.spec import ARITHMETICS, FORMATS, QuantSpec
from qdq.recipes.refinement import CLIPPINGS, ROUNDINGS

__all__ = ["SCHEMA_FILE", "recipe_schema"]

SCHEMA_FILE = Path(__file__).parent / "presets" / "recipe.schema.json"

_PER_AXIS, _PER_GROUP = r"^per-axis\(-?[0-9]{1,9}\)$", r"^per-group\((?!0+\))[0-9]{1,9}\)$"

_SETTINGS: dict[str, dict[str, Any]] = {
    "bits": {"type": "integer", "minimum": 2, "maximum": 8, "description": "Width of the integers."},
    "signed": {"type": "boolean", "description": "Integers on both sides of 0, else from 0."},
    "symmetric": {"type": "boolean", "description": "A fixed zero point, else (affine) one that fits the range."},
    "narrow_range": {"type": "boolean", "description": "Leave out the lowest integer; for signed ones."},
    "granularity": {
        "anyOf": [{"enum": ["per-tensor", "per-token"]}, {"pattern": _PER_AXIS}, {"pattern": _PER_GROUP}],
        "type": "string",
        "description": "What shares a scale: per-tensor, per-axis(N), per-group(SIZE), or with dynamic per-token.",
    },
    "overflow_safe": {
        "type": "boolean",
        "description": "Linear weights, per-axis(0): scales with which integer kernels never saturate.",
    },
    "dynamic": {"type": "boolean", "description": "The range of the tensor at hand: nothing to calibrate."},
    "learned_scale": {"type": "boolean", "description": "The scale is trained."},
    "format": {"enum": list(FORMATS), "description": "Integers, or floats of 8 bits with a largest number of 448."},
    "arithmetic": {"enum": list(ARITHMETICS), "description": "onnx, or to the bit that of pytorch-quantization."},
}

_REFINEMENT: dict[str, dict[str, Any]] = {
    "shift": {"type": "boolean", "description": "Centre the channels of LayerNorm outputs."},
    "smoothing": {
        "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}],
        "description": "How much of the difference between channels moves from activations to weights; null: none.",
    },
    "bias_correction": {"type": "boolean", "description": "Make good the mean error of every linear layer."},
    "clipping": {"enum": list(CLIPPINGS), "description": "Of what linear layers read: none, or token-wise."},
    "rounding": {"enum": list(ROUNDINGS), "description": "Of weights: nearest, or gptq: errors cancel."},
}


def recipe_schema() -> dict[str, Any]:
    """The schema, draft 7, which editors know best."""
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
                "description": "Specs by name, for the rules.",
                "type": "object",
                "propertyNames": {"not": {"const": "off"}},
                "additionalProperties": {"$ref": "#/definitions/spec"},
            },
            "rules": {
                "description": "The last rule that matches a slot decides; without one it stays float.",
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/definitions/rule"},
            },
            "include": {**patterns, "description": "If any: quantize only what one of these patterns matches."},
            "exclude": {**patterns, "description": "Keep what one of these patterns matches in float."},
            "refinement": {
                "description": "What calibration does beyond finding ranges.",
                "type": "object",
                "additionalProperties": False,
                "properties": _REFINEMENT,
            },
        },
        "definitions": {
            "rule": {
                "type": "object",
                "additionalProperties": False,
                "required": ["module", "slot", "spec"],
                "properties": {
                    "module": {"type": "string", "description": "A shell pattern of module names."},
                    "kind": {
                        "description": "Modules of this kind, or of these.",
                        "anyOf": [kind, {"type": "array", "minItems": 1, "items": kind}],
                    },
                    "slot": {"enum": [*SLOTS, "*"]},
                    "spec": {
                        "description": "The name of a spec, off, or a spec.",
                        "anyOf": [{"type": "string"}, {"$ref": "#/definitions/spec"}],
                    },
                    "optional": {"type": "boolean", "default": False, "description": "May match nothing."},
                },
            },
            "spec": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    field.name: {**_SETTINGS[field.name], "default": _plain(field.default)}
                    for field in fields(QuantSpec)
                },
                "allOf": _conflicts(),
            },
        },
    }


def _plain(default: object) -> object:
    return default if isinstance(default, bool | int | str) else str(default)


def _conflicts() -> list[dict[str, Any]]:
    """Settings that exclude each other."""
    on, off = {"const": True}, {"const": False}
    axis, token, group = {"pattern": _PER_AXIS}, {"const": "per-token"}, {"pattern": _PER_GROUP}
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
    """Where ``condition`` holds, ``then`` must, and ``needs`` may not be left to their defaults."""
    return {
        "if": {"properties": condition, "required": list(condition)},
        "then": {"properties": then, **({"required": needs} if needs else {})},
    }


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(recipe_schema(), indent=2) + "\n", encoding="utf-8")
