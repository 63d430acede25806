"""The report of the quickstart: JSON for machines, Markdown and the cells of a table for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """The figures of one model.

    Args:
        name: Name of its folder.
        bytes: Size of the file.
        latency_s: Median latency in seconds, by shape.
        speedup: How many times faster than the float file it is, by shape.
        cosine: Mean cosine of its sentence embeddings to those of the float model.
        sqnr_db: SQNR of its token vectors against those of the float model, in decibels.
        verified: Whether the verification holds.
    """

    name: str
    bytes: int
    latency_s: dict[str, float]
    speedup: dict[str, float]
    cosine: float
    sqnr_db: float
    verified: bool


@dataclass(frozen=True)
class Report:
    """All figures of one quickstart."""

    model: str
    rows: list[Row]
    calibration: dict[str, Any]
    timing: dict[str, Any]
    verification: dict[str, Any]
    notes: dict[str, list[str]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``report.json``."""
        return asdict(self)

    def title(self) -> str:
        """Return what was measured, and on which machine."""
        machine = self.timing["machine"]
        instructions = ", ".join(machine["int8_instructions"]) or "none known"
        return f"{self.model}: ONNX Runtime, {self.timing['threads']} threads, {machine['cpu']} (int8: {instructions})"

    def elsewhere(self) -> list[str]:
        """Return a sentence about the files that were timed in another runtime than ONNX Runtime."""
        runtimes: dict[str, str] = self.timing.get("runtimes", {})
        names = [name for name, runtime in runtimes.items() if runtime == "openvino"]
        return [f"Timed in OpenVINO: {', '.join(names)}; the others in ONNX Runtime."] if names else []

    def problems(self) -> list[str]:
        """Return what does not hold, each line with the name of the export."""
        return [f"{name}: {problem}" for name, verified in self.verification.items() for problem in verified["faults"]]

    def columns(self) -> list[tuple[str, str]]:
        """Return header and unit of each column."""
        shapes = [shape.replace(" ", "") for shape in self.rows[0].latency_s]
        timing = [(shape, unit) for shape in shapes for unit in ("ms", "speed-up")]
        return [("", "model"), ("size", "MB"), *timing, ("", "cosine"), ("SQNR", "dB"), ("", "verified")]

    def body(self) -> list[list[str]]:
        """Return the cells of each row."""
        body = []
        for row in self.rows:
            cells = [row.name, f"{row.bytes / 1e6:.1f}"]
            for shape, seconds in row.latency_s.items():
                cells += [f"{1e3 * seconds:.1f}", f"{row.speedup[shape]:.2f}x"]
            cells += [f"{row.cosine:.4f}", "exact" if row.sqnr_db > _EXACT else f"{row.sqnr_db:.1f}"]
            body.append([*cells, "yes" if row.verified else "NO"])
        return body

    def to_markdown(self) -> str:
        """Return the report in Markdown."""
        header = [f"{name} {unit}".strip() for name, unit in self.columns()]
        lines = [f"# {self.model} in int8", "", self.title(), ""]
        lines += [_row(header), _row(["---"] + ["---:"] * (len(header) - 1)), *map(_row, self.body()), ""]
        calibration = self.calibration["calibration"]
        lines += [
            "- **ms**: latency of a batch, as rows x tokens, median over interleaved rounds, one model a process; "
            "**speed-up**: median of the ratios to `float` in the same round.",
            "- **cosine**: of the sentence embeddings (mean of the token vectors) to the float model's, on text that "
            "was not used to calibrate. **SQNR**: of the token vectors, against the float model's. Of a model with a "
            "head: both of its first output.",
            "- **verified**: cut at its quantizers and fed torch's own integers, every piece finds the same integers "
            "again, and the whole file lies as close to the float model as the checkpoint in torch does.",
            *(f"- {text}" for text in self.elsewhere()),
            "",
            "## How it was made",
            "",
            f"Calibrated on {calibration['samples']} sentences ({calibration['tokens']:,} tokens) with the method "
            f"`{calibration['method']['name']}`; ranges in `checkpoint/quantization.json`.",
            "",
        ]
        for row in self.rows:
            verified = self.verification[row.name]
            segments = verified["segments"]
            total = {key: sum(segment[key] for segment in segments) for key in ("values", "ties", "wrong")}
            lines.append(
                f"- `{row.name}/model.onnx`: {len(segments)} segments, {total['values']:,} values compared, "
                f"{total['ties']} at a rounding tie, {total['wrong']} wrong; end to end in {verified['runtime']}."
            )
            lines += [f"  - {text}" for text in (*self.notes.get(row.name, []), *verified["faults"])]
        lines += [
            "",
            "`tensorrt/model.onnx` is made for TensorRT on a GPU; its time on a CPU is beside the point.",
            "",
        ]
        return "\n".join(lines)


_EXACT = 80.0  # decibels; two float implementations differ by less


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
