"""Megatron-BERT (Shoeybi et al. 2019): pre-norm, with a norm after the last layer instead of after the embeddings."""

from qdq.models.assembly import embeddings, layer, layer_norm, relative_positions
from qdq.models.bert import bert_tasks
from qdq.models.config import BertLikeConfig, configuration
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Encoder
from qdq.models.family import Family
from qdq.models.keymap import BERT_KEYS


@configuration
class MegatronBertConfig(BertLikeConfig):
    """Megatron-BERT's configuration."""

    zero_padding_row = False

    model_type: str = "megatron-bert"
    vocab_size: int = 29056
    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096


def build(config: MegatronBertConfig) -> tuple[Embeddings, Encoder]:
    """Return the embeddings and the encoder of Megatron-BERT."""
    relative = relative_positions(config)
    layers = [
        layer(config, norm_first=True, relative=relative, cross_relative=relative)
        for _ in range(config.num_hidden_layers)
    ]
    return embeddings(config, norm=None), Encoder(layers, norm=layer_norm(config, config.hidden_size))


MEGATRON_BERT = Family(
    config=MegatronBertConfig,
    build=build,
    prefix="bert",
    keys={
        **BERT_KEYS,
        "encoder.layers.{}.attention.norm": "encoder.layer.{}.attention.ln",
        "encoder.layers.{}.cross_attention.norm": "encoder.layer.{}.crossattention.ln",
        "encoder.layers.{}.feed_forward.norm": "encoder.layer.{}.ln",
        "encoder.norm": "encoder.ln",
    },
    tasks=bert_tasks("MegatronBert", causal="ForCausalLM"),
)
