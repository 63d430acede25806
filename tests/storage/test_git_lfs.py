"""Pointers of Git LFS are told from the files that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qdq.errors import DataError
from qdq.storage import is_pointer, refuse_pointer

if TYPE_CHECKING:
    from pathlib import Path

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a1' * 32}\nsize 438007537\n"


def test_a_pointer_is_refused_with_the_command_that_fetches_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text(POINTER)
    assert is_pointer(file)
    with pytest.raises(DataError, match=r"model\.safetensors: is a Git LFS pointer.*git lfs pull"):
        refuse_pointer(file, DataError)


@pytest.mark.parametrize("contents", [b"", b"version 2\n", POINTER.encode() + b"x" * 2000, b"\xff\xfe"])
def test_other_files_are_no_pointers(tmp_path: Path, contents: bytes) -> None:
    file = tmp_path / "vocab.txt"
    file.write_bytes(contents)
    assert not is_pointer(file)
    refuse_pointer(file)


def test_a_directory_and_a_missing_file_are_no_pointers(tmp_path: Path) -> None:
    assert not is_pointer(tmp_path)
    assert not is_pointer(tmp_path / "absent")
