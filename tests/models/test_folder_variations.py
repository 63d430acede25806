"""Folders whose ``config.json`` holds what real ones hold: the outputs of transformers, a refusal, or a named warning.

A variation changes fields of a tiny model's ``config.json``. What it must lead to stands beside it:

- ``same``: qdq computes what transformers computes, and says nothing;
- ``warned``: a warning names the field;
- ``refused``: an error names it.

What qdq writes of a folder is then loaded by transformers, which has to compute the same as qdq.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import Tensor

from qdq.errors import QDQError
from qdq.models.config_fields import CONFIG_FIELDS
from qdq.models.huggingface import load_model, save_model
from qdq.models.registry import FAMILIES, fields_of
from tests.models.support import SMALL, assert_same

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The classes of upstream on which variations are tried; the first is the usual one.
CLASSES = {
    "BertForSequenceClassification": "bert",
    "BertModel": "bert",
    "BertLMHeadModel": "bert",
    "BertForMaskedLM": "bert",
    "RobertaForSequenceClassification": "roberta",
    "RobertaPreLayerNormModel": "roberta-prelayernorm",
    "AlbertForTokenClassification": "albert",
    "MegatronBertForSequenceClassification": "megatron-bert",
    "AlbertForMaskedLM": "albert",
    "RobertaForMaskedLM": "roberta",
    "RobertaForCausalLM": "roberta",
    "MegatronBertForCausalLM": "megatron-bert",
    "BertForPreTraining": "bert",
    "BertForNextSentencePrediction": "bert",
    "RobertaForTokenClassification": "roberta",
    "RobertaPreLayerNormForMaskedLM": "roberta-prelayernorm",
    "BertForQuestionAnswering": "bert",
    "AlbertModel": "albert",
}
USUAL, *_ = CLASSES
DECODER = "BertLMHeadModel"

INPUTS = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [13, 6, 27, 8, 9, 1, 1, 1]]),
    "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
    "token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [0] * 8]),
}


@dataclass(frozen=True)
class Folders:
    """Makes folders that differ from one of transformers' in fields of their ``config.json``.

    Args:
        root: Where the folders are made.
        made: The folders that transformers wrote, by the class.
    """

    root: Path
    made: dict[str, Path] = field(default_factory=dict)

    def base(self, cls: str) -> Path:
        """A folder as transformers writes it, with random weights of which none is 0."""
        if cls not in self.made:
            torch.manual_seed(0)
            sizes = {**SMALL, "num_hidden_layers": 2, **({"embedding_size": 16} if CLASSES[cls] == "albert" else {})}
            config = transformers.AutoConfig.for_model(CLASSES[cls], **sizes)
            model = getattr(transformers, cls)(config)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(self.root / cls)
            self.made[cls] = self.root / cls
        return self.made[cls]

    def varied(self, cls: str, changes: dict[str, Any]) -> Path:
        """A copy of the base folder with changed fields."""
        folder = self.root / f"{cls}-{len(list(self.root.iterdir()))}"
        folder.mkdir()
        values = json.loads((self.base(cls) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))
        (folder / "model.safetensors").symlink_to(self.base(cls) / "model.safetensors")
        return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(autouse=True)
def _quiet_upstream() -> Iterator[None]:
    """transformers warns about the folders itself, and draws bars."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)
    transformers.logging.enable_progress_bar()


def upstream_output(cls: str, folder: Path) -> Tensor | None:
    """The first output of transformers for a folder; None if transformers cannot load it or compute with it."""
    try:
        model = getattr(transformers, cls).from_pretrained(folder).eval()
        with torch.no_grad():
            output = model(**INPUTS)
    except Exception:
        return None
    first = output[0]
    assert isinstance(first, Tensor)
    return first.float()


def own_output(folder: Path) -> Tensor:
    """The first output of qdq for a folder."""
    with torch.no_grad():
        output = load_model(folder)(**INPUTS)
    first = output[0]
    assert isinstance(first, Tensor)
    return first


def agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether outputs are equal within float32's precision after two layers."""
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Variation:
    """What a change of fields has to lead to.

    Args:
        changes: The fields.
        result: ``same``, ``warned`` or ``refused``.
        classes: Upstream's classes to try it on.
        named: What the message names; by default the first field.
        loads: Whether transformers can load the folder.
    """

    changes: dict[str, Any]
    result: str = "same"
    classes: tuple[str, ...] = (USUAL,)
    named: str = ""
    loads: bool = True


