"""RoBERTa's heads, for all families that have them."""

from functools import partial

from qdq.models.assembly import dense_classifier, language_model_head
from qdq.models.config import ModelConfig
from qdq.models.family import CLASSIFIER_KEYS, Task, standard_tasks
from qdq.models.heads import Classifier
from qdq.models.keymap import Keys, below
from qdq.models.task_models import CausalLM, MaskedLM, MultipleChoice, SequenceClassification


def _choice_head(config: ModelConfig) -> Classifier:
    # Unlike the other heads, this one ignores ``classifier_dropout``, as upstream.
    return Classifier(config.hidden_size, 1, dropout=config.hidden_dropout_prob)


_PREDICTION_KEYS: Keys = {"dense": "dense", "norm": "layer_norm", "decoder": "decoder", "decoder.bias": "bias"}
_LM_KEYS = below("head", "lm_head", _PREDICTION_KEYS)
_SENTENCE_KEYS = below("head", "classifier", {"dense": "dense", "classifier": "out_proj"})
_language_model = partial(language_model_head, hidden_act="gelu")  # not the configured activation, as upstream


def roberta_tasks(stem: str) -> dict[str, Task]:
    """Return RoBERTa's tasks for a family that has RoBERTa's heads.

    Args:
        stem: The beginning of upstream's class names, such as "Roberta".
    """
    sequence = f"{stem}ForSequenceClassification"
    return standard_tasks(stem) | {
        "masked-lm": Task(f"{stem}ForMaskedLM", MaskedLM, _language_model, _LM_KEYS),
        "causal-lm": Task(f"{stem}ForCausalLM", CausalLM, _language_model, _LM_KEYS),
        "sequence-classification": Task(sequence, SequenceClassification, dense_classifier, _SENTENCE_KEYS),
        "multiple-choice": Task(f"{stem}ForMultipleChoice", MultipleChoice, _choice_head, CLASSIFIER_KEYS, pooler=True),
    }
