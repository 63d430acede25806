"""REALM (Guu et al. 2020): a BERT encoder that embeds, scores, augments and reads retrieved text."""

from qdq.models.bert import LANGUAGE_MODEL_KEYS, PREDICTIONS_KEYS
from qdq.models.config import Switches
from qdq.models.family import Family, Task
from qdq.models.heads import LanguageModelHead
from qdq.models.keymap import BERT_KEYS, below
from qdq.models.realm_models import Embedder, EmbedderHead, KnowledgeAugmentedEncoder, Reader, ReaderHead, Scorer

# Embedder and reader carry a language-model head that nothing calls; checkpoints have its weights.
_EMBEDDER_KEYS = {**below("head", "cls", {"projection": "dense", "norm": "LayerNorm"}), **PREDICTIONS_KEYS}
_SPAN_KEYS = {"intermediate": "dense_intermediate", "norm": "layer_normalization", "output": "dense_output"}
_READER_KEYS = {**below("head", "qa_outputs", _SPAN_KEYS), **PREDICTIONS_KEYS}
_WHOLE = {**{ours: f"realm.{theirs}" for ours, theirs in BERT_KEYS.items()}, **_EMBEDDER_KEYS}
_SCORER_KEYS = below("embedder", "embedder", _WHOLE) | below("query_embedder", "query_embedder", _WHOLE)

REALM = Family(
    model_type="realm",
    prefix="realm",
    keys=BERT_KEYS,
    tasks={
        "feature-extraction": Task("RealmBertModel", pooler=True, prefixed=False),
        "retrieval": Task(
            "RealmEmbedder", Embedder, EmbedderHead, _EMBEDDER_KEYS, pooler=True, unused=("head.predictions",)
        ),
        "scoring": Task(
            "RealmScorer", Scorer, EmbedderHead, _SCORER_KEYS, pooler=True, unused=("embedder.head.predictions",)
        ),
        "masked-lm": Task(
            "RealmKnowledgeAugEncoder",
            KnowledgeAugmentedEncoder,
            LanguageModelHead,
            LANGUAGE_MODEL_KEYS,
            pooler=True,
            unused=("pooler",),
        ),
        "question-answering": Task(
            "RealmReader", Reader, ReaderHead, _READER_KEYS, pooler=True, unused=("pooler", "head.predictions")
        ),
    },
    switches=Switches(gradient_checkpointing=False),
    own=(
        *("retriever_proj_size", "num_candidates", "span_hidden_size", "max_span_width", "reader_layer_norm_eps"),
        *("reader_beam_size", "reader_seq_len", "num_block_records", "searcher_beam_size"),
    ),
    # The special tokens are RoBERTa's although the vocabulary is BERT's; only the padding row depends on it.
    defaults={"hidden_act": "gelu_new", "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
)
