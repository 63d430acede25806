"""``qdq finetune``: from a checkpoint and labelled data to a trained checkpoint, and everything that it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.checkpoint import load
from qdq.cli.main import main
from qdq.errors import ConfigError, TrainingError
from qdq.source import read_quantization
from qdq.training import TaskSettings, TrainingSettings, finetune_checkpoint
from qdq.training.settings import Distillation, InitialCalibration

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import ModelFolders, Refused, Run

SLOW = pytest.mark.slow
QUICK = ("--epochs", "1", "--batch-size", "16", "--seq-len", "16")


@pytest.fixture(scope="module")
def labelled(root: Path, text: Path) -> Path:
    """Sentences with a label that one letter decides."""
    lines = [line.replace("\t", " ") for line in text.read_text().splitlines()]
    path = root / "labelled.tsv"
    path.write_text("\n".join(f"{line}\t{int('g' in line)}" for line in lines) + "\n")
    return path


@pytest.fixture(scope="module")
def classifier(root: Path, model: Path, labelled: Path) -> Path:
    """A float checkpoint with a head for two labels; read only."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, request(model, root / "finetuned", labelled)), "-q"])
    assert not ended.value.code
    return root / "finetuned"


def request(model: Path, output: Path, data: Path, *more: object) -> tuple[object, ...]:
    return (
        "finetune", "-m", model, "-o", output, "--train-data", data, "--eval-data", data,
        "--task", "sequence-classification", *QUICK, *more,
    )  # fmt: skip


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestResult:
    def test_a_new_head(self, run: Run, model: Path, labelled: Path, tmp_path: Path) -> None:
        ended = run(*request(model, tmp_path / "out", labelled, "--json"))
        assert ended.code == 0, ended.err
        document = ended.document
        assert document["task"] == "sequence-classification"
        assert document["quantized"] is False
        assert document["steps"] == 3
        assert set(document["metrics"]) == {"accuracy", "f1", "matthews"}
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert config["architectures"] == ["BertForSequenceClassification"]
        assert config["problem_type"] == "single_label_classification"
        assert files(tmp_path / "out") == {
            "config.json",
            "model.safetensors",
            "vocab.txt",
            "training.json",
            ".qdq.json",
        }
        assert files(tmp_path) == {"out", "out.training.csv"}
        assert json.loads((tmp_path / "out" / "training.json").read_text())["settings"]["lr"] == 5e-5
        assert (tmp_path / "out.training.csv").read_text().startswith("step,epoch,loss,lr,accuracy")
        record = json.loads((tmp_path / "out" / "training.json").read_text())
        assert record["settings"]["epochs"] == 1
        fit = ("--task", "sequence-classification", "--data", labelled, "--seq-len", 16, "--json")
        measured = run("evaluate", tmp_path / "out", *fit)
        assert measured.document["metrics"]["accuracy"] == pytest.approx(document["metrics"]["accuracy"])

    @pytest.mark.parametrize(
        "ranges", ["learned", pytest.param("fixed", marks=SLOW), pytest.param("moving", marks=SLOW)]
    )
    def test_qat_of_a_float_model(
        self, run: Run, classifier: Path, labelled: Path, tmp_path: Path, ranges: str
    ) -> None:
        more = ("--recipe", "linear", "--ranges", ranges, "--json", "--teacher", classifier, "--hidden-weight", "0.5")
        ended = run(*request(classifier, tmp_path / "out", labelled, *more))
        assert ended.code == 0, ended.err
        assert ended.document["quantized"] is True
        assert ended.document["history"][0]["step"] == 0, "the model as it was calibrated counts, too"
        assert json.loads((tmp_path / "out" / "training.json").read_text())["settings"]["lr"] == 5e-6
        written = read_quantization(tmp_path / "out")
        assert written["recipe"]["name"] == "linear"
        assert {slot["learned_scale"] for slot in written["slots"].values()} == {ranges == "learned"}
        assert written["calibration"]["samples"] == 40
        ids = torch.tensor([[2, 30, 31, 3]])
        with torch.no_grad():
            assert torch.isfinite(load(tmp_path / "out")(ids).logits).all()

    def test_qat_of_a_refined_checkpoint_exports_and_verifies(
        self, run: Run, classifier: Path, labelled: Path, text: Path, tmp_path: Path
    ) -> None:
        refined, trained, exported = (tmp_path / name for name in ("refined", "trained", "exported"))
        assert run("calibrate", "-m", classifier, "-o", refined, "--calib-data", text).code == 0
        ended = run(*request(refined, trained, labelled, "--ranges", "learned"))
        assert ended.code == 0, ended.err
        assert "chosen rounding of" in ended.err
        assert "QAT with the recipe onnxruntime" in ended.out
        assert run("export", "-m", trained, "-o", exported, "--target", "onnxruntime").code == 0
        assert run("verify", "-m", trained, exported).code == 0

    @pytest.mark.slow
    def test_interrupted_and_resumed(self, run: Run, classifier: Path, labelled: Path, tmp_path: Path) -> None:
        long = ("--recipe", "linear", "--epochs", "12", "--save-steps", "2")
        command = [sys.executable, "-m", "qdq", *map(str, request(classifier, tmp_path / "out", labelled, *long))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        resume_file = tmp_path / "out.training" / "state.pt"
        deadline = time.monotonic() + 120
        while not resume_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        started.send_signal(signal.SIGTERM)
        _, errors = started.communicate(timeout=120)
        if started.returncode == 130:
            assert "the same command with --resume goes on" in errors
        assert run(*request(classifier, tmp_path / "out", labelled, *long, "--resume")).code == 0
        assert run(*request(classifier, tmp_path / "other", labelled, *long)).code == 0
        names = ("model.safetensors", "quantizers.safetensors")
        assert [(tmp_path / "out" / n).read_bytes() for n in names] == [
            (tmp_path / "other" / n).read_bytes() for n in names
        ]
        assert files(tmp_path) == {"out", "out.training.csv", "other", "other.training.csv"}
        assert (tmp_path / "out.training.csv").read_text() == (tmp_path / "other.training.csv").read_text()

    def test_the_library_does_the_same(self, run: Run, model: Path, labelled: Path, tmp_path: Path) -> None:
        said: list[str] = []
        document = finetune_checkpoint(
            model,
            tmp_path / "library",
            labelled,
            eval_data=labelled,
            task=TaskSettings(task="sequence-classification", batch_size=16, seq_len=16),
            settings=TrainingSettings(epochs=1),
            say=said.append,
        )
        assert said == ["a new head for LABEL_0, LABEL_1"]
        ended = run(*request(model, tmp_path / "command", labelled, "--json"))
        different = {"checkpoint", "seconds"}
        assert {k: v for k, v in ended.document.items() if k not in different} == {
            k: v for k, v in document.items() if k not in different
        }
        weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("library", "command")]
        assert weights[0] == weights[1]

    def test_tensorboard(self, run: Run, model: Path, labelled: Path, tmp_path: Path) -> None:
        assert run(*request(model, tmp_path / "out", labelled, "--tensorboard", tmp_path / "logs")).code == 0
        (events,) = (tmp_path / "logs").iterdir()
        assert events.name.startswith("events.out.tfevents")
        assert events.stat().st_size > 100


