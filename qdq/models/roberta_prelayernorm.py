"""RoBERTa-PreLayerNorm (Wettig et al. 2022): RoBERTa with pre-norm, and norms before and after the layers."""

from qdq.models.assembly import embeddings, layer, layer_norm, relative_positions
from qdq.models.bert import BertConfig
from qdq.models.config import configuration
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Encoder
from qdq.models.family import Family
from qdq.models.keymap import BERT_KEYS
from qdq.models.roberta_heads import roberta_tasks


@configuration
class RobertaPreLayerNormConfig(BertConfig):
    """RoBERTa-PreLayerNorm's configuration. Positions begin after the number of the padding token."""

    model_type: str = "roberta-prelayernorm"
    vocab_size: int = 50265
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2

    @property
    def first_position(self) -> int:
        """The position of the first token; padding has the one before, which is the number of the padding token."""
        return (self.pad_token_id or 0) + 1

    def problems(self) -> list[str]:
        """Return the problems that every family checks, and that the padding token is missing."""
        counted = f"pad_token_id is null, but model_type '{self.model_type}' counts positions from it: give a number"
        return super().problems() + ([counted] if self.pad_token_id is None else [])


def build(config: RobertaPreLayerNormConfig) -> tuple[Embeddings, Encoder]:
    """Return the embeddings and the encoder of RoBERTa-PreLayerNorm."""
    relative = relative_positions(config)
    layers = [layer(config, norm_first=True, relative=relative) for _ in range(config.num_hidden_layers)]
    # As transformers 4.x, record the last of hidden_states before the final norm (transformers 5: after it).
    norm = layer_norm(config, config.hidden_size)
    return embeddings(config), Encoder(layers, norm=norm, norm_in_hidden_states=False)


ROBERTA_PRELAYERNORM = Family(
    config=RobertaPreLayerNormConfig,
    build=build,
    prefix="roberta_prelayernorm",
    keys={
        **BERT_KEYS,
        "encoder.layers.{}.attention.norm": "encoder.layer.{}.attention.LayerNorm",
        "encoder.layers.{}.cross_attention.norm": "encoder.layer.{}.crossattention.LayerNorm",
        "encoder.layers.{}.feed_forward.norm": "encoder.layer.{}.intermediate.LayerNorm",
        "encoder.norm": "LayerNorm",
    },
    tasks=roberta_tasks("RobertaPreLayerNorm"),
)
