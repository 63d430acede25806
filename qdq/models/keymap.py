"""Translation of parameter names between ours and upstream's, from literal tables.

A table maps our module (or one whole parameter) to upstream's; ``{}`` stands for the index of a layer: ours is the
depth, upstream's may be several numbers (ALBERT: group and inner layer). Where upstream stores several of our weights
in one tensor, the entry is a :class:`Part` of it. The way back is the same table inverted, so both directions are exact
by construction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class Part:
    """One of several equal parts, along the first axis, of a tensor of upstream's.

    Args:
        name: Of the whole tensor, or of its module.
        index: Which part.
        count: How many there are.
    """

    name: str
    index: int
    count: int


Key = str | Part
Keys = Mapping[str, Key]


def fused(theirs: str, *ours: str) -> dict[str, Key]:
    """Return the entries for modules of ours that are one of upstream's: ``fused("Wqkv", "query", "key", "value")``."""
    return {name: Part(theirs, index, len(ours)) for index, name in enumerate(ours)}


def below(ours: str, theirs: str, keys: Keys) -> dict[str, Key]:
    """Return ``keys`` as they are called below the module ``ours``, which is upstream's ``theirs``."""
    return {f"{ours}.{name}": _renamed(key, f"{theirs}.{name_of(key)}") for name, key in keys.items()}


def name_of(key: Key) -> str:
    """Return upstream's name of the whole tensor."""
    return key if isinstance(key, str) else key.name


def _renamed(key: Key, name: str) -> Key:
    return name if isinstance(key, str) else replace(key, name=name)


def part_of(key: Key, whole: Tensor) -> Tensor:
    """Return what ``key`` stands for in upstream's tensor: all of it, or a view of a part."""
    if isinstance(key, str):
        return whole
    rows = whole.shape[0] // key.count
    return whole[key.index * rows : (key.index + 1) * rows]


def shape_of_whole(key: Key, shape: Sequence[int]) -> list[int]:
    """Return the shape of upstream's tensor for a weight of ours of ``shape``."""
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
    """Return upstream's name of our parameter ``name``; ``layers`` holds upstream's indices for every depth.

    Raises:
        KeyError: The table has no entry for the parameter.
    """
    pieces = name.split(".")
    depth = next((int(piece) for piece in pieces if piece.isdigit()), None)
    template = ".".join("{}" if piece.isdigit() else piece for piece in pieces)
    module, _, leaf = template.rpartition(".")
    key = keys[template] if template in keys else _renamed(keys[module], f"{name_of(keys[module])}.{leaf}")
    return key if depth is None else _renamed(key, name_of(key).format(*layers[depth]))
