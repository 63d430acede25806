"""Where output goes: results on stdout, everything else on stderr, nothing moving where nobody looks."""

from __future__ import annotations

import errno
import json
import logging
import os
import pty
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from qdq.cli.session import Session, command
from qdq.cli.tables import new_table, span
from qdq.errors import QDQError, StorageError, VerificationError


def session(**changes: Any) -> Session:
    return Session(**{"json": False, "verbose": 0, "quiet": False, **changes})


class TestResults:
    def test_for_people(self, capsys: pytest.CaptureFixture[str]) -> None:
        table = new_table("name", "value\nms")
        table.add_row("a" * 60, "1")
        table.add_row("b" * 60, "12345678901234567890123456789012345")
        session().result({"a": 1}, "[bold]x[/bold] " * 20, table)
        out, err = capsys.readouterr()
        first, top, bottom, rule, one, other = out.splitlines()
        assert first == "[bold]x[/bold] " * 20  # neither markup nor folded
        assert (top.split(), bottom.split()) == (["value"], ["name", "ms"])
        assert set(rule) == {"─"}
        assert one.split() == ["a" * 60, "1"]
        assert other.split() == ["b" * 60, "12345678901234567890123456789012345"]
        assert err == ""

    def test_in_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        session(json=True).result({"path": Path("ä"), "figures": [1, None]}, "not shown")
        out, err = capsys.readouterr()
        assert json.loads(out) == {"path": "ä", "figures": [1, None]}
        assert out.isascii()
        assert err == ""

    @pytest.mark.parametrize("document", [{"a": float("nan")}, {"a": object()}], ids=["NaN", "an object"])
    def test_what_json_cannot_say_is_a_defect_of_qdq(self, document: dict[str, Any]) -> None:
        with pytest.raises((ValueError, TypeError)):
            session(json=True).result(document)

    @pytest.mark.parametrize("json_wanted", [False, True], ids=["for people", "json"])
    def test_a_check_that_did_not_hold(self, json_wanted: bool, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(typer.Exit) as ended:
            session(json=json_wanted).result({"holds": False}, "a figure", error=VerificationError("too large"))
        assert ended.value.exit_code == 1
        out, err = capsys.readouterr()
        assert err == "error: too large\n"
        if json_wanted:
            expected = {"holds": False, "error": "too large", "kind": "VerificationError", "exit_code": 1}
            assert json.loads(out) == expected
        else:
            assert out == "a figure\n"

    def test_notes_go_to_stderr_unless_quiet(self, capsys: pytest.CaptureFixture[str]) -> None:
        session().say("a note with [markup]")
        session(quiet=True).say("unheard")
        session(json=True).say("unheard")
        out, err = capsys.readouterr()
        assert (out, err) == ("", "a note with [markup]\n")


class TestErrors:
    PROBLEMS = (
        (QDQError("a"), 2, "a", "QDQError"),
        (VerificationError("b [c]"), 1, "b [c]", "VerificationError"),
        (StorageError("d"), 4, "d", "StorageError"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 4, "/x: Permission denied", "PermissionError"),
        (OSError("no number"), 4, "input/output: no number", "OSError"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was changed", "KeyboardInterrupt"),
    )

    @pytest.mark.parametrize("json_wanted", [False, True], ids=["for people", "json"])
    @pytest.mark.parametrize(
        ("problem", "code", "message", "kind"), PROBLEMS, ids=[type(problem[0]).__name__ for problem in PROBLEMS]
    )
    def test_each_has_its_code(
        self,
        problem: BaseException,
        code: int,
        message: str,
        kind: str,
        json_wanted: bool,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        @command
        def fail(*, json: bool) -> None:
            raise problem

        with pytest.raises(typer.Exit) as ended:
            fail(json=json_wanted)
        assert ended.value.exit_code == code
        out, err = capsys.readouterr()
        assert err == f"error: {message}\n"
        if json_wanted:
            assert json.loads(out) == {"error": message, "kind": kind, "exit_code": code}
        else:
            assert out == ""

    def test_a_mistake_of_ours_is_told_apart_and_kept_for_a_report(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

        @command
        def fail(*, json: bool) -> None:
            {}["a key"]

        with pytest.raises(typer.Exit) as ended:
            fail(json=True)
        assert ended.value.exit_code == 70
        (kept,) = tmp_path.iterdir()
        out, err = capsys.readouterr()
        message = f"a defect of qdq, please report it with the file {kept}: KeyError: 'a key'"
        assert err == f"error: {message}\n"
        assert json.loads(out) == {"error": message, "kind": "KeyError", "exit_code": 70}
        report = kept.read_text(encoding="utf-8")
        assert '{}["a key"]' in report  # the line of the traceback
        assert f"torch {version('torch')}" in report

    def test_a_mistake_of_ours_on_a_full_disk(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))

        @command
        def fail(*, json: bool) -> None:
            {}["a key"]

        with pytest.raises(typer.Exit):
            fail(json=False)
        assert "Traceback" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "problem",
        [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
        ids=["Python's", "torch's"],
    )
    def test_too_little_memory_is_no_mistake_of_ours(
        self, problem: Exception, capsys: pytest.CaptureFixture[str]
    ) -> None:
        @command
        def fail(*, json: bool) -> None:
            raise problem

        with pytest.raises(typer.Exit) as ended:
            fail(json=False)
        assert ended.value.exit_code == 4
        assert capsys.readouterr().err.startswith("error: out of memory; a smaller --batch-size")


class TestLogging:
    LEVELS = (
        ({}, logging.WARNING),
        ({"verbose": 1}, logging.INFO),
        ({"verbose": 2}, logging.DEBUG),
        ({"verbose": 5}, logging.DEBUG),
        ({"quiet": True}, logging.ERROR),
    )

    @pytest.mark.parametrize(("options", "level"), LEVELS, ids=[str(options) for options, _ in LEVELS])
    def test_how_much_is_said(self, options: dict[str, Any], level: int, capsys: pytest.CaptureFixture[str]) -> None:
        session(**options)
        log = logging.getLogger("qdq.storage")
        for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            log.log(each, "said at %d [x]", each)
        logging.getLogger("another.package").info("unheard")
        out, err = capsys.readouterr()
        said = [int(line.split("said at ")[1].split()[0]) for line in err.splitlines()]
        assert said == [each for each in (10, 20, 30, 40) if each >= level]
        assert out == ""


class TestProgress:
    CODE = (
        "from qdq.cli.session import Session\n"
        "with Session(json={json}, verbose=0, quiet={quiet}).progress('work [1]', total=3) as advance:\n"
        "    advance(1)\n"
        "    advance(2, 'more [/work]')\n"
    )

    def seen(self, **options: bool) -> str:
        """What a terminal sees."""
        ours, theirs = pty.openpty()
        code = self.CODE.format(**{"json": False, "quiet": False, **options})
        environment = {**os.environ, "TERM": "xterm"}
        done = subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, capture_output=False, check=True, env=environment
        )
        os.close(theirs)
        assert done.returncode == 0
        seen = b""
        try:
            while part := os.read(ours, 65536):
                seen += part
        except OSError:  # the other end is closed
            pass
        os.close(ours)
        return seen.decode()

    def test_on_a_terminal(self) -> None:
        seen = self.seen()
        assert "more [/work]" in seen
        assert "2/3" in seen

    @pytest.mark.parametrize("option", ["json", "quiet"])
    def test_not_when_nobody_wants_it(self, option: str) -> None:
        assert self.seen(**{option: True}) == ""

    def test_not_into_a_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        with session().progress("work", total=2) as advance:
            advance(1)
        assert capsys.readouterr() == ("", "")


def test_spans() -> None:
    assert span([0.5, 0.5], ".3g") == "0.5"
    assert span([-1.23456, 2], ".3g") == "-1.23 .. 2"
    assert span([0, 255], "d") == "0 .. 255"
