"""List the kernels of an engine from the descriptions that TensorRT writes.

There are two of them: the message ``Layers:`` of the builder, which detailed profiling asks for and which needs no GPU;
and the JSON of the engine inspector, whose fields have other names since 11.0.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Kernel", "parse_inspector", "parse_layers", "short_type"]


@dataclass(frozen=True)
class Kernel:
    """Describe one kernel.

    Args:
        name: TensorRT's name for it.
        kind: TensorRT's type of layer, such as ``gemm`` or ``kgen``.
        inputs: Element type of each computed input, such as ``int8``.
        constants: Element type of each stored input.
        outputs: Element type of each output.
        nodes: Names of the ONNX nodes that it computes.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Kernel:
        """Read what :meth:`to_dict` returned."""
        lists = {key: tuple(document[key]) for key in ("inputs", "constants", "outputs", "nodes")}
        return cls(document["name"], document["kind"], **lists)


_TYPES = {
    "int8": "int8",
    "fp8": "fp8",
    "e4m3": "fp8",
    "float8": "fp8",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "half": "fp16",
    "fp16": "fp16",
    "float": "fp32",
    "fp32": "fp32",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
    "uint8": "uint8",
    "int4": "int4",
}


def short_type(text: str) -> str:
    """Return ``int8``, ``fp8``, ``fp16``, ``fp32`` ... for TensorRT's ``Int8``, ``Half``, ``Row major INT8 ...``."""
    lowered = text.lower()
    return next((short for word, short in _TYPES.items() if word in lowered), lowered)


_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), (?P<rest>.*)$")
_TENSORS = re.compile(r"(?P<part>Inputs|Constants|Outputs): \[(?P<body>.*?)\](?=, (?:Constants|Outputs|TacticName))")
_TYPE = re.compile(r"Datatype: (?P<type>[^,}]+)")
_NODE = re.compile(r"\[ONNX Layer: (?P<node>.*?)\](?=\[ONNX Layer: |\s*$|[^\w])")


def parse_layers(message: str) -> list[Kernel]:
    """Return the kernels that a message of the builder lists, in the order in which they run."""
    kernels = []
    for line in message.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        types = {
            found["part"]: tuple(short_type(kind) for kind in _TYPE.findall(found["body"]))
            for found in _TENSORS.finditer(match["rest"])
        }
        _, _, metadata = match["rest"].partition("Metadata: ")
        kernels.append(
            Kernel(
                match["name"],
                match["kind"],
                types.get("Inputs", ()),
                types.get("Constants", ()),
                types.get("Outputs", ()),
                _nodes(metadata),
            )
        )
    return kernels


def parse_inspector(text: str) -> list[Kernel]:
    """Return the kernels that the engine inspector lists. Without detailed profiling it lists only names."""
    kernels = []
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, str):
            kernels.append(Kernel(layer, "", (), (), (), ()))
            continue
        parts = {
            part: tuple(
                short_type(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or tensor.get("Format", "")))
                for tensor in layer.get(part, ())
            )
            for part in ("Inputs", "Constants", "Outputs")
        }
        kernels.append(
            Kernel(
                str(layer.get("Name", "")),
                str(layer.get("LayerType", "")),
                parts["Inputs"],
                parts["Constants"],
                parts["Outputs"],
                _nodes(str(layer.get("Metadata", ""))),
            )
        )
    return kernels


def _nodes(metadata: str) -> tuple[str, ...]:
    """Return the names between ``[ONNX Layer: `` and ``]``, which a unit separator may divide."""
    return tuple(dict.fromkeys(found["node"] for found in _NODE.finditer(metadata)))
