"""ALBERT (Lan et al. 2019): narrow embeddings, and layers that are repeated in groups."""

from functools import partial

from qdq.models.config import Switches
from qdq.models.family import Family, Task, standard_tasks
from qdq.models.heads import Classifier, LanguageModelHead, PreTrainingHead
from qdq.models.keymap import EMBEDDING_KEYS, below
from qdq.models.task_models import MaskedLM, SentenceOrderPreTraining

_LAYER_KEYS = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.distance": "attention.distance_embedding",
    "attention.output": "attention.dense",
    "attention.norm": "attention.LayerNorm",
    "feed_forward.up": "ffn",
    "feed_forward.down": "ffn_output",
    "feed_forward.norm": "full_layer_layer_norm",
}
_KEYS = {
    **EMBEDDING_KEYS,
    "embeddings.projection": "encoder.embedding_hidden_mapping_in",
    **below("encoder.layers.{}", "encoder.albert_layer_groups.{}.albert_layers.{}", _LAYER_KEYS),
    "pooler.dense": "pooler",
}
_PREDICTIONS = {"dense": "dense", "norm": "LayerNorm", "decoder": "decoder", "decoder.bias": "bias"}
_LM_KEYS = below("head", "predictions", _PREDICTIONS)
_PRE_TRAINING_KEYS = {
    **below("head.predictions", "predictions", _PREDICTIONS),
    "head.relationship.classifier": "sop_classifier.classifier",
}
# The order of sentences has the classifier's dropout, and as many labels as the configuration says.
_order_head = partial(PreTrainingHead, relationship=Classifier)

ALBERT = Family(
    model_type="albert",
    prefix="albert",
    keys=_KEYS,
    tasks={
        **standard_tasks("Albert"),
        "masked-lm": Task("AlbertForMaskedLM", MaskedLM, LanguageModelHead, _LM_KEYS),
        "pre-training": Task(
            "AlbertForPreTraining", SentenceOrderPreTraining, _order_head, _PRE_TRAINING_KEYS, pooler=True
        ),
    },
    switches=Switches(
        embedding_projection=True,
        shared_layers=True,
        feed_forward_dropout=False,
        relative_scores_scaled=False,
        decoder=False,
        gradient_checkpointing=False,
    ),
    own=("embedding_size", "num_hidden_groups", "inner_group_num", "classifier_dropout_prob"),
    # Upstream's defaults describe the xxlarge model.
    defaults={
        "vocab_size": 30000,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.1,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
)
