"""Single files are whole or unchanged, and JSON files have errors for people."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from qdq.errors import CheckpointError, ConfigError, StorageError
from qdq.storage import check_readable, read_json, write_json, write_text_atomic

if TYPE_CHECKING:
    from pathlib import Path


class TestFiles:
    def test_json_is_readable_and_in_order(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"b": 1, "a": ["é"]})
        assert (tmp_path / "a.json").read_bytes() == '{\n  "b": 1,\n  "a": [\n    "é"\n  ]\n}\n'.encode()
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

    def test_json_refuses_nan_and_leaves_the_file(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"a": 1})
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"a": float("nan")})
        assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}

    def test_json_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", {"b": 1, "a": ["é"]})
        assert read_json(tmp_path / "a.json") == {"b": 1, "a": ["é"]}

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"{", "not valid JSON"),
            (b"\xff\xfe", "not valid JSON"),
            (b"[" * 100_000, "not valid JSON"),
            (b"[1]", "must hold a JSON object, not a list"),
            (None, "no such file"),
        ],
        ids=["torn", "no UTF-8", "too deep", "a list", "missing"],
    )
    @pytest.mark.parametrize("kind", [CheckpointError, ConfigError])
    def test_json_that_is_none_is_the_error_asked_for(
        self, tmp_path: Path, content: bytes | None, said: str, kind: type[CheckpointError | ConfigError]
    ) -> None:
        if content is not None:
            (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(kind, match=rf"a\.json: {said}"):
            read_json(tmp_path / "a.json", error=kind)

    def test_missing_json_has_a_message_of_its_own(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"^no index here$"):
            read_json(tmp_path / "a.json", missing="no index here")

    def test_json_that_cannot_be_read_is_no_problem_of_its_content(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"cannot read .*: Is a directory"):
            read_json(tmp_path)

    def test_text_is_replaced_whole_or_not(self, small_disk: Path) -> None:
        write_text_atomic(small_disk / "a.txt", "old")
        with pytest.raises(StorageError, match=r"a\.txt: No space left"):
            write_text_atomic(small_disk / "a.txt", "x" * (1 << 20))
        assert (small_disk / "a.txt").read_text() == "old"
        assert [path.name for path in small_disk.iterdir()] == ["a.txt"]

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match=r"none/a\.txt: No such file"):
            write_text_atomic(tmp_path / "none" / "a.txt", "x")

    def test_the_true_reason_is_told_before_a_library_tells_another(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text("")
        check_readable(tmp_path / "a")
        with pytest.raises(CheckpointError, match=r"none: no such file"):
            check_readable(tmp_path / "none")
        with pytest.raises(StorageError, match=r"cannot read .*a/b: Not a directory"):
            check_readable(tmp_path / "a" / "b")
        with pytest.raises(StorageError, match=r"cannot read .*: Is a directory"):
            check_readable(tmp_path)
        with pytest.raises(StorageError, match="File name too long"):
            check_readable(tmp_path / ("x" * 300))

    @pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
    def test_a_missing_permission_is_no_missing_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch(mode=0)
        with pytest.raises(StorageError, match="Permission denied"):
            check_readable(tmp_path / "a")
