"""How a block describes the input of its linear layers: what computes the tensor, and what else reads it.

Smoothing, shifts, rounding and folding change weights on both sides of such a tensor. Each block describes its own, so
that they work for every family without knowing any.
"""

from dataclasses import dataclass

from torch import nn

from qdq.models.ops import Add, MatMul


@dataclass(frozen=True)
class Origin:
    """What computes the input of a block. Both fields are None if it is a sum, or if nothing is known.

    Args:
        norm: The norm whose output it is.
        linear: The linear layer whose output it is.
    """

    norm: nn.Module | None = None
    linear: nn.Linear | None = None


@dataclass(frozen=True, kw_only=True)
class LinearRead:
    """A tensor ``(batch, seq, channels)`` that linear layers read.

    Args:
        linears: All linear layers that read it.
        norm: The norm whose output it is, if any.
        source: The linear layer whose output it is, if any.
        activation: The activation function whose output it is, if any.
        value: For the output projection of attention: the value projection, whose channels the tensor has.
        context: For the output projection of attention: the product of attention weights and values, which computes it.
        add: The residual addition that also reads it (post-norm). If it is None and the origin is known, only
            ``linears`` read it.
        branch: The linear layer whose output ``add`` adds to the tensor.
    """

    linears: tuple[nn.Linear, ...]
    norm: nn.Module | None = None
    source: nn.Linear | None = None
    activation: nn.Module | None = None
    value: nn.Linear | None = None
    context: MatMul | None = None
    add: Add | None = None
    branch: nn.Linear | None = None


def block_input_read(
    linears: tuple[nn.Linear, ...], origin: Origin, own_norm: nn.Module | None, add: Add, branch: nn.Linear
) -> LinearRead:
    """Describe the tensor that the first linear layers of a residual block read.

    1. Pre-norm: it is the output of the block's own norm, and nothing else reads it.
    2. Post-norm: it is the output of the norm of the block before, and the residual addition of this block reads it as
       well.
    3. No norm: it is the output of a linear layer (a projection of embeddings), and the addition reads it as well.
    4. It is a sum, or its origin is unknown: only its readers are known.

    Args:
        linears: The layers that read the input of the block.
        origin: What computes the input of the block.
        own_norm: The norm before ``linears`` inside the block, if any.
        add: The residual addition of the block.
        branch: The last linear layer of the block, whose output ``add`` adds to its input.
    """
    if own_norm is not None:  # case 1
        return LinearRead(linears=linears, norm=own_norm)
    if origin.norm is not None:  # case 2
        return LinearRead(linears=linears, norm=origin.norm, add=add, branch=branch)
    if origin.linear is not None:  # case 3
        return LinearRead(linears=linears, source=origin.linear, add=add)
    return LinearRead(linears=linears)  # case 4
