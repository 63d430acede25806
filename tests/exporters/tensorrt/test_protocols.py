"""Every name of TensorRT that we use is there, unchanged, from 10.13 to 11.x; and in the TensorRT that is installed."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from exporters.tensorrt import protocols as api
from exporters.tensorrt.backend import BACKENDS
from exporters.tensorrt.build_options import HARDWARE

TABLE = json.loads(Path(__file__).with_name("api.json").read_text())
SINCE_10_13 = [version for version in TABLE["versions"] if not version.startswith("10.0")]
ROOM = Path(api.__file__).parent

CLASSES = {
    "Builder": api.Builder,
    "IBuilderConfig": api.Config,
    "ICudaEngine": api.Engine,
    "EngineInspector": api.Inspector,
    "IExecutionContext": api.Context,
    "IHostMemory": api.HostMemory,
    "INetworkDefinition": api.Network,
    "IOptimizationProfile": api.Profile,
    "ITensor": api.NetworkTensor,
    "ITimingCache": api.TimingCache,
    "OnnxParser": api.Parser,
    "ParserError": api.ParserError,
    "Runtime": api.Runtime,
}


def members(protocol: type) -> set[str]:
    """What a protocol of ours declares."""
    declared = {*protocol.__annotations__, *(name for name, _ in inspect.getmembers(protocol, inspect.isfunction))}
    return {name for name in declared if not name.startswith("_")}


def chains() -> set[tuple[str, ...]]:
    """``trt.BuilderFlag.TF32`` and the like, as the sources of the room write them."""
    found = set()
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            current: Any = node
            while isinstance(current, ast.Attribute):
                names.append(current.attr)
                current = current.value
            if isinstance(current, ast.Name) and current.id == "trt" and names:
                found.add(tuple(reversed(names)))
    return found | {("HardwareCompatibilityLevel", member) for member in HARDWARE.values()}


def has(versions: Any) -> list[str]:
    return TABLE["versions"] if versions == "all" else versions


CALLS = [(name, member) for name, protocol in CLASSES.items() for member in sorted(members(protocol))]


@pytest.mark.parametrize(("name", "member"), CALLS, ids=[".".join(call) for call in CALLS])
def test_a_member_is_in_every_version(name: str, member: str) -> None:
    assert set(has(TABLE["classes"][name][member])) >= set(SINCE_10_13)


ENUMS = sorted(chain for chain in chains() if ".".join(chain[:-1]) in TABLE["enums"])


@pytest.mark.parametrize("chain", ENUMS, ids=".".join)
def test_a_value_is_in_every_version(chain: tuple[str, ...]) -> None:
    assert set(has(TABLE["enums"][".".join(chain[:-1])][chain[-1]])) >= set(SINCE_10_13)


def test_nothing_else_of_the_module_is_used() -> None:
    tops = {chain[0] for chain in chains()}
    assert tops <= members(api.TensorRT) | {"__version__"}
    longer = {chain for chain in chains() if len(chain) > 1 and chain not in ENUMS}
    assert {chain[1:] for chain in longer} <= {("__init__",), ("Severity",), ("items",)}
    assert len(ENUMS) >= 12


@pytest.mark.parametrize("word", ["INT8", "FP16", "EXPLICIT_BATCH", "int8_calibrator", "max_workspace_size"])
def test_names_that_are_gone_are_not_used(word: str) -> None:
    assert not any(word in chain for chain in chains())
    assert not any(word in members(protocol) for protocol in CLASSES.values())


def test_enumerations_are_never_numbers() -> None:
    """``1 << 0`` is EXPLICIT_BATCH on 10.x and STRONGLY_TYPED on 11.x."""
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "create_network":
                assert "STRONGLY_TYPED" in ast.unparse(node)


@pytest.mark.parametrize("package", BACKENDS.values())
def test_the_installed_tensorrt_has_them_all(package: str) -> None:
    trt = pytest.importorskip(package, reason=f"needs {package}", exc_type=ImportError)
    missing = [f"{name}.{member}" for name, member in CALLS if not hasattr(getattr(trt, name), member)]
    for chain in chains():
        current: Any = trt
        for part in chain:
            if not hasattr(current, part):
                missing.append(".".join(chain))
                break
            current = getattr(current, part)
    # TensorRT-RTX has a timing cache in name only.
    assert missing == []
