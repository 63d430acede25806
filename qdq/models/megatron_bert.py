"""Megatron-BERT (Shoeybi et al. 2019): pre-norm, no LayerNorm after the embeddings, one behind the last layer."""

from qdq.models.bert import bert_tasks
from qdq.models.config import Switches
from qdq.models.family import Family
from qdq.models.keymap import BERT_KEYS

MEGATRON_BERT = Family(
    model_type="megatron-bert",
    prefix="bert",
    keys={
        **BERT_KEYS,
        "encoder.layers.{}.attention.norm": "encoder.layer.{}.attention.ln",
        "encoder.layers.{}.cross_attention.norm": "encoder.layer.{}.crossattention.ln",
        "encoder.layers.{}.feed_forward.norm": "encoder.layer.{}.ln",
        "encoder.norm": "encoder.ln",
    },
    tasks=bert_tasks("MegatronBert", causal="ForCausalLM"),
    switches=Switches(
        norm_first=True, embedding_norm=False, final_norm=True, zero_padding_row=False, relative_cross_attention=True
    ),
    defaults={
        "vocab_size": 29056,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
)
