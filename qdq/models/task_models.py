"""One model class per task: what the head reads, what the model returns, and the loss.

Shapes are those of ``EncoderModel.encode``.
"""

import warnings
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from qdq.models.inputs import InputError
from qdq.models.losses import classification_loss, cross_entropy, infer_problem_type, next_token_loss, span_loss
from qdq.models.model import PooledModel, TaskModel
from qdq.models.outputs import BaseOutput, Output, TaskOutput


class TokenClassification(TaskModel):
    """Logits ``(batch, seq, num_labels)``; ``labels`` ``(batch, seq)``, where -100 is ignored."""


class MaskedLM(TaskModel):
    """Logits ``(batch, seq, vocab)``; ``labels`` ``(batch, seq)``, -100 for tokens that are not masked."""


class CausalLM(TaskModel):
    """Logits ``(batch, seq, vocab)`` for the next token, and the cache.

    ``labels`` are ``(batch, seq)``; the loss shifts them.
    """

    encoder_fields = ("past_key_values", "hidden_states", "attentions", "cross_attentions")
    loss = staticmethod(next_token_loss)

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Turn the cache off in calls with labels, which do not use it."""
        return inputs if inputs.get("labels") is None else {**inputs, "use_cache": False}


class QuestionAnswering(TaskModel):
    """Start and end logits ``(batch, seq)``; ``start_positions`` and ``end_positions`` ``(batch,)``."""

    targets = ("start_positions", "end_positions")
    logits_fields = ("start_logits", "end_logits")
    loss = staticmethod(span_loss)

    def logits(self, encoded: BaseOutput) -> tuple[Tensor, ...]:
        """Return start and end logits."""
        start, end = self.head(encoded.last_hidden_state).unbind(dim=-1)
        return start, end


class SequenceClassification(PooledModel):
    """Logits ``(batch, num_labels)``; ``labels`` as in ``classification_loss``.

    If ``config.problem_type`` is None, the labels of the first call with labels decide it.
    """

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss for the configured problem type."""
        problem_type = self.config.problem_type
        if problem_type is None:
            problem_type = infer_problem_type(self.config.num_labels, labels)
            self.config = replace(self.config, problem_type=problem_type)
        return classification_loss(logits, labels, problem_type)


class NextSentence(PooledModel):
    """Logits ``(batch, 2)``; ``labels`` ``(batch,)``: 0 = the second sentence follows the first, 1 = it does not."""

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Accept the labels under their old name as well."""
        old = inputs.pop("next_sentence_label", None)
        if old is None:
            return inputs
        warnings.warn("next_sentence_label is deprecated: use labels", FutureWarning, stacklevel=2)
        return {**inputs, "labels": old}


class MultipleChoice(TaskModel):
    """Logits ``(batch, choices)`` from inputs ``(batch, choices, seq)``; ``labels`` ``(batch,)``."""

    targets = ("labels", "choices")  # callers give no choices: ``prepare`` passes their number to ``apply_head``
    flattened: ClassVar = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move the choices into the batch axis: ``(batch, choices, ...)`` to ``(batch * choices, ...)``."""
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        given, axes = (ids, 3) if embeds is None else (embeds, 4)
        if given is not None and given.dim() != axes:
            raise InputError(f"multiple choice takes inputs [batch, choices, seq], got {list(given.shape)}")
        flat = {name: inputs[name].flatten(0, 1) for name in self.flattened if inputs.get(name) is not None}
        return {**inputs, **flat, "choices": None if given is None else given.shape[1]}

    def apply_head(self, encoded: BaseOutput, **targets: Any) -> Output:
        """Return one score per choice, in one row for each question."""
        labels, choices = targets.values()
        logits = self.head(encoded.pooler_output).view(-1, choices)
        loss = None if labels is None else self.loss(logits, labels)
        return TaskOutput(loss, logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions)


class PreTraining(TaskModel):
    """Logits of masked tokens ``(batch, seq, vocab)`` and the next sentence ``(batch, 2)``; the loss sums both."""

    targets = ("labels", "next_sentence_label")
    logits_fields = ("prediction_logits", "seq_relationship_logits")

    def logits(self, encoded: BaseOutput) -> tuple[Tensor, ...]:
        """Return the logits of the tokens and of the sentences."""
        tokens, relation = self.head(encoded.last_hidden_state, encoded.pooler_output)
        return tokens, relation

    def loss(self, tokens: Tensor, relation: Tensor, labels: Tensor, second: Tensor) -> Tensor:
        """Return the sum of the two cross entropies."""
        return cross_entropy(tokens, labels) + cross_entropy(relation, second, self.targets[1])


class SentenceOrderPreTraining(PreTraining):
    """Logits of masked tokens, and of the order of two sentences (0 = original, 1 = swapped), as ALBERT."""

    targets = ("labels", "sentence_order_label")
    logits_fields = ("prediction_logits", "sop_logits")
