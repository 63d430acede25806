"""The configuration of ALBERT."""

from qdq.models.config import BertLikeConfig, configuration


@configuration
class AlbertConfig(BertLikeConfig):
    """ALBERT's configuration; upstream's defaults describe the xxlarge model."""

    supports_decoder = False
    supports_gradient_checkpointing = False

    model_type: str = "albert"
    vocab_size: int = 30000
    hidden_size: int = 4096
    num_attention_heads: int = 64
    intermediate_size: int = 16384
    hidden_act: str = "gelu_new"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    bos_token_id: int | None = 2
    eos_token_id: int | None = 3
    embedding_size: int = 128
    num_hidden_groups: int = 1
    inner_group_num: int = 1
    classifier_dropout_prob: float | None = 0.1

    @property
    def embedding_width(self) -> int:
        """Width of the embedding tables; a linear layer maps it to the hidden size."""
        return self.embedding_size

    @property
    def head_dropout(self) -> float:
        """Dropout before a classifier; without a value of its own, that of the hidden states."""
        return self.hidden_dropout_prob if self.classifier_dropout_prob is None else self.classifier_dropout_prob

    @property
    def layer_order(self) -> tuple[tuple[int, ...], ...]:
        """The ``(group, inner layer)`` that computes each depth."""
        # Divide in floating point, in this order, as upstream does. When the groups do not divide the layers evenly,
        # the rounding decides which group computes a depth, and checkpoints were trained with that assignment.
        repetitions = self.num_hidden_layers / self.num_hidden_groups
        groups = [int(index / repetitions) for index in range(self.num_hidden_layers)]
        return tuple((group, inner) for group in groups for inner in range(self.inner_group_num))

    def problems(self) -> list[str]:
        """Return the problems of the groups, or else those that every family checks."""
        if self.num_hidden_groups > self.num_hidden_layers:
            return [f"num_hidden_groups {self.num_hidden_groups} exceeds num_hidden_layers {self.num_hidden_layers}"]
        return super().problems()
