"""``qdq evaluate``: the document, what people see, the limit, and everything that is refused."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.data.text import sample_text

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Refused, Run, RunInProcess

SENTENCES = sample_text("heldout").read_text(encoding="utf-8").splitlines()[:40]


@pytest.fixture(scope="module")
def pairs(root: Path) -> Path:
    """Twenty pairs with a score, and one without."""
    rows = [f"{index % 6 if index else ''}\t{one}\t{two}" for index, (one, two) in enumerate(pairwise(SENTENCES[:21]))]
    path = root / "pairs.tsv"
    path.write_text("\n".join([*rows, f"3\t{SENTENCES[30]}\t{SENTENCES[31]}"]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def labelled(root: Path) -> Path:
    path = root / "labelled.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "label": n % 2}) for n, t in enumerate(SENTENCES)))
    return path


@pytest.fixture(scope="module")
def classifier(root: Path, model_folders: ModelFolders) -> Path:
    path: Path = model_folders.model(root / "classifier", task="sequence-classification")
    return path


@pytest.fixture(scope="module")
def tagger(root: Path, model_folders: ModelFolders) -> Path:
    path: Path = model_folders.model(root / "tagger", task="token-classification")
    return path


@pytest.fixture(scope="module")
def words(root: Path) -> Path:
    path = root / "words.conll"
    path.write_text("birds\tLABEL_0\nfly\tLABEL_1\n")
    return path


def test_the_document(run: Run, model: Path, pairs: Path) -> None:
    ended = run("evaluate", model, "--task", "sts", "--data", pairs, "--resamples", 50, "--seed", 3, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    assert list(document["metrics"]) == ["spearman", "pearson"]
    for name, value in document["metrics"].items():
        low, high = document["intervals"][name]
        assert -1 <= low <= value <= high <= 1
    assert (document["task"], document["examples"], document["skipped"]) == ("sts", 20, 1)
    assert document["model"] == f"{model} (float checkpoint)"
    assert document["settings"] == {"pooling": "mean", "seq_len": 48, "resamples": 50, "seed": 3}
    assert run("evaluate", model, "--task", "sts", "--data", pairs, "--resamples", 50, "--seed", 3, "--json") == ended


def test_what_people_see(run: Run, model: Path, exports: dict[str, Path], pairs: Path) -> None:
    arguments = ("--task", "sts", "--data", pairs, "--resamples", 20)
    alone = run("evaluate", model, *arguments)
    assert (alone.code, alone.err) == (0, "")
    assert f"sts: {model} (float checkpoint) in torch, 20 examples, 1 rows without label skipped" in alone.out
    both = run("evaluate", exports["onnxruntime"], *arguments, "--against", model)
    assert f"sts: {exports['onnxruntime']} (onnxruntime export) in onnxruntime, 20 examples" in both.out
    assert f"baseline: {model} (float checkpoint) in torch" in both.out
    (row,) = (line.split() for line in both.out.splitlines() if line.startswith("spearman"))
    (before,) = (line.split() for line in alone.out.splitlines() if line.startswith("spearman"))
    assert before[1] in row
    assert float(row[1]) - float(before[1]) == pytest.approx(float(row[6]), abs=0.011)


def test_every_directory_and_runtime(
    run: Run, model: Path, checkpoint: Path, exports: dict[str, Path], pairs: Path
) -> None:
    arguments = ("--task", "sts", "--data", pairs, "--resamples", 0, "--json")
    expected = run("evaluate", model, *arguments).document["metrics"]["spearman"]
    for path, runtime in (
        (exports["float"], "onnxruntime"),
        (exports["float"], "openvino"),
        (checkpoint, "torch"),
        (exports["openvino"], "openvino"),
    ):
        how = () if runtime == "torch" else ("--runtime", runtime, "--threads", 1)
        document = run("evaluate", path, *arguments, *how).document
        assert document["runtime"] == runtime
        exact = path == exports["float"]
        assert document["metrics"]["spearman"] == pytest.approx(expected, abs=1e-6 if exact else 0.5)
    assert torch.get_num_threads() == 1


def test_a_drop_within_and_beyond_the_limit(
    run: Run, model: Path, pairs: Path, root: Path, model_folders: ModelFolders
) -> None:
    other = model_folders.model(root / "other", initializer_range=0.9)
    arguments = ("--task", "sts", "--data", pairs, "--resamples", 20, "--json")
    figures = {path: run("evaluate", path, *arguments).document["metrics"]["spearman"] for path in (model, other)}
    worse, better = sorted(figures, key=lambda path: figures[path])
    drop = 100 * (figures[better] - figures[worse])
    assert drop > 1
    held = run("evaluate", worse, *arguments, "--against", better, "--max-drop", drop + 0.5)
    assert held.code == 0
    assert held.document["drop"]["holds"]
    beyond = run("evaluate", worse, *arguments, "--against", better, "--max_drop", drop - 0.5)
    assert beyond.code == 1
    assert beyond.document["kind"] == "VerificationError"
    assert beyond.document["exit_code"] == 1
    assert beyond.document["metrics"]["spearman"] == figures[worse]
    assert beyond.document["drop"] == {
        "metric": "spearman",
        "drop": pytest.approx(drop),
        "max_drop": pytest.approx(drop - 0.5),
        "unit": "points",
        "holds": False,
    }
    shown = run("evaluate", worse, *arguments[:-1], "--against", better, "--max-drop", "0%")
    assert shown.code == 1
    assert shown.err.startswith(f"error: {worse}: spearman is")
    assert "spearman" in shown.out
    assert run("evaluate", better, *arguments, "--against", worse, "--max-drop", "0%").code == 0


def test_columns_by_name(run: Run, classifier: Path, tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("verdict,words\n1,fine film\n0,bad film\n1,great\n")
    arguments = (
        "evaluate",
        classifier,
        "--task",
        "sequence-classification",
        "--data",
        path,
        "--resamples",
        0,
        "--json",
    )
    ended = run(*arguments, "--text-column", "words", "--label-column", "verdict")
    assert ended.document["examples"] == 3


def test_notes_go_to_stderr(run: Run, tagger: Path, words: Path) -> None:
    ended = run("evaluate", tagger, "--task", "token-classification", "--data", words, "--resamples", 0)
    assert ended.code == 0
    assert "describe no entities" in ended.err
    assert "describe no entities" not in ended.out


@pytest.mark.parametrize(
    ("arguments", "kind", "culprit"),
    [
        (("--task", "poetry"), "ConfigError", "no task 'poetry' to evaluate; there are sts, retrieval"),
        (("--task", "masked-lm"), "ConfigError", "has no head, only the encoder"),
        (
            ("--task", "sts", "--max-drop", "1%"),
            "ConfigError",
            "a largest drop (--max-drop) is measured from a baseline",
        ),
        (("--task", "sts", "--max-drop", "much"), "ConfigError", "1% of the baseline"),
        (("--task", "sts", "--runtime", "tflite"), "ConfigError", "must be onnxruntime or openvino"),
        (("--task", "sts", "--runtime", "openvino"), "ConfigError", "a runtime goes with an exported directory"),
        (("--task", "sts", "--pooling", "sum"), "ConfigError", "pooling is 'sum', must be one of mean, cls, max"),
        (("--task", "sts", "--label-column", "stars"), "DataError", "no column 'stars'"),
        (("--task", "sts", "--seq-len", 4000), "ConfigError", "more than the model's 48 positions"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_options_that_do_not_go(
    refused: Refused, model: Path, pairs: Path, arguments: tuple[Any, ...], kind: str, culprit: str
) -> None:
    assert culprit in refused("evaluate", model, "--data", pairs, *arguments, kind=kind)


@pytest.mark.parametrize(
    ("name", "contents", "culprit"),
    [
        ("empty.jsonl", b"", "empty.jsonl"),
        ("binary.jsonl", bytes(range(256)) * 9, "line 1"),
        (
            "label.jsonl",
            b'{"text": "a", "label": 0}\n{"text": "b", "label": 7}\n{"text": "c", "label": "x"}\n',
            "line 3",
        ),
        ("broken.jsonl", b'{"text": "a", "label": 0}\n{"text": \n', "line 2"),
        ("data.xlsx", b"PK", "extension '.xlsx' is not supported"),
    ],
)
def test_data_that_cannot_be_read(
    refused: Refused, classifier: Path, tmp_path: Path, name: str, contents: bytes, culprit: str
) -> None:
    path = tmp_path / name
    path.write_bytes(contents)
    message = refused("evaluate", classifier, "--task", "sequence-classification", "--data", path, kind="DataError")
    assert str(path) in message
    assert culprit in message


def test_paths_that_are_no_models(refused: Refused, pairs: Path, tmp_path: Path) -> None:
    where = ("--task", "sts", "--data", pairs)
    assert "no such directory" in refused("evaluate", tmp_path / "missing", *where, kind="CheckpointError")
    assert "config.json" in refused("evaluate", tmp_path, *where, kind="CheckpointError")


def test_a_missing_package(process: RunInProcess, tagger: Path, words: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['seqeval.metrics.sequence_labeling'] = None\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = process("evaluate", tagger, "--task", "token-classification", "--data", words, env=environment)
    assert ended.code == 3
    assert ended.err == (
        "error: counting entities needs the package 'seqeval', which is not installed: pip install 'qdq[evaluate]'\n"
    )


def test_nothing_is_written(
    run: Run, model: Path, pairs: Path, tmp_path: Path, model_folders: ModelFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", model, "--task", "sts", "--data", pairs, "--resamples", 0).code == 0
    assert model_folders.contents(tmp_path) == {}
