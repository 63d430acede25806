"""Who may know whom, and what stays light: an arrow the wrong way fails here, with its line."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("qdq", "calibration", "exporters")

# ---------------------------------------------------------------------------------------------------------------------
# The rooms from the ground up, each with the rooms it may know. A file belongs to the row with the longest name that
# begins its own; within a row everybody knows everybody.

BASE = ("qdq.errors", "qdq.storage", "qdq.settings", "qdq.processes")
FLOAT = (*BASE, "qdq.models.ops", "qdq.models.uninitialized")  # what float and wrapped modules have in common
NUMBERS = tuple(
    f"qdq.quantization.{name}" for name in ("spec", "functional", "operators", "transform", "quantizer", "slot")
)
QUANTIZATION = (*NUMBERS, *(f"qdq.quantization.{name}" for name in ("modules", "wrap", "graph", "fold")))
MODELS = ("qdq.protobuf", "qdq.models", *QUANTIZATION, "qdq.recipes")
HANDLE = ("qdq.load_settings", "qdq.onnx_files", "qdq.sentence", "qdq.source")
CORE = (*BASE, *MODELS, *HANDLE, "qdq.checkpoint", "qdq.data")
RULES = tuple(f"qdq.recipes.{name}" for name in ("yaml_reader", "refinement", "rule"))
SIDES = ("calibration", "exporters", "qdq.tasks", "qdq.interop", "qdq.generation", "qdq.retrieval")
EVERYTHING = (*CORE, *SIDES, "qdq.training", "qdq.analysis", "qdq.quickstart", "qdq.conversion")

ROOMS: dict[str, tuple[str, ...]] = {
    "qdq.errors": (),
    "qdq.storage": ("qdq.errors", "qdq.protobuf"),
    "qdq.settings": ("qdq.errors",),
    "qdq.processes": (),
    "qdq.protobuf": (),
    "qdq.data": (*BASE, "qdq.protobuf"),
    # the float reference knows nothing of quantization
    "qdq.models.ops": BASE,
    "qdq.models.uninitialized": (),
    "qdq.models": FLOAT,
    # one quantizer, then modules with quantizers, then models with such modules
    "qdq.quantization": (),
    "qdq.quantization.spec": BASE,
    "qdq.quantization.slot": (),
    "qdq.quantization.functional": (*BASE, "qdq.quantization.spec"),
    "qdq.quantization.operators": (*BASE, *NUMBERS[:2]),
    "qdq.quantization.transform": BASE,
    "qdq.quantization.quantizer": (*BASE, *NUMBERS[:4]),
    "qdq.quantization.modules": (*FLOAT, *NUMBERS),
    "qdq.quantization.wrap": (*BASE, "qdq.models", *NUMBERS, "qdq.quantization.modules"),
    "qdq.quantization.graph": (*BASE, "qdq.models", *NUMBERS, "qdq.quantization.modules"),
    "qdq.quantization.fold": (*BASE, "qdq.models", *NUMBERS, "qdq.quantization.modules", "qdq.quantization.graph"),
    # rules for slots; only what applies them sees models
    "qdq.recipes": (),
    "qdq.recipes.presets": (),
    "qdq.recipes.yaml_reader": BASE,
    "qdq.recipes.refinement": BASE,
    "qdq.recipes.rule": (*BASE, *NUMBERS),
    "qdq.recipes.recipe_reader": (*BASE, *NUMBERS, *RULES),
    "qdq.recipes.recipe": (*BASE, *NUMBERS, *RULES, "qdq.recipes.recipe_reader"),
    "qdq.recipes.edits": (*BASE, *NUMBERS, "qdq.recipes.recipe"),
    "qdq.recipes.schema": (*BASE, *NUMBERS, "qdq.recipes.recipe", "qdq.recipes.refinement"),
    "qdq.recipes.apply": (*BASE, "qdq.models", *QUANTIZATION, "qdq.recipes.recipe"),
    "qdq.recipes.plan": (*BASE, "qdq.models", *QUANTIZATION, "qdq.recipes.recipe"),
    # one handle for a directory: it reads what lies there, and loads no model
    "qdq.load_settings": ("qdq.errors", "qdq.settings"),
    "qdq.onnx_files": (*BASE, "qdq.data"),
    "qdq.source": (*BASE, "qdq.models", "qdq.data", "qdq.load_settings", "qdq.onnx_files", "qdq.sentence"),
    # files of sentence-transformers: read without torch, and what follows the transformer with the weights
    "qdq.sentence": (*BASE, "qdq.models", "qdq.data"),
    # loading takes over what another package left in a checkpoint; interop therefore knows nothing of ours
    "qdq.checkpoint": (*(room for room in CORE if room != "qdq.checkpoint"), "qdq.interop"),
    "qdq.interop": tuple(room for room in CORE if room != "qdq.checkpoint"),
    "qdq.conversion": (*CORE, "qdq.interop"),
    # what is done with the core: side by side, with two exceptions
    "calibration": CORE,
    "exporters": CORE,
    "qdq.generation": CORE,
    "qdq.tasks": (*CORE, "exporters"),  # evaluates any runner
    "qdq.retrieval": (*CORE, "qdq.tasks"),  # has metrics of its own task
    "qdq.training": (*CORE, *SIDES),
    "qdq.analysis": (*CORE, *SIDES),
    "qdq.quickstart": (*CORE, *SIDES),
    # who sees every other
    "qdq": (
        *EVERYTHING,
        "qdq.calibration",
        "qdq.exporters",
    ),  # the lazy facade alone: a module directly in qdq/ needs a row of its own
    "qdq.calibration": ("qdq.processes", "calibration"),  # the spellings that users import
    "qdq.exporters": ("qdq.processes", "exporters"),
    "qdq.cli": ("qdq", *EVERYTHING),
    "qdq.__main__": ("qdq.processes", "qdq.cli"),
}

# Within qdq.models: a file may know those on lower steps. A file that stands on no step is held by its row alone.
MODEL_STEPS: tuple[frozenset[str], ...] = tuple(
    frozenset(f"qdq.models.{name}" for name in step.split())
    for step in (
        "activations ops inputs outputs uninitialized forward_signature",
        "config keymap masks cache losses dataflow relative_positions",
        "attention feed_forward embeddings heads",
        "encoder",
        "model assembly",
        "task_models",
        "family",
        "bert albert_config realm_config roberta_heads",  # the others may begin from these
        "realm_models roberta_prelayernorm",
        "albert megatron_bert qdqbert realm roberta",
        "registry",
        "folder_diagnosis",
        "weight_files checkpoint_keys stored_names",
        "tensor_problems",
        "weights",
        "huggingface",
    )
)

# Imported inside functions only. The onnx ones may stand at the top of files that do nothing else.
ONNX = frozenset({"onnx", "onnx_ir", "onnxruntime", "onnxscript"})
HEAVY = ONNX | {
    *("openvino", "datasets", "matplotlib", "transformers", "accelerate", "seqeval"),
    *("tensorflow", "faiss"),
}
HEAVY_FOR_COMMANDS = HEAVY | {"torch"}


@dataclass(frozen=True)
class Import:
    """One imported module. ``where``: 'top' runs on import, 'function' later, 'typing' never."""

    module: str
    line: int
    where: str


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file. ``from qdq import errors`` imports qdq.errors, ``from qdq import load`` imports qdq."""
    package = path.relative_to(root).with_suffix("").parts[:-1]

    def resolve(node: ast.Import | ast.ImportFrom) -> Iterable[str]:
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        above = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*above, *([node.module] if node.module else [])])
        names = [f"{module}.{alias.name}" for alias in node.names]
        return dict.fromkeys(name if _is_module(root, name) else module for name in names)

    def walk(node: ast.AST, where: str) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Import(module, node.lineno, where) for module in resolve(node))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in {ast.unparse(node.test).removeprefix("typing.")}:
            for child in node.body:
                yield from walk(child, "typing")
            for child in node.orelse:
                yield from walk(child, where)
        else:
            inside = "function" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else where
            for child in ast.iter_child_nodes(node):
                yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "top")


