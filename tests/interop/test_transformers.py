"""Models of transformers held in memory: the same numbers from the same Parameters, in both directions."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn

import calibration
import qdq
from qdq.errors import CheckpointError, ConfigError, MissingPackageError
from qdq.models.registry import FAMILIES, build, configure
from qdq.quantization.quantizer import Mode, set_mode
from qdq.quantization.spec import QuantSpec
from qdq.recipes.recipe import Recipe, Rule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qdq.models.attention import AttentionImplementation

transformers.logging.set_verbosity_error()

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OWN: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2, "classifier_dropout_prob": 0.0}
}
LIVE = ("bert", "albert", "megatron-bert", "roberta", "roberta-prelayernorm")
CASES = [pytest.param(name, task, id=f"{name}/{task}") for name in LIVE for task in FAMILIES[name].tasks]
GONE = [pytest.param(name, task, id=f"{name}/{task}") for name in ("qdqbert", "realm") for task in FAMILIES[name].tasks]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """The tensors here are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


def theirs_of(model_type: str = "bert", task: str = "feature-extraction", **changes: Any) -> Any:
    """A random model of transformers in which no parameter is zero or one."""
    cls = getattr(transformers, FAMILIES[model_type].tasks[task].name)
    config = cls.config_class(**{**SMALL, **OWN.get(model_type, {}), **changes})
    config._attn_implementation = "eager"
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def ours_of(model_type: str = "bert", task: str = "feature-extraction", **changes: Any) -> Any:
    return build(configure(model_type, **{**SMALL, **OWN.get(model_type, {}), **changes}), task).eval()


