"""BERT (Devlin et al. 2018), and QDQBERT, whose float side is BERT with a few limits."""

from qdq.models.config import Switches
from qdq.models.family import Family, Task, standard_tasks
from qdq.models.heads import LanguageModelHead, PreTrainingHead, pair_head
from qdq.models.keymap import BERT_KEYS, below
from qdq.models.task_models import CausalLM, MaskedLM, NextSentence, PreTraining

_PREDICTIONS = {"dense": "transform.dense", "norm": "transform.LayerNorm", "decoder": "decoder", "decoder.bias": "bias"}
LANGUAGE_MODEL_KEYS = below("head", "cls.predictions", _PREDICTIONS)
# A head in which the language model is only a part
PREDICTIONS_KEYS = below("head.predictions", "cls.predictions", _PREDICTIONS)
_RELATION = "cls.seq_relationship"


def bert_tasks(stem: str, causal: str = "LMHeadModel") -> dict[str, Task]:
    """The tasks of BERT under the class names of a family that has BERT's heads."""
    keys, relation = LANGUAGE_MODEL_KEYS, {"head.classifier": _RELATION}
    both = {**PREDICTIONS_KEYS, "head.relationship.classifier": _RELATION}
    return {
        **standard_tasks(stem),
        "masked-lm": Task(f"{stem}ForMaskedLM", MaskedLM, LanguageModelHead, keys),
        "causal-lm": Task(f"{stem}{causal}", CausalLM, LanguageModelHead, keys),
        "next-sentence": Task(f"{stem}ForNextSentencePrediction", NextSentence, pair_head, relation, pooler=True),
        "pre-training": Task(f"{stem}ForPreTraining", PreTraining, PreTrainingHead, both, pooler=True),
    }


BERT = Family(model_type="bert", prefix="bert", keys=BERT_KEYS, tasks=bert_tasks("Bert"), own=("classifier_dropout",))

QDQBERT = Family(
    model_type="qdqbert",
    prefix="bert",
    keys=BERT_KEYS,
    tasks={name: task for name, task in bert_tasks("QDQBert").items() if name != "pre-training"},
    switches=Switches(chunking=False, relative_with_cache=False, relative_cross_attention=True),
    beside=tuple(f"_quantizer.{name}" for name in ("_amax", "clip.clip_value_min", "clip.clip_value_max")),
    defaults={"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
)
