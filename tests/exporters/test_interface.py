from __future__ import annotations

from typing import Any

import pytest

from exporters.interface import Form, check_form
from qdq.errors import CheckpointError, ExportError


def test_a_form_survives_its_record() -> None:
    form = Form(pooling="mean", normalize=True, token_type_ids=False, int32_ids=True, dtype="fp16")
    record = form.to_dict()
    assert set(record) == {"pooling", "normalize", "token_type_ids", "int32_ids", "dtype"}
    assert Form.from_dict(record, source="here") == form
    assert Form().to_dict() == {}


def test_what_is_no_form_is_told_with_everything_that_is_wrong() -> None:
    with pytest.raises(CheckpointError, match=r"export.json: 3 problems") as caught:
        Form.from_dict({"pooling": "middle", "size": 3, "normalize": "yes"}, source="export.json")
    for words in ("pooling is 'middle', must be one of mean, cls, max", "size is unknown", "normalize is 'yes'"):
        assert words in str(caught.value)


REFUSED: dict[str, tuple[str, dict[str, Any], Form, str]] = {
    "pooling of a head": ("sequence-classification", {}, Form(pooling="mean"), "export a feature extractor"),
    "normalize of tokens": ("feature-extraction", {}, Form(normalize=True), "add a pooling"),
    "softmax without logits": ("question-answering", {}, Form(softmax=True), "gives none"),
    "argmax without a head": ("feature-extraction", {}, Form(argmax=True), "gives none"),
    "softmax of a score": ("sequence-classification", {"num_labels": 1}, Form(softmax=True), "gives a score"),
    "argmax of several labels": (
        "sequence-classification",
        {"problem_type": "multi_label_classification"},
        Form(argmax=True),
        "softmax gives their probabilities",
    ),
    "a cache of an encoder": ("masked-lm", {}, Form(cache="step"), "is_decoder is false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_forms_that_a_model_cannot_have(workshop: Any, case: str) -> None:
    task, changes, form, words = REFUSED[case]
    with pytest.raises(ExportError, match=words):
        check_form(workshop.model(task=task, **changes), form)


def test_all_reasons_arrive_together(workshop: Any) -> None:
    with pytest.raises(ExportError, match="3 problems"):
        check_form(workshop.model(task="question-answering"), Form(pooling="cls", softmax=True, cache="first"))


def test_a_scorer_embeds_by_itself(workshop: Any) -> None:
    with pytest.raises(ExportError, match="embeds questions and candidates itself"):
        check_form(workshop.model("realm", "scoring"), Form(inputs_embeds=True))
