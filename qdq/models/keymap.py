"""Translate parameter names between ours and upstream's with literal tables.

An entry maps one of our modules, or a single parameter, to upstream's. ``{}`` stands for the index of a layer: ours is
the depth, upstream's may be several numbers (ALBERT: group and inner layer). If upstream stores several of our weights
in one tensor, the entry is a :class:`FusedPart`. Loading and saving use the same table, so both directions are exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class FusedPart:
    """One of several equal parts, along the first axis, of an upstream tensor.

    Args:
        name: The name of the whole tensor, or of its module.
        index: The index of this part.
        count: The number of parts.
    """

    name: str
    index: int
    count: int


Key = str | FusedPart
Keys = Mapping[str, Key]


def fused(theirs: str, *ours: str) -> dict[str, Key]:
    """Return the entries of modules that upstream fuses to one: ``fused("Wqkv", "query", "key", "value")``.

    Args:
        theirs: Upstream's module.
        ours: Our modules, in the order in which upstream stores them.
    """
    return {name: FusedPart(theirs, index, len(ours)) for index, name in enumerate(ours)}


def below(ours: str, theirs: str, keys: Keys) -> dict[str, Key]:
    """Return ``keys`` with the prefix ``ours`` on our names and the prefix ``theirs`` on upstream's."""
    return {f"{ours}.{name}": _renamed(key, f"{theirs}.{name_of(key)}") for name, key in keys.items()}


def name_of(key: Key) -> str:
    """Return upstream's name of the whole tensor."""
    return key if isinstance(key, str) else key.name


def _renamed(key: Key, name: str) -> Key:
    return name if isinstance(key, str) else replace(key, name=name)


def select_part(key: Key, whole: Tensor) -> Tensor:
    """Return our weight as stored in upstream's tensor: the whole tensor, or a view of one part.

    Args:
        key: The entry of the weight.
        whole: Upstream's tensor.
    """
    if isinstance(key, str):
        return whole
    rows = whole.shape[0] // key.count
    return whole[key.index * rows : (key.index + 1) * rows]


def parts_of(key: Key) -> int:
    """Return how many of our weights upstream's tensor holds."""
    return 1 if isinstance(key, str) else key.count


def shape_of_whole(key: Key, shape: Sequence[int]) -> list[int]:
    """Return the shape of upstream's tensor.

    Args:
        key: The entry of one of our weights.
        shape: The shape of that weight.
    """
    return [*shape] if isinstance(key, str) else [key.count * shape[0], *shape[1:]]


_TABLES: Keys = {name: f"{name}_embeddings" for name in ("word", "position", "token_type")}
EMBEDDING_KEYS: Keys = below("embeddings", "embeddings", {**_TABLES, "norm": "LayerNorm"})
_ATTENTION_KEYS: Keys = {
    **{name: f"self.{name}" for name in ("query", "key", "value")},
    "distance": "self.distance_embedding",
    "output": "output.dense",
    "norm": "output.LayerNorm",
}
_LAYER_KEYS: Keys = {
    **below("attention", "attention", _ATTENTION_KEYS),
    **below("cross_attention", "crossattention", _ATTENTION_KEYS),
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}
BERT_KEYS: Keys = {
    **EMBEDDING_KEYS,
    **below("encoder.layers.{}", "encoder.layer.{}", _LAYER_KEYS),
    "pooler.dense": "pooler.dense",
}


def translate(name: str, keys: Keys, layers: Sequence[tuple[int, ...]]) -> Key:
    """Return upstream's entry for one of our parameters.

    Args:
        name: The name of the parameter.
        keys: The key table.
        layers: Upstream's indices of the layer at each depth.

    Raises:
        KeyError: The table has no entry for the parameter.
    """
    pieces = name.split(".")
    depth = next((int(piece) for piece in pieces if piece.isdigit()), None)
    template = ".".join("{}" if piece.isdigit() else piece for piece in pieces)
    module, _, leaf = template.rpartition(".")
    # An entry for the whole parameter goes before that of its module (a bias that upstream stores elsewhere).
    key = keys[template] if template in keys else _renamed(keys[module], f"{name_of(keys[module])}.{leaf}")
    return key if depth is None else _renamed(key, name_of(key).format(*layers[depth]))