def batch(task: str = "feature-extraction") -> dict[str, torch.Tensor]:
    shape = (3, 2, 9) if task == "multiple-choice" else (3, 9)
    ids = torch.randint(5, SMALL["vocab_size"], shape)
    mask = torch.ones_like(ids)
    mask[0, ..., 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def tensors(output: Any) -> list[torch.Tensor]:
    return [value for value in output.to_tuple() if isinstance(value, torch.Tensor)]


def assert_agree(got: Any, want: Any) -> None:
    assert len(tensors(got)) == len(tensors(want)) > 0
    for mine, other in zip(tensors(got), tensors(want), strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


def identities(model: nn.Module) -> set[int]:
    return {id(parameter) for parameter in model.parameters()}


# --- both ways ---


@pytest.mark.parametrize(("model_type", "task"), CASES)
def test_from_transformers_same_numbers_and_the_very_parameters(model_type: str, task: str) -> None:
    theirs = theirs_of(model_type, task)
    ours = qdq.from_transformers(theirs)
    assert (ours.config.model_type, ours.task) == (model_type, task)
    used = {id(p) for name, p in theirs.named_parameters(remove_duplicate=False) if "bias" not in name}
    assert used <= identities(ours) <= identities(theirs)
    inputs = batch(task)
    with torch.no_grad():
        assert_agree(ours(**inputs), theirs(**inputs))


@pytest.mark.parametrize(("model_type", "task"), CASES)
def test_to_transformers_same_numbers_and_the_very_parameters(model_type: str, task: str) -> None:
    ours = ours_of(model_type, task)
    theirs = qdq.to_transformers(ours)
    assert type(theirs).__name__ == FAMILIES[model_type].tasks[task].name
    assert identities(theirs) == identities(ours)
    inputs = batch(task)
    with torch.no_grad():
        assert_agree(ours(**inputs), theirs(**inputs))


@pytest.mark.parametrize(("model_type", "task"), CASES)
def test_there_and_back_is_the_same_to_the_bit(model_type: str, task: str) -> None:
    ours = ours_of(model_type, task)
    again = qdq.from_transformers(qdq.to_transformers(ours))
    assert again.config == qdq.from_transformers(qdq.to_transformers(again)).config
    mine, theirs = (dict(model.named_parameters(remove_duplicate=False)) for model in (ours, again))
    assert list(mine) == list(theirs)
    assert all(theirs[name] is parameter for name, parameter in mine.items())
    inputs = batch(task)
    with torch.no_grad():
        for got, want in zip(tensors(again(**inputs)), tensors(ours(**inputs)), strict=True):
            assert torch.equal(got, want)


def test_saved_and_loaded_by_transformers(tmp_path: Path) -> None:
    ours = ours_of("bert", "masked-lm")
    qdq.to_transformers(ours).save_pretrained(tmp_path)
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(qdq.load(tmp_path)(**inputs).logits, ours(**inputs).logits)


# --- what sharing means ---


def test_training_step_on_one_side_is_seen_on_the_other() -> None:
    theirs = theirs_of("bert", "sequence-classification").train()
    ours = qdq.from_transformers(theirs)
    inputs = batch()
    before = theirs(**inputs).logits.detach()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours(**inputs, labels=torch.tensor([0, 1, 1])).loss.backward()
    assert theirs.bert.encoder.layer[0].attention.self.query.weight.grad is not None
    optimizer.step()
    after = theirs(**inputs).logits
    assert not torch.allclose(after, before)
    torch.testing.assert_close(ours(**inputs).logits, after, **CLOSE)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", LIVE)
def test_weights_are_tied_as_they_were(model_type: str, tied: bool) -> None:
    theirs = theirs_of(model_type, "masked-lm", tie_word_embeddings=tied)
    ours = qdq.from_transformers(theirs)
    assert (ours.head.decoder.weight is ours.embeddings.word.weight) is tied
    assert ours.config.tie_word_embeddings is tied
    again = qdq.to_transformers(ours)
    assert (again.get_output_embeddings().weight is again.get_input_embeddings().weight) is tied
    assert again.config.tie_word_embeddings is tied
    inputs = batch()
    with torch.no_grad():
        assert_agree(ours(**inputs), theirs(**inputs))
        assert_agree(ours(**inputs), again(**inputs))


def test_weights_that_were_untied_by_hand_stay_untied() -> None:
    theirs = theirs_of("bert", "masked-lm")
    theirs.cls.predictions.decoder.weight = nn.Parameter(torch.randn(61, 16))
    ours = qdq.from_transformers(theirs)
    assert ours.head.decoder.weight is theirs.cls.predictions.decoder.weight
    assert not ours.config.tie_word_embeddings
    inputs = batch()
    with torch.no_grad():
        assert_agree(ours(**inputs), theirs(**inputs))


def test_repeated_layers_share_their_parameters() -> None:
    theirs = theirs_of("albert")
    ours = qdq.from_transformers(theirs)
    first, second = (ours.encoder.layers[depth].attention.query.weight for depth in (0, 1))
    assert first is second is theirs.encoder.albert_layer_groups[0].albert_layers[0].attention.query.weight


@pytest.mark.parametrize("back", [False, True], ids=["from", "to"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_mode_type_and_frozen_parameters_are_kept(dtype: torch.dtype, training: bool, back: bool) -> None:
    source = (ours_of if back else theirs_of)("bert", "token-classification").to(dtype).train(training)
    source.get_parameter("embeddings.word.weight" if back else "bert.embeddings.word_embeddings.weight").requires_grad_(
        False
    )
    made: Any = qdq.to_transformers(source) if back else qdq.from_transformers(source)
    assert made.training is training
    assert all(module.training is training for module in made.modules())
    assert {parameter.dtype for parameter in made.parameters()} == {dtype}
    assert [p.requires_grad for p in made.parameters()].count(False) == 1
    with torch.no_grad():
        assert made(**batch()).logits.dtype == dtype


def test_meta_device_is_kept() -> None:
    with torch.device("meta"):
        theirs = theirs_of()
    ours = qdq.from_transformers(theirs)
    assert {p.device.type for p in ours.parameters()} == {"meta"}
    assert {t.device.type for t in qdq.to_transformers(ours).state_dict().values()} == {"meta"}


@pytest.mark.gpu
def test_device_is_kept() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    theirs = theirs_of("bert", "masked-lm").cuda()
    ours = qdq.from_transformers(theirs)
    again = qdq.to_transformers(ours)
    inputs = {name: tensor.cuda() for name, tensor in batch().items()}
    with torch.no_grad():
        assert_agree(ours(**inputs), theirs(**inputs))
        assert_agree(again(**inputs), theirs(**inputs))


def test_gradient_checkpointing_is_kept() -> None:
    theirs = theirs_of().train()
    assert not qdq.from_transformers(theirs).encoder.checkpointing
    theirs.activation_checkpointing_enable()
    ours = qdq.from_transformers(theirs)
    assert ours.encoder.checkpointing
    assert qdq.to_transformers(ours).is_activation_checkpointing


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_computed_as_asked_for(implementation: AttentionImplementation) -> None:
    theirs = theirs_of()
    ours = qdq.from_transformers(theirs, attn_implementation=implementation)
    assert ours.encoder.layers[0].attention.implementation == implementation
    assert qdq.to_transformers(ours).config._attn_implementation == implementation
    inputs = batch()
    with torch.no_grad():
        assert_agree(ours(**inputs), theirs(**inputs))


def test_encoder_without_pooler() -> None:
    theirs = transformers.BertModel(transformers.BertConfig(**SMALL), add_pooling_layer=False).eval()
    ours = qdq.from_transformers(theirs)
    assert ours.pooler is None
    assert qdq.to_transformers(ours).pooler is None
    inputs = batch()
    with torch.no_grad():
        assert_agree(ours(**inputs), theirs(**inputs))


def test_labels_and_own_fields_of_the_configuration_come_along() -> None:
    labels = {0: "good", 1: "bad", 2: "neither"}
    theirs = theirs_of(
        "albert",
        "sequence-classification",
        id2label=labels,
        label2id={label: index for index, label in labels.items()},
        problem_type="single_label_classification",
        down_scale_factor=3,
    )
    ours = qdq.from_transformers(theirs)
    assert ours.config.id2label == labels
    assert ours.config.problem_type == "single_label_classification"
    assert ours.config.extra["down_scale_factor"] == 3
    again = qdq.to_transformers(ours).config
    assert (again.id2label, again.down_scale_factor, again.num_hidden_groups) == (labels, 3, 2)


def test_decoder_with_cross_attention() -> None:
    theirs = theirs_of("bert", "causal-lm", is_decoder=True, add_cross_attention=True)
    ours = qdq.from_transformers(theirs)
    inputs = {**batch(), "encoder_hidden_states": torch.randn(3, 4, 16)}
    with torch.no_grad():
        want = ours(**inputs).logits
        torch.testing.assert_close(want, theirs(**inputs).logits, **CLOSE)
        torch.testing.assert_close(want, qdq.to_transformers(ours)(**inputs).logits, **CLOSE)


# --- with quantizers ---


def test_from_transformers_to_a_quantized_model() -> None:
    theirs = theirs_of("bert", "sequence-classification")
    ours = qdq.from_transformers(theirs)
    qdq.quantize(ours, "qdqbert")
    inputs = batch()
    with torch.no_grad():
        want = theirs(**inputs).logits
    calibration.calibrate(ours, [inputs])
    set_mode(ours, Mode.QUANTIZE)
    with torch.no_grad():
        got = ours(**inputs).logits
    assert not torch.equal(got, want)
    assert identities(ours) <= identities(theirs)
    again = qdq.to_transformers(ours)
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, want, **CLOSE)


def test_learned_scales_stay_behind() -> None:
    ours = ours_of("bert", "sequence-classification")
    inputs = batch()
    with torch.no_grad():
        want = ours(**inputs).logits
    spec = QuantSpec(learned_scale=True)
    qdq.quantize(ours, Recipe(name="learned", rules=(Rule(module="encoder.*", kind="linear", slot="*", spec=spec),)))
    calibration.calibrate(ours, [inputs])
    set_mode(ours, Mode.QUANTIZE)
    theirs = qdq.to_transformers(ours)
    scales = {id(p) for name, p in ours.named_parameters() if name.endswith("_quantizer.scale")}
    assert len(scales) == 2 * (6 + 4)
    assert identities(theirs) == identities(ours) - scales
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, want, **CLOSE)


# --- refusals ---


@pytest.mark.parametrize(("model_type", "task"), GONE)
def test_class_that_transformers_no_longer_has(model_type: str, task: str) -> None:
    name = FAMILIES[model_type].tasks[task].name
    with pytest.raises(ConfigError, match=rf"transformers {transformers.__version__} has no {name},"):
        qdq.to_transformers(ours_of(model_type, task))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param(
            {"position_embedding_type": "relative_key"},
            "encoder.layer.1.attention.self.distance_embedding.weight: it has none",
            id="relative positions",
        ),
        pytest.param(
            {"pruned_heads": {1: [0]}},
            "encoder.layer.1.attention.self.value.weight: it has [16, 16] for [8, 16]",
            id="pruned heads",
        ),
    ],
)
def test_model_that_transformers_can_no_longer_compute(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match="BertModel of the installed transformers cannot compute") as caught:
        qdq.to_transformers(ours_of(**changes))
    assert problem in str(caught.value)


