"""Every rule finds its planted defect, nothing is found where nothing is wrong, and TensorRT agrees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from exporters.tensorrt.lint.lint import lint
from exporters.tensorrt.lint.rules import RULES
from exporters.tensorrt.onnx_file import read_onnx_file
from qdq.errors import ConfigError
from tests.exporters.tensorrt import defects

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from exporters.tensorrt.backend import Backend
    from tests.exporters.conftest import TinyModels
    from tests.exporters.tensorrt.conftest import DefectPlanter
    from tests.exporters.tensorrt.defects import Defect

NAMES = [f"{defect.id} {defect.name}" for defect in defects.DEFECTS]


@pytest.mark.parametrize("defect", defects.DEFECTS, ids=NAMES)
def test_a_planted_defect_is_found_where_it_is(defect_planter: DefectPlanter, defect: Defect) -> None:
    source = defect_planter.planted(defect.plant)
    options = {key: value for key, value in defect.options.items() if key != "shapes"}
    report = lint(source, profiles=defect_planter.profiles(source, defect.options), **options)
    found = [finding for finding in report.findings if finding.id == defect.id]
    assert any(defect.at in finding.node for finding in found), report.findings
    expected = defect.severity or {"E": "error", "W": "warning", "I": "info"}[defect.id[0]]
    assert {finding.severity for finding in found} == {expected}
    assert report.holds() == (expected != "error" and not report.count("error"))


@pytest.mark.parametrize("defect", defects.DEFECTS, ids=NAMES)
def test_a_defect_brings_no_error_of_another_kind(defect_planter: DefectPlanter, defect: Defect) -> None:
    source = defect_planter.planted(defect.plant)
    report = lint(source, profiles=defect_planter.profiles(source, defect.options))
    errors = {finding.id for finding in report.findings if finding.severity == "error"} - {defect.id}
    # What follows from the same defect: a grid of another length, integers where floats were, too few positions.
    follows = {"E7": {"E3"}, "E8": {"E3", "E6"}, "E2": set(), "W7": {"E12"}}
    assert errors <= follows.get(defect.id, set())


@pytest.mark.parametrize("defect", defects.DEFECTS, ids=NAMES)
def test_tensorrt_says_the_same(defect_planter: DefectPlanter, rtx: Backend, defect: Defect) -> None:
    source = defect_planter.planted(defect.plant)
    upto = "build" if defect.id.startswith("E") else "parse"
    verdict = defect_planter.verdict(rtx, source, defect_planter.profiles(source, defect.options), upto=upto)
    assert verdict == defect.parser
    is_error = defect.id.startswith("E") and defect.severity is None
    assert (verdict != "accepts") == is_error or defect.why


def test_every_error_and_warning_has_a_defect() -> None:
    rules = {rule for rule in RULES if rule[0] in "EW"}
    assert {defect.id for defect in defects.DEFECTS} >= rules
    assert rules == {f"E{n}" for n in range(1, 14)} | {f"W{n}" for n in range(1, 21)}


def test_rules_say_what_to_do_and_where_it_is_written() -> None:
    for rule in RULES.values():
        assert rule.rule
        assert rule.cure
        assert rule.source


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt:11.1", "tensorrt:11.4.0", "tensorrt:10.16", "tensorrt:10.13"])
def test_our_own_export_is_clean(small_model: Path, target: str) -> None:
    report = lint(read_onnx_file(small_model), target=target)
    assert report.findings == ()
    assert report.holds(strict=True)


def test_an_old_tensorrt_does_not_know_gelu(small_model: Path) -> None:
    report = lint(read_onnx_file(small_model), target="tensorrt:8.6")
    assert {finding.id for finding in report.findings} == {"E8", "E11"}
    assert any("no Gelu" in finding.problem for finding in report.findings)


def test_before_8_a_zero_point_must_be_there(defect_planter: DefectPlanter) -> None:
    def plant(model: ir.Model) -> None:
        defects.quantizer(model, defects.INPUT, "DequantizeLinear").resize_inputs(2)

    report = lint(defect_planter.planted(plant), target="tensorrt:8.6")
    assert any(f.id == "E11" and "zero point" in f.problem for f in report.findings)


@pytest.mark.parametrize("target", ["tensorrt:", "tensorrt:eleven", "onnxruntime", "tensorrt:7.0"])
def test_an_unknown_target_is_answered_with_those_there_are(small_model: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=r"10\.16"):
        lint(read_onnx_file(small_model), target=target)


def test_a_computed_scale_is_an_error_before_10_13(defect_planter: DefectPlanter) -> None:
    report = lint(defect_planter.planted(defects.computed_scale), target="tensorrt:10.1")
    assert {f.severity for f in report.findings if f.id == "W12"} == {"error"}


@pytest.mark.parametrize(("target", "count"), [("tensorrt:8.6", 1), ("tensorrt:9.0", 0), ("tensorrt:10.16", 0)])
def test_float8_is_for_tensorrt_9_and_newer(defect_planter: DefectPlanter, target: str, count: int) -> None:
    report = lint(defect_planter.planted(defects.mixed), target=target)
    problems = {f.problem for f in report.findings if f.id == "E4" and f.severity == "warning"}
    assert len(problems) == count
    assert all("float8e4m3fn needs TensorRT 9.0 or newer" in problem for problem in problems)


def test_strict_counts_warnings(defect_planter: DefectPlanter) -> None:
    report = lint(defect_planter.planted(defects.dangling))
    assert report.holds()
    assert not report.holds(strict=True)


def test_findings_go_to_json_with_rule_cure_and_source(defect_planter: DefectPlanter) -> None:
    report = lint(defect_planter.planted(defects.dangling))
    document = report.to_dict()
    assert document["counts"] == {"error": 0, "warning": 1, "info": 0}
    (finding,) = document["findings"]
    assert finding["id"] == "W1"
    assert finding["node"] == "dangling/QuantizeLinear"
    assert set(finding) == {"id", "severity", "node", "fault", "rule", "cure", "source"}


def test_a_double_scale_is_refused_by_onnx_itself(defect_planter: DefectPlanter) -> None:
    source = defect_planter.planted(defects.scale_of(defects.INPUT, np.float64(0.1)))
    with pytest.raises(onnx.shape_inference.InferenceError, match="double"):
        onnx.checker.check_model(str(source.path), full_check=True)


def test_an_int8_product_of_onnx_runtime_is_refused(tiny_models: TinyModels) -> None:
    _, path, _ = tiny_models.exported("onnxruntime")
    report = lint(read_onnx_file(path))
    assert not report.holds()
    assert "E8" in {finding.id for finding in report.findings}
