"""Every family and every head, in each precision: clean for two versions of TensorRT, built, and all in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calibration import calibrate_and_refine
from exporters.interface import ExportInterface
from exporters.onnx.export import export_onnx
from exporters.tensorrt.build import build
from exporters.tensorrt.lint.lint import lint
from exporters.tensorrt.onnx_file import read_onnx_file
from exporters.tensorrt.profiles import default_profile
from exporters.tensorrt.report import engine_report
from qdq.models.registry import FAMILIES
from qdq.recipes.apply import quantize
from qdq.recipes.refinement import Refinement

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.tensorrt.backend import Backend
    from tests.exporters.conftest import TinyModels

SMALL = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
FEW = [(family, "feature-extraction", "fp16") for family in ("albert", "megatron-bert", "roberta-prelayernorm")]
ALL = [(name, task, dtype) for name, family in FAMILIES.items() for task in family.tasks for dtype in ("fp32", "fp16")]


def check(
    tiny_models: TinyModels,
    backend: Backend,
    folder: Path,
    family: str,
    task: str,
    dtype: str,
    refinement: Refinement | None = None,
    **changes: Any,
) -> None:
    path = folder / "model.onnx"
    model = tiny_models.model(family, task, **{**SMALL, **changes})
    quantize(model, "tensorrt")
    calibrate_and_refine(model, lambda: tiny_models.batches(model), refinement or Refinement())
    export_onnx(model, path, target="tensorrt", interface=ExportInterface(dtype=dtype))  # type: ignore[arg-type]
    source = read_onnx_file(path)
    profiles = [default_profile(source.inputs, longest=32)]
    for version in ("11.1", "10.16"):
        assert lint(source, target=f"tensorrt:{version}", profiles=profiles).findings == ()
    engine = build(path, folder / "m.plan", profiles=profiles, backend=backend)
    report = engine_report(source.model, engine.kernels)
    assert report.missed == []
    done, wanted, _ = report.count("linear")
    assert done == wanted >= 6
    assert report.precision == dtype
    assert all(row.fused and row.runs_in == "int8" for row in report.attentions), report.attentions
    assert all(row.merged for row in report.merged), report.merged
    # the span head of REALM adds what it found at the two ends, which is no residual
    assert all(row.fused for row in report.residuals if row.name != "head"), report.residuals
    assert report.attentions
    assert report.merged
    assert report.residuals


@pytest.mark.parametrize(("family", "task", "dtype"), FEW, ids=["-".join(case) for case in FEW])
def test_a_family(tiny_models: TinyModels, rtx: Backend, tmp_path: Path, family: str, task: str, dtype: str) -> None:
    check(tiny_models, rtx, tmp_path, family, task, dtype)


@pytest.mark.parametrize("family", ["bert", "megatron-bert"], ids=["post-norm", "pre-norm"])
def test_what_refinement_adds_is_fused(tiny_models: TinyModels, rtx: Backend, tmp_path: Path, family: str) -> None:
    """Channels that are shifted and scaled in front of a quantizer, in half precision."""
    refinement = Refinement(shift=True, smoothing=0.9, bias_correction=True, rounding="gptq")
    check(tiny_models, rtx, tmp_path, family, "feature-extraction", "fp16", refinement)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task", "dtype"), ALL, ids=["-".join(case) for case in ALL])
def test_every_head(tiny_models: TinyModels, rtx: Backend, tmp_path: Path, family: str, task: str, dtype: str) -> None:
    spans = {"max_span_width": 4} if (family, task) == ("realm", "question-answering") else {}  # texts are short here
    check(tiny_models, rtx, tmp_path, family, task, dtype, **spans)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_shape_of_bert_base(tiny_models: TinyModels, rtx: Backend, tmp_path: Path, dtype: str) -> None:
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}
    check(tiny_models, rtx, tmp_path, "bert", "feature-extraction", dtype, **sizes, initializer_range=0.02)
