"""One model per task: what its head reads, what it returns, and its loss. Shapes as in ``EncoderModel.encode``."""

import warnings
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from qdq.models.inputs import InputError
from qdq.models.losses import classification_loss, cross_entropy, infer_problem_type, next_token_loss, span_loss
from qdq.models.model import PooledModel, TaskModel
from qdq.models.outputs import BaseOutput, Output, TaskOutput


class TokenClassification(TaskModel):
    """Logits ``(batch, seq, num_labels)``; ``labels`` ``(batch, seq)``, -100 ignored."""


class MaskedLM(TaskModel):
    """Logits ``(batch, seq, vocab)``; ``labels`` ``(batch, seq)``, -100 where nothing is masked."""


class CausalLM(TaskModel):
    """Logits ``(batch, seq, vocab)`` for the next token, and the cache; ``labels`` ``(batch, seq)`` get shifted."""

    keeps = ("past_key_values", "hidden_states", "attentions", "cross_attentions")
    loss = staticmethod(next_token_loss)

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Training needs no cache."""
        return inputs if inputs.get("labels") is None else {**inputs, "use_cache": False}


class QuestionAnswering(TaskModel):
    """Start and end logits ``(batch, seq)``; ``start_positions`` and ``end_positions`` ``(batch,)``."""

    targets = ("start_positions", "end_positions")
    returns = ("start_logits", "end_logits")
    loss = staticmethod(span_loss)

    def logits(self, encoded: BaseOutput) -> tuple[Tensor, ...]:
        """Start and end."""
        start, end = self.head(encoded.last_hidden_state).unbind(dim=-1)
        return start, end


class SequenceClassification(PooledModel):
    """Logits ``(batch, num_labels)``; ``labels`` as in ``classification_loss``.

    The first labelled call decides ``config.problem_type`` if the configuration does not.
    """

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Regression, one label or several."""
        problem_type = self.config.problem_type
        if problem_type is None:
            problem_type = infer_problem_type(self.config.num_labels, labels)
            self.config = replace(self.config, problem_type=problem_type)
        return classification_loss(logits, labels, problem_type)


class NextSentence(PooledModel):
    """Logits ``(batch, 2)``; ``labels`` ``(batch,)``: 0 = the second sentence follows the first, 1 = it does not."""

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Take the labels under their old name, too."""
        old = inputs.pop("next_sentence_label", None)
        if old is None:
            return inputs
        warnings.warn("next_sentence_label is deprecated: use labels", FutureWarning, stacklevel=2)
        return {**inputs, "labels": old}


class MultipleChoice(TaskModel):
    """Logits ``(batch, choices)`` from inputs ``(batch, choices, seq)``; ``labels`` ``(batch,)``."""

    targets = ("labels", "choices")
    flattened: ClassVar = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Make the choices part of the batch: ``(batch, choices, ...)`` -> ``(batch * choices, ...)``."""
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        given, axes = (ids, 3) if embeds is None else (embeds, 4)
        if given is not None and given.dim() != axes:
            raise InputError(f"multiple choice takes inputs [batch, choices, seq], got {list(given.shape)}")
        flat = {name: inputs[name].flatten(0, 1) for name in self.flattened if inputs.get(name) is not None}
        return {**inputs, **flat, "choices": None if given is None else given.shape[1]}

    def answer(self, encoded: BaseOutput, **targets: Any) -> Output:
        """One score per choice, side by side."""
        labels, choices = targets.values()
        logits = self.head(encoded.pooler_output).view(-1, choices)
        loss = None if labels is None else self.loss(logits, labels)
        return TaskOutput(loss, logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions)


class PreTraining(TaskModel):
    """Masked tokens ``(batch, seq, vocab)`` and next sentence ``(batch, 2)``; the loss sums both."""

    targets = ("labels", "next_sentence_label")
    returns = ("prediction_logits", "seq_relationship_logits")

    def logits(self, encoded: BaseOutput) -> tuple[Tensor, ...]:
        """From hidden states and pooled output."""
        tokens, relation = self.head(encoded.last_hidden_state, encoded.pooler_output)
        return tokens, relation

    def loss(self, tokens: Tensor, relation: Tensor, labels: Tensor, second: Tensor) -> Tensor:
        """Sum of two cross entropies."""
        return cross_entropy(tokens, labels) + cross_entropy(relation, second, self.targets[1])


class SentenceOrderPreTraining(PreTraining):
    """ALBERT: masked tokens, and the order of two sentences (0 = original, 1 = swapped)."""

    targets = ("labels", "sentence_order_label")
    returns = ("prediction_logits", "sop_logits")
