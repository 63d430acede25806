"""BERT (Devlin et al. 2018), and QDQBERT, which is BERT in float with other defaults."""

from __future__ import annotations

from qdq.models.family import Family, Task
from qdq.models.keymap import BERT_KEYS

__all__ = ["BERT"]

BERT = Family(
    model_type="bert",
    prefix="bert",
    keys=BERT_KEYS,
    tasks={"feature-extraction": Task(name="BertModel", pooler=True)},
    defaults={"classifier_dropout": None},
)
