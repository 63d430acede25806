"""BERT (Devlin et al. 2018)."""

from qdq.models.assembly import embeddings, language_model_head, layer, pair_classifier, relative_positions
from qdq.models.config import BertLikeConfig, ModelConfig, configuration
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Encoder
from qdq.models.family import Family, Task, standard_tasks
from qdq.models.heads import PreTrainingHead
from qdq.models.keymap import BERT_KEYS, below
from qdq.models.task_models import CausalLM, MaskedLM, NextSentence, PreTraining


@configuration
class BertConfig(BertLikeConfig):
    """BERT's configuration."""

    model_type: str = "bert"
    classifier_dropout: float | None = None

    @property
    def head_dropout(self) -> float:
        """Dropout before a classifier; without a value of its own, that of the hidden states."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


def build(config: BertConfig) -> tuple[Embeddings, Encoder]:
    """Return the embeddings and the encoder of BERT."""
    relative = relative_positions(config)
    return embeddings(config), Encoder([layer(config, relative=relative) for _ in range(config.num_hidden_layers)])


def pre_training_head(config: ModelConfig) -> PreTrainingHead:
    """Return the head that predicts masked tokens and the next sentence."""
    return PreTrainingHead(language_model_head(config), pair_classifier(config))


_PREDICTION_KEYS = {
    "dense": "transform.dense",
    "norm": "transform.LayerNorm",
    "decoder": "decoder",
    "decoder.bias": "bias",
}
LANGUAGE_MODEL_KEYS = below("head", "cls.predictions", _PREDICTION_KEYS)
# The same tensors where the language model is one half of a head
PREDICTIONS_KEYS = below("head.predictions", "cls.predictions", _PREDICTION_KEYS)


def bert_tasks(stem: str, causal: str = "LMHeadModel") -> dict[str, Task]:
    """Return BERT's tasks for a family that has BERT's heads.

    Args:
        stem: The beginning of upstream's class names, such as "Bert".
        causal: The end of the name of upstream's causal language model.
    """
    language, relation = LANGUAGE_MODEL_KEYS, {"head.classifier": "cls.seq_relationship"}
    both = {**PREDICTIONS_KEYS, "head.relationship.classifier": "cls.seq_relationship"}
    return {
        **standard_tasks(stem),
        "masked-lm": Task(f"{stem}ForMaskedLM", MaskedLM, language_model_head, language),
        "causal-lm": Task(f"{stem}{causal}", CausalLM, language_model_head, language),
        "next-sentence": Task(f"{stem}ForNextSentencePrediction", NextSentence, pair_classifier, relation, pooler=True),
        "pre-training": Task(f"{stem}ForPreTraining", PreTraining, pre_training_head, both, pooler=True),
    }


BERT = Family(config=BertConfig, build=build, prefix="bert", keys=BERT_KEYS, tasks=bert_tasks("Bert"))
