"""Arguments that are not UTF-8: refused with a sentence, or used where they are the name of a file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qdq.cli.encoding import check_encoding
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from tests.cli.conftest import Refused, Run

ODD = "a\udcffb"  # what Python makes of the byte 0xff in an argument


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", ODD, "-m", "MODEL"),
        ("realm", "answer", ODD, "-m", "MODEL", "--index", "MODEL"),
        ("calibrate", "-m", "MODEL", "-o", "out", "--calib-data", "MODEL", "--exclude", ODD),
        ("convert", "MODEL", "-o", "out", "--from", ODD),
        ("convert", "MODEL", "-o", "out", "--from", "megatron-lm", "--set", f"hidden_act={ODD}"),
        ("generate", "a cat", "-m", ODD),
        ("inspect", ODD),
    ],
    ids=lambda arguments: " ".join(arguments[:2]).encode("ascii", "replace").decode(),
)
def test_no_command_fails_by_a_stray_byte(arguments: tuple[str, ...], run: Run, model: Path) -> None:
    ended = run(*(model if argument == "MODEL" else argument for argument in arguments), "--json")
    assert ended.code == 2, ended.err
    assert ODD in ended.document["error"] or repr(ODD)[1:-1] in ended.document["error"]


def test_a_file_may_have_any_name(run: Run, model: Path, text: Path, tmp_path: Path) -> None:
    odd = tmp_path / f"{ODD}.txt"
    try:
        shutil.copy(text, odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    ended = run("calibrate", "-m", model, "-o", tmp_path / "out", "--calib-data", odd, "--seq-len", 16)
    assert ended.code == 0, ended.err


def test_a_directory_that_no_package_opens_is_named(refused: Refused, model: Path, tmp_path: Path) -> None:
    odd = tmp_path / ODD
    try:
        odd.mkdir()
    except OSError:
        pytest.skip("this file system takes no such names")
    message = refused("inspect", odd)
    assert "is a directory whose name is not UTF-8: rename it" in message


def test_all_arguments_are_told_together() -> None:
    with pytest.raises(ConfigError) as raised:
        check_encoding([[ODD, "fine"], Path("fine"), None, 3, f"{ODD}2"])
    assert str(raised.value).count("not UTF-8") == 2
