"""The quickstart's report: a table on the terminal, JSON for machines, Markdown for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One model.

    Args:
        name: of its folder.
        bytes: size of the file.
        latency_s: median seconds, by shape.
        speedup: times faster than the float file, by shape.
        cosine: mean cosine of the sentence embeddings to the float model's.
        sqnr_db: of the token vectors against the float model's.
        verified: whether the proof holds.
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
        """Plain values for ``report.json``."""
        return asdict(self)

    def title(self) -> str:
        """What was measured, and on what."""
        machine = self.timing["machine"]
        instructions = ", ".join(machine["int8_instructions"]) or "none known"
        return f"{self.model}: ONNX Runtime, {self.timing['threads']} threads, {machine['cpu']} (int8: {instructions})"

    def elsewhere(self) -> list[str]:
        """A sentence about the files that another runtime than ONNX Runtime was timed with."""
        runtimes: dict[str, str] = self.timing.get("runtimes", {})
        names = [name for name, runtime in runtimes.items() if runtime == "openvino"]
        return [f"Timed in OpenVINO: {', '.join(names)}; the others in ONNX Runtime."] if names else []

    def to_table(self) -> Table:
        """For the terminal: 80 columns are enough for two shapes."""
        table = new_table(*("\n".join(column) for column in self._columns()))
        for cells in self._body():
            table.add_row(*cells)
        return table

    def _columns(self) -> list[tuple[str, str]]:
        """Header and unit, top line and bottom line on the terminal."""
        shapes = [shape.replace(" ", "") for shape in self.rows[0].latency_s]
        timing = [(shape, unit) for shape in shapes for unit in ("ms", "speed-up")]
        return [("", "model"), ("size", "MB"), *timing, ("", "cosine"), ("SQNR", "dB"), ("", "verified")]

    def _body(self) -> list[list[str]]:
        body = []
        for row in self.rows:
            cells = [row.name, f"{row.bytes / 1e6:.1f}"]
            for shape, seconds in row.latency_s.items():
                cells += [f"{1e3 * seconds:.1f}", f"{row.speedup[shape]:.2f}x"]
            cells += [f"{row.cosine:.4f}", "exact" if row.sqnr_db > _EXACT else f"{row.sqnr_db:.1f}"]
            body.append([*cells, "yes" if row.verified else "NO"])
        return body

    def to_markdown(self) -> str:
        """For people."""
        header = [f"{name} {unit}".strip() for name, unit in self._columns()]
        lines = [f"# {self.model} in int8", "", self.title(), ""]
        lines += [_row(header), _row(["---"] + ["---:"] * (len(header) - 1)), *map(_row, self._body()), ""]
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
            proof = self.verification[row.name]
            segments = proof["segments"]
            total = {key: sum(segment[key] for segment in segments) for key in ("values", "ties", "wrong")}
            lines.append(
                f"- `{row.name}/model.onnx`: {len(segments)} segments, {total['values']:,} values compared, "
                f"{total['ties']} at a rounding tie, {total['wrong']} wrong; end to end in {proof['runtime']}."
            )
            lines += [f"  - {text}" for text in (*self.notes.get(row.name, []), *proof["faults"])]
        lines += [
            "",
            "`tensorrt/model.onnx` is made for TensorRT on a GPU; its time on a CPU is beside the point.",
            "",
        ]
        return "\n".join(lines)


_EXACT = 80.0  # decibels; two float implementations differ by less


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
