"""RoBERTa-PreLayerNorm (Wettig et al. 2022): pre-norm, LayerNorms at both ends, positions counted from padding."""

from functools import partial

from qdq.models.config import ModelConfig, Switches
from qdq.models.family import CLASSIFIER_KEYS, Family, Task, standard_tasks
from qdq.models.heads import Classifier, LanguageModelHead, choice_head
from qdq.models.keymap import BERT_KEYS, below
from qdq.models.task_models import CausalLM, MaskedLM, MultipleChoice, SequenceClassification

_STEM = "RobertaPreLayerNorm"
_LM = {"dense": "dense", "norm": "layer_norm", "decoder": "decoder", "decoder.bias": "bias"}
_LM_KEYS = below("head", "lm_head", _LM)
_SENTENCE_KEYS = below("head", "classifier", {"dense": "dense", "classifier": "out_proj"})
_language_model = partial(LanguageModelHead, hidden_act="gelu")  # exactly this one, whatever the layers use
_sentence = partial(Classifier, hidden=True)  # reads the first token of the normalised output: there is no pooler


def _choice(config: ModelConfig) -> Classifier:
    # Here alone the classifier's own dropout does not count.
    return choice_head(config, dropout=config.hidden_dropout_prob)


ROBERTA_PRELAYERNORM = Family(
    model_type="roberta-prelayernorm",
    prefix="roberta_prelayernorm",
    keys={
        **BERT_KEYS,
        "encoder.layers.{}.attention.norm": "encoder.layer.{}.attention.LayerNorm",
        "encoder.layers.{}.cross_attention.norm": "encoder.layer.{}.crossattention.LayerNorm",
        "encoder.layers.{}.feed_forward.norm": "encoder.layer.{}.intermediate.LayerNorm",
        "encoder.norm": "LayerNorm",
    },
    tasks={
        **standard_tasks(_STEM),
        "masked-lm": Task(f"{_STEM}ForMaskedLM", MaskedLM, _language_model, _LM_KEYS),
        "causal-lm": Task(f"{_STEM}ForCausalLM", CausalLM, _language_model, _LM_KEYS),
        "sequence-classification": Task(
            f"{_STEM}ForSequenceClassification", SequenceClassification, _sentence, keys=_SENTENCE_KEYS
        ),
        "multiple-choice": Task(f"{_STEM}ForMultipleChoice", MultipleChoice, _choice, CLASSIFIER_KEYS, pooler=True),
    },
    switches=Switches(norm_first=True, final_norm=True, final_norm_in_hidden_states=False, positions_from_padding=True),
    own=("classifier_dropout",),
    defaults={"vocab_size": 50265, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
)
