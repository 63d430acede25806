"""``qdq analyze``: the document, what people see, patterns that hold what they promise, and everything refused."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import torch

import calibration.sensitivity.ranking
from calibration.sensitivity.similarity import Similarity, output_vectors
from qdq.analysis.task_metric import TaskMetric
from qdq.checkpoint import load
from qdq.cli.main import main
from qdq.data.source import draw
from qdq.data.text import encode_batches, read_samples, sample_text
from qdq.data.tokenizer import load_tokenizer
from qdq.quantization.quantizer import Mode, set_mode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli.conftest import Refused, Run

HELDOUT = sample_text("heldout")
PLAIN = ("--smoothing", "off", "--no-shift", "--no-bias-correction", "--rounding", "nearest")
FEW = ("--data", HELDOUT, "--num-samples", 8)


@pytest.fixture(scope="module")
def pairs(root: Path) -> Path:
    """Twenty pairs with a score."""
    sentences = HELDOUT.read_text(encoding="utf-8").splitlines()[:21]
    path = root / "analyzed.tsv"
    path.write_text("".join(f"{n % 6}\t{one}\t{two}\n" for n, (one, two) in enumerate(pairwise(sentences))))
    return path


@pytest.fixture(scope="module")
def plain(root: Path, model: Path, text: Path) -> Path:
    """Calibrated without what makes one layer depend on how another was quantized."""
    path = root / "plain"
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "-m", str(model), "-o", str(path), "--calib-data", str(text), *PLAIN, "-q"])
    assert not ended.value.code
    return path


def similarity(checkpoint: Path, samples: int = 8) -> Similarity:
    """Of a whole checkpoint, on what ``FEW`` draws."""
    model = load(checkpoint)
    texts = draw(read_samples(HELDOUT), samples, 0)
    total = Similarity()
    for batch in encode_batches(texts, load_tokenizer(checkpoint), batch_size=1, seq_len=48):
        with torch.inference_mode():
            set_mode(model, Mode.OFF)
            expected = output_vectors(model(**batch), batch["attention_mask"])
            set_mode(model, Mode.QUANTIZE)
            total += Similarity.of(expected, output_vectors(model(**batch), batch["attention_mask"]))
    return total


def test_the_document(run: Run, checkpoint: Path) -> None:
    ended = run("analyze", checkpoint, *FEW, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    assert (document["checkpoint"], document["by"], document["complete"]) == (str(checkpoint), "module", True)
    assert (document["batches"], document["samples"]) == (1, 8)
    whole = similarity(checkpoint)
    assert document["quantized"]["sqnr_db"] == pytest.approx(whole.sqnr_db, abs=0.01)
    assert document["quantized"]["cosine"] == pytest.approx(whole.cosine, abs=1e-5)
    groups = document["groups"]
    assert document["groups_total"] == len(groups) == 7  # three tables; query with key and value, output, up, down
    assert [group["noise_share"] for group in groups] == sorted((g["noise_share"] for g in groups), reverse=True)
    assert sum(group["noise_share"] for group in groups) == pytest.approx(1)
    for group in groups:
        assert set(group) == {"name", "slots", "exclude", "noise_share", "alone", "without"}
        assert set(group["alone"]) == set(group["without"]) == {"sqnr_db", "cosine"}
        assert group["slots"]
        assert group["exclude"]
    first = max(groups, key=lambda group: group["without"]["sqnr_db"])
    assert document["switch_off"]["exclude"] == first["exclude"]
    assert document["switch_off"]["target"] is None
    assert run("analyze", checkpoint, *FEW, "--json") == ended


def test_what_people_see(run: Run, checkpoint: Path) -> None:
    document = run("analyze", checkpoint, *FEW, "--json").document
    ended = run("analyze", checkpoint, *FEW, "--top", 2)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"{checkpoint} by module, 8 samples: SQNR {document['quantized']['sqnr_db']:.2f} dB, ")
    shown = [line.split() for line in lines if line.startswith(("encoder.", "embeddings."))]
    assert [row[0] for row in shown] == [group["name"] for group in document["groups"][:2]]
    for row, group in zip(shown, document["groups"], strict=False):
        figures = [group[kind][key] for kind in ("alone", "without") for key in ("sqnr_db", "cosine")]
        assert [float(cell) for cell in row[3:]] == pytest.approx(figures, abs=0.006)
    assert "and 5 that cost less" in lines
    (advice,) = (line for line in lines if line.startswith("switch off first"))
    assert advice.endswith(f"--exclude {document['switch_off']['exclude'][0]}")


def test_the_patterns_hold_what_they_promise(run: Run, model: Path, text: Path, plain: Path, tmp_path: Path) -> None:
    """A model calibrated with them is as close to float as was measured."""
    quantized = run("analyze", plain, *FEW, "--json").document["quantized"]["sqnr_db"]
    aim = quantized + 3
    found = run("analyze", plain, *FEW, "--target-sqnr", aim, "--json").document["switch_off"]
    assert found["reached"]
    assert found["target"] == {"sqnr_db": aim}
    assert found["sqnr_db"] >= aim > quantized
    assert 1 <= len(found["steps"][-1]["off"]) < 7
    excludes = [word for pattern in found["exclude"] for word in ("--exclude", pattern)]
    other = tmp_path / "excluded"
    assert run("calibrate", "-m", model, "-o", other, "--calib-data", text, *PLAIN, *excludes).code == 0
    assert similarity(other).sqnr_db == pytest.approx(found["sqnr_db"], abs=0.01)
    shown = run("analyze", plain, *FEW, "--target-sqnr", aim).out
    assert "--exclude " + found["exclude"][0] in shown.splitlines()[-1]


def test_a_target_that_is_reached_already(run: Run, checkpoint: Path) -> None:
    ended = run("analyze", checkpoint, *FEW, "--target-cosine", 0.5)
    assert "cosine 0.5 is reached with everything quantized" in ended.out
    found = run("analyze", checkpoint, *FEW, "--target-cosine", 0.5, "--json").document["switch_off"]
    assert (found["reached"], found["exclude"], len(found["steps"])) == (True, [], 1)


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("kind", {"embedding.weight", "linear.input", "linear.weight"}),
        ("layer", {"embeddings", "encoder.layers.0"}),
    ],
)
def test_other_groups(run: Run, checkpoint: Path, by: str, names: set[str]) -> None:
    document = run("analyze", checkpoint, *FEW, "--by", by, "--json").document
    assert {group["name"] for group in document["groups"]} == names


def test_only_some_and_on_less(run: Run, checkpoint: Path) -> None:
    options = ("--only", "*.up", "--batch-size", 3, "--max-batches", 2, "--by", "slot")
    document = run("analyze", checkpoint, *FEW, *options, "--json").document
    assert {name for group in document["groups"] for name in group["slots"]} == {
        f"encoder.layers.0.feed_forward.up.{name}" for name in ("input", "weight")
    }
    assert (document["batches"], document["samples"]) == (2, 6)


def test_the_metric_of_a_task(run: Run, checkpoint: Path, model: Path, pairs: Path) -> None:
    task = ("--task", "sts", "--data", pairs)
    options = ("--num-samples", 8, "--top", 2, "--metric", "pearson", "--seq-len", 48)
    document = run("analyze", checkpoint, *task, *options, "--json").document
    assert document["metric"]["name"] == "pearson"
    for path, found in ((model, document["metric"]["float"]), (checkpoint, document["quantized"]["metric"])):
        expected = run("evaluate", path, *task, "--resamples", 0, "--json").document["metrics"]["pearson"]
        assert found == pytest.approx(100 * expected, abs=0.05)
    figures = [group[kind]["metric"] for group in document["groups"] for kind in ("alone", "without")]
    assert len(figures) == 4
    assert all(-100 <= figure <= 100 for figure in figures)
    assert document["samples"] >= 8
    shown = run("analyze", checkpoint, *task, *options).out
    assert f"pearson: float {document['metric']['float']:.2f}, {document['quantized']['metric']:.2f} quantized" in shown


def test_an_interruption_shows_what_there_is(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = calibration.sensitivity.ranking.rank

    def impatient(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield next(rank(*arguments, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration.sensitivity.ranking, "rank", impatient)
    options = (*FEW, "--batch-size", 4, "--target-cosine", 0.9999999)
    ended = run("analyze", checkpoint, *options)
    assert ended.code == 130
    assert "interrupted; measured on 1 of 2 batches" in ended.err
    assert "by module, 4 samples" in ended.out
    assert "not searched yet" in ended.out
    document = run("analyze", checkpoint, *options, "--json").document
    assert (document["complete"], document["batches"]) == (False, 1)
    assert len(document["groups"]) == 7


def test_an_interruption_before_anything_was_measured(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(*_: Any, **__: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration.sensitivity.ranking, "rank", impatient)
    ended = run("analyze", checkpoint, *FEW)
    assert (ended.code, ended.out) == (130, "")
    assert "interrupted" in ended.err


def test_an_interruption_of_the_evaluation_keeps_the_ranking(
    run: Run, checkpoint: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def impatient(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(TaskMetric, "__call__", impatient)
    ended = run("analyze", checkpoint, "--task", "sts", "--data", pairs, "--num-samples", 4, "--top", 1)
    assert ended.code == 130
    lines = ended.out.splitlines()
    assert lines[1].startswith("spearman: float ")
    assert "quantized" not in lines[1]
    assert "and 6 that cost less" in lines


class TestRefused:
    def test_a_float_checkpoint(self, refused: Refused, model: Path) -> None:
        assert "is not a quantized checkpoint" in refused("analyze", model, *FEW, kind="CheckpointError")

    def test_an_export(self, refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
        export = tmp_path / "export"
        export.mkdir()
        (export / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
        (export / "model.onnx").write_bytes(b"")
        assert "is not a quantized checkpoint" in refused("analyze", export, *FEW, kind="CheckpointError")

    def test_no_such_directory(self, refused: Refused, tmp_path: Path) -> None:
        assert "no such directory" in refused("analyze", tmp_path / "none", *FEW, kind="CheckpointError")

    def test_no_data(self, refused: Refused, checkpoint: Path, tmp_path: Path) -> None:
        empty = tmp_path / "empty.txt"
        empty.write_text("\n")
        for data in (empty, tmp_path / "none.txt"):
            assert str(data) in refused("analyze", checkpoint, "--data", data, kind="DataError")
        assert "--data" in refused("analyze", checkpoint, kind="UsageError")

    def test_an_unknown_slot(self, refused: Refused, checkpoint: Path) -> None:
        message = refused("analyze", checkpoint, *FEW, "--only", "encoder.layers.9.*", kind="RecipeError")
        assert "'encoder.layers.9.*'" in message

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--by", "colour"), "by is 'colour', must be one of slot, module, layer, role, kind"),
            (("--metric", "pearson"), "--metric goes with --task"),
            (("--target-cosine", "1.5"), "the cosine is 1.5, but must be above 0"),
            (("--target-sqnr", "nan"), "the SQNR is nan dB, but must be above 0"),
            (("--task", "colouring"), "no task 'colouring' to evaluate"),
            (("--task", "question-answering"), "cannot be evaluated with the task question-answering"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_options(self, refused: Refused, checkpoint: Path, options: tuple[str, ...], message: str) -> None:
        assert message in refused("analyze", checkpoint, *FEW, *options, kind="ConfigError")

    def test_a_metric_that_the_task_does_not_have(self, refused: Refused, checkpoint: Path, pairs: Path) -> None:
        options = ("--data", pairs, "--task", "sts", "--metric", "f1")
        message = refused("analyze", checkpoint, *options, kind="ConfigError")
        assert "no metric 'f1' for the task sts: it has spearman, pearson" in message