class OwnBert(transformers.BertModel):
    """Computes what it likes."""


BertModel = type("BertModel", (nn.Module,), {})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(lambda: nn.Linear(2, 2), "torch.nn.modules.linear.Linear has no counterpart", id="no model"),
        pytest.param(
            lambda: transformers.DistilBertModel(transformers.DistilBertConfig(dim=4, n_heads=1, n_layers=1)),
            "DistilBertModel has no counterpart",
            id="another family",
        ),
        pytest.param(
            lambda: OwnBert(transformers.BertConfig(**SMALL)),
            r"OwnBert \(a subclass of BertModel, which may compute something else\) has no counterpart",
            id="a subclass",
        ),
        pytest.param(BertModel, "BertModel has no counterpart", id="a class of the same name"),
    ],
)
def test_class_without_counterpart_is_named_with_those_that_have_one(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        qdq.from_transformers(make())
    for name in ("BertModel", "AlbertForPreTraining", "RobertaPreLayerNormForCausalLM"):
        assert name in str(caught.value)
    assert "QDQBert" not in str(caught.value), "transformers has it no more"


def test_changed_model_is_refused_with_all_that_was_changed() -> None:
    theirs = theirs_of()
    layer = theirs.encoder.layer[0]
    layer.attention.self.query = nn.Linear(16, 16, bias=False)
    layer.intermediate.dense = nn.Linear(16, 23)
    layer.output.adapter = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="this BertModel was changed after it was built: 5 problems") as caught:
        qdq.from_transformers(theirs)
    for problem in (
        "encoder.layer.0.attention.self.query.bias is missing",
        "encoder.layer.0.intermediate.dense.weight is [23, 16] float32, must be [24, 16] float",
        "encoder.layer.0.intermediate.dense.bias is [23] float32, must be [24] float",
        "encoder.layer.0.output.adapter.weight is unexpected",
        "encoder.layer.0.output.adapter.bias is unexpected",
    ):
        assert problem in str(caught.value)


def test_configuration_that_cannot_be_followed() -> None:
    theirs = theirs_of()
    theirs.config.hidden_act = "swiglu"
    with pytest.raises(ConfigError, match="hidden_act is 'swiglu'"):
        qdq.from_transformers(theirs)


@pytest.mark.parametrize("back", [False, True], ids=["from", "to"])
def test_missing_package_is_named_with_its_cure(back: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours_of() if back else theirs_of()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'qdq\[transformers\]'") as caught:
        (qdq.to_transformers if back else qdq.from_transformers)(model)
    assert caught.value.exit_code == 3
