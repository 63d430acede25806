"""What a model does beside computing: caches, pruning, resizing, initialisation, modes, export."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.errors import ConfigError
from qdq.models.bert import BertConfig
from qdq.models.cache import masked_slot, new_tokens, reorder_cache
from qdq.models.huggingface import load_model, save_model
from qdq.models.inputs import InputError
from qdq.models.ops import Add, MatMul
from qdq.models.registry import FAMILIES, build, configure
from qdq.models.task_models import SequenceClassification

if TYPE_CHECKING:
    from pathlib import Path

DECODERS = ["bert", "qdqbert", "megatron-bert", "roberta", "roberta-prelayernorm", "realm"]


def small(kit: Any, model_type: str, task: str = "feature-extraction", **changes: Any) -> Any:
    return build(configure(model_type, **kit.fields(model_type, **changes)), task).eval()


# --- operations ---


def test_operations_as_modules() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert torch.equal(MatMul()(a, b), a @ b)
    assert torch.equal(MatMul(transpose_other=True)(a, b.transpose(-1, -2)), a @ b)
    assert torch.equal(Add()(a, a), a + a)
    assert repr(MatMul(transpose_other=True)) == "MatMul(transpose_other=True)"
    assert not [*MatMul().parameters(), *Add().parameters()]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_modules_have_the_same_names_in_every_family(model_type: str, kit: Any) -> None:
    names = {name for name, _ in small(kit, model_type).named_modules()}
    parts = ("query", "key", "value", "scores", "context", "output", "add", "norm")
    assert {f"encoder.layers.1.attention.{part}" for part in parts} <= names
    assert {f"encoder.layers.1.feed_forward.{part}" for part in ("up", "activation", "down", "add", "norm")} <= names
    assert {"embeddings.word", "embeddings.position", "embeddings.token_type", "pooler"} <= names


def test_projections_that_read_the_same_tensor(kit: Any) -> None:
    layer = small(kit, "bert", is_decoder=True, add_cross_attention=True).encoder.layers[0]
    assert layer.attention.same_input == (("query", "key", "value"),)
    assert layer.cross_attention.same_input == (("key", "value"),)


# --- decoding ---


@pytest.mark.parametrize("model_type", DECODERS)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_cached_steps_equal_one_pass(model_type: str, cross: bool, kit: Any, assert_same: Any) -> None:
    model = small(kit, model_type, is_decoder=True, add_cross_attention=cross)
    ids = torch.randint(4, 83, (2, 9))
    memory = {"encoder_hidden_states": torch.randn(2, 5, 32)} if cross else {}
    with torch.no_grad():
        whole = model(ids, **memory).last_hidden_state
        step = model(ids[:, :4], **memory)
        assert len(step.past_key_values[0]) == (4 if cross else 2)
        pieces = [step.last_hidden_state]
        for start, stop in ((4, 7), (7, 8), (8, 9)):
            step = model(**new_tokens(ids[:, :stop], step.past_key_values), **memory)
            assert step.last_hidden_state.shape[1] == stop - start
            pieces.append(step.last_hidden_state)
    assert_same(torch.cat(pieces, dim=1), whole)


def test_new_tokens_keeps_the_last_when_all_are_cached() -> None:
    ids = torch.tensor([[5, 6, 7]])
    cache = ((torch.zeros(1, 1, 3, 1),) * 2,)
    assert new_tokens(ids, cache)["input_ids"].tolist() == [[7]]
    assert new_tokens(ids, None)["input_ids"].tolist() == [[5, 6, 7]]
    mask = torch.tensor([[0, 1, 1]])
    assert new_tokens(ids, cache, mask)["attention_mask"] is mask


def test_masked_slot_is_a_hidden_padding_token(kit: Any, assert_same: Any) -> None:
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    given = masked_slot(ids, mask, 0)
    assert given["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 1, 0]]
    assert given["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    model = small(kit, "bert", "masked-lm")
    with torch.no_grad():
        assert_same(model(**given).logits[:, :3], model(ids, mask).logits)
        assert_same(model(**masked_slot(ids, None, 0)).logits[:, :3], model(ids).logits)
    with pytest.raises(InputError, match="pad_token_id is null"):
        masked_slot(ids, mask, None)


def test_reordered_cache_continues_the_chosen_beams(kit: Any, assert_same: Any) -> None:
    model = small(kit, "bert", "causal-lm", is_decoder=True)
    ids, beams = torch.randint(4, 83, (3, 5)), torch.tensor([2, 2, 0])
    with torch.no_grad():
        cache = reorder_cache(model(ids).past_key_values, beams)
        got = model(torch.full((3, 1), 9), past_key_values=cache).logits
        want = model(torch.cat([ids[beams], torch.full((3, 1), 9)], dim=1)).logits[:, -1:]
    assert_same(got, want)


def test_sdpa_decodes_like_eager(kit: Any, assert_same: Any) -> None:
    model = small(kit, "bert", is_decoder=True)
    ids, mask = torch.randint(4, 83, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with torch.no_grad():
        want = model(ids, mask).last_hidden_state
        model.set_attn_implementation("sdpa")
        assert_same(model(ids, mask).last_hidden_state, want)
        # what the fused function cannot give comes from the modules
        assert len(model(ids, mask, output_attentions=True).attentions) == 3


def test_cache_is_given_only_when_asked_for(kit: Any) -> None:
    ids = torch.full((1, 3), 5)
    assert small(kit, "bert")(ids, use_cache=True).past_key_values is None
    # a model that is no decoder may still be given a cache, as for learned prefixes
    prefix = ((torch.randn(1, 4, 2, 8),) * 2,) * 3
    assert small(kit, "bert")(ids, past_key_values=prefix).last_hidden_state.shape == (1, 3, 32)
    decoder = small(kit, "bert", "causal-lm", is_decoder=True)
    assert decoder(ids).past_key_values is not None
    assert decoder(ids, use_cache=False).past_key_values is None
    assert decoder(ids, labels=ids).past_key_values is None
    assert small(kit, "bert", is_decoder=True, use_cache=False)(ids).past_key_values is None


# --- masks ---


@pytest.mark.parametrize("model_type", FAMILIES)
def test_padding_changes_nothing(model_type: str, kit: Any, assert_same: Any) -> None:
    model = small(kit, model_type)
    ids = torch.randint(4, 83, (2, 6))
    padded = torch.cat([ids, torch.full((2, 4), 1)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 4] * 2)
    with torch.no_grad():
        want = model(ids).last_hidden_state
        assert_same(model(padded, mask).last_hidden_state[:, :6], want)
        assert_same(model(padded, mask.bool()).last_hidden_state[:, :6], want)
        assert_same(model(padded, mask[:1]).last_hidden_state[:, :6], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_hides_padding_too(dtype: torch.dtype, kit: Any) -> None:
    model = small(kit, "bert", initializer_range=0.05).to(dtype)
    ids, mask = torch.randint(4, 83, (2, 6)), torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        output = model(ids, mask, output_attentions=True)
    assert output.last_hidden_state.dtype == dtype
    assert bool(output.last_hidden_state.isfinite().all())
    assert not output.attentions[0][1, :, :, 2:].any()


def test_row_that_sees_nothing_is_uniform(kit: Any, assert_same: Any) -> None:
    model = small(kit, "bert")
    weights = model(torch.full((1, 4), 5), torch.zeros(1, 4), output_attentions=True).attentions[0]
    assert_same(weights, torch.full_like(weights, 0.25))


def test_albert_uses_the_first_rows_of_a_head_mask(kit: Any) -> None:
    model = small(kit, "albert", num_hidden_layers=4, num_hidden_groups=1)
    ids, mask = torch.full((1, 4), 5), torch.ones(4, 4)
    with torch.no_grad():
        want = model(ids).last_hidden_state
        mask[3] = 0
        assert torch.equal(model(ids, head_mask=mask).last_hidden_state, want)
        mask[0, 1] = 0
        assert not torch.allclose(model(ids, head_mask=mask).last_hidden_state, want)


# --- changes of a model ---


@pytest.mark.parametrize("model_type", ["bert", "albert", "megatron-bert", "roberta", "roberta-prelayernorm"])
def test_pruned_heads_equal_masked_heads(model_type: str, kit: Any, assert_same: Any) -> None:
    model = small(
        kit, model_type, **({"num_hidden_groups": 1, "num_hidden_layers": 2} if model_type == "albert" else {})
    )
    ids = torch.randint(4, 83, (2, 6))
    mask = torch.ones(model.config.num_hidden_layers, 4)
    mask[0, [1, 3]] = 0
    with torch.no_grad():
        want = model(ids, head_mask=mask).last_hidden_state
        model.prune_heads({})
        model.prune_heads({0: [1]})
        model.prune_heads({0: [3, 1]})
        assert_same(model(ids).last_hidden_state, want)
    assert model.config.pruned_heads == {0: (1, 3)}
    assert model.encoder.layers[0].attention.output.in_features == 16


class OtherLinear(torch.nn.Linear):
    pass


@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_heads_of_a_changed_model_are_not_pruned(model_type: str, name: str, kit: Any) -> None:
    model = small(kit, model_type)
    setattr(model.encoder.layers[1].attention, name, OtherLinear(32, 32))
    before = model.state_dict()
    message = f"encoder.layers.1.attention.{name} is OtherLinear, not a plain Linear: heads can only be pruned before"
    with pytest.raises(InputError, match=message):
        model.prune_heads({0: [1]})
    assert model.config.pruned_heads == {}
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({3: [0]}, "pruned_heads names layer 3, the model has 3"),
        ({0: [4]}, r"pruned_heads of layer 0 are \[4\], there are 4"),
        ({0: range(4)}, "pruned_heads of layer 0 leaves no head"),
    ],
    ids=["layer", "head", "all heads"],
)
def test_heads_that_cannot_be_pruned(heads: dict[int, Any], message: str, kit: Any) -> None:
    model = small(kit, "bert")
    with pytest.raises(ConfigError, match=message):
        model.prune_heads(heads)
    assert model.encoder.layers[0].attention.query.out_features == 32


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("size", [60, 90], ids=["smaller", "larger"])
def test_resized_vocabulary(tied: bool, size: int, kit: Any, tmp_path: Path, assert_same: Any) -> None:
    model = small(kit, "bert", "masked-lm", tie_word_embeddings=tied)
    ids = torch.randint(4, 60, (2, 6))
    kept = min(size, 83)
    with torch.no_grad():
        want = model(ids).logits[..., :kept]
        assert model.resize_token_embeddings(size) is model.embeddings.word
        got = model(ids).logits
    assert got.shape[-1] == size
    assert_same(got[..., :kept], want)
    assert (model.head.decoder.weight is model.embeddings.word.weight) is tied
    assert model.embeddings.word.padding_idx is None
    save_model(model, tmp_path)
    assert load_model(tmp_path).config.vocab_size == size


def test_resized_to_a_multiple(kit: Any) -> None:
    model = small(kit, "bert", "pre-training")
    model.resize_token_embeddings(84, pad_to_multiple_of=16)
    assert model.config.vocab_size == 96
    assert model.head.predictions.decoder.out_features == 96
    encoder = small(kit, "bert")
    encoder.resize_token_embeddings(10)
    assert encoder.embeddings.word.num_embeddings == 10


@pytest.mark.parametrize("model_type", FAMILIES)
def test_initialisation(model_type: str, kit: Any) -> None:
    model = small(kit, model_type, vocab_size=3000, pad_token_id=2, initializer_range=0.05)
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.endswith("bias"):
            assert not values.any(), name
        elif "norm" in name:
            assert bool((values == 1).all()), name
        else:
            assert 0.03 < float(values.std()) < 0.07, name
    # Megatron-BERT alone does not treat the padding token differently
    assert bool(model.embeddings.word.weight[2].any()) is (model_type == "megatron-bert")


def test_padding_row_of_a_tied_table_is_initialised_too(kit: Any) -> None:
    model = small(kit, "bert", "masked-lm", pad_token_id=2)
    assert model.head.decoder.weight is model.embeddings.word.weight
    assert not model.embeddings.word.weight[2].any()


def test_torchscript_copies_the_tied_table(kit: Any, tmp_path: Path, assert_same: Any) -> None:
    built = small(kit, "bert", "masked-lm", torchscript=True)
    save_model(built, tmp_path)
    ids = torch.full((2, 3), 5)
    for model in (built, load_model(tmp_path)):
        decoder, table = model.head.decoder.weight, model.embeddings.word.weight
        assert decoder is not table
        assert torch.equal(decoder, table)
        with torch.no_grad():
            assert_same(torch.jit.trace(model, (ids,))(ids)[0], model(ids)[0])
    built.resize_token_embeddings(90)
    assert torch.equal(built.head.decoder.weight, built.embeddings.word.weight)


@pytest.mark.parametrize("model_type", ["bert", "qdqbert", "megatron-bert", "roberta", "roberta-prelayernorm"])
def test_gradient_checkpointing_gives_the_same_gradients(model_type: str, kit: Any, assert_same: Any) -> None:
    model = small(kit, model_type).train()
    ids = torch.randint(4, 83, (2, 6))

    def gradients() -> list[Any]:
        model.zero_grad()
        model(ids).last_hidden_state.square().mean().backward()
        return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    want = gradients()
    model.gradient_checkpointing_enable()
    assert_same(gradients(), want)
    model.gradient_checkpointing_disable()
    assert not model.encoder.checkpointing


@pytest.mark.parametrize("model_type", ["albert", "realm"])
def test_gradient_checkpointing_is_not_offered(model_type: str, kit: Any) -> None:
    with pytest.raises(InputError, match=f"'{model_type}' does not offer gradient checkpointing"):
        small(kit, model_type).gradient_checkpointing_enable()


def test_gradient_checkpointing_turns_the_cache_off(kit: Any) -> None:
    model = small(kit, "bert", is_decoder=True).train()
    model.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="use_cache is off"):
        assert model(torch.full((1, 3), 5)).past_key_values is None


def test_dropout_where_upstream_has_it(kit: Any) -> None:
    model = small(kit, "bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    ids = torch.full((1, 3), 5)
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    model.set_attn_implementation("sdpa")
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    albert = small(kit, "albert", hidden_dropout_prob=0.5)
    assert albert.encoder.layers[0].feed_forward.dropout.p == 0.0
    assert albert.encoder.layers[0].attention.output_dropout.p == 0.5


def test_problem_type_is_decided_once(kit: Any) -> None:
    model = small(kit, "bert", "sequence-classification")
    assert isinstance(model, SequenceClassification)
    model(torch.full((2, 3), 5), labels=torch.tensor([0, 1]))
    assert model.config.problem_type == "single_label_classification"


def test_ignored_labels_give_nan(kit: Any) -> None:
    model = small(kit, "bert", "token-classification")
    assert model(torch.full((1, 3), 5), labels=torch.full((1, 3), -100)).loss.isnan()


def test_pre_training_needs_both_labels(kit: Any) -> None:
    ids = torch.full((2, 3), 5)
    model = small(kit, "bert", "pre-training")
    assert model(ids, labels=ids).loss is None
    assert small(kit, "albert", "pre-training")(ids, sentence_order_label=torch.tensor([0, 1])).loss is None


def test_old_name_of_the_next_sentence_label(kit: Any) -> None:
    model, ids, labels = small(kit, "bert", "next-sentence"), torch.full((2, 3), 5), torch.tensor([0, 1])
    with pytest.warns(FutureWarning, match="use labels"):
        old = model(ids, next_sentence_label=labels).loss
    assert torch.equal(old, model(ids, labels=labels).loss)


# --- outputs ---


def test_output_is_a_tuple_and_a_mapping(kit: Any) -> None:
    model, ids = small(kit, "bert", "masked-lm"), torch.full((1, 3), 5)
    output = model(ids, output_hidden_states=True)
    assert list(output) == ["logits", "hidden_states"]
    assert len(output) == 2
    assert output[0] is output["logits"] is output.logits is output.values()[0]
    assert output[1:] == (output.hidden_states,)
    with pytest.raises(KeyError):
        output["loss"]


def test_tuple_form(kit: Any) -> None:
    ids = torch.full((1, 3), 5)
    model = small(kit, "bert")
    assert len(model(ids, return_dict=False)) == 2
    model.pooler = None
    hidden, pooled, states = model(ids, return_dict=False, output_hidden_states=True)
    assert pooled is None
    assert (hidden.shape, len(states)) == ((1, 3, 32), 4)
    assert isinstance(small(kit, "bert", return_dict=False)(ids), tuple)
    assert isinstance(small(kit, "bert", torchscript=True)(ids), tuple)
    configured = small(kit, "bert", output_attentions=True, output_hidden_states=True)(ids)
    assert (len(configured.attentions), len(configured.hidden_states)) == (3, 4)


def test_marginal_loss_of_nothing_is_zero(kit: Any) -> None:
    model = small(kit, "realm", "masked-lm")
    ids = torch.full((1, 2, 4), 5)
    scores, labels = torch.zeros(1, 2), torch.full((1, 4), 7)
    assert model(ids, relevance_score=scores, labels=labels, mlm_mask=torch.zeros(1, 4)).loss == 0
    assert model(ids, relevance_score=scores, labels=torch.full((1, 4), -100)).loss == 0
    assert model(ids, relevance_score=scores, labels=labels).loss > 0
    assert model(ids).loss is None


def test_scorer_with_an_embedder_for_each_side(kit: Any) -> None:
    scorer, embedder = small(kit, "realm", "scoring"), small(kit, "realm", "retrieval")
    ids, embeds = torch.full((2, 6), 5), torch.randn(4, 5, 32)
    assert scorer.query_embedder is scorer.embedder
    before = scorer(ids, candidate_inputs_embeds=embeds)
    scorer.query_embedder = embedder
    after = scorer(ids, candidate_inputs_embeds=embeds)
    assert after.relevance_score.shape == (2, 2)
    assert torch.equal(after.query_score, embedder(ids).projected_score)
    assert torch.equal(after.candidate_score, before.candidate_score)
    assert len(scorer(ids, candidate_inputs_embeds=embeds, return_dict=False)) == 3


def test_configuration_of_another_family_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"make it with configure\('albert'\)"):
        build(BertConfig(model_type="albert"))


# --- export ---


@pytest.mark.parametrize("model_type", FAMILIES)
def test_exported_graph_takes_any_batch_and_length(model_type: str, kit: Any, assert_same: Any) -> None:
    model = small(kit, model_type, chunk_size_feed_forward=4)
    inputs = kit.inputs("feature-extraction", kit.fields(model_type))
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")}
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, axes), strict=False)
        other = kit.inputs("feature-extraction", kit.fields(model_type), batch=4, length=20)
        assert_same(exported.module()(**other).to_tuple(), model(**other).to_tuple())
    operators = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    layers = len(model.encoder.layers)
    assert sum("layer_norm" in name for name in operators) == sum(
        isinstance(module, torch.nn.LayerNorm) for module in model.modules()
    )
    assert sum("softmax" in name for name in operators) == layers
    assert sum("gelu" in name for name in operators) == layers
    assert not [name for name in operators if "assert_scalar" in name or "sym_constrain" in name]


def test_compiled_model_agrees(kit: Any, assert_same: Any) -> None:
    model = small(kit, "bert")
    ids = torch.full((2, 6), 5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert_same(compiled(ids).to_tuple(), model(ids).to_tuple())


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("sequence-classification", 1),
        ("token-classification", 1),
        ("question-answering", 2),
        ("masked-lm", 1),
        ("next-sentence", 1),
        ("pre-training", 2),
        ("causal-lm", 1),
        ("multiple-choice", 1),
    ],
)
def test_every_task_exports_and_gives_no_loss_without_labels(task: str, outputs: int, kit: Any) -> None:
    model = small(kit, "bert", task)
    inputs = {
        key: kit.inputs(task, kit.fields("bert"))[key] for key in ("input_ids", "attention_mask", "token_type_ids")
    }
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs, strict=False)
    assert len(exported.module()(**inputs).to_tuple()) == outputs


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
@pytest.mark.parametrize("model_type", ["bert", "albert"])
def test_relative_positions_export_with_any_length(kind: str, model_type: str, kit: Any, assert_same: Any) -> None:
    model = small(kit, model_type, position_embedding_type=kind)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=40)}
    ids = torch.randint(4, 83, (4, 20))
    with torch.no_grad():
        exported = torch.export.export(
            model, (ids[:2, :7].contiguous(),), dynamic_shapes={"input_ids": axes}, strict=False
        )
        assert_same(exported.module()(ids).to_tuple(), model(ids).to_tuple())


def test_reader_without_labels_gives_a_span_and_no_loss(kit: Any) -> None:
    model = small(kit, "realm", "question-answering")
    evidence = torch.tensor([[0, 0, 1, 1, 1, 0]] * 3)
    result = model(torch.full((2, 6), 5), relevance_score=torch.tensor([0.0, 9.0, 1.0]), block_mask=evidence)
    assert list(result) == ["block_idx", "candidate", "start_pos", "end_pos"]
    assert result.block_idx == 1
    assert 2 <= int(result.start_pos) <= int(result.end_pos) <= 4


def test_reader_counts_spans_by_width_first(kit: Any) -> None:
    starts, ends = small(kit, "realm", "question-answering").head.spans(4, torch.device("cpu"))
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [
        (0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (1, 2), (2, 3), (0, 2), (1, 3),
    ]  # fmt: skip
