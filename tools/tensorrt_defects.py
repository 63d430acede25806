"""Print the table of planted defects: what is wrong, what the lint says, and what TensorRT-RTX does with the file.

python tools/tensorrt_defects.py            needs 'qdq[tensorrt-rtx]', no GPU
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from rich.console import Console
from rich.table import Table

from calibration import calibrate
from exporters.export_model import wrap_for_export
from exporters.io_signature import example_inputs
from exporters.onnx.export import export_onnx
from exporters.tensorrt.backend import find_backend, messages
from exporters.tensorrt.lint.lint import lint
from exporters.tensorrt.onnx_file import read_onnx_file
from exporters.tensorrt.profiles import Profile, default_profile
from qdq.models.registry import build, configure
from qdq.recipes.apply import quantize

HERE = Path(__file__).resolve().parent
SIZES = {
    "vocab_size": 83,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}


def defects() -> Any:
    """Return the defects that the tests plant."""
    path = HERE.parent / "tests" / "exporters" / "tensorrt" / "defects.py"
    spec = importlib.util.spec_from_file_location("defects", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["defects"] = module
    spec.loader.exec_module(module)
    return module.DEFECTS


def export(path: Path) -> None:
    torch.manual_seed(0)
    model = build(configure("bert", **SIZES)).eval()
    quantize(model, "tensorrt")
    inputs = wrap_for_export(model).signature.inputs
    calibrate(model, [example_inputs(inputs, seq_len=n, vocab_size=83, padding=2, seed=n) for n in (8, 17)])
    export_onnx(model, path, target="tensorrt")


def verdict(backend: Any, path: Path, profiles: list[Profile]) -> tuple[str, str]:
    """Return ``parse``, ``build`` or ``accepts``, and the first message of TensorRT."""
    trt = backend.trt
    logger, heard = messages(backend)
    heard.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return "parse", parser.get_error(0).desc()
    config = builder.create_builder_config()
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name in profile.opt:
            made.set_shape(name, profile.min[name], profile.opt[name], profile.max[name])
        config.add_optimization_profile(made)
    if builder.build_serialized_network(network, config) is None:
        return "build", heard.errors[0] if heard.errors else ""
    return "accepts", ""


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--width", type=int, default=100, help="of TensorRT's words")
    width = arguments.parse_args().width
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    backend = find_backend("tensorrt-rtx")
    table = Table("rule", "defect", "the lint", "TensorRT-RTX", "its words", title=f"TensorRT-RTX {backend.version}")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        base, planted = Path(folder) / "base.onnx", Path(folder) / "planted.onnx"
        with contextlib.redirect_stderr(io.StringIO()):
            export(base)
        for defect in defects():
            model = ir.load(base)
            defect.plant(model)
            ir.save(model, planted)
            source = read_onnx_file(planted)
            shapes = defect.options.get("shapes", ())
            profiles = [default_profile(source.inputs, longest=40)] if shapes == () else []
            profiles = [Profile(*shapes)] if shapes else profiles
            report = lint(source, profiles=profiles, refit=defect.options.get("refit", False))
            found = [finding for finding in report.findings if finding.id == defect.id]
            said, words = verdict(backend, planted, profiles)
            wrong += not found or said != defect.parser
            ours = f"{found[0].severity}: {found[0].problem}" if found else "NOTHING"
            table.add_row(defect.id, defect.name, ours, said, " ".join((words or defect.why).split())[:width])
    Console(width=None if sys.stdout.isatty() else 220).print(table)
    print(f"{wrong} rows are not as the tests expect them")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
