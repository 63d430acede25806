"""What a block says about its linear layers: which tensor they read, what makes it, and who else reads it.

Smoothing, shifts, rounding and folding change weights on both sides of such a tensor. They ask the blocks of a model,
and know nothing of its family.
"""

from dataclasses import dataclass

from torch import nn

from qdq.models.ops import Add, MatMul


@dataclass(frozen=True)
class Origin:
    """What makes the tensor that a block reads; neither of the two where nothing is known or the tensor is a sum.

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
        norm: The norm that makes it; None when something else does.
        source: The linear layer that makes it.
        activation: The activation function that makes it.
        value: For the output projection of attention the projection of the values, whose channels the tensor has.
        context: Likewise the product of attention weights and values.
        add: The residual addition that reads the same tensor (post-norm). Without it, ``linears`` are the only readers.
        branch: The linear layer whose output ``add`` adds.
    """

    linears: tuple[nn.Linear, ...]
    norm: nn.Module | None = None
    source: nn.Linear | None = None
    activation: nn.Module | None = None
    value: nn.Linear | None = None
    context: MatMul | None = None
    add: Add | None = None
    branch: nn.Linear | None = None


def read_of_block(linears: tuple[nn.Linear, ...], origin: Origin, own_norm: nn.Module | None, add: Add,
                  branch: nn.Linear) -> LinearRead:  # fmt: skip
    """Return what the first linear layers of a residual block read.

    1. Pre-norm: the block's own norm makes it, for them alone.
    2. Post-norm: the norm of the block before makes it, and the residual addition of this block reads it, too.
    3. Nothing normalizes it: a linear layer makes it (a projection of embeddings), and the addition reads it, too.
    4. It is a sum, or of unknown origin: nothing can be said.

    Args:
        linears: The layers that read the input of the block.
        origin: What makes the input of the block.
        own_norm: The norm in front of ``linears`` inside the block.
        add: The residual addition of the block.
        branch: The last linear layer of the block, whose output ``add`` adds to its input.
    """
    if own_norm is not None:
        return LinearRead(linears=linears, norm=own_norm)
    if origin.norm is not None:
        return LinearRead(linears=linears, norm=origin.norm, add=add, branch=branch)
    if origin.linear is not None:
        return LinearRead(linears=linears, source=origin.linear, add=add)
    return LinearRead(linears=linears)
