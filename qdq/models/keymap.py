"""Translation of parameter names between ours and upstream's, from literal tables.

A table maps our module (or one whole parameter) to upstream's; ``{}`` stands for the index of a layer: ours is the
depth, upstream's may be several numbers (ALBERT: group and inner layer). The way back is the same table inverted, so
both directions are exact by construction.
"""

from collections.abc import Mapping, Sequence

Keys = Mapping[str, str]


def below(ours: str, theirs: str, keys: Keys) -> dict[str, str]:
    """``keys`` as they are called below the module ``ours``, which is upstream's ``theirs``."""
    return {f"{ours}.{name}": f"{theirs}.{key}" for name, key in keys.items()}


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


def translate(name: str, keys: Keys, layers: Sequence[tuple[int, ...]]) -> str:
    """Upstream's name of our parameter ``name``; ``layers`` holds upstream's indices for every depth.

    Raises:
        KeyError: the table has no entry for the parameter.
    """
    parts = name.split(".")
    depth = next((int(part) for part in parts if part.isdigit()), None)
    template = ".".join("{}" if part.isdigit() else part for part in parts)
    module, _, leaf = template.rpartition(".")
    target = keys[template] if template in keys else f"{keys[module]}.{leaf}"
    return target if depth is None else target.format(*layers[depth])
