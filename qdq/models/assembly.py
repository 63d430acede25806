"""Assemble the usual encoder from blocks; a family passes as keyword arguments what it does differently.

Only these functions and the family files read configurations. The blocks take plain values and modules.
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
"""A function that makes the norm for a configuration and a width."""


def layer_norm(config: ModelConfig, width: int) -> nn.Module:
    """Return a LayerNorm with the configured epsilon."""
    return nn.LayerNorm(width, eps=config.layer_norm_eps)


def relative_positions(
    config: BertLikeConfig, *, scaled: bool = True, with_cache: bool = True
) -> RelativePositions | None:
    """Return the relative positions that ``position_embedding_type`` names, or None if positions are absolute.

    Args:
        config: The configuration that names the type and the longest sequence.
        scaled: Whether the position terms are divided by the root of the head size.
        with_cache: Whether they can be computed for cached keys.
    """
    if config.position_embedding_type == "absolute":
        return None
    return RelativePositions(
        reach=config.max_position_embeddings,
        of_keys=config.position_embedding_type == "relative_key_query",
        scaled=scaled,
        with_cache=with_cache,
    )


def embeddings(config: BertLikeConfig, *, norm: Norm | None = layer_norm, projection: int | None = None) -> Embeddings:
    """Return the sum of word, position and token-type embeddings, with norm and dropout.

    Args:
        config: The sizes and the dropout.
        norm: Makes the norm of the sum. None leaves the norm out.
        projection: The width to which a linear layer maps the sum. None leaves the layer out.
    """
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
    bias: bool = True,
) -> Attention:
    """Return an attention block with the configured heads and dropout.

    Args:
        config: The sizes and the dropout.
        norm: Makes the norm of the block. None leaves the norm out.
        norm_first: Whether the block is pre-norm.
        relative: The relative positions in the scores, if any.
        cross: Whether keys and values come from another sequence.
        bias: Whether the projections have biases.
    """
    return Attention(
        config.hidden_size,
        config.num_attention_heads,
        norm=None if norm is None else norm(config, config.hidden_size),
        norm_first=norm_first,
        dropout=config.attention_probs_dropout_prob,
        output_dropout=config.hidden_dropout_prob,
        relative=relative,
        cross=cross,
        bias=bias,
    )


def feed_forward(
    config: BertLikeConfig,
    *,
    norm: Norm | None = layer_norm,
    norm_first: bool = False,
    dropout: float | None = None,
    chunk_size: int | None = None,
    bias: bool = True,
) -> FeedForward:
    """Return a feed-forward block with the configured activation.

    Args:
        config: The sizes, the activation, and the defaults of the other arguments.
        norm: Makes the norm of the block. None leaves the norm out.
        norm_first: Whether the block is pre-norm.
        dropout: Replaces ``hidden_dropout_prob``.
        chunk_size: Replaces ``chunk_size_feed_forward``.
        bias: Whether the linear layers have biases.
    """
    return FeedForward(
        config.hidden_size,
        config.intermediate_size,
        activation=activation(config.hidden_act),
        norm=None if norm is None else norm(config, config.hidden_size),
        norm_first=norm_first,
        dropout=config.hidden_dropout_prob if dropout is None else dropout,
        chunk_size=config.chunk_size_feed_forward if chunk_size is None else chunk_size,
        bias=bias,
    )


def layer(
    config: BertLikeConfig,
    *,
    norm: Norm | None = layer_norm,
    norm_first: bool = False,
    relative: RelativePositions | None = None,
    cross_relative: RelativePositions | None = None,
    feed_forward_dropout: float | None = None,
    chunk_size: int | None = None,
    bias: bool = True,
) -> Layer:
    """Return a layer of self-attention, feed-forward, and cross-attention between them if the configuration has it.

    Args:
        config: The sizes, the activation and the dropout.
        norm: Makes the norm of each block. None leaves the norms out.
        norm_first: Whether the blocks are pre-norm.
        relative: The relative positions of self-attention, if any.
        cross_relative: The relative positions of cross-attention, if any.
        feed_forward_dropout: Replaces ``hidden_dropout_prob`` in the feed-forward block.
        chunk_size: Replaces ``chunk_size_feed_forward``.
        bias: Whether the linear layers have biases.
    """
    self_attention = attention(config, norm=norm, norm_first=norm_first, relative=relative, bias=bias)
    cross = None
    if config.add_cross_attention:
        cross = attention(config, norm=norm, norm_first=norm_first, relative=cross_relative, cross=True, bias=bias)
    position_wise = feed_forward(
        config, norm=norm, norm_first=norm_first, dropout=feed_forward_dropout, chunk_size=chunk_size, bias=bias
    )
    return Layer(self_attention, position_wise, cross_attention=cross)


def language_model_head(
    config: ModelConfig, *, norm: Norm = layer_norm, hidden_act: str | None = None
) -> LanguageModelHead:
    """Return the head of masked and causal language models.

    Args:
        config: The sizes and the activation.
        norm: Makes the norm of the head.
        hidden_act: Replaces the configured activation.
    """
    width = config.embedding_width
    return LanguageModelHead(
        config.hidden_size,
        width,
        config.vocab_size,
        activation=activation(hidden_act or config.hidden_act),
        norm=norm(config, width),
    )


def classifier(config: ModelConfig) -> Classifier:
    """Return a head with one logit per label."""
    return Classifier(config.hidden_size, config.num_labels, dropout=config.head_dropout)


def dense_classifier(config: ModelConfig) -> Classifier:
    """Return a head with one logit per label after a linear layer with tanh, for families without a pooler."""
    return Classifier(config.hidden_size, config.num_labels, dropout=config.head_dropout, dense=True)


def choice_classifier(config: ModelConfig) -> Classifier:
    """Return a head with one score, for each choice."""
    return Classifier(config.hidden_size, 1, dropout=config.head_dropout)


def pair_classifier(config: ModelConfig) -> Classifier:
    """Return a head with two logits: start and end of an answer, or the relation of two sentences."""
    return Classifier(config.hidden_size, 2)
