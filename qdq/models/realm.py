"""REALM (Guu et al. 2020): BERT with heads that embed, score and read retrieved text."""

from torch import nn

from qdq.models.assembly import language_model_head, layer_norm
from qdq.models.bert import LANGUAGE_MODEL_KEYS, PREDICTIONS_KEYS, build
from qdq.models.family import Family, Task
from qdq.models.keymap import BERT_KEYS, Keys, below, name_of
from qdq.models.realm_config import RealmConfig
from qdq.models.realm_models import Embedder, EmbedderHead, KnowledgeAugmentedEncoder, Reader, ReaderHead, Scorer


def _embedder_head(config: RealmConfig) -> EmbedderHead:
    width = config.retriever_proj_size
    norm = layer_norm(config, width)
    return EmbedderHead(config.hidden_size, width, norm=norm, predictions=language_model_head(config))


def _reader_head(config: RealmConfig) -> ReaderHead:
    return ReaderHead(
        config.hidden_size,
        config.span_hidden_size,
        max_span_width=config.max_span_width,
        norm=nn.LayerNorm(config.span_hidden_size, eps=config.reader_layer_norm_eps),
        predictions=language_model_head(config),
    )


# Embedder and reader have a language-model head that nothing calls, because checkpoints hold its weights.
_EMBEDDER_KEYS: Keys = {**below("head", "cls", {"projection": "dense", "norm": "LayerNorm"}), **PREDICTIONS_KEYS}
_SPAN_KEYS: Keys = {"intermediate": "dense_intermediate", "norm": "layer_normalization", "output": "dense_output"}
_READER_KEYS: Keys = {**below("head", "qa_outputs", _SPAN_KEYS), **PREDICTIONS_KEYS}
# A scorer nests whole embedders, each with an encoder under the family's prefix.
_WHOLE_EMBEDDER_KEYS: Keys = {
    **{ours: f"realm.{name_of(theirs)}" for ours, theirs in BERT_KEYS.items()},
    **_EMBEDDER_KEYS,
}
_SCORER_KEYS: Keys = {
    **below("embedder", "embedder", _WHOLE_EMBEDDER_KEYS),
    **below("query_embedder", "query_embedder", _WHOLE_EMBEDDER_KEYS),
}

REALM = Family(
    config=RealmConfig,
    build=build,
    prefix="realm",
    keys=BERT_KEYS,
    tasks={
        "feature-extraction": Task("RealmBertModel", pooler=True, prefixed=False),
        "retrieval": Task(
            "RealmEmbedder", Embedder, _embedder_head, _EMBEDDER_KEYS, pooler=True, unused=("head.predictions",)
        ),
        "scoring": Task(
            "RealmScorer", Scorer, _embedder_head, _SCORER_KEYS, pooler=True, unused=("embedder.head.predictions",)
        ),
        "masked-lm": Task(
            "RealmKnowledgeAugEncoder", KnowledgeAugmentedEncoder, language_model_head, LANGUAGE_MODEL_KEYS,
            pooler=True, unused=("pooler",),
        ),
        "question-answering": Task(
            "RealmReader", Reader, _reader_head, _READER_KEYS, pooler=True, unused=("pooler", "head.predictions")
        ),
    },
)  # fmt: skip