def _is_module(root: Path, module: str) -> bool:
    path = root.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def files_of(root: Path) -> list[tuple[Path, str]]:
    """Every file of the packages with the name it is imported by."""
    files = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return [(f, ".".join(f.relative_to(root).with_suffix("").parts).removesuffix(".__init__")) for f in files]


def room_of(module: str) -> str | None:
    rows = [room for room in ROOMS if module == room or (room != "qdq" and module.startswith(f"{room}."))]
    return max(rows, key=len, default=None)


def step_of(module: str) -> int | None:
    return next((n for n, step in enumerate(MODEL_STEPS) if module in step), None)


def arrows_the_wrong_way(root: Path) -> list[str]:
    """What the rooms and the steps forbid, one line each; an empty list when all is well."""
    problems = []
    for path, module in files_of(root):
        room, step = room_of(module), step_of(module)
        if room is None:
            problems.append(f"{path.relative_to(root)}: stands in no room; give it a row in {Path(__file__).name}")
            continue
        for found in imports_of(path, root):
            if found.module.split(".")[0] not in PACKAGES:
                continue
            other, other_step = room_of(found.module), step_of(found.module)
            place = f"{path.relative_to(root)}:{found.line}: imports {found.module}"
            if other not in {room, *ROOMS[room]} and not (other or "").startswith(tuple(f"{r}." for r in ROOMS[room])):
                problems.append(f"{place}, {room} may know {', '.join(ROOMS[room]) or 'nothing'}")
            elif step is not None and other_step is not None and found.module != module and other_step >= step:
                problems.append(f"{place}, which stands on no lower step of qdq.models")
    return problems


