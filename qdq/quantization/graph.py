"""Where a wrapped encoder can be changed without changing what it computes: tensors, who makes them, who reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from qdq.models.attention import Attention
from qdq.models.model import EncoderModel
from qdq.quantization.modules import QuantLinear

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from qdq.models.encoder import Layer
    from qdq.models.feed_forward import FeedForward
    from qdq.quantization.modules import QuantAdd, QuantMatMul

__all__ = ["Place", "places"]


@dataclass(frozen=True)
class Place:
    """A tensor ``(batch, seq, channels)`` that linear layers read.

    Args:
        name: of the first of the linear layers.
        linears: all that read it; they share one input quantizer unless somebody unshared them.
        norm: the LayerNorm that puts it out; None when something else does.
        add: the residual addition that reads the same output of ``norm`` (post-norm). Without it, the linear layers are
            the only readers of ``norm`` (pre-norm).
        branch: the linear layer whose output ``add`` adds.
        value: for attention's output projection the projection of the values, whose channels those of the tensor are.
        context: likewise the product of attention weights and values.
        activation: the function that puts the tensor out.
        source: the linear layer that does; ``add`` then reads the same output of it.
    """

    name: str
    linears: tuple[QuantLinear, ...]
    norm: nn.LayerNorm | None = None
    add: QuantAdd | None = None
    branch: QuantLinear | None = None
    value: QuantLinear | None = None
    context: QuantMatMul | None = None
    activation: nn.Module | None = None
    source: QuantLinear | None = None


def places(model: nn.Module) -> list[Place]:
    """All places of all encoders in a wrapped ``model``, from the input to the output."""
    names = {id(module): name for name, module in model.named_modules()}
    return [
        place
        for module in model.modules()
        if isinstance(module, EncoderModel)
        for place in _of_encoder(module, names)
        if all(type(linear) is QuantLinear for linear in place.linears)
    ]


def _of_encoder(model: EncoderModel, names: dict[int, str]) -> Iterator[Place]:
    embeddings = model.embeddings
    # what puts out the tensor that a block reads: a norm, or a projection
    source = embeddings.projection
    norm = embeddings.norm if source is None else None
    for layer in cast("Iterable[Layer]", model.encoder.layers):
        for block in (layer.attention, layer.cross_attention, layer.feed_forward):
            if block is not None:
                yield from _of_block(block, norm, source, names)
                norm, source = None if block.norm_first else block.norm, None


def _of_block(
    block: Attention | FeedForward, norm: nn.LayerNorm | None, source: nn.Linear | None, names: dict[int, str]
) -> Iterator[Place]:
    first: list[nn.Module]
    last: nn.Module
    around: dict[str, nn.Module]
    if isinstance(block, Attention):
        first, last = [block.query, block.key, block.value], block.output
        around = {"value": block.value, "context": block.context}
        if "query" not in block.same_input[0]:  # key and value read another sequence, whose norm is elsewhere
            yield _place(first[1:], names)
            first = first[:1]
    else:
        first, last = [block.up], block.down
        around = {"activation": block.activation}
    if block.norm_first:
        yield _place(first, names, norm=block.norm)
    elif norm is None:
        yield _place(first, names, **({} if source is None else {"source": source, "add": block.add}))
    else:
        yield _place(first, names, norm=norm, add=block.add, branch=last)
    yield _place([last], names, **around)


def _place(linears: list[nn.Module], names: dict[int, str], **around: nn.Module | None) -> Place:
    return Place(names[id(linears[0])], tuple(linears), **around)  # type: ignore[arg-type]
