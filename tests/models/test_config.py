"""Configurations: defaults of each family, and every value that cannot be followed, all at once."""

from __future__ import annotations

from typing import Any

import pytest

from qdq.errors import ConfigError
from qdq.models.bert import BertConfig, build
from qdq.models.config import BertLikeConfig, configuration
from qdq.models.family import Family, standard_tasks
from qdq.models.huggingface import config_to_json
from qdq.models.keymap import BERT_KEYS
from qdq.models.registry import FAMILIES, configure


@pytest.mark.parametrize("model_type", ["bert", "albert", "megatron-bert", "roberta", "roberta-prelayernorm"])
def test_defaults_are_upstreams(model_type: str) -> None:
    import transformers

    ours, theirs = configure(model_type), transformers.AutoConfig.for_model(model_type)
    fields = vars(theirs).keys() & vars(ours).keys() - {"architectures", "id2label", "label2id", "torchscript"}
    # transformers 5 gives token ids of no consequence to some families
    different = {name for name in fields if getattr(ours, name) != getattr(theirs, name)}
    assert different <= {"bos_token_id", "eos_token_id"}
    assert len(fields) > 20


def test_plain_config_of_a_family_is_its_defaults() -> None:
    assert BertConfig() == configure("bert", architectures=())


@pytest.mark.parametrize(
    ("layers", "groups", "inner", "order"),
    [
        (12, 1, 1, "0" * 12),
        (12, 5, 1, "000112223344"),
        (4, 2, 2, "0101" + "2323"),
    ],
    ids=["one group", "uneven groups", "inner layers"],
)
def test_albert_layer_order(layers: int, groups: int, inner: int, order: str) -> None:
    config = configure("albert", num_hidden_layers=layers, num_hidden_groups=groups, inner_group_num=inner)
    assert "".join(str(group * inner + index) for group, index in config.layer_order) == order


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "zero layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0, must be a positive whole number"),
    "text for a number": ({"hidden_size": "768"}, "hidden_size is '768', must be a positive whole number"),
    "true for a number": ({"vocab_size": True}, "vocab_size is True"),
    "number for a switch": ({"is_decoder": 1}, "is_decoder is 1, must be true or false"),
    "heads": ({"hidden_size": 770}, "hidden_size 770 is not a multiple of num_attention_heads 12"),
    "activation": ({"hidden_act": "geglu"}, "hidden_act is 'geglu', must be one of gelu, gelu_10"),
    "activation list": ({"hidden_act": ["gelu"]}, "hidden_act is"),
    "positions": ({"position_embedding_type": "rotary"}, "must be one of absolute, relative_key, relative_key_query"),
    "dropout": ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5, must be a probability"),
    "dropout none": ({"hidden_dropout_prob": None}, "hidden_dropout_prob is None, must be a probability"),
    "eps": ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0"),
    "chunks": ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward is -1"),
    "problem": ({"problem_type": "ranking"}, "problem_type is 'ranking'"),
    "padding": ({"pad_token_id": 40000}, "pad_token_id is 40000, must be null or below vocab_size 30522"),
    "cross-attention": ({"add_cross_attention": True}, "add_cross_attention needs is_decoder"),
    "pruned layer": ({"pruned_heads": {"12": [0]}}, "pruned_heads names layer 12, the model has 12"),
    "pruned head": ({"pruned_heads": {"0": [12]}}, r"pruned_heads of layer 0 are \[12\], there are 12"),
    "pruned all": ({"pruned_heads": {"0": list(range(12))}}, "pruned_heads of layer 0 leaves no head"),
    "pruned text": ({"pruned_heads": "none"}, "pruned_heads is 'none', must map layers"),
    "architectures": ({"architectures": "BertModel"}, "architectures is 'BertModel', must be a list of class names"),
    "labels": ({"id2label": ["a"]}, "id2label is .*, must map numbers to names"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_value_that_cannot_be_followed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure("bert", **changes)


def test_problems_arrive_together() -> None:
    with pytest.raises(ConfigError) as error:
        configure("bert", hidden_size=0, hidden_act="x", layer_norm_eps="y")
    assert all(name in str(error.value) for name in ("3 problems", "hidden_size", "hidden_act", "layer_norm_eps"))


def test_rules_of_families() -> None:
    with pytest.raises(ConfigError, match="is_decoder is not possible for model_type 'albert'"):
        configure("albert", is_decoder=True)
    with pytest.raises(ConfigError, match="counts positions from it"):
        configure("roberta-prelayernorm", pad_token_id=None)
    with pytest.raises(ConfigError, match="num_hidden_groups 13 exceeds num_hidden_layers 12"):
        configure("albert", num_hidden_groups=13)
    with pytest.raises(ConfigError, match="id2label has 1 entries, but num_labels is 3"):
        BertConfig(id2label={0: "a"}, num_labels=3)


def test_classifier_dropout_is_the_familys_own() -> None:
    assert configure("bert", classifier_dropout=0.3).head_dropout == 0.3
    assert configure("bert").head_dropout == configure("bert").hidden_dropout_prob
    assert configure("albert").head_dropout == 0.1
    assert configure("albert", classifier_dropout_prob=None, hidden_dropout_prob=0.2).head_dropout == 0.2
    # QDQBERT and Megatron-BERT have no such field
    assert configure("megatron-bert", classifier_dropout=0.3).head_dropout == 0.1


def test_every_family_has_the_common_tasks() -> None:
    for family in FAMILIES.values():
        assert "feature-extraction" in family.tasks
        assert len({task.name for task in family.tasks.values()}) == len(family.tasks)


@configuration
class RenamedConfig(BertLikeConfig):
    """A configuration whose files call some fields otherwise, one of them in two ways."""

    names = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "depth": "num_hidden_layers"}  # noqa: RUF012

    model_type: str = "renamed"
    hidden_size: int = 96


class TestOtherNames:
    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        family = Family(
            config=RenamedConfig, build=build, prefix="renamed", keys=BERT_KEYS, tasks=standard_tasks("Renamed")
        )
        monkeypatch.setitem(FAMILIES, "renamed", family)

    @pytest.mark.parametrize("name", ["n_layers", "depth", "num_hidden_layers"])
    def test_a_field_is_written_back_under_the_name_it_was_read_with(self, name: str) -> None:
        config = configure("renamed", **{name: 5})
        assert config.num_hidden_layers == 5
        assert config.read_as == ({} if name == "num_hidden_layers" else {"num_hidden_layers": name})
        written = config_to_json(config)
        # Ours is not upstream's: it would be ignored there, and the default be taken.
        upstream = "n_layers" if name == "num_hidden_layers" else name
        assert written[upstream] == 5
        assert {"n_layers", "depth", "num_hidden_layers"} & set(written) == {upstream}

    def test_fields_that_were_not_read_have_the_familys_defaults_and_upstreams_names(self) -> None:
        config = configure("renamed", depth=5)
        written = config_to_json(config)
        assert (config.hidden_size, written["dim"]) == (96, 96)
        assert "hidden_size" not in written

    def test_names_do_not_matter_for_equality(self) -> None:
        assert configure("renamed", dim=48) == configure("renamed", hidden_size=48)
        assert configure("renamed", dim=48).read_as != configure("renamed", hidden_size=48).read_as

    def test_names_of_other_families_are_unknown_and_written_back(self) -> None:
        config = configure("bert", dim=48)
        assert config.hidden_size == 768
        assert config.extra == {"dim": 48}
        assert config_to_json(config)["dim"] == 48