def same(*classes: str, loads: bool = True, **changes: Any) -> Variation:
    return Variation(changes, classes=classes or (USUAL,), loads=loads)


def warned(*classes: str, loads: bool = True, named: str = "", **changes: Any) -> Variation:
    return Variation(changes, "warned", classes or (USUAL,), named, loads)


def refused(*classes: str, loads: bool = True, named: str = "", **changes: Any) -> Variation:
    return Variation(changes, "refused", classes or (USUAL,), named, loads)


EVERY = tuple(CLASSES)
LABELS = {"0": "neg", "1": "pos"}
VARIATIONS: dict[str, Variation] = {
    "as it is": same(*EVERY),
    # --- types of the weights
    "float32 under the old name": same(torch_dtype="float32"),
    "rounded": warned(*EVERY, dtype="bfloat16", named="bfloat16"),
    "rounded, old name": warned(dtype=None, torch_dtype="float16", named="float16"),
    "rounded, a table": warned(dtype={"": "bfloat16"}, named="bfloat16"),
    "new name wins": same(torch_dtype="float16", dtype="float32"),
    "no type of torch": same(dtype="auto", loads=False),
    "double": same(dtype="float64"),
    # --- leftovers of quantizers
    "bitsandbytes": warned(
        quantization_config={"load_in_8bit": True, "quant_method": "bitsandbytes"}, named="bitsandbytes", loads=False
    ),
    "gptq": warned(quantization_config={"bits": 4, "quant_method": "gptq"}, named="gptq", loads=False),
    "unknown method": warned(quantization_config={"quant_method": "own"}),
    "no quantization": same(quantization_config=None),
    # --- code and other files
    "remote code": warned(auto_map={"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}),
    "remote tokenizer alone": same(auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}),
    "other weights": refused(transformers_weights="other.safetensors", loads=False),
    "the same weights": same(transformers_weights="model.safetensors"),
    "other configurations": warned(configuration_files=["config.4.0.0.json"], loads=False),
    "configuration by its own name": same(configuration_files=["config.json"]),
    # --- attention
    "eager": same(*EVERY, attn_implementation="eager"),
    "flash": same(_attn_implementation="flash_attention_2", loads=False),
    "leftovers of attention": same(_attn_implementation_autoset=True, _attn_implementation_internal="eager"),
    "experts": same(experts_implementation="other", loads=False),
    "fusion": same(fusion_config={"other": 1}, loads=False),
    "decoder": same("BertForSequenceClassification", "BertModel", "RobertaForSequenceClassification", is_decoder=True),
    "decoder without a cache": same(DECODER, is_decoder=True, use_cache=False),
    "decoder that is not causal": warned(DECODER, "BertModel", is_causal=False, is_decoder=True),
    "encoder that is causal": same(is_causal=True),
    "window of a decoder": warned(DECODER, sliding_window=2, is_decoder=True),
    "window of an encoder": same(sliding_window=2, use_sliding_window=True),
    "layer types": same(layer_types=["full_attention"] * 2, attention_chunk_size=2),
    "layers of their own": refused(per_layer_config={"0": {"hidden_act": "relu"}}, loads=False),
    "cross-attention of an encoder": refused(add_cross_attention=True, loads=False),
    # --- positions
    "relative positions": refused(position_embedding_type="relative_key", named="distance_embedding"),
    "alibi": refused(position_embedding_type="alibi"),
    "absolute positions": same(*EVERY, position_embedding_type="absolute"),
    "rotary": same(rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.0}, rotary_value=False),
    "pruned": refused(pruned_heads={"0": [0]}, named="check the sizes"),
    "nothing pruned": same(pruned_heads={}),
    # --- labels
    "names": same(id2label=LABELS, label2id={"neg": 0, "pos": 1}),
    "stale ids": same(id2label=LABELS, label2id={"LABEL_0": 0, "LABEL_1": 1}),
    "ids that are no numbers": same(id2label=LABELS, label2id={"a": "b", "c": None}),
    "short ids": same(id2label=LABELS, label2id={"neg": 0}),
    "permuted ids": warned(label2id={"neg": 1, "pos": 0}, id2label=LABELS),
    "permuted ids of an encoder": same("BertModel", id2label=LABELS, label2id={"neg": 1, "pos": 0}),
    "two ids with one name": same(id2label={"0": "pos", "1": "pos"}, label2id={"pos": 1}),
    "ids from one": same(id2label={"1": "neg", "2": "pos"}),
    "numbers as names": same(id2label={"0": 0, "1": 1}),
    "ids alone": same(label2id={"neg": 0, "pos": 1}),
    "number of another head": warned(num_labels=7, id2label=LABELS, loads=False),
    "number of another head than none": same("BertModel", num_labels=7, id2label=LABELS),
    "number alone": same(num_labels=2),
    "number that is missing": refused(num_labels=None, loads=False),
    "too many names": refused(id2label={"0": "a", "1": "b", "2": "c"}, named="classifier", loads=False),
    "no names": same(id2label={}, loads=False),
    "labels of another head": same("BertForQuestionAnswering", id2label={"0": "a", "1": "b", "2": "c"}, loads=False),
    "one label of a class": refused(
        problem_type="single_label_classification", id2label={"0": "a"}, named="classifier", loads=False
    ),
    "problem": same(problem_type="multi_label_classification"),
    "unknown problem": refused(problem_type="ranking"),
    # --- outputs
    "tuple": same(*EVERY, return_dict=False),
    "more outputs": same(output_attentions=True, output_hidden_states=True),
    "torchscript": same("BertForMaskedLM", torchscript=True),
    "untied without weights": refused("BertForMaskedLM", DECODER, tie_word_embeddings=False, named="decoder.weight"),
    # --- numbers
    "chunks": same(*EVERY, chunk_size_feed_forward=4),
    "eps": same(*EVERY, layer_norm_eps=1e-3),
    "whole eps": same(layer_norm_eps=1, loads=False),
    "whole range": same(initializer_range=1, loads=False),
    "dropout": same(*EVERY, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0, classifier_dropout=None),
    "relu": same(*EVERY, hidden_act="relu"),
    "other gelu": same("BertForSequenceClassification", "AlbertForTokenClassification", hidden_act="gelu_new"),
    "activation in capitals": refused(hidden_act="GELU", loads=False),
    "activation that is missing": refused(hidden_act="hardswish"),
    "no activation": refused(hidden_act=None, loads=False),
    "padding": same(*EVERY, pad_token_id=3),
    "no padding": same("BertForSequenceClassification", "AlbertForTokenClassification", pad_token_id=None),
    "no padding to count from": refused("RobertaForSequenceClassification", pad_token_id=None, loads=False),
    "padding from the end": same("BertForSequenceClassification", pad_token_id=-1),
    "padding outside": refused(pad_token_id=1000, loads=False),
    "several ends": same(eos_token_id=[2, 3], bos_token_id=1),
    "other sizes": refused(max_position_embeddings=20, named="position_embeddings", loads=False),
    "infinite eps": refused(layer_norm_eps=float("inf")),
    "infinite numbers of others": same(my_field=[float("inf"), {"a": float("nan")}], summary_type=float("-inf")),
    "text for a size": refused(hidden_size="32", loads=False),
    # --- heads
    "several heads": warned(architectures=[USUAL, "BertModel"]),
    "several heads, of which one is known": same(architectures=["OwnModel", USUAL]),
    # --- what nobody follows
    "provenance": same(
        _name_or_path="a/b", name_or_path="c", _commit_hash="0a", transformers_version="4.6.0.dev0", language="en",
        model_name="own",
    ),
    "training": same(
        gradient_checkpointing=True, initializer_factor=2.0, use_bfloat16=True, loss_type="ForMaskedLM",
        output_past=True, num_choices=3,
    ),
    "notes": same(finetuning_task="mnli", task_specific_params={"mnli": {"hidden_act": "relu"}}, _num_labels=5),
    "pooler of multilingual BERT": same(
        pooler_fc_size=768, pooler_num_attention_heads=12, pooler_num_fc_layers=3, pooler_size_per_head=128,
        pooler_type="first_token_transform", directionality="bidi",
    ),
    "ALBERT of Google": same(
        "AlbertForTokenClassification", net_structure_type=0, gap_size=0, num_memory_blocks=0, down_scale_factor=1,
        layers_to_keep=[],
    ),
    "other families": same(
        layer_norm_type="rms_norm", layer_norm_epsilon=0.5, embedding_size=8, classifier_dropout_prob=0.5,
        summary_type="cls_index", summary_activation="gelu", summary_last_dropout=0.5, summary_first_dropout=0.5,
        summary_use_proj=True, attention_dropout=0.5, head_dim=16, attention_head_size=16, num_key_value_heads=2,
        mlp_bias=False, alibi_starting_size=512, feed_forward_type="geglu", emb_pooler="mean", use_flash_attn=True,
    ),
    "several parts": same(
        is_encoder_decoder=True, tie_encoder_decoder=True, cross_attention_hidden_size=16, decoder_start_token_id=1,
        sep_token_id=2, vision_config={"hidden_size": 4},
    ),
    "parts for text": same(text_config={"model_type": "bert", "hidden_act": "relu"}),
    "generation": same(
        max_length=20, min_length=0, max_new_tokens=5, do_sample=False, early_stopping=False, num_beams=4,
        num_beam_groups=1, diversity_penalty=0.0, temperature=0.5, top_k=50, top_p=0.9, typical_p=1.0,
        repetition_penalty=1.5, length_penalty=0.5, no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=0,
        bad_words_ids=None, num_return_sequences=1, output_scores=False, return_dict_in_generate=False,
        forced_bos_token_id=None, forced_eos_token_id=2, remove_invalid_values=False,
        exponential_decay_length_penalty=None, suppress_tokens=[3], begin_suppress_tokens=None, prefix=None,
    ),
    "ends that are no tokens": refused(bos_token_id="[CLS]", eos_token_id=["[SEP]"], loads=False),
    "sentence-transformers": same(
        sbert_ce_default_activation_function="torch.nn.modules.linear.Identity",
        sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"},
    ),
    "tokenizer": same(tokenizer_class="BertTokenizer"),
    "unknown": same(extra=1, read_as={"a": 1}, values=[1], my_field={"a": None}),
}  # fmt: skip
CASES = [(name, cls) for name, variation in VARIATIONS.items() for cls in variation.classes]


