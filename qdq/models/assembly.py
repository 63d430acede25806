"""The usual encoder put together from blocks; families say by keyword where they differ.

Only these functions and the family files read configurations. The blocks get plain values.
"""

from collections.abc import Callable

from torch import nn

from qdq.models.activations import activation
from qdq.models.attention import Attention
from qdq.models.config import BertLikeConfig, ModelConfig
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Layer
from qdq.models.feed_forward import FeedForward
from qdq.models.heads import Classifier, LanguageModelHead
from qdq.models.relative_positions import RelativePositions

Norm = Callable[[ModelConfig, int], nn.Module]
"""A norm for a configuration and a width."""


def layer_norm(config: ModelConfig, width: int) -> nn.Module:
    """LayerNorm with the configured epsilon."""
    return nn.LayerNorm(width, eps=config.layer_norm_eps)


def relative_positions(
    config: BertLikeConfig, *, scaled: bool = True, with_cache: bool = True
) -> RelativePositions | None:
    """What ``position_embedding_type`` says about the scores; None for absolute positions."""
    if config.position_embedding_type == "absolute":
        return None
    return RelativePositions(
        reach=config.max_position_embeddings,
        of_keys=config.position_embedding_type == "relative_key_query",
        scaled=scaled,
        with_cache=with_cache,
    )


def embeddings(config: BertLikeConfig, *, norm: Norm | None = layer_norm, projection: int | None = None) -> Embeddings:
    """Words, positions and token types, added and normalized."""
    width = config.embedding_width
    return Embeddings(
        config.vocab_size,
        width,
        padding=config.pad_token_id,
        positions=config.max_position_embeddings,
        first_position=config.first_position,
        adds_positions=config.position_embedding_type == "absolute",
        token_types=config.type_vocab_size,
        norm=None if norm is None else norm(config, width),
        dropout=config.hidden_dropout_prob,
        projection=projection,
    )


def attention(
    config: ModelConfig,
    *,
    norm: Norm | None = layer_norm,
    norm_first: bool = False,
    relative: RelativePositions | None = None,
    cross: bool = False,
) -> Attention:
    """Attention with the configured heads and dropout."""
    return Attention(
        config.hidden_size,
        config.num_attention_heads,
        norm=None if norm is None else norm(config, config.hidden_size),
        norm_first=norm_first,
        dropout=config.attention_probs_dropout_prob,
        output_dropout=config.hidden_dropout_prob,
        relative=relative,
        cross=cross,
    )


def feed_forward(
    config: BertLikeConfig,
    *,
    norm: Norm | None = layer_norm,
    norm_first: bool = False,
    dropout: float | None = None,
    chunk_size: int | None = None,
) -> FeedForward:
    """Feed-forward block with the configured activation and dropout, unless they are given."""
    return FeedForward(
        config.hidden_size,
        config.intermediate_size,
        activation=activation(config.hidden_act),
        norm=None if norm is None else norm(config, config.hidden_size),
        norm_first=norm_first,
        dropout=config.hidden_dropout_prob if dropout is None else dropout,
        chunk_size=config.chunk_size_feed_forward if chunk_size is None else chunk_size,
    )


def layer(
    config: BertLikeConfig,
    *,
    norm: Norm = layer_norm,
    norm_first: bool = False,
    relative: RelativePositions | None = None,
    cross_relative: RelativePositions | None = None,
    feed_forward_dropout: float | None = None,
    chunk_size: int | None = None,
) -> Layer:
    """Attention and feed-forward, with cross-attention between them where the configuration asks for it.

    Args:
        config: Sizes, activation and dropout.
        norm: Of every block.
        norm_first: Whether the blocks are pre-norm.
        relative: Relative positions of self-attention.
        cross_relative: Relative positions of cross-attention.
        feed_forward_dropout: In place of ``hidden_dropout_prob``.
        chunk_size: In place of ``chunk_size_feed_forward``.
    """
    own = attention(config, norm=norm, norm_first=norm_first, relative=relative)
    cross = None
    if config.add_cross_attention:
        cross = attention(config, norm=norm, norm_first=norm_first, relative=cross_relative, cross=True)
    last = feed_forward(config, norm=norm, norm_first=norm_first, dropout=feed_forward_dropout, chunk_size=chunk_size)
    return Layer(own, last, cross_attention=cross)


def language_model_head(
    config: ModelConfig, *, norm: Norm = layer_norm, hidden_act: str | None = None
) -> LanguageModelHead:
    """The head of masked and causal language models."""
    width = config.embedding_width
    return LanguageModelHead(
        config.hidden_size,
        width,
        config.vocab_size,
        activation=activation(hidden_act or config.hidden_act),
        norm=norm(config, width),
    )


def classifier(config: ModelConfig) -> Classifier:
    """One logit per label."""
    return Classifier(config.hidden_size, config.num_labels, dropout=config.head_dropout)


def dense_classifier(config: ModelConfig) -> Classifier:
    """One logit per label, behind a linear with tanh; it reads the first token where there is no pooler."""
    return Classifier(config.hidden_size, config.num_labels, dropout=config.head_dropout, dense=True)


def choice_classifier(config: ModelConfig) -> Classifier:
    """One score per choice."""
    return Classifier(config.hidden_size, 1, dropout=config.head_dropout)


def pair_classifier(config: ModelConfig) -> Classifier:
    """Two logits: start and end of an answer, or the relation of two sentences."""
    return Classifier(config.hidden_size, 2)
