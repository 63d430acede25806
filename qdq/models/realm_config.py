"""The configuration of REALM."""

from qdq.models.config import BertLikeConfig, configuration


@configuration
class RealmConfig(BertLikeConfig):
    """REALM's own fields. The special tokens are RoBERTa's although the vocabulary is BERT's."""

    supports_gradient_checkpointing = False

    model_type: str = "realm"
    hidden_act: str = "gelu_new"
    pad_token_id: int | None = 1  # only the padding row of the word table depends on it
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
        """The reader compares spans of up to ``max_span_width`` tokens."""
        return self.max_span_width
