"""Every kind of model through one door, comparisons, limits, and what is refused."""

from __future__ import annotations

import builtins
import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import qdq
from qdq.data.text import sample_text
from qdq.errors import CheckpointError, ConfigError, DataError, MissingPackageError, VerificationError
from qdq.tasks.evaluate import score_model
from qdq.tasks.evaluation_settings import EvaluationSettings
from qdq.tasks.model_under_test import TASKS, open_model_under_test
from qdq.tasks.token_classification import entities_finder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from exporters.runners import Runner
    from qdq.tasks.evaluate import Evaluation
    from tests.tasks.conftest import TinyModels

TEXTS = sample_text("heldout").read_text(encoding="utf-8").splitlines()[:48]
LABELLED = [{"text": text, "label": index % 2} for index, text in enumerate(TEXTS)]
PAIRS = [
    {"sentence1": one, "sentence2": two, "score": float(index % 6)}
    for index, (one, two) in enumerate(zip(TEXTS[:24], TEXTS[24:], strict=True))
]


@pytest.fixture(scope="module")
def folders(tiny_models: TinyModels, root: Path) -> dict[str, Path]:
    """A float classifier, quantized, and both exported."""
    float_ = tiny_models.balance(
        tiny_models.save(root / "classifier", "sequence-classification", num_hidden_layers=1), TEXTS
    )
    model = qdq.load(float_)
    qdq.quantize(model, "onnxruntime")
    batches = qdq.encode_batches(
        islice(qdq.read_samples(sample_text("calibration")), 64), qdq.load_tokenizer(float_), batch_size=32, seq_len=64
    )
    summary = qdq.calibrate(model, batches)
    qdq.save(
        model,
        root / "classifier-int8",
        recipe=qdq.load_recipe("onnxruntime"),
        calibration=summary.to_dict(),
        source=float_,
    )
    qdq.export(float_, root / "export-float", target=None)
    qdq.export(root / "classifier-int8", root / "export-int8", target="onnxruntime")
    return {
        "float": float_,
        "quantized": root / "classifier-int8",
        "export-float": root / "export-float",
        "export-int8": root / "export-int8",
    }


def of(path: Path | nn.Module | Runner, **options: Any) -> Evaluation:
    return qdq.evaluate(path, "sequence-classification", LABELLED, **{"resamples": 0, **options})


def test_every_kind_of_model(folders: dict[str, Path]) -> None:
    found = {name: of(path) for name, path in folders.items()}
    assert {name: result.runtime for name, result in found.items()} == {
        "float": "torch",
        "quantized": "torch",
        "export-float": "onnxruntime",
        "export-int8": "onnxruntime",
    }
    assert [result.model for result in found.values()] == [
        f"{folders['float']} (float checkpoint)",
        f"{folders['quantized']} (quantized checkpoint)",
        f"{folders['export-float']} (float export)",
        f"{folders['export-int8']} (onnxruntime export)",
    ]
    assert found["float"].metrics == found["export-float"].metrics
    assert abs(found["quantized"].metrics["accuracy"] - found["export-int8"].metrics["accuracy"]) < 0.1


def test_openvino(folders: dict[str, Path]) -> None:
    found = of(folders["export-float"], runtime="openvino", threads=1)
    assert found.runtime == "openvino"
    assert found.metrics == of(folders["float"]).metrics


def test_a_model_in_memory_and_a_foreign_runner(folders: dict[str, Path]) -> None:
    expected = of(folders["float"]).metrics
    model = qdq.load(folders["float"])
    assert of(model, folder=folders["float"]).metrics == expected

    class Engine:
        """Somebody's runner: only what the protocol asks for."""

        input_names = ("input_ids", "attention_mask")
        output_names = ("logits", "something else")

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            import torch

            with torch.no_grad():
                logits = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits
            return {"something else": np.zeros(3), "logits": logits.numpy()}

    found = of(Engine(), folder=folders["float"])
    assert (found.metrics, found.runtime) == (expected, "runner")


def test_the_batch_size_changes_nothing(folders: dict[str, Path]) -> None:
    whole = of(folders["export-float"])
    assert of(folders["export-float"], batch_size=1).metrics == whole.metrics
    assert of(folders["export-float"], batch_size=100).metrics == whole.metrics


