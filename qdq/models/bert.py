"""BERT (Devlin et al. 2018), and QDQBERT, whose float side is BERT with a few limits."""

from __future__ import annotations

from qdq.models.config import Switches
from qdq.models.family import Family, Task, standard_tasks
from qdq.models.heads import LanguageModelHead, pair_head, pre_training_head
from qdq.models.keymap import BERT_KEYS, nested, without
from qdq.models.task_models import CausalLM, MaskedLM, NextSentence, PreTraining

__all__ = ["BERT", "LANGUAGE_MODEL_KEYS", "QDQBERT", "bert_tasks"]

LANGUAGE_MODEL_KEYS = {
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.decoder": "cls.predictions.decoder",
    "head.decoder.bias": "cls.predictions.bias",
}
_RELATION_KEYS = {"head.classifier": "cls.seq_relationship"}


def bert_tasks(stem: str, causal: str = "LMHeadModel") -> dict[str, Task]:
    """The tasks of BERT under the class names of a family that has BERT's heads."""
    return {
        **standard_tasks(stem),
        "masked-lm": Task(
            name=f"{stem}ForMaskedLM", model=MaskedLM, head=LanguageModelHead.of, keys=LANGUAGE_MODEL_KEYS
        ),
        "causal-lm": Task(name=f"{stem}{causal}", model=CausalLM, head=LanguageModelHead.of, keys=LANGUAGE_MODEL_KEYS),
        "next-sentence": Task(
            name=f"{stem}ForNextSentencePrediction",
            model=NextSentence,
            head=pair_head,
            pooler=True,
            keys=_RELATION_KEYS,
        ),
        "pre-training": Task(
            name=f"{stem}ForPreTraining",
            model=PreTraining,
            head=pre_training_head,
            pooler=True,
            keys={**nested(LANGUAGE_MODEL_KEYS, "predictions"), **nested(_RELATION_KEYS, "relationship")},
        ),
    }


BERT = Family(
    model_type="bert",
    prefix="bert",
    keys=BERT_KEYS,
    tasks=bert_tasks("Bert"),
    defaults={"classifier_dropout": None},
)

QDQBERT = Family(
    model_type="qdqbert",
    prefix="bert",
    keys=BERT_KEYS,
    tasks=without(bert_tasks("QDQBert"), "pre-training"),
    switches=Switches(chunking=False, relative_with_cache=False, relative_cross_attention=True),
    defaults={"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
)
