"""Translation of parameter names between ours and upstream's, from literal tables.

A table maps our module (or one whole parameter) to upstream's; ``{}`` stands for the index of a layer: ours is the
depth, upstream's may be several numbers (ALBERT: group and inner layer). The way back is the same table inverted, so
both directions are exact by construction.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")
Keys = Mapping[str, str]

EMBEDDING_KEYS: Keys = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}

BERT_KEYS: Keys = {
    **EMBEDDING_KEYS,
    "encoder.layers.{}.attention.query": "encoder.layer.{}.attention.self.query",
    "encoder.layers.{}.attention.key": "encoder.layer.{}.attention.self.key",
    "encoder.layers.{}.attention.value": "encoder.layer.{}.attention.self.value",
    "encoder.layers.{}.attention.distance": "encoder.layer.{}.attention.self.distance_embedding",
    "encoder.layers.{}.attention.output": "encoder.layer.{}.attention.output.dense",
    "encoder.layers.{}.attention.norm": "encoder.layer.{}.attention.output.LayerNorm",
    "encoder.layers.{}.cross_attention.query": "encoder.layer.{}.crossattention.self.query",
    "encoder.layers.{}.cross_attention.key": "encoder.layer.{}.crossattention.self.key",
    "encoder.layers.{}.cross_attention.value": "encoder.layer.{}.crossattention.self.value",
    "encoder.layers.{}.cross_attention.distance": "encoder.layer.{}.crossattention.self.distance_embedding",
    "encoder.layers.{}.cross_attention.output": "encoder.layer.{}.crossattention.output.dense",
    "encoder.layers.{}.cross_attention.norm": "encoder.layer.{}.crossattention.output.LayerNorm",
    "encoder.layers.{}.feed_forward.up": "encoder.layer.{}.intermediate.dense",
    "encoder.layers.{}.feed_forward.down": "encoder.layer.{}.output.dense",
    "encoder.layers.{}.feed_forward.norm": "encoder.layer.{}.output.LayerNorm",
    "pooler.dense": "pooler.dense",
}


def translate(name: str, keys: Keys, layers: Sequence[tuple[int, ...]]) -> str:
    """Upstream's name of our parameter ``name``; ``layers`` holds upstream's indices for every depth.

    Raises:
        KeyError: the table has no entry for the parameter.
    """
    parts = name.split(".")
    depth = next((int(part) for part in parts if part.isdigit()), None)
    template = ".".join("{}" if part.isdigit() else part for part in parts)
    target = keys.get(template)
    if target is None:
        module, _, leaf = template.rpartition(".")
        target = f"{keys[module]}.{leaf}"
    return target if depth is None else target.format(*layers[depth])


def nested(keys: Keys, name: str) -> dict[str, str]:
    """A head's table for the same head as the child ``name`` of another."""
    return {own.replace("head.", f"head.{name}.", 1): theirs for own, theirs in keys.items()}


def without(table: Mapping[str, T], *names: str) -> dict[str, T]:
    """``table`` less the entries of ``names``."""
    return {name: entry for name, entry in table.items() if name not in names}
