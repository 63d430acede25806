"""The configuration of REALM."""

from qdq.models.config import BertLikeConfig, configuration


@configuration
class RealmConfig(BertLikeConfig):
    """REALM's configuration."""

    supports_gradient_checkpointing = False

    model_type: str = "realm"
    hidden_act: str = "gelu_new"
    # Upstream's defaults: RoBERTa's special tokens, although the vocabulary is BERT's. Only the padding row of the
    # word table depends on them.
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    retriever_proj_size: int = 128
    num_candidates: int = 8
    span_hidden_size: int = 256
    max_span_width: int = 10
    reader_layer_norm_eps: float = 1e-3
    reader_beam_size: int = 5
    reader_seq_len: int = 320
    num_block_records: int = 13353718
    searcher_beam_size: int = 5000

    @property
    def min_length(self) -> int:
        """Number of tokens in the shortest text; the reader needs the widest span to fit."""
        return self.max_span_width