def heavy_at_the_top(root: Path) -> list[str]:
    """Heavy packages that importing a module would load at once, one line each."""
    problems = []
    for path, module in files_of(root):
        banned = HEAVY_FOR_COMMANDS if module == "qdq" or module.startswith("qdq.cli") else HEAVY
        if module.startswith(("exporters.onnx", "exporters.tensorrt")):
            banned = banned - ONNX
        problems += [
            f"{path.relative_to(root)}:{found.line}: {found.module} belongs inside the function that needs it"
            for found in imports_of(path, root)
            if found.where == "top" and (found.module.split(".")[0] in banned or found.module.startswith("tensorrt"))
        ]
    return problems


def cycles(root: Path) -> list[str]:
    """Modules that import each other in a circle, also inside functions and for their types; one line a circle."""
    names = {module for _, module in files_of(root)}
    graph = {
        module: {found.module for found in imports_of(path, root) if found.module in names - {module}}
        for path, module in files_of(root)
    }
    problems: list[str] = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle = error.args[1]
            problems.append(" -> ".join(circle))
            graph[circle[1]].discard(circle[0])
        else:
            return problems


def too_long(root: Path, *, lines: int = 450, body: int = 80) -> list[str]:
    """Files and function bodies that nobody reads in one sitting, one line each."""
    problems = []
    for path, _ in files_of(root):
        text = path.read_text(encoding="utf-8")
        if (count := len(text.splitlines())) > lines:
            problems.append(f"{path.relative_to(root)} has {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                # The signature and the docstring are read before the work, not with it.
                is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = first.end_lineno if is_docstring else first.lineno - 1
                if (count := (node.end_lineno or 0) - (start or 0)) > body:
                    problems.append(f"{path.relative_to(root)}:{node.lineno}: {node.name} has {count} lines")
    return problems


def test_no_modules_import_each_other() -> None:
    assert cycles(ROOT) == []


def test_files_and_functions_are_short() -> None:
    assert too_long(ROOT) == []


def test_few_modules_stand_directly_in_the_package() -> None:
    assert len(list((ROOT / "qdq").glob("*.py"))) <= 12


def test_no_arrow_points_the_wrong_way() -> None:
    assert arrows_the_wrong_way(ROOT) == []


def test_heavy_packages_wait_inside_functions() -> None:
    assert heavy_at_the_top(ROOT) == []


def test_the_table_has_an_order() -> None:
    order = list(TopologicalSorter(ROOMS).static_order())  # raises CycleError
    assert set(order) == set(ROOMS)
    assert order.index("qdq.errors") < order.index("qdq.models") < order.index("exporters") < order.index("qdq.cli")


# ---------------------------------------------------------------------------------------------------------------------
# The checks themselves: a planted problem is found, and its neighbours that are allowed are not.


def plant(root: Path, files: dict[str, str]) -> Path:
    for name in (
        "quantization/spec",
        "quantization/quantizer",
        "models/feed_forward",
    ):  # so that `from qdq import errors` names a file
        files.setdefault(f"qdq/{name}.py", "")
    for name, source in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    return root


@pytest.mark.parametrize(
    ("file", "source", "culprit"),
    [
        ("qdq/models/heads.py", "from qdq.quantization.quantizer import Quantizer", "qdq.quantization.quantizer"),
        ("qdq/models/heads.py", "from qdq.quantization import quantizer", "qdq.quantization.quantizer"),
        ("qdq/models/heads.py", "import qdq.quantization.spec as s", "qdq.quantization.spec"),
        ("qdq/models/heads.py", "from ..quantization.spec import QuantSpec", "qdq.quantization.spec"),
        ("qdq/models/config.py", "from qdq.models.attention import Attention", "qdq.models.attention"),
        ("qdq/models/attention.py", "from qdq.models import feed_forward", "qdq.models.feed_forward"),
        ("qdq/models/ops.py", "from qdq.models.masks import bias", "qdq.models.masks"),
        ("qdq/errors.py", "def f():\n    from qdq.quantization.spec import QuantSpec", "qdq.quantization.spec"),
        (
            "qdq/storage.py",
            "if TYPE_CHECKING:\n    from qdq.quantization.spec import QuantSpec",
            "qdq.quantization.spec",
        ),
        (
            "qdq/quantization/spec.py",
            "import typing\nif typing.TYPE_CHECKING:\n    import qdq.recipes.recipe",
            "qdq.recipes.recipe",
        ),
        ("qdq/data/batches.py", "from qdq.models.config import ModelConfig", "qdq.models.config"),
        ("qdq/quantization/modules/linear.py", "from qdq.models.attention import Attention", "qdq.models.attention"),
        ("qdq/quantization/quantizer.py", "from qdq import load", "qdq"),
        ("qdq/tasks/sts.py", "from qdq.training.loop import train", "qdq.training.loop"),
        ("qdq/interop/live.py", "from qdq.checkpoint import load", "qdq.checkpoint"),
        ("qdq/training/qat.py", "from qdq.cli.main import main", "qdq.cli.main"),
        ("calibration/run.py", "class A:\n    def f(self):\n        import exporters.runners", "exporters.runners"),
        ("exporters/onnx/a.py", "try:\n    pass\nexcept E:\n    from calibration import calibrate", "calibration"),
    ],
)
def test_a_planted_arrow_is_found(file: str, source: str, culprit: str, tmp_path: Path) -> None:
    (problem,) = arrows_the_wrong_way(plant(tmp_path, {file: source}))
    assert problem.startswith(f"{file}:{len(source.splitlines())}: imports {culprit},")


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    files = {
        "qdq/models/a.py": "def f():\n    from qdq.models.b import g",
        "qdq/models/b.py": "if TYPE_CHECKING:\n    from qdq.models.c import h",
        "qdq/models/c.py": "from qdq.models import a",
        "qdq/models/d.py": "from qdq.models import a",
    }
    (problem,) = cycles(plant(tmp_path, files))
    assert set(problem.split(" -> ")) == {"qdq.models.a", "qdq.models.b", "qdq.models.c"}


def test_planted_long_code_is_found(tmp_path: Path) -> None:
    body = "\n".join(f"    x = {n}" for n in range(81))
    documented = 'def f():\n    """' + "\n" * 90 + '    """\n' + "\n".join(f"    x = {n}" for n in range(80))
    files = {"qdq/a.py": "x = 1\n" * 451, "qdq/b.py": f"def f():\n{body}", "qdq/c.py": documented}
    assert too_long(plant(tmp_path, files)) == ["qdq/a.py has 451 lines", "qdq/b.py:1: f has 81 lines"]


def test_a_file_in_no_room_is_found(tmp_path: Path) -> None:
    (problem,) = arrows_the_wrong_way(plant(tmp_path, {"qdq/helpers.py": ""}))
    assert problem.startswith("qdq/helpers.py: stands in no room")


def test_arrows_the_right_way_are_left_alone(tmp_path: Path) -> None:
    files = {
        "qdq/__init__.py": "def __getattr__(name):\n    from exporters.runners import Runner",
        "qdq/models/attention.py": "from qdq.models.config import ModelConfig\nfrom qdq.models.ops import MatMul",
        "qdq/models/novelty.py": "from qdq.models.attention import Attention",
        "qdq/quantization/modules/add.py": "from qdq.models.ops import Add\nfrom qdq.quantization import quantizer",
        "qdq/tasks/sts.py": "from exporters.runners import Runner",
        "qdq/training/qat.py": "from calibration import calibrate\nfrom qdq.tasks.sts import evaluate",
        "qdq/cli/export.py": "import qdq\nfrom qdq.training.loop import train\nfrom calibration import calibrate",
        "exporters/verify.py": "from qdq.quantization.wrap import named_slots\nfrom exporters.runners import Runner",
    }
    assert arrows_the_wrong_way(plant(tmp_path, files)) == []


@pytest.mark.parametrize(
    ("file", "source", "banned"),
    [
        ("exporters/runners/x.py", "import onnxruntime as ort", True),
        ("exporters/runners/x.py", "try:\n    import openvino\nexcept ImportError:\n    pass", True),
        ("exporters/runners/x.py", "if True:\n    from onnx import helper", True),
        ("exporters/runners/x.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import onnx", True),
        ("exporters/runners/x.py", "if TYPE_CHECKING:\n    import onnx", False),
        ("exporters/runners/x.py", "def f():\n    import onnx", False),
        ("exporters/runners/x.py", "import torch", False),
        ("exporters/tensorrt/build.py", "import tensorrt_rtx as trt", True),
        ("exporters/onnx/export.py", "import onnx_ir as ir", False),
        ("exporters/onnx/export.py", "import openvino", True),
        ("qdq/data/text.py", "class A:\n    import datasets", True),
        ("qdq/cli/main.py", "import torch", True),
        ("qdq/__init__.py", "import torch", True),
    ],
)
def test_a_planted_heavy_import_is_found(file: str, source: str, banned: bool, tmp_path: Path) -> None:
    problems = heavy_at_the_top(plant(tmp_path, {file: source}))
    assert len(problems) == banned
    assert all(problem.startswith(f"{file}:") for problem in problems)
