"""The configuration of a model: the fields of ``config.json`` under Hugging Face's names, and their rules."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform, get_args

from qdq.errors import ConfigError, describe_problems
from qdq.models.activations import ACTIVATIONS

PositionType = Literal["absolute", "relative_key", "relative_key_query"]
T = TypeVar("T")

PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def configuration(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass with keyword arguments, in which only ``use_cache`` may be set.

    transformers' Trainer sets ``use_cache`` in the configuration of every model that it trains.
    """
    made = dataclass(frozen=True, kw_only=True)(cls)
    refuse = made.__setattr__

    def set_attribute(self: T, name: str, value: Any) -> None:
        if name == "use_cache" and isinstance(value, bool):
            object.__setattr__(self, name, value)
        else:
            refuse(self, name, value)

    made.__setattr__ = set_attribute  # type: ignore[method-assign,assignment]
    return made


@configuration
class ModelConfig:
    """The fields that all families have. A family adds its own fields and defaults in a subclass.

    Fields have Hugging Face's names and meaning; ``max_position_embeddings`` is the number of rows of the position
    table, ``initializer_range`` the standard deviation of fresh weights.

    Args:
        extra: Fields of the ``config.json`` that the family does not use. They are written back unchanged.
        read_as: The names under which fields were read, if they are not ours. They are written back under these.

    Raises:
        ConfigError: One or more values are invalid. The message lists all of them.
    """

    names: ClassVar[Mapping[str, str]] = {}
    """Other names of fields in the family's ``config.json``, ``{"dim": "hidden_size"}``. Several may name one field."""
    supports_decoder: ClassVar[bool] = True
    """Whether the family has a decoder mode, with cross-attention and a cache."""
    supports_gradient_checkpointing: ClassVar[bool] = True
    """Whether upstream offers gradient checkpointing."""
    zero_padding_row: ClassVar[bool] = True
    """Whether the embedding of the padding token is initialized with zeros."""

    model_type: str
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
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
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
    # These two describe the file that was read, not the model.
    extra: Mapping[str, Any] = field(default_factory=dict)
    read_as: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        # Rules between fields may assume that each field by itself is valid.
        if problems := _field_problems(self) or self.problems():
            raise ConfigError(describe_problems(f"configuration of model_type '{self.model_type}'", problems))

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def first_position(self) -> int:
        """The position of the first token."""
        return 0

    @property
    def max_length(self) -> int:
        """Number of tokens in the longest text that the model has positions for."""
        return self.max_position_embeddings - self.first_position

    @property
    def min_length(self) -> int:
        """Number of tokens in the shortest text that every head can read."""
        return 1

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables."""
        return self.hidden_size

    @property
    def head_dropout(self) -> float:
        """Dropout before a classifier."""
        return self.hidden_dropout_prob

    @property
    def layer_order(self) -> tuple[tuple[int, ...], ...]:
        """Upstream's indices of the layer that computes each depth: one index, unless layers are repeated."""
        return tuple((index,) for index in range(self.num_hidden_layers))

    def problems(self) -> list[str]:
        """Return the rules between fields that do not hold, one sentence each. Every field by itself is valid."""
        found: list[str] = []
        heads, pad = self.num_attention_heads, self.pad_token_id
        if self.hidden_size % heads:
            found.append(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}")
        # A negative index counts from the end of the table, as in nn.Embedding.
        if pad is not None and not (_is_whole_number(pad, 1 - self.vocab_size) and pad < self.vocab_size):
            found.append(f"pad_token_id is {pad!r}, must be null or below vocab_size {self.vocab_size}")
        if self.add_cross_attention and not self.is_decoder:
            found.append("add_cross_attention needs is_decoder")
        if self.is_decoder and not self.supports_decoder:
            found.append(f"is_decoder is not possible for model_type '{self.model_type}'")
        if self.id2label is not None and len(self.id2label) != self.num_labels:
            found.append(f"id2label has {len(self.id2label)} entries, but num_labels is {self.num_labels}")
        # Heads are pruned from distinct layers, of which there may be fewer than depths.
        distinct = len(set(self.layer_order))
        for layer, pruned in self.pruned_heads.items():
            if not 0 <= layer < distinct:
                found.append(f"pruned_heads names layer {layer}, the model has {distinct}")
            elif not set(pruned) <= set(range(heads)):
                found.append(f"pruned_heads of layer {layer} are {sorted(pruned)}, there are {heads}")
            elif len(set(pruned)) == heads:
                found.append(f"pruned_heads of layer {layer} leaves no head")
        return found


@configuration
class BertLikeConfig(ModelConfig):
    """The common fields, and those that BERT and its nearest relatives share."""

    type_vocab_size: int = 2
    position_embedding_type: PositionType = "absolute"
    chunk_size_feed_forward: int = 0


def _is_whole_number(value: object, low: int) -> bool:
    # True and False are instances of int as well.
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 2**31


def _is_token(value: object) -> bool:
    # Ids outside of the vocabulary, such as -1 for none, do no harm before a text is generated.
    return _is_whole_number(value, -(2**31))


def _is_number(value: object, high: float = math.inf) -> bool:
    # JSON files of Python may hold Infinity, and whole numbers that are larger than any float.
    largest = min(high, sys.float_info.max)
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= largest


# The rule of a field as (predicate, description). The name of a field goes before its type.
_RULES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    int: (lambda v: _is_whole_number(v, 1), "a positive whole number below 2**31"),
    bool: (lambda v: isinstance(v, bool), "true or false"),
    float: (_is_number, "a finite number of at least 0"),
    float | None: (lambda v: v is None or _is_number(v, 1), "a probability between 0 and 1"),
    "hidden_dropout_prob": (lambda v: _is_number(v, 1), "a probability between 0 and 1"),
    "attention_probs_dropout_prob": (lambda v: _is_number(v, 1), "a probability between 0 and 1"),
    "chunk_size_feed_forward": (lambda v: _is_whole_number(v, 0), "a whole number of at least 0, below 2**31"),
    "position_embedding_type": (lambda v: v in get_args(PositionType), f"one of {', '.join(get_args(PositionType))}"),
    "bos_token_id": (lambda v: v is None or _is_token(v), "null or the id of a token"),
    "eos_token_id": (
        lambda v: v is None or _is_token(v) or (isinstance(v, list | tuple) and all(map(_is_token, v))),
        "null, the id of a token or a list of them",
    ),
    "problem_type": (lambda v: v in PROBLEM_TYPES, f"null or one of {', '.join(map(str, PROBLEM_TYPES[1:]))}"),
    "hidden_act": (lambda v: callable(v) or v in [*ACTIVATIONS], f"one of {', '.join(sorted(ACTIVATIONS))}"),
}


def _field_problems(config: ModelConfig) -> list[str]:
    found = []
    for one in fields(config):
        value = getattr(config, one.name)
        holds, wanted = _RULES.get(one.name) or _RULES.get(one.type) or (None, "")
        if holds and not holds(value):
            name = f"{config.read_as[one.name]} ({one.name})" if one.name in config.read_as else one.name
            found.append(f"{name} is {value!r}, must be {wanted}")
    return found
