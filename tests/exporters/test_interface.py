from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from exporters.interface import ExportInterface, check_interface
from qdq.errors import CheckpointError, ExportError

if TYPE_CHECKING:
    from tests.exporters.conftest import TinyModels


def test_a_form_survives_its_record() -> None:
    interface = ExportInterface(pooling="mean", normalize=True, token_type_ids=False, int32_ids=True, dtype="fp16")
    record = interface.to_dict()
    assert set(record) == {"pooling", "normalize", "token_type_ids", "int32_ids", "dtype"}
    assert ExportInterface.from_dict(record, source="here") == interface
    assert ExportInterface().to_dict() == {}


def test_what_is_no_form_is_told_with_everything_that_is_wrong() -> None:
    with pytest.raises(CheckpointError, match=r"export.json: 3 problems") as caught:
        ExportInterface.from_dict({"pooling": "middle", "size": 3, "normalize": "yes"}, source="export.json")
    for words in ("pooling is 'middle', must be one of mean, cls, max", "size is unknown", "normalize is 'yes'"):
        assert words in str(caught.value)


REFUSED: dict[str, tuple[str, dict[str, Any], ExportInterface, str]] = {
    "pooling of a head": ("sequence-classification", {}, ExportInterface(pooling="mean"), "export a feature extractor"),
    "normalize of tokens": ("feature-extraction", {}, ExportInterface(normalize=True), "add a pooling"),
    "softmax without logits": ("question-answering", {}, ExportInterface(softmax=True), "gives none"),
    "argmax without a head": ("feature-extraction", {}, ExportInterface(argmax=True), "gives none"),
    "softmax of a score": (
        "sequence-classification",
        {"num_labels": 1},
        ExportInterface(softmax=True),
        "gives a score",
    ),
    "argmax of several labels": (
        "sequence-classification",
        {"problem_type": "multi_label_classification"},
        ExportInterface(argmax=True),
        "softmax gives their probabilities",
    ),
    "a cache of an encoder": ("masked-lm", {}, ExportInterface(cache="step"), "is_decoder is false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_forms_that_a_model_cannot_have(tiny_models: TinyModels, case: str) -> None:
    task, changes, interface, words = REFUSED[case]
    with pytest.raises(ExportError, match=words):
        check_interface(tiny_models.model(task=task, **changes), interface)


def test_all_reasons_arrive_together(tiny_models: TinyModels) -> None:
    with pytest.raises(ExportError, match="3 problems"):
        check_interface(
            tiny_models.model(task="question-answering"), ExportInterface(pooling="cls", softmax=True, cache="first")
        )


def test_a_scorer_embeds_by_itself(tiny_models: TinyModels) -> None:
    with pytest.raises(ExportError, match="embeds questions and candidates itself"):
        check_interface(tiny_models.model("realm", "scoring"), ExportInterface(inputs_embeds=True))
