"""ALBERT (Lan et al. 2019): embeddings narrower than the hidden states, and layers that are repeated in groups."""

from qdq.models.albert_config import AlbertConfig
from qdq.models.assembly import classifier, embeddings, language_model_head, layer, relative_positions
from qdq.models.config import ModelConfig
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Encoder
from qdq.models.family import Family, Task, standard_tasks
from qdq.models.heads import PreTrainingHead
from qdq.models.keymap import EMBEDDING_KEYS, Keys, below
from qdq.models.task_models import MaskedLM, SentenceOrderPreTraining


def build(config: AlbertConfig) -> tuple[Embeddings, Encoder]:
    """Return the embeddings and the encoder of ALBERT, in which depths of one group share their weights."""
    order, relative = config.layer_order, relative_positions(config, scaled=False)
    # As upstream: all repetitions of a group use the rows of the head mask that belong to its first depths.
    per_group = config.num_hidden_layers // config.num_hidden_groups
    encoder = Encoder(
        [layer(config, relative=relative, feed_forward_dropout=0.0) for _ in order],
        repeats=[order.index(indices) for indices in order],
        layers_per_state=config.inner_group_num,
        mask_rows=[group * per_group + inner for group, inner in order],
    )
    return embeddings(config, projection=config.hidden_size), encoder


def _pre_training_head(config: ModelConfig) -> PreTrainingHead:
    # Unlike BERT's next-sentence head, this one has dropout, and as many labels as the configuration says.
    return PreTrainingHead(language_model_head(config), classifier(config))


_LAYER_KEYS: Keys = {
    **{f"attention.{name}": f"attention.{name}" for name in ("query", "key", "value")},
    "attention.distance": "attention.distance_embedding",
    "attention.output": "attention.dense",
    "attention.norm": "attention.LayerNorm",
    "feed_forward.up": "ffn",
    "feed_forward.down": "ffn_output",
    "feed_forward.norm": "full_layer_layer_norm",
}
_PREDICTION_KEYS: Keys = {"dense": "dense", "norm": "LayerNorm", "decoder": "decoder", "decoder.bias": "bias"}
_PRE_TRAINING_KEYS = below("head.predictions", "predictions", _PREDICTION_KEYS) | {
    "head.relationship.classifier": "sop_classifier.classifier"
}

ALBERT = Family(
    config=AlbertConfig,
    build=build,
    prefix="albert",
    keys={
        **EMBEDDING_KEYS,
        "embeddings.projection": "encoder.embedding_hidden_mapping_in",
        **below("encoder.layers.{}", "encoder.albert_layer_groups.{}.albert_layers.{}", _LAYER_KEYS),
        "pooler.dense": "pooler",
    },
    tasks=standard_tasks("Albert")
    | {
        "masked-lm": Task(
            "AlbertForMaskedLM", MaskedLM, language_model_head, below("head", "predictions", _PREDICTION_KEYS)
        ),
        "pre-training": Task(
            "AlbertForPreTraining", SentenceOrderPreTraining, _pre_training_head, _PRE_TRAINING_KEYS, pooler=True
        ),
    },
)