def test_embeddings_that_a_file_has_pooled_already(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model")
    model = qdq.load(
        folder, attn_implementation="sdpa"
    )  # as evaluate does: some cosines differ in the last digits only

    class Pooled:
        """Gives sentence embeddings, as an export with pooling inside does."""

        input_names = ("input_ids", "attention_mask", "token_type_ids")
        output_names = ("sentence_embedding",)

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            import torch

            with torch.no_grad():
                output = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
            return {"sentence_embedding": 4 * output.last_hidden_state[:, 0].numpy()}

    found = qdq.evaluate(Pooled(), "sts", PAIRS, folder=folder, resamples=0)
    expected = qdq.evaluate(folder, "sts", PAIRS, resamples=0, pooling="cls")
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-6)


def test_a_model_that_gives_no_numbers(folders: dict[str, Path]) -> None:
    class Broken:
        """As an engine whose half precision overflows."""

        input_names = ("input_ids",)
        output_names = ("logits",)

        def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            logits = np.ones((len(inputs["input_ids"]), 2), dtype=np.float32)
            logits[-1, 1] = np.nan
            return {"logits": logits}

    with pytest.raises(VerificationError, match="Broken: logits has NaN, in the batch with row"):
        of(Broken(), folder=folders["float"])


# --- against another model ---


def test_against_itself_nothing_differs(folders: dict[str, Path]) -> None:
    found = of(folders["export-float"], against=folders["float"], max_drop="0%", resamples=50)
    assert found.against.metrics == found.metrics
    assert {difference.value for difference in found.against.differences.values()} == {0.0}
    assert {difference.p_value for difference in found.against.differences.values()} == {1.0}
    assert found.holds
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_worse_model_does_not_hold(tiny_models: TinyModels, root: Path, folders: dict[str, Path]) -> None:
    """The labels are what the float model says, so another one must be worse."""
    other = tiny_models.balance(tiny_models.save(root / "other", "sequence-classification"), TEXTS)
    first = score_model(
        open_model_under_test(folders["float"], "sequence-classification"),
        "sequence-classification",
        LABELLED,
        EvaluationSettings(),
    )
    data = [{"text": text, "label": int(label)} for text, label in zip(TEXTS, first.table["prediction"], strict=True)]
    found = qdq.evaluate(other, "sequence-classification", data, against=folders["float"], max_drop=10, resamples=200)
    assert found.against is not None
    assert found.against.metrics["accuracy"] == 1.0
    assert not found.holds
    assert found.drop is not None
    assert found.drop.drop == pytest.approx(100 * (1 - found.metrics["accuracy"]))
    difference = found.against.differences["accuracy"]
    assert difference.interval is not None
    assert difference.interval[1] < 0
    assert difference.p_value == pytest.approx(2 / 201)
    assert qdq.evaluate(
        other, "sequence-classification", data, against=folders["float"], max_drop="100%", metric="f1", resamples=0
    ).holds


# --- refused ---


def test_a_task_without_its_head(tiny_models: TinyModels, folders: dict[str, Path], tmp_path: Path) -> None:
    bare = tiny_models.save(tmp_path / "bare")
    with pytest.raises(ConfigError, match="has no head, only the encoder: it cannot be evaluated with the task masked"):
        qdq.evaluate(bare, "masked-lm", TEXTS)
    for path in folders.values():
        with pytest.raises(ConfigError, match=r"has a head for sequence-classification \(BertForSequenceClass"):
            qdq.evaluate(path, "question-answering", TEXTS)
    with pytest.raises(ConfigError, match="has a head for sequence-classification"):
        qdq.evaluate(qdq.load(folders["float"]), "token-classification", TEXTS, folder=folders["float"])


def test_an_export_without_token_vectors(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="the task sts needs sentence_embedding or last_hidden_state, the file gives"):
        qdq.evaluate(folders["export-float"], "sts", PAIRS)


