"""The configuration of a model: Hugging Face's fields under Hugging Face's names, and the switches of its family."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from qdq.errors import ConfigError, describe_problems
from qdq.models.activations import ACTIVATIONS

PositionType = Literal["absolute", "relative_key", "relative_key_query"]
PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


@dataclass(frozen=True)
class Switches:
    """What a family fixes about the common encoder; the defaults are BERT."""

    norm_first: bool = False  # normalise the input of attention and feed-forward, not the sum with the residual
    embedding_norm: bool = True  # LayerNorm after the sum of embeddings
    final_norm: bool = False  # LayerNorm after the last layer
    final_norm_in_hidden_states: bool = True  # the last of hidden_states has passed it
    embedding_projection: bool = False  # embeddings of width embedding_size, mapped to hidden_size by a linear
    shared_layers: bool = False  # depths repeat the layers of num_hidden_groups groups, sharing their parameters
    feed_forward_dropout: bool = True  # dropout between feed-forward and residual
    positions_from_padding: bool = False  # positions count what is not padding, starting behind pad_token_id
    zero_padding_row: bool = True  # initialise the embedding of the padding token with zeros
    relative_scores_scaled: bool = True  # divide relative position terms by sqrt(head size), as the scores
    relative_with_cache: bool = True  # relative positions work together with a cache
    relative_cross_attention: bool = False  # cross-attention follows position_embedding_type, else it is absolute
    chunking: bool = True  # chunk_size_feed_forward is followed
    decoder: bool = True  # decoder mode, cross-attention and cache exist
    gradient_checkpointing: bool = True  # recomputing activations in the backward pass is offered


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides shapes and arithmetic. Field names and meanings are Hugging Face's; defaults are BERT's.

    Raises:
        ConfigError: one or more values cannot be followed; all of them are listed.
    """

    model_type: str = "bert"
    architectures: tuple[str, ...] = ()
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str | Callable[..., Any] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    position_embedding_type: PositionType = "absolute"
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    classifier_dropout: float | None = None
    chunk_size_feed_forward: int = 0
    pruned_heads: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    is_decoder: bool = False
    add_cross_attention: bool = False
    use_cache: bool = True
    tie_word_embeddings: bool = True
    num_labels: int = 2
    id2label: Mapping[int, str] | None = None
    label2id: Mapping[str, int] | None = None
    problem_type: str | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    torchscript: bool = False
    # ALBERT
    embedding_size: int = 128
    num_hidden_groups: int = 1
    inner_group_num: int = 1
    classifier_dropout_prob: float | None = None
    # REALM
    retriever_proj_size: int = 128
    num_candidates: int = 8
    span_hidden_size: int = 256
    max_span_width: int = 10
    reader_layer_norm_eps: float = 1e-3
    reader_beam_size: int = 5
    reader_seq_len: int = 320
    num_block_records: int = 13353718
    searcher_beam_size: int = 5000
    # not of config.json
    switches: Switches = field(default_factory=Switches)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the ``config.json`` that mean nothing here; they are written back unchanged."""

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise ConfigError(describe_problems(f"configuration of model_type '{self.model_type}'", problems))

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def first_position(self) -> int:
        """The position of the first token: 0, or the one behind ``pad_token_id`` where padding is not counted."""
        return (self.pad_token_id or 0) + 1 if self.switches.positions_from_padding else 0

    @property
    def max_length(self) -> int:
        """The longest text in tokens that the model has positions for."""
        return self.max_position_embeddings - self.first_position

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables: ``embedding_size`` where a projection follows, else ``hidden_size``."""
        return self.embedding_size if self.switches.embedding_projection else self.hidden_size

    @property
    def head_dropout(self) -> float:
        """Dropout before a classifier: the family's own field, or the hidden one when that is None."""
        own = self.classifier_dropout if self.classifier_dropout is not None else self.classifier_dropout_prob
        return self.hidden_dropout_prob if own is None else own

    @property
    def layer_order(self) -> tuple[tuple[int, ...], ...]:
        """For every depth the indices of the layer that works there: ``(layer,)``, or ALBERT's ``(group, inner)``."""
        if not self.switches.shared_layers:
            return tuple((index,) for index in range(self.num_hidden_layers))
        # In floating point and in this order: with uneven groups the rounding decides, and checkpoints rely on it.
        repetitions = self.num_hidden_layers / self.num_hidden_groups
        groups = [int(index / repetitions) for index in range(self.num_hidden_layers)]
        return tuple((group, inner) for group in groups for inner in range(self.inner_group_num))


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**31


