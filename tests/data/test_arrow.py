"""Parquet and Arrow files with every type, and folders of files."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from qdq.data.columns import Columns
from qdq.data.examples import read_examples
from qdq.data.labels import Labels
from qdq.data.source import open_source
from qdq.errors import DataError
from tests.data.support import write

if TYPE_CHECKING:
    from pathlib import Path

pa = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")

TEXTS = ["one", "two", "three"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def parquet(path: Path, **columns: Any) -> Path:
    from pyarrow import parquet as writer

    writer.write_table(pa.table(columns), path)
    return path


class TestTypes:
    @pytest.mark.parametrize(
        "texts",
        [
            pa.array(TEXTS, pa.string()),
            pa.array(TEXTS, pa.large_string()),
            pa.array(TEXTS).dictionary_encode(),
            pa.array([text.encode() for text in TEXTS], pa.binary()),
            pa.array([text.encode() for text in TEXTS], pa.large_binary()),
        ],
        ids=lambda array: str(array.type),
    )
    def test_texts_of_every_type(self, tmp_path: Path, texts: Any) -> None:
        found = read_examples(parquet(tmp_path / "a.parquet", text=texts), "feature-extraction")
        assert [example.text for example in found] == TEXTS  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "other",
        [
            pa.array([[("k", "v")]] * 3, pa.map_(pa.string(), pa.string())),
            pa.array([{"a": {"b": 1}}] * 3),
            pa.array([Decimal("1.5")] * 3, pa.decimal128(5, 2)),
            pa.array([10**17] * 3, pa.timestamp("ms")),  # beyond Python's last year
            pa.array([[[1]]] * 3),
            pa.array([b"\xff\x00"] * 3, pa.binary()),
            pa.array([None] * 3, pa.null()),
        ],
        ids=lambda array: str(array.type),
    )
    def test_a_column_that_is_not_needed_may_have_any_type(self, tmp_path: Path, other: Any) -> None:
        path = parquet(tmp_path / "a.parquet", meta=other, text=TEXTS)
        assert [example.text for example in read_examples(path, "feature-extraction")] == TEXTS  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "labels",
        [
            pa.array(["b", "a", "b"]).dictionary_encode(),
            pa.array([1, 0, 1], pa.int8()),
            pa.array([1, 0, 1], pa.float64()),
            pa.array([Decimal(1), Decimal(0), Decimal(1)], pa.decimal128(5, 2)),
            pa.array([True, False, True]),
        ],
        ids=lambda array: str(array.type),
    )
    def test_labels_of_every_type(self, tmp_path: Path, labels: Any) -> None:
        path = parquet(tmp_path / "a.parquet", text=TEXTS, label=labels)
        found = read_examples(path, "sequence-classification", labels=Labels(("a", "b")))
        assert [example.label for example in found] == [1, 0, 1]

    def test_a_type_that_is_no_text_is_named(self, tmp_path: Path) -> None:
        path = parquet(tmp_path / "a.parquet", text=pa.array([b"\xff"] * 3, pa.binary()))
        with pytest.raises(DataError, match="'text' is a bytes, not text"):
            list(read_examples(path, "feature-extraction"))
        path = parquet(tmp_path / "b.parquet", text=pa.array([10**17] * 3, pa.timestamp("ms")))
        with pytest.raises(DataError, match=r"column 'text' has the type timestamp\[ms\]"):
            list(read_examples(path, "feature-extraction"))

    def test_null_is_skipped_and_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = parquet(tmp_path / "a.parquet", text=pa.array(["a", None, "b"]))
        assert len(list(read_examples(path, "feature-extraction"))) == 2
        assert "1 of 3 rows (33.3 %) have no text and are skipped" in caplog.text


class TestNames:
    def test_class_names_are_those_of_datasets(self, tmp_path: Path) -> None:
        names = datasets.ClassLabel(names=["bad", "good"])
        features = datasets.Features({"text": datasets.Value("string"), "label": names, "tags": datasets.List(names)})
        rows = [{"text": "a", "label": 1, "tags": [0, 1]}]
        datasets.Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / "a.parquet"))
        source = open_source(tmp_path / "a.parquet")
        assert source.class_names == {"label": ("bad", "good"), "tags": ("bad", "good")}
        assert [record.values for record in source] == rows

    @pytest.mark.parametrize("metadata", [b"{}", b"no json", b'{"info": {"features": [1]}}', b'{"info": null}'])
    def test_other_metadata_is_ignored(self, tmp_path: Path, metadata: bytes) -> None:
        from pyarrow import parquet as writer

        table = pa.table({"text": TEXTS}).replace_schema_metadata({"huggingface": metadata})
        writer.write_table(table, tmp_path / "a.parquet")
        assert open_source(tmp_path / "a.parquet").class_names == {}


class TestFiles:
    @pytest.mark.parametrize("kind", ["file", "stream", "feather"])
    def test_arrow_files(self, tmp_path: Path, kind: str) -> None:
        from pyarrow import feather, ipc

        table = pa.table({"text": TEXTS, "label": [0, 1, 0]})
        path = tmp_path / ("a.feather" if kind == "feather" else "a.arrow")
        if kind == "feather":
            feather.write_feather(table, path)
        else:
            new = ipc.new_file if kind == "file" else ipc.new_stream
            with new(path, table.schema) as writer:
                writer.write_table(table)
        assert [record.values["text"] for record in open_source(path)] == TEXTS

    def test_a_file_of_the_cache_of_datasets(self, tmp_path: Path) -> None:
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "set"))
        (file,) = (tmp_path / "set").glob("*.arrow")
        assert [record.values for record in open_source(file)] == [{"text": text} for text in TEXTS]

    def test_damage_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is not an Arrow file, or it is damaged"):
            open_source(write(tmp_path / "a.arrow", b"no arrow"))

    @pytest.mark.parametrize("ending", ["txt", "conll", "csv", "tsv", "jsonl", "json", "parquet", "arrow"])
    def test_a_pointer_of_git_lfs_is_never_data(self, tmp_path: Path, ending: str) -> None:
        with pytest.raises(DataError, match="is a Git LFS pointer"):
            open_source(write(tmp_path / f"a.{ending}", POINTER))

    def test_a_pointer_in_a_saved_dataset(self, tmp_path: Path) -> None:
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "set"))
        (file,) = (tmp_path / "set").glob("*.arrow")
        file.write_text(POINTER)
        with pytest.raises(DataError, match="is a Git LFS pointer"):
            open_source(tmp_path / "set")

    def test_a_folder_lists_its_files_and_a_pattern_those_it_fits(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        for name in ("data/train-0.parquet", "data/train-1.parquet", "README.md"):
            write(tmp_path / name, "x")
        with pytest.raises(DataError, match=r"give a file in it \(data/train-0.parquet, data/train-1.parquet\)"):
            open_source(tmp_path)
        with pytest.raises(DataError, match="patterns are not followed; it fits 2: "):
            open_source(tmp_path / "data" / "*.parquet")

    def test_two_columns_of_one_name(self, tmp_path: Path) -> None:
        from pyarrow import parquet as writer

        table = pa.Table.from_arrays([pa.array(TEXTS), pa.array(TEXTS)], names=["text", "text"])
        writer.write_table(table, tmp_path / "a.parquet")
        with pytest.raises(DataError, match="more than one column is called 'text'"):
            list(read_examples(tmp_path / "a.parquet", "feature-extraction", columns=Columns(text="text")))