def test_a_checkpoint_with_a_head_still_embeds(folders: dict[str, Path]) -> None:
    assert qdq.evaluate(folders["float"], "sts", PAIRS, resamples=0).examples == 24
    assert qdq.evaluate(folders["quantized"], "sts", PAIRS, resamples=0).examples == 24


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"max_drop": "1%"}, r"a largest drop \(--max-drop\) is measured from a baseline"),
        ({"metric": "accuracy"}, r"the metric \(--metric\) is that of a comparison: give a baseline"),
        ({"runtime": "tflite"}, "no runtime 'tflite': it must be onnxruntime or openvino"),
        ({"runtime": "openvino"}, "a runtime goes with an exported directory"),
        ({"resamples": -1}, "resamples is -1"),
        ({"batch_size": 0, "seq_len": 1, "pooling": "sum"}, r"3 problems(.|\n)*batch_size(.|\n)*seq_len(.|\n)*pooling"),
        ({"settings": EvaluationSettings(), "batch_size": 3}, "give settings, or batch_size by name, not both"),
    ],
    ids=str,
)
def test_options_that_do_not_go(folders: dict[str, Path], options: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ConfigError, match=culprit):
        of(folders["float"], **options)


def test_metrics_and_labels_that_are_not_there(
    tiny_models: TinyModels, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no metric 'bleu' for the task sequence-classification: it has accuracy, f1"):
        of(folders["float"], against=folders["float"], metric="bleu")
    other = tiny_models.save_labelled(tmp_path / "other", "sequence-classification", ["no", "yes"])
    with pytest.raises(ConfigError, match="their heads have other labels"):
        of(folders["float"], against=other)


def test_an_unknown_task_names_those_there_are(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=f"no task 'summarization' to evaluate; there are {', '.join(TASKS)}"):
        qdq.evaluate(folders["float"], "summarization", TEXTS)


def test_a_path_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such directory"):
        qdq.evaluate(tmp_path / "missing", "sts", PAIRS)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        qdq.evaluate(tmp_path, "sts", PAIRS)


@pytest.mark.parametrize(
    ("name", "contents"),
    [("empty.tsv", b""), ("binary.tsv", b"\x00\x01\x02\xff" * 50), ("unlabelled.jsonl", b'{"text": "fine"}\n')],
)
def test_files_that_hold_nothing_to_measure(
    folders: dict[str, Path], tmp_path: Path, name: str, contents: bytes
) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(DataError, match=name):
        qdq.evaluate(folders["float"], "sequence-classification", tmp_path / name)


def test_a_column_that_is_not_there(folders: dict[str, Path], tmp_path: Path) -> None:
    from qdq.data.examples import Columns

    path = tmp_path / "rows.csv"
    path.write_text("text,label\nfine,1\n")
    with pytest.raises(DataError, match=r"no column 'stars'.*'text', 'label'"):
        qdq.evaluate(folders["float"], "sequence-classification", path, columns=Columns(label="stars"))


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "seqeval":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"'seqeval', which is not installed: pip install 'qdq\[evaluate\]'"):
        entities_finder()


class TestMetricsThatSayNothing:
    def test_equal_scores_leave_a_correlation_undefined(self, folders: dict[str, Path]) -> None:
        same = [{**pair, "score": 3.0} for pair in PAIRS]
        found = qdq.evaluate(folders["float"], "sts", same, resamples=0)
        assert [note.partition(":")[0] for note in found.notes[-2:]] == [
            "spearman is undefined on these examples",
            "pearson is undefined on these examples",
        ]

    def test_a_limit_does_not_hold_then(self, folders: dict[str, Path]) -> None:
        same = [{**pair, "score": 3.0} for pair in PAIRS]
        found = qdq.evaluate(folders["quantized"], "sts", same, against=folders["float"], max_drop="1000", resamples=0)
        assert not found.holds

    def test_one_label_is_told(self, folders: dict[str, Path]) -> None:
        one = [{**row, "label": 1} for row in LABELLED]
        found = qdq.evaluate(folders["float"], "sequence-classification", one, resamples=0)
        assert found.notes[-1] == "all examples have the same label: f1 and matthews say nothing about the model"

    def test_usual_data_have_no_such_note(self, folders: dict[str, Path]) -> None:
        assert not qdq.evaluate(folders["float"], "sequence-classification", LABELLED, resamples=0).notes
        assert not qdq.evaluate(folders["float"], "sts", PAIRS, resamples=0).notes
