"""RoBERTa (Liu et al. 2019): BERT with positions counted from the number of the padding token, and other heads."""

from qdq.models.bert import build
from qdq.models.config import configuration
from qdq.models.family import Family
from qdq.models.keymap import BERT_KEYS
from qdq.models.roberta_heads import roberta_tasks
from qdq.models.roberta_prelayernorm import RobertaPreLayerNormConfig


@configuration
class RobertaConfig(RobertaPreLayerNormConfig):
    """RoBERTa's configuration."""

    model_type: str = "roberta"


ROBERTA = Family(config=RobertaConfig, build=build, prefix="roberta", keys=BERT_KEYS, tasks=roberta_tasks("Roberta"))