@pytest.mark.parametrize(
    ("task", "rows", "metric"),
    [
        ("token-classification", [{"tokens": ["the", "good", "x"], "ner_tags": ["O", "B-A", "O"]}] * 8, "f1"),
        (
            "question-answering",
            [{"id": str(i), "question": "who", "context": "the man", "answers": {"text": ["man"], "answer_start": [4]}}
             for i in range(8)],
            "f1",
        ),
        ("multiple-choice", [{"ctx": "a b", "ending0": "c", "ending1": "d", "label": 1}] * 8, "accuracy"),
        ("masked-lm", [{"text": "the good man was there and then he was not"}] * 8, "perplexity"),
        ("sts", [{"sentence1": "a", "sentence2": f"{'a ' * n}man", "score": n / 2} for n in range(1, 6)], "spearman"),
    ],
)  # fmt: skip
def test_every_task(run: Run, model: Path, tmp_path: Path, task: str, rows: list[Any], metric: str) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    ended = run(
        "finetune", "-m", model, "-o", tmp_path / "out", "--train-data", data, "--eval-data", data, "--task", task,
        "--epochs", "1", "--batch-size", "4", "--seq-len", "24", "--recipe", "linear", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert next(iter(ended.document["metrics"])) == metric
    assert ended.document["metrics"][metric] is not None
    assert load(tmp_path / "out").task in {task, "feature-extraction"}


def test_embeddings_with_a_teacher(run: Run, model: Path, tmp_path: Path) -> None:
    def trained(name: str, scores: list[int], *more: object) -> Any:
        data = tmp_path / f"{name}.tsv"
        data.write_text("".join(f"{score}\ta\t{'a ' * n}man\n" for n, score in enumerate(scores)))
        return run("finetune", "-m", model, "-o", tmp_path / name, *QUICK, "--task", "sts", "--train-data", data,
                   "--recipe", "linear", *more)  # fmt: skip

    logs = []
    for name, scores in (("up", [1, 2, 3, 4, 5]), ("down", [5, 4, 3, 2, 1])):
        ended = trained(name, scores, "--teacher", model, "--task-weight", "0")
        assert ended.code == 0, ended.err
        logs.append((tmp_path / f"{name}.training.csv").read_text())
    assert logs[0] == logs[1], "without weight the scores count for nothing"
    record = json.loads((tmp_path / "up" / "training.json").read_text())
    assert record["teacher"]["model"] == str(model)

    other = tmp_path / "cls"
    shutil.copytree(model, other)
    (other / "1_Pooling").mkdir()
    package = "sentence_transformers.models"
    entries = [{"path": path, "type": f"{package}.{path[2:] or 'Transformer'}"} for path in ("", "1_Pooling")]
    (other / "modules.json").write_text(json.dumps(entries))
    (other / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    refused = trained("no", [1, 2], "--teacher", other)
    assert refused.code == 2
    assert "its pooling is cls, the model's mean" in refused.err
    assert not (tmp_path / "no").exists()


def test_several_labels_a_text(run: Run, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    rows = [{"text": "the good man", "label": ["kind", "male"]}, {"text": "she was there", "label": []}] * 8
    data.write_text("\n".join(map(json.dumps, rows)) + "\n")
    fit = ("--train-data", data, "--eval-data", data, "--task", "sequence-classification", *QUICK, "--json")
    ended = run("finetune", "-m", model, "-o", tmp_path / "float", *fit, "--multi-label")
    assert ended.code == 0, ended.err
    assert set(ended.document["metrics"]) == {"f1", "precision", "recall", "exact_match"}
    config = json.loads((tmp_path / "float" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["label2id"] == {"kind": 0, "male": 1}
    more = ("--teacher", tmp_path / "float", "--recipe", "linear", "--multi-label")
    ended = run("finetune", "-m", tmp_path / "float", "-o", tmp_path / "qat", *fit, *more)
    assert ended.code == 0, ended.err
    assert load(tmp_path / "qat").config.problem_type == "multi_label_classification"


@pytest.mark.parametrize(
    ("values", "names", "said"),
    [
        (["-1", "0", "1"], ["-1", "0", "1"], "(33.3 %) have the label -1 in 'label', which is a class like the others"),
        (["1001", "1002", "1005"], ["1001", "1002", "1005"], "a new head for 1001, 1002, 1005"),
        (["1", "2", "3", "4", "5"], ["1", "2", "3", "4", "5"], "a new head for 1, 2, 3, 4, 5"),
    ],
    ids=["minus one", "codes", "ratings"],
)
def test_the_labels_of_a_new_head_are_those_of_the_data(
    run: Run, model: Path, tmp_path: Path, values: list[str], names: list[str], said: str
) -> None:
    data = tmp_path / "a.csv"
    data.write_text("text,label\n" + "".join(f"a film of {n} scenes,{values[n % len(values)]}\n" for n in range(30)))
    ended = run(*request(model, tmp_path / "out", data))
    assert ended.code == 0, ended.err
    assert said in " ".join(ended.err.split())
    table = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    assert table == {str(index): name for index, name in enumerate(names)}
    ended = run("evaluate", tmp_path / "out", "--task", "sequence-classification", "--data", data, "--json")
    assert (ended.document["examples"], ended.document["skipped"]) == (30, 0)
    assert ended.document["notes"] == []


class TestRefusals:
    def test_several_labels_for_a_head_of_one(
        self, refused: Refused, classifier: Path, labelled: Path, tmp_path: Path
    ) -> None:
        message = refused(*request(classifier, tmp_path / "out", labelled, "--multi-label"))
        assert "has a head for single_label_classification" in message
        assert "--new-head" in message

    def test_a_checkpoint_trained_for_another_recipe(
        self, refused: Refused, run: Run, classifier: Path, labelled: Path, tmp_path: Path
    ) -> None:
        trained = tmp_path / "trained"
        assert run(*request(classifier, trained, labelled, "--recipe", "linear")).code == 0
        message = refused("export", "-m", trained, "-o", tmp_path / "out", "--target", "onnxruntime", "--recipe",
                          "tensorrt")  # fmt: skip
        assert "a training for another recipe drops them" in message

    def test_a_head_for_another_task(self, refused: Refused, classifier: Path, labelled: Path, tmp_path: Path) -> None:
        folders = ("-m", classifier, "-o", tmp_path / "out")
        message = refused("finetune", *folders, "--train-data", labelled, "--task", "token-classification")
        assert "has a head for sequence-classification" in message
        assert "does not fit the task token-classification" in message

    def test_a_quantized_model_without_head(
        self, refused: Refused, checkpoint: Path, labelled: Path, tmp_path: Path
    ) -> None:
        message = refused(*request(checkpoint, tmp_path / "out", labelled))
        assert "is quantized and has no head" in message

    def test_labels_that_the_head_has_not(
        self, refused: Refused, classifier: Path, labelled: Path, tmp_path: Path, root: Path
    ) -> None:
        strange = root / "strange.tsv"
        strange.write_text(labelled.read_text() + "a sentence\t7\nanother\t-3\n")
        message = refused(*request(classifier, tmp_path / "out", strange))
        assert "2 problems" in message
        assert "'7' is not one of the head's labels: 0 'LABEL_0', 1 'LABEL_1'" in message

    def test_no_data(self, refused: Refused, model: Path, tmp_path: Path, root: Path) -> None:
        empty = root / "empty.tsv"
        empty.write_text("")
        assert "holds no row" in refused(*request(model, tmp_path / "out", empty), kind="DataError")
        header = root / "header.tsv"
        header.write_text("sentence\tlabel\n")
        assert "header.tsv" in refused(*request(model, tmp_path / "out", header), kind="DataError")

    def test_data_that_does_not_fit_where_accelerate_is_not_installed(
        self,
        refused: Refused,
        classifier: Path,
        labelled: Path,
        tmp_path: Path,
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What is wrong with the data is said first, and then that a package is missing."""
        monkeypatch.setitem(sys.modules, "accelerate", None)
        strange = root / "strange-train.tsv"
        strange.write_text("a sentence\t0\nanother\t5\n")
        asked = ("finetune", "-m", classifier, "-o", tmp_path / "out", "--task", "sequence-classification", *QUICK)
        assert "'5' is not one of the head's labels" in refused(*asked, "--train-data", strange)
        assert "pip install 'qdq[train]'" in refused(*asked, "--train-data", labelled, code=3)

    def test_data_to_measure_on_that_does_not_fit(
        self, refused: Refused, classifier: Path, labelled: Path, tmp_path: Path, root: Path
    ) -> None:
        """Before anything is trained: nothing is written."""
        strange = root / "strange-eval.tsv"
        strange.write_text("a sentence\t0\nanother\t5\n")
        asked = request(classifier, tmp_path / "out", labelled, "--eval-data", strange)
        assert "strange-eval.tsv" in (message := refused(*asked))
        assert "'5' is not one of the head's labels" in message

    def test_a_teacher_of_another_size(
        self,
        refused: Refused,
        run: Run,
        model_folders: ModelFolders,
        classifier: Path,
        labelled: Path,
        tmp_path: Path,
        root: Path,
    ) -> None:
        teacher = model_folders.model(root / "wide", task="sequence-classification", hidden_size=64)
        message = refused(
            *request(classifier, tmp_path / "out", labelled, "--teacher", teacher, "--hidden-weight", "1")
        )
        assert "hidden states are 64 wide, the model's 32" in message

    def test_all_that_is_wrong_with_a_teacher(
        self,
        refused: Refused,
        model_folders: ModelFolders,
        classifier: Path,
        labelled: Path,
        tmp_path: Path,
        root: Path,
    ) -> None:
        odd = {"vocab_size": 90, "num_labels": 3, "num_attention_heads": 2}
        teacher = model_folders.model(root / "odd", task="sequence-classification", **odd)
        message = refused(
            *request(classifier, tmp_path / "out", labelled, "--teacher", teacher, "--attention-weight", "1")
        )
        for problem in ("a vocabulary of 90", "its head has 3 labels, the model's 2", "2 attention heads, the model 4"):
            assert problem in message

    def test_a_loss_that_is_no_number(self, run: Run, classifier: Path, labelled: Path, tmp_path: Path) -> None:
        wild = ("--lr", "1e30", "--max-grad-norm", "0", "--warmup", "0", "--recipe", "linear")
        ended = run(*request(classifier, tmp_path / "out", labelled, *wild))
        assert ended.code == 2
        assert "the loss is " in ended.err
        assert "step " in ended.err
        assert f"The last good checkpoint is {tmp_path / 'out'}" in ended.err
        assert load(tmp_path / "out").task == "sequence-classification"
        assert "Traceback" not in ended.err

    def test_a_disk_without_room_for_the_checkpoint(
        self, run: Run, model_folders: ModelFolders, classifier: Path, labelled: Path, tmp_path: Path
    ) -> None:
        with model_folders.files_of_at_most((classifier / "model.safetensors").stat().st_size // 2):
            ended = run(*request(classifier, tmp_path / "out", labelled, "--json"))
        assert ended.code == 4
        assert ended.document["kind"] == "StorageError"
        assert ended.document["error"].startswith(f"{tmp_path / 'out'}: ")
        assert "File too large" in ended.document["error"]
        assert "Traceback" not in ended.err
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_without_room_for_the_resume_file(
        self, run: Run, model_folders: ModelFolders, classifier: Path, labelled: Path, tmp_path: Path
    ) -> None:
        """Weights fit, weights with their moments do not: the checkpoint that was written before stays."""
        with model_folders.files_of_at_most((classifier / "model.safetensors").stat().st_size * 3 // 2):
            ended = run(*request(classifier, tmp_path / "out", labelled))
        assert ended.code == 4
        assert ended.err.splitlines()[-1] == f"error: {tmp_path / 'out.training'}: writing failed; is the disk full?"
        assert load(tmp_path / "out").task == "sequence-classification"
        assert files(tmp_path) == {"out"}

    def test_settings(self, refused: Refused, classifier: Path, labelled: Path, tmp_path: Path) -> None:
        message = refused(*request(classifier, tmp_path / "out", labelled, "--lr", "-1", "--ranges", "loose"))
        assert "2 problems" in message
        assert "--recipe" in refused(*request(classifier, tmp_path / "out", labelled, "--exclude", "*query*"))
        assert "no metric 'bleu'" in refused(*request(classifier, tmp_path / "out", labelled, "--metric", "bleu"))

    def test_an_export(self, refused: Refused, exports: dict[str, Path], labelled: Path, tmp_path: Path) -> None:
        assert "exported directory" in refused(*request(exports["float"], tmp_path / "out", labelled))

    def test_an_output_that_holds_other_files(
        self, refused: Refused, classifier: Path, labelled: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")
        assert "was not made by qdq" in refused(*request(classifier, tmp_path / "out", labelled))


class TestUndefinedMetric:
    """Data on which the deciding metric says nothing."""

    @pytest.fixture
    def pairs(self, tmp_path: Path) -> tuple[Path, Path]:
        """Pairs to train on, and pairs that all have the same score."""
        train, same = tmp_path / "train.tsv", tmp_path / "same.tsv"
        head = "sentence1\tsentence2\tscore\n"
        train.write_text(head + "".join(f"a\t{'a ' * n}man\t{n}\n" for n in range(1, 9)))
        same.write_text(head + "".join(f"a\t{'a ' * n}man\t3\n" for n in range(1, 4)))
        return train, same

    @pytest.mark.parametrize("more", [(), ("--recipe", "linear"), ("--patience", "1")])
    def test_the_last_step_is_kept_with_a_warning(
        self, run: Run, model: Path, pairs: tuple[Path, Path], tmp_path: Path, more: tuple[str, ...]
    ) -> None:
        common = ("finetune", "-m", model, "-o", tmp_path / "out", "--task", "sts", "--train-data", pairs[0])
        ended = run(*common, "--eval-data", pairs[1], "--epochs", "2", "--batch-size", "4", *more, "--json")
        assert ended.code == 0, ended.err
        said = " ".join(ended.err.split())
        assert "spearman is undefined on these examples" in said
        assert "the checkpoint is that of the last step, 4" in said
        document = ended.document
        assert (document["step"], document["metric"], document["stopped_early"]) == (4, None, False)
        assert document["metrics"] == {"spearman": None, "pearson": None}
        assert json.loads((tmp_path / "out" / "training.json").read_text())["step"] == 4
        plain = run(*common[:4], tmp_path / "plain", *common[5:], "--epochs", "2", "--batch-size", "4")
        assert plain.code == 0, plain.err
        if not more:
            weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "plain")]
            assert weights[0] == weights[1], "the same as without data to evaluate on"

    def test_people_read_undefined(self, run: Run, model: Path, pairs: tuple[Path, Path], tmp_path: Path) -> None:
        common = ("finetune", "-m", model, "-o", tmp_path / "out", "--task", "sts", "--train-data", pairs[0])
        ended = run(*common, "--eval-data", pairs[1], "--epochs", "1")
        assert ended.code == 0, ended.err
        assert "the checkpoint of step 1" in ended.out
        assert ended.out.split()[-2:] == ["undefined", "undefined"]
        assert "*" not in ended.out

    def test_one_label_is_told(self, run: Run, classifier: Path, labelled: Path, tmp_path: Path) -> None:
        one = tmp_path / "one.tsv"
        one.write_text("".join(line for line in labelled.read_text().splitlines(keepends=True) if line.endswith("1\n")))
        ended = run(
            "finetune", "-m", classifier, "-o", tmp_path / "out", "--train-data", labelled, "--eval-data", one, *QUICK
        )
        assert ended.code == 0, ended.err
        assert "all examples have the same label: f1 and matthews say nothing" in " ".join(ended.err.split())


class TestWhatIsInTheWay:
    def test_a_file_where_the_log_would_be(
        self, refused: Refused, classifier: Path, labelled: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out.training.csv").write_text("precious\n")
        message = refused(*request(classifier, tmp_path / "out", labelled))
        assert "out.training.csv: exists and cannot be recognized as a training log" in message

    def test_an_earlier_log_is_replaced(self, run: Run, classifier: Path, labelled: Path, tmp_path: Path) -> None:
        for _ in range(2):
            assert run(*request(classifier, tmp_path / "out", labelled)).code == 0

    def test_a_folder_where_the_resume_file_would_be(
        self, refused: Refused, classifier: Path, labelled: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out.training").mkdir()
        (tmp_path / "out.training" / "mine").write_text("precious")
        assert "was not made by qdq" in refused(*request(classifier, tmp_path / "out", labelled))

    @pytest.mark.parametrize("option", ["-m", "--teacher"])
    def test_what_is_read(
        self, run: Run, model_folders: ModelFolders, classifier: Path, labelled: Path, tmp_path: Path, option: str
    ) -> None:
        copy = model_folders.copy(classifier, tmp_path / "copy")
        before = model_folders.contents(tmp_path)
        ended = run(*request(classifier, copy, labelled, option, copy))
        assert ended.code == 2
        assert "copy: is read by this command" in ended.err
        assert model_folders.contents(tmp_path) == before


def test_resuming_needs_the_same_evaluation_data(classifier: Path, labelled: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.tsv"
    other.write_text("".join(labelled.read_text().splitlines(keepends=True)[:9]))
    first = TrainingSettings(epochs=2, save_steps=1)

    def train(data: Path, *, resume: bool) -> None:
        finetune_checkpoint(
            classifier,
            tmp_path / "out",
            labelled,
            eval_data=data,
            task=TaskSettings(batch_size=16, seq_len=16),
            settings=first,
            resume=resume,
            progress=None if resume else stop,
        )

    def stop(done: int, _total: int, _how: str) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(labelled, resume=False)
    with pytest.raises(TrainingError, match=r"evaluation data: 40 examples \w+ there, 9 examples \w+ here"):
        train(other, resume=True)
    train(labelled, resume=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"distillation": Distillation(temperature=3.0)}, "learning from a teacher, and none is given"),
        ({"calibration": InitialCalibration(refine=True)}, "for a model that a recipe quantizes, and none is given"),
        ({"settings": TrainingSettings(ranges="moving")}, "ranges: for a model that quantizes"),
        ({"settings": TrainingSettings(eval_steps=3)}, "data to evaluate on, and none is given"),
    ],
)
def test_settings_without_effect(
    classifier: Path, labelled: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        finetune_checkpoint(classifier, tmp_path / "out", labelled, **options)
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_bytes(run: Run, model: Path, labelled: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        ended = run(*request(model, tmp_path / name, labelled, "--recipe", "linear", "--seed", "3", "-q"))
        assert ended.code == 0, ended.err
    for name in ("model.safetensors", "quantizers.safetensors", "training.json", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
