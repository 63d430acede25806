"""Files that are compressed, archives, or in an encoding that is not UTF-8."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from typing import TYPE_CHECKING

import pytest

from qdq.data.source import open_source
from qdq.errors import DataError, StorageError
from tests.data.support import write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = "text,label\nUne école,1\n"


def texts(path: Path) -> list[object]:
    return [record.values.get("text", record.values.get("")) for record in open_source(path)]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        texts(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
    ids=["gz", "bz2", "xz"],
)
class TestCompressed:
    def test_it_is_unpacked_while_it_is_read(self, tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
        assert texts(write(tmp_path / f"a.csv{ending}", pack(TEXT.encode()))) == ["Une école"]
        assert texts(write(tmp_path / f"a.jsonl{ending}", pack(b'{"text": "a"}\n'))) == ["a"]
        assert texts(write(tmp_path / f"a.json{ending}", pack(b'[{"text": "a"}]'))) == ["a"]

    def test_the_bytes_decide_where_the_ending_was_lost(
        self, tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
    ) -> None:
        assert texts(write(tmp_path / "a.csv", pack(TEXT.encode()))) == ["Une école"]
        assert f"does not begin as a {ending} file does" in refusal(write(tmp_path / f"b.csv{ending}", TEXT))

    def test_damage_is_named(self, tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]) -> None:
        packed = pack((TEXT * 500).encode())
        assert "compressed file is damaged" in refusal(write(tmp_path / f"a.csv{ending}", packed[: len(packed) // 2]))
        broken = packed[:20] + bytes(40) + packed[60:]
        assert "compressed file is damaged" in refusal(write(tmp_path / f"b.csv{ending}", broken))


class TestArchives:
    def test_zip_and_zstandard_say_how_to_unpack(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.csv.zip", "w") as file:
            file.writestr("a.csv", TEXT)
        assert "is a zip archive; unpack it first: unzip a.csv.zip" in refusal(tmp_path / "a.csv.zip")
        (tmp_path / "a.csv.zip").rename(tmp_path / "b.csv")
        assert "is a zip archive" in refusal(tmp_path / "b.csv")
        assert "Zstandard" in refusal(write(tmp_path / "a.txt.zst", b"\x28\xb5\x2f\xfd\x00"))

    @pytest.mark.parametrize("name", ["a.gz", "a.tar.gz", "a.zip"])
    def test_a_name_without_the_format(self, tmp_path: Path, name: str) -> None:
        message = refusal(write(tmp_path / name, gzip.compress(b"a")))
        assert "does not say what the compressed file holds" in message or "unpack it first" in message

    def test_parquet_is_compressed_inside(self, tmp_path: Path) -> None:
        assert "unpack it first" in refusal(write(tmp_path / "a.parquet.gz", gzip.compress(b"PAR1")))


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.json", "a.conll"])
def test_a_page_in_place_of_the_file(tmp_path: Path, name: str) -> None:
    page = "\n<!DOCTYPE html>\n<html><head></head></html>\n"
    assert "is an HTML page, not the data itself; download the raw file" in refusal(write(tmp_path / name, page))


class TestEncodings:
    @pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE"])
    @pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json", "a.conll"])
    def test_utf16_without_a_mark_is_recognized(self, tmp_path: Path, encoding: str, name: str) -> None:
        message = refusal(write(tmp_path / name, '[{"text": "one two"}]\nthree\n'.encode(encoding)))
        assert f"in {encoding}: every second byte is zero; convert the file: iconv -f {encoding} -t UTF-8" in message

    def test_a_mark_inside_a_compressed_file_is_seen(self, tmp_path: Path) -> None:
        assert texts(write(tmp_path / "a.csv.gz", gzip.compress(TEXT.encode("utf-8-sig")))) == ["Une école"]
        assert "line 1 is in UTF-16" in refusal(write(tmp_path / "b.csv.gz", gzip.compress(TEXT.encode("utf-16"))))

    def test_a_directory_in_place_of_a_file_that_vanished(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", "a\n")
        source = open_source(path)
        path.unlink()
        with pytest.raises(StorageError, match="cannot read"):
            list(source)
