"""The quickstart's table: readable in 80 columns, the same cells in Markdown."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from qdq.cli.quickstart import report_table
from qdq.quickstart.report import Report, Row


def row(name: str, **changes: Any) -> Row:
    figures: dict[str, Any] = {
        "bytes": 90_868_376,
        "latency_s": {"1 x 128": 0.01234, "8 x 128": 0.15678},
        "speedup": {"1 x 128": 1.0, "8 x 128": 1.0},
        "cosine": 1.0,
        "sqnr_db": 120.0,
        "verified": True,
    }
    return Row(name=name, **{**figures, **changes})


@pytest.fixture
def report() -> Report:
    proof: dict[str, Any] = {
        "segments": [{"values": 1000, "ties": 2, "wrong": 0}, {"values": 500, "ties": 1, "wrong": 3}],
        "runtime": "onnxruntime",
        "faults": ["encoder.layers.0: 3 of 500 values are wrong"],
    }
    rows = [
        row("float"),
        row("onnxruntime", bytes=23_600_000, cosine=0.98765, sqnr_db=17.26, speedup={"1 x 128": 2.5, "8 x 128": 12.25}),
        row("openvino", verified=False),
    ]
    return Report(
        model="a-model",
        rows=rows,
        calibration={"calibration": {"samples": 256, "tokens": 11453, "method": {"name": "max"}}},
        timing={"threads": 2, "machine": {"cpu": "A Processor", "int8_instructions": ["avx2"]}},
        verification={row.name: proof for row in rows},
        notes={"openvino": ["a note"]},
    )


def rendered(report: Report, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, markup=False).print(report_table(report))
    return out.getvalue().splitlines()


def test_the_table_fits_a_terminal_of_80_columns(report: Report) -> None:
    lines = rendered(report, 80)
    assert [line.rstrip() for line in lines] == [line.rstrip() for line in rendered(report, 500)]
    top, bottom, rule, *body = lines
    assert top.split() == ["size", "1x128", "1x128", "8x128", "8x128", "SQNR"]
    assert bottom.split() == ["model", "MB", "ms", "speed-up", "ms", "speed-up", "cosine", "dB", "verified"]
    assert set(rule.strip()) == {"─"}
    assert [line.split() for line in body] == [
        ["float", "90.9", "12.3", "1.00x", "156.8", "1.00x", "1.0000", "exact", "yes"],
        ["onnxruntime", "23.6", "12.3", "2.50x", "156.8", "12.25x", "0.9877", "17.3", "yes"],
        ["openvino", "90.9", "12.3", "1.00x", "156.8", "1.00x", "1.0000", "exact", "NO"],
    ]


def test_numbers_stand_under_the_end_of_their_header(report: Report) -> None:
    _, bottom, _, *body = rendered(report, 80)
    for line in body:
        ends = [
            index for index, character in enumerate(line) if character != " " and line[index + 1 : index + 3] == "  "
        ]
        headers = [
            index for index, character in enumerate(bottom) if character != " " and bottom[index + 1 :][:2] == "  "
        ]
        assert ends[1:] == headers[1:]


def test_markdown_has_the_same_cells_and_what_was_proven(report: Report) -> None:
    text = report.to_markdown()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert table[0] == [
        *("model", "size MB", "1x128 ms", "1x128 speed-up", "8x128 ms", "8x128 speed-up"),
        *("cosine", "SQNR dB", "verified"),
    ]
    assert table[2:] == [line.split() for line in rendered(report, 80)[3:]]
    assert report.title() in text
    assert report.title() == "a-model: ONNX Runtime, 2 threads, A Processor (int8: avx2)"
    assert report.elsewhere() == []
    report.timing["runtimes"] = {"float": "onnxruntime", "onnxruntime": "onnxruntime", "openvino": "openvino"}
    assert report.elsewhere() == ["Timed in OpenVINO: openvino; the others in ONNX Runtime."]
    assert f"- {report.elsewhere()[0]}" in report.to_markdown()
    assert "Calibrated on 256 sentences (11,453 tokens) with the method `max`" in text
    assert "2 segments, 1,500 values compared, 3 at a rounding tie, 3 wrong; end to end in onnxruntime." in text
    assert "  - a note" in text
    assert "  - encoder.layers.0: 3 of 500 values are wrong" in text
