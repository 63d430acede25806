from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from exporters.onnx.isa import ANY, ISAS, host_isa, isa_named, isa_of
from qdq.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("machine", "flags", "name"),
    [
        ("x86_64", "sse2 avx2", "avx2"),
        ("x86_64", "avx2 avx512f avx512bw", "avx512"),
        ("x86_64", "avx2 avx512bw avx512_vnni", "vnni"),
        ("AMD64", "avx2 avx_vnni", "vnni"),
        ("x86_64", "avx512bw amx_int8", "vnni"),
        ("x86_64", "sse2", "any"),
        ("aarch64", "asimddp", "arm"),
        ("arm64", "", "arm"),
        ("riscv64", "", "any"),
    ],
)
def test_a_machine_is_known_by_its_features(machine: str, flags: str, name: str) -> None:
    assert isa_of(machine, flags.split()).name == name


def test_features_are_those_of_the_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nvmx flags\t: avx512_vnni\nflags\t\t: fpu avx2\n\nflags\t: sse\n")
    assert host_isa(cpuinfo).name == "avx2"
    assert host_isa(tmp_path / "none").name == "any"


def test_auto_is_this_machine() -> None:
    assert isa_named("auto") == host_isa()
    assert isa_named("any") is ANY


def test_an_unknown_one_is_answered_with_those_there_are() -> None:
    with pytest.raises(ExportError, match="no instruction set 'sse': it must be one of any, avx2, avx512, vnni, arm, "):
        isa_named("sse")


def test_what_has_no_vnni_saturates() -> None:
    assert {name for name, isa in ISAS.items() if isa.saturates} == {"any", "avx2", "avx512"}
