"""Names of tensors inside of wrappers and in the words of other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qdq.errors import CheckpointError
from qdq.models.huggingface import upstream_state
from qdq.models.registry import FAMILIES
from qdq.models.stored_names import read_names

if TYPE_CHECKING:
    from tests.models.support import SmallModels

EVERY_TASK = [
    pytest.param(family.model_type, task, id=f"{family.model_type}/{task}")
    for family in FAMILIES.values()
    for task in family.tasks
]


def names_of(small_models: SmallModels, model_type: str = "bert", task: str = "sequence-classification") -> list[str]:
    return [*upstream_state(small_models.build(model_type, task))]


@pytest.mark.parametrize(("model_type", "task"), EVERY_TASK)
def test_plain_names_stay_as_they_are(model_type: str, task: str, small_models: SmallModels) -> None:
    names = names_of(small_models, model_type, task)
    found = read_names(names, FAMILIES[model_type])
    assert found.names == {name: name for name in names}
    assert not found.notes


@pytest.mark.parametrize(("model_type", "task"), EVERY_TASK)
@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "0.auto_model.", "base_model.model."])
def test_what_a_wrapper_adds_is_removed(prefix: str, model_type: str, task: str, small_models: SmallModels) -> None:
    names = names_of(small_models, model_type, task)
    found = read_names([prefix + name for name in names], FAMILIES[model_type])
    assert found.names == {prefix + name: name for name in names}
    (note,) = found.notes
    assert "which a wrapper of the model adds" in note


def test_wrappers_inside_of_a_name(small_models: SmallModels) -> None:
    names = names_of(small_models)
    stored = [name.replace("layer.0.", "layer.0._fsdp_wrapped_module._orig_mod.") for name in names]
    found = read_names(stored, FAMILIES["bert"])
    assert [*found.names.values()] == names
    assert found.notes == (
        "the names of the tensors are read without '_fsdp_wrapped_module.' and '_orig_mod.', which a wrapper of the "
        "model adds",
    )


def test_a_head_may_lie_outside_of_the_wrapper(small_models: SmallModels) -> None:
    names = names_of(small_models)
    stored = [name.replace("bert.", "net.") for name in names]
    found = read_names(stored, FAMILIES["bert"])
    assert [*found.names.values()] == [name.removeprefix("bert.") for name in names]


def test_what_is_left_over_keeps_its_name(small_models: SmallModels) -> None:
    names = names_of(small_models)
    stored = [*(f"model.{name}" for name in names), "loss_fn.weight", "model.extra.bias"]
    found = read_names(stored, FAMILIES["bert"]).names
    assert (found["loss_fn.weight"], found["model.extra.bias"]) == ("loss_fn.weight", "extra.bias")


def test_two_models_are_refused_and_one_can_be_left_out(small_models: SmallModels) -> None:
    names = names_of(small_models)
    stored = [f"{part}.{name}" for part in ("student", "teacher") for name in names]
    with pytest.raises(CheckpointError, match=r"several models, .*'student\.' \(\d+\) and 'teacher\.'.*--ignore-keys"):
        read_names(stored, FAMILIES["bert"])
    found = read_names(stored, FAMILIES["bert"], ignore_keys=["teacher.*"])
    assert found.names == {f"student.{name}": name for name in names}


def test_names_of_another_family_are_no_wrapper(small_models: SmallModels) -> None:
    names = names_of(small_models, "roberta")
    assert read_names(names, FAMILIES["bert"]).names == {name: name for name in names}


def test_names_of_nvidia(small_models: SmallModels) -> None:
    names = names_of(small_models)
    stored = [name.replace("intermediate.dense", "intermediate.dense_act") for name in names]
    ranges = ["bert.encoder.layer.0.intermediate.dense_act._input_quantizer._amax"]
    found = read_names(stored + ranges, FAMILIES["bert"])
    assert [*found.names.values()] == names
    assert [note.partition(" ")[0] for note in found.notes] == ["'dense_act',", "1"]
    kept = read_names(stored + ranges, FAMILIES["bert"], with_ranges=True).names
    assert kept[ranges[0]] == "bert.encoder.layer.0.intermediate.dense._input_quantizer._amax"


@pytest.mark.parametrize("pattern", ["fit_dense.*", "module.fit_dense.*", "*fit_dense*"])
def test_patterns_match_names_with_and_without_the_wrapper(pattern: str, small_models: SmallModels) -> None:
    names = names_of(small_models)
    stored = [f"module.{name}" for name in [*names, "fit_dense.weight", "fit_dense.bias"]]
    found = read_names(stored, FAMILIES["bert"], ignore_keys=[pattern])
    assert [*found.names.values()] == names
    assert len(found.notes) == 1


def test_a_pattern_that_matches_nothing_is_told(small_models: SmallModels) -> None:
    found = read_names(names_of(small_models), FAMILIES["bert"], ignore_keys=["fit_dens.*"])
    assert found.notes == ("--ignore-keys 'fit_dens.*' matches no tensor",)


@pytest.mark.parametrize("kind", ["query.lora_A.default.weight", "query.base_layer.weight"])
def test_an_adapter_that_is_not_merged(kind: str, small_models: SmallModels) -> None:
    stored = [*names_of(small_models), f"base_model.model.bert.encoder.layer.0.attention.self.{kind}"]
    with pytest.raises(CheckpointError, match=r"adapter that is not merged .*merge_and_unload"):
        read_names(stored, FAMILIES["bert"])