@pytest.mark.parametrize(("name", "cls"), CASES)
def test_variation(name: str, cls: str, folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    variation = VARIATIONS[name]
    folder = folders.varied(cls, variation.changes)
    theirs = upstream_output(cls, folder)
    assert (theirs is not None) is variation.loads
    named = variation.named or next(iter(variation.changes), "")
    if variation.result == "refused":
        with pytest.raises(QDQError, match=named):
            own_output(folder)
        return
    ours = own_output(folder)
    if variation.result == "warned":
        assert named in caplog.text
    else:
        assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []
        assert theirs is None or agree(ours, theirs)
    save_model(load_model(folder), tmp_path / "written")
    written = upstream_output(cls, tmp_path / "written")
    assert written is not None
    assert_same(own_output(tmp_path / "written"), ours)
    assert_same(ours, written)


def test_every_row_of_the_table_is_tried() -> None:
    tried = {name for variation in VARIATIONS.values() for name in variation.changes}
    assert {name for rule in CONFIG_FIELDS for name in rule.names} <= tried
    sizes = {"vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"}
    assert fields_of(FAMILIES["bert"].config) <= tried | sizes  # the sizes are tried by every folder
    results = {name: variation.result for variation in VARIATIONS.values() for name in list(variation.changes)[:1]}
    for rule in CONFIG_FIELDS:
        if rule.reading == "ignored":
            assert all(results.get(name, "same") == "same" for name in rule.names)


def values_of(*results: str) -> dict[str, list[Any]]:
    """The values of each field in the variations with these results, each once."""
    found: dict[str, dict[str, Any]] = {}
    for variation in VARIATIONS.values():
        if variation.result in results:
            for name, value in variation.changes.items():
                found.setdefault(name, {})[json.dumps(value)] = value
    return {name: list(values.values()) for name, values in sorted(found.items())}


# Fields of real files, from which folders are drawn at random; one in four has a value that is refused as well.
READ, REFUSED = values_of("same", "warned"), values_of("refused")


@pytest.mark.parametrize("seed", range(60))
def test_fields_drawn_at_random(seed: int, folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(seed)
    cls = draw.choice(EVERY)
    changes = {name: draw.choice(READ[name]) for name in draw.sample(sorted(READ), draw.randint(2, 12))}
    if draw.random() < 0.25:
        name = draw.choice(sorted(REFUSED))
        changes[name] = draw.choice(REFUSED[name])
    changes.pop("architectures", None)  # the head is that of the class
    folder = folders.varied(cls, changes)
    theirs = upstream_output(cls, folder)
    try:
        ours = own_output(folder)
    except QDQError:
        return
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    if theirs is not None and not agree(ours, theirs):
        assert [line for line in said if any(name in line for name in changes)], changes
    save_model(load_model(folder), tmp_path / "written")
    written = upstream_output(cls, tmp_path / "written")
    assert written is not None, changes
    assert_same(own_output(tmp_path / "written"), ours)
    assert_same(ours, written)
