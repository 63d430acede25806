"""QDQBERT: BERT for quantization-aware training with pytorch-quantization, without the quantizers."""

from qdq.models.assembly import embeddings, layer, relative_positions
from qdq.models.bert import bert_tasks
from qdq.models.config import BertLikeConfig, configuration
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Encoder
from qdq.models.family import Family
from qdq.models.keymap import BERT_KEYS


@configuration
class QDQBertConfig(BertLikeConfig):
    """QDQBERT's configuration."""

    model_type: str = "qdqbert"
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2


def build(config: QDQBertConfig) -> tuple[Embeddings, Encoder]:
    """Return the embeddings and the encoder of QDQBERT.

    Unlike BERT's, cross-attention has relative positions as well, and ``chunk_size_feed_forward`` is ignored.
    """
    relative = relative_positions(config, with_cache=False)
    layers = [
        layer(config, relative=relative, cross_relative=relative, chunk_size=0) for _ in range(config.num_hidden_layers)
    ]
    return embeddings(config), Encoder(layers)


QDQBERT = Family(
    config=QDQBertConfig,
    build=build,
    prefix="bert",
    keys=BERT_KEYS,
    tasks={name: task for name, task in bert_tasks("QDQBert").items() if name != "pre-training"},
    # The ranges that pytorch-quantization's quantizers store together with the weights
    ignored_keys=tuple(f"_quantizer.{name}" for name in ("_amax", "clip.clip_value_min", "clip.clip_value_max")),
)
