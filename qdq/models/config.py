"""The configuration of a model: Hugging Face's fields under Hugging Face's names, and what every family has of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform, get_args

from qdq.errors import ConfigError, describe_problems
from qdq.models.activations import ACTIVATIONS

PositionType = Literal["absolute", "relative_key", "relative_key_query"]
T = TypeVar("T")

PROBLEM_TYPES = (None, "regression", "single_label_classification", "multi_label_classification")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def configuration(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass, but for ``use_cache``, which transformers' Trainer sets in any model it gets."""
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
    """What decides shapes and arithmetic of every family; a family adds its own fields and defaults in a subclass.

    Raises:
        ConfigError: One or more values cannot be followed; all of them are listed.
    """

    names: ClassVar[Mapping[str, str]] = {}
    """Upstream's names of fields that are called otherwise here, ``{"dim": "hidden_size"}``; several may name one."""
    supports_decoder: ClassVar[bool] = True
    """Whether decoder mode, cross-attention and a cache exist."""
    supports_gradient_checkpointing: ClassVar[bool] = True
    zero_padding_row: ClassVar[bool] = True
    """Whether the embedding of the padding token is initialised with zeros."""

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
    eos_token_id: int | None = None
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
    # not of config.json
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the ``config.json`` that mean nothing here; they are written back unchanged."""
    read_as: Mapping[str, str] = field(default_factory=dict, compare=False)
    """The names under which fields were read, where they are not ours; they are written back under these."""

    def __post_init__(self) -> None:
        if problems := _problems_by_field(self) or self.problems():
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
        """The longest text in tokens that the model has positions for."""
        return self.max_position_embeddings - self.first_position

    @property
    def min_length(self) -> int:
        """The shortest text in tokens that every head can read."""
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
        """For every depth upstream's indices of the layer that works there: one, unless layers are repeated."""
        return tuple((index,) for index in range(self.num_hidden_layers))

    def problems(self) -> list[str]:
        """Return every reason in the fields together why they cannot be followed; each by itself is sound."""
        found: list[str] = []
        heads, pad = self.num_attention_heads, self.pad_token_id
        if self.hidden_size % heads:
            found.append(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}")
        if pad is not None and not (_whole(pad, 1 - self.vocab_size) and pad < self.vocab_size):
            found.append(f"pad_token_id is {pad!r}, must be null or below vocab_size {self.vocab_size}")
        if self.add_cross_attention and not self.is_decoder:
            found.append("add_cross_attention needs is_decoder")
        if self.is_decoder and not self.supports_decoder:
            found.append(f"is_decoder is not possible for model_type '{self.model_type}'")
        if self.id2label is not None and len(self.id2label) != self.num_labels:
            found.append(f"id2label has {len(self.id2label)} entries, but num_labels is {self.num_labels}")
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
    """The fields that BERT and its nearest relatives have besides the common ones."""

    type_vocab_size: int = 2
    position_embedding_type: PositionType = "absolute"
    chunk_size_feed_forward: int = 0


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


def _problems_by_field(config: ModelConfig) -> list[str]:
    found = []
    for one in fields(config):
        value = getattr(config, one.name)
        holds, wanted = _RULES.get(one.name) or _RULES.get(one.type) or (None, "")
        if holds and not holds(value):
            found.append(f"{one.name} is {value!r}, must be {wanted}")
    return found
