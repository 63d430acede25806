"""What is done with every field of a ``config.json`` that is not a field of the family's configuration.

A field of the configuration is followed. Every other field is one of these, and :data:`CONFIG_FIELDS` says which:

1. transformers 5 follows it and qdq does not, or the other way round. A warning names the field, or it is refused.
2. Neither lets it change the outputs. It is ignored, and written back unless it describes how the file was loaded.
3. Nobody knows it. It is ignored and written back.

The page of the documentation on fields is made from this table, and a test tries every row against transformers.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qdq.models.config import ModelConfig

__all__ = ["CONFIG_FIELDS", "ConfigField", "Reading", "check_fields", "written_fields"]

_LOG = logging.getLogger(__name__)

Reading = Literal["followed", "warned", "refused", "ignored"]


@dataclass(frozen=True)
class ConfigField:
    """One or more fields with which the same is done.

    Args:
        names: The fields of ``config.json``.
        reading: What is done with a value that matters.
        why: The reason, a sentence for the documentation.
        written: Whether outputs have the field as well.
        check: Returns what is wrong with a value, or None if it makes no difference.
    """

    names: tuple[str, ...]
    reading: Reading
    why: str
    written: bool = True
    check: Callable[[Any, ModelConfig], str | None] | None = None


def _field(names: str, reading: Reading, why: str, **others: Any) -> ConfigField:
    return ConfigField(tuple(names.split()), reading, why, **others)


# The families that transformers 5 still has. None of them has relative positions and pruned heads any more.
_IN_TRANSFORMERS_5 = ("bert", "albert", "roberta", "roberta-prelayernorm", "megatron-bert")

# --- the checks: None where a value makes no difference ---


def _positions(value: Any, config: ModelConfig) -> str | None:
    if value == "absolute" or config.model_type not in _IN_TRANSFORMERS_5:
        return None
    return (
        f"{value!r} is followed as transformers 4 does; transformers 5 ignores it and computes other outputs from the "
        "same weights"
    )


def _pruned(value: Any, config: ModelConfig) -> str | None:
    if not value or config.model_type not in _IN_TRANSFORMERS_5:
        return None
    return "is followed as transformers 4 does; transformers 5 cannot load such weights"


def _remote_code(value: Any, config: ModelConfig) -> str | None:
    if not isinstance(value, dict):
        return None
    code = sorted({str(name) for key, name in value.items() if key != "AutoTokenizer"})
    if not code:
        return None
    return (
        f"names code that is not run ({', '.join(code)}); the model is computed as model_type '{config.model_type}', "
        "as transformers does without trust_remote_code, and what is written does not name the code"
    )


def _not_causal(value: Any, config: ModelConfig) -> str | None:
    if value is False and config.is_decoder:
        return "is false, but is_decoder is true: qdq computes causal attention; set is_decoder to false for an encoder"
    return None


def _window(value: Any, config: ModelConfig) -> str | None:
    whole = isinstance(value, list) and all(kind == "full_attention" for kind in value)
    if not value or whole or not config.is_decoder:
        return None
    return "is not followed: every token attends to all tokens before it; transformers may keep fewer in its cache"


def _problem_type(value: Any, config: ModelConfig) -> str | None:
    if value == "single_label_classification" and config.num_labels == 1:
        return "is 'single_label_classification' with one label, which transformers 5 refuses; 'regression' is meant"
    return None


def _several_heads(value: Any, config: ModelConfig) -> str | None:
    from qdq.models.registry import family_of

    heads = {task.name for task in family_of(config.model_type).tasks.values()}
    known = [name for name in value or () if name in heads]
    if len(known) < 2:
        return None
    return f"names several models ({', '.join(known)}), of which {known[0]} is taken; choose another with --task"


def _labels(value: Any, config: ModelConfig) -> str | None:
    # A stale or incomplete table does no harm. A table with the same names in another order is a question.
    ids = {name: index for index, name in (config.id2label or {}).items()}
    if not isinstance(value, dict) or len(ids) < config.num_labels or not _classifies(config):
        return None
    moved = [name for name, index in value.items() if name in ids and ids[name] != index]
    if not moved:
        return None
    return f"gives {', '.join(map(repr, moved[:3]))} other ids than id2label, which decides, as in transformers"


def _number_of_labels(value: Any, config: ModelConfig) -> str | None:
    if value == config.num_labels or not _classifies(config):
        return None
    return f"is {value!r}, but id2label names {config.num_labels}, which decides; transformers 5 takes {value!r}"


def _classifies(config: ModelConfig) -> bool:
    return any(name.endswith("Classification") for name in config.architectures)


def _other_configurations(value: Any, config: ModelConfig) -> str | None:
    del config
    others = [str(name) for name in value if name != "config.json"] if isinstance(value, list) else []
    if not others:
        return None
    return f"names {', '.join(others)}, which transformers may read instead of config.json; qdq reads config.json"


def _other_weights(value: Any, config: ModelConfig) -> str | None:
    del config
    if value in (None, "model.safetensors"):
        return None
    return (
        f"transformers_weights is {value!r}: the weights that it names are not read; rename them to model.safetensors, "
        "and delete the field"
    )


def _per_layer(value: Any, config: ModelConfig) -> str | None:
    del config
    return "per_layer_config gives layers values of their own, which is not supported" if value else None


# --- the table ---

CONFIG_FIELDS: tuple[ConfigField, ...] = (
    _field(
        "position_embedding_type",
        "warned",
        "Followed, which transformers 5 no longer does: another value than `absolute` is mentioned.",
        check=_positions,
    ),
    _field(
        "pruned_heads",
        "warned",
        "Followed, which transformers 5 no longer does: it cannot load pruned weights.",
        check=_pruned,
    ),
    _field(
        "auto_map",
        "warned",
        "Names Python code beside the model, which is never run.",
        written=False,
        check=_remote_code,
    ),
    _field(
        "quantization_config",
        "warned",
        "Refused if the weights are packed. Beside float weights it is a leftover that transformers would follow.",
        written=False,
    ),
    _field(
        "dtype torch_dtype",
        "warned",
        "Weights are read in their own type and computed with in float32. Mentioned if transformers would round them. "
        "Outputs name the type that their weights have.",
    ),
    _field(
        "is_causal",
        "warned",
        "`is_decoder` alone makes attention causal: `false` beside it is mentioned.",
        written=False,
        check=_not_causal,
    ),
    _field(
        "sliding_window layer_types attention_chunk_size",
        "warned",
        "Mentioned for decoders, whose cache transformers then shortens. Encoders of these families do not read them.",
        written=False,
        check=_window,
    ),
    _field(
        "problem_type",
        "warned",
        "Decides the loss. Mentioned if it is a single label of one, which transformers 5 refuses.",
        check=_problem_type,
    ),
    _field(
        "architectures",
        "warned",
        "The first class that the family has decides the head. Mentioned if there are several.",
        check=_several_heads,
    ),
    _field(
        "label2id",
        "warned",
        "`id2label` decides. Mentioned if a classifier's tables give one name two ids; outputs have it made from "
        "`id2label`.",
        check=_labels,
    ),
    _field(
        "num_labels",
        "warned",
        "The length of `id2label` decides. Mentioned if a classifier has another number, which transformers 5 takes.",
        written=False,
        check=_number_of_labels,
    ),
    _field(
        "configuration_files",
        "warned",
        "Names other configurations by the version of transformers, which are not read.",
        written=False,
        check=_other_configurations,
    ),
    _field(
        "transformers_weights",
        "refused",
        "Names another file of weights. Refused unless it is `model.safetensors`.",
        written=False,
        check=_other_weights,
    ),
    _field(
        "per_layer_config",
        "refused",
        "Gives layers sizes of their own, which these families do not have.",
        written=False,
        check=_per_layer,
    ),
    _field(
        "attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset "
        "experts_implementation fusion_config",
        "ignored",
        "How transformers computes, not what. Left out of outputs, since they may name packages that are missing.",
        written=False,
    ),
    _field(
        "_name_or_path name_or_path _commit_hash transformers_version model_name language",
        "ignored",
        "Where the file came from.",
    ),
    _field(
        "gradient_checkpointing initializer_factor use_bfloat16 loss_type output_past num_choices",
        "ignored",
        "Of training or of TensorFlow. Options of `qdq finetune` decide about training.",
    ),
    _field(
        "finetuning_task task_specific_params _num_labels",
        "ignored",
        "Notes about the task, which nobody follows.",
    ),
    _field(
        "pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type "
        "directionality",
        "ignored",
        "Of the first multilingual BERT. Its pooler is everybody's.",
    ),
    _field(
        "net_structure_type gap_size num_memory_blocks down_scale_factor",
        "ignored",
        "Of Google's ALBERT.",
    ),
    _field(
        "layer_norm_type layer_norm_epsilon embedding_size classifier_dropout classifier_dropout_prob summary_type "
        "summary_activation summary_last_dropout summary_first_dropout summary_use_proj attention_dropout head_dim "
        "attention_head_size num_key_value_heads mlp_bias rotary_value alibi_starting_size "
        "feed_forward_type emb_pooler use_flash_attn",
        "ignored",
        "Fields of other families, unless the table above says that the model's own family follows them. transformers' "
        "code does not read them either.",
    ),
    _field(
        "is_encoder_decoder tie_encoder_decoder cross_attention_hidden_size decoder_start_token_id sep_token_id",
        "ignored",
        "Of models with several parts, of which these are one.",
    ),
    _field(
        "text_config vision_config rope_theta rope_scaling",
        "ignored",
        "Of other families. Left out of outputs, since transformers cannot read some of their values for these.",
        written=False,
    ),
    _field(
        "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty "
        "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate "
        "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty "
        "suppress_tokens begin_suppress_tokens prefix",
        "ignored",
        "Of generation. Options of `qdq generate` decide; it mentions values that transformers would follow.",
    ),
    _field(
        "sbert_ce_default_activation_function sentence_transformers",
        "ignored",
        "The function that a CrossEncoder puts after the logits. Outputs are logits, as those of transformers.",
    ),
    _field(
        "tokenizer_class",
        "ignored",
        "Says nothing about the model. The reader of the tokenizer sees it.",
    ),
)

_BY_NAME = {name: entry for entry in CONFIG_FIELDS for name in entry.names}


def check_fields(values: Mapping[str, Any], config: ModelConfig, *, source: str) -> None:
    """Warn about fields that are not followed as transformers follows them; each message appears once in a process.

    Args:
        values: The content of ``config.json``.
        config: The configuration made of it.
        source: What messages call the file.

    Raises:
        ConfigError: Fields name other weights or another architecture. The message lists all of them.
    """
    refused = []
    for name, value in values.items():
        entry = _BY_NAME.get(name)
        if entry is None or entry.check is None or (problem := entry.check(value, config)) is None:
            continue
        if entry.reading == "refused":
            refused.append(problem)
        else:
            _warn_once(f"{source}: {name} {problem}")
    if refused:
        raise ConfigError(describe_problems("config.json", refused))
    if unknown := sorted(set(config.extra) - set(_BY_NAME)):
        _LOG.debug("%s: fields without a meaning are kept: %s", source, ", ".join(unknown))


def written_fields(extra: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the fields outside of the family's configuration as an output has them.

    Args:
        extra: Such fields of the source.
        dtype: The type of the output's weights, under torch's name.
    """
    kept = {name: value for name, value in extra.items() if name not in _BY_NAME or _BY_NAME[name].written}
    # Without such a field, transformers takes the type that the weights have.
    named = {name: dtype for name in ("dtype", "torch_dtype") if name in extra}
    return {name: _finite(value) for name, value in (kept | named).items()}


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have by the objects that transformers writes for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value


@lru_cache(maxsize=1024)
def _warn_once(message: str) -> None:
    # A command reads one configuration several times: to say what it is, to load it, to read its tokenizer.
    _LOG.warning("%s", message)