def _number(value: object, high: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= high


# What a field must be: (holds, in words), by its name or else by its type.
_RULES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (lambda v: _whole(v, 1), "a positive whole number below 2**31"),
    bool: (lambda v: isinstance(v, bool), "true or false"),
    float: (_number, "a number of at least 0"),
    float | None: (lambda v: v is None or _number(v, 1), "a probability between 0 and 1"),
    "hidden_dropout_prob": (lambda v: _number(v, 1), "a probability between 0 and 1"),
    "attention_probs_dropout_prob": (lambda v: _number(v, 1), "a probability between 0 and 1"),
    "chunk_size_feed_forward": (lambda v: _whole(v, 0), "a whole number of at least 0, below 2**31"),
    "position_embedding_type": (lambda v: v in get_args(PositionType), f"one of {', '.join(get_args(PositionType))}"),
    "problem_type": (lambda v: v in PROBLEM_TYPES, f"null or one of {', '.join(map(str, PROBLEM_TYPES[1:]))}"),
    "hidden_act": (lambda v: callable(v) or v in [*ACTIVATIONS], f"one of {', '.join(sorted(ACTIVATIONS))}"),
}


_refuse = ModelConfig.__setattr__


def _set(config: ModelConfig, name: str, value: Any) -> None:
    """A configuration stays as it is, but for the cache, which transformers' Trainer sets in whatever model it gets."""
    if name == "use_cache" and isinstance(value, bool):
        object.__setattr__(config, name, value)
    else:
        _refuse(config, name, value)


ModelConfig.__setattr__ = _set  # type: ignore[method-assign,assignment]


def _problems(config: ModelConfig) -> list[str]:
    """Every reason why ``config`` cannot be followed. Rules between fields are judged only when the fields are sane."""
    found: list[str] = []
    for f in fields(config):
        value = getattr(config, f.name)
        holds, wanted = _RULES.get(f.name) or _RULES.get(f.type) or (None, "")
        if holds and not holds(value):
            found.append(f"{f.name} is {value!r}, must be {wanted}")
    if found:
        return found

    heads, layers, pad = config.num_attention_heads, config.num_hidden_layers, config.pad_token_id
    if config.hidden_size % heads:
        found.append(f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads}")
    if pad is not None and not (_whole(pad, 1 - config.vocab_size) and pad < config.vocab_size):
        found.append(f"pad_token_id is {pad!r}, must be null or below vocab_size {config.vocab_size}")
    if config.switches.positions_from_padding and config.pad_token_id is None:
        found.append(f"pad_token_id is null, but model_type '{config.model_type}' counts positions from it")
    if config.num_hidden_groups > config.num_hidden_layers:
        found.append(f"num_hidden_groups {config.num_hidden_groups} exceeds num_hidden_layers {layers}")
    if config.add_cross_attention and not config.is_decoder:
        found.append("add_cross_attention needs is_decoder")
    if config.is_decoder and not config.switches.decoder:
        found.append(f"is_decoder is not possible for model_type '{config.model_type}'")
    if config.id2label is not None and len(config.id2label) != config.num_labels:
        found.append(f"id2label has {len(config.id2label)} entries, but num_labels is {config.num_labels}")
    distinct = len(set(config.layer_order))
    for layer, pruned in config.pruned_heads.items():
        if not 0 <= layer < distinct:
            found.append(f"pruned_heads names layer {layer}, the model has {distinct}")
        elif not set(pruned) <= set(range(heads)):
            found.append(f"pruned_heads of layer {layer} are {sorted(pruned)}, there are {heads}")
        elif len(set(pruned)) == heads:
            found.append(f"pruned_heads of layer {layer} leaves no head")
    return found
