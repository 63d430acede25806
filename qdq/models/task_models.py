"""One model per task: what it makes of the encoder's output, and its loss. Shapes as in ``Model.encode``."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from qdq.models.inputs import InputError
from qdq.models.losses import classification_loss, cross_entropy, infer_problem_type, next_token_loss, span_loss
from qdq.models.model import EncoderModel
from qdq.models.outputs import (
    BaseOutput,
    CausalLMOutput,
    Output,
    PreTrainingOutput,
    QuestionAnsweringOutput,
    SentenceOrderOutput,
    TaskOutput,
)

if TYPE_CHECKING:
    from torch import Tensor


class FeatureExtraction(EncoderModel):
    """The encoder alone: hidden states ``(batch, seq, hidden)`` and pooled output ``(batch, hidden)``."""

    def answer(self, encoded: BaseOutput) -> BaseOutput:
        """What the encoder found."""
        return encoded

    def finish(self, result: Output, return_dict: bool | None) -> Output | tuple[Any, ...]:
        """As a tuple, the pooled output keeps its place even when there is no pooler."""
        given = super().finish(result, return_dict)
        if isinstance(given, tuple) and self.pooler is None:
            given = (given[0], None, *given[1:])
        return given


class TokenClassification(EncoderModel):
    """Logits ``(batch, seq, num_labels)``; ``labels`` ``(batch, seq)``, -100 ignored. Base of the one-head tasks."""

    targets: ClassVar[tuple[str, ...]] = ("labels",)

    def answer(self, encoded: BaseOutput, labels: Tensor | None = None) -> Output:
        """Logits, and the loss when there are labels."""
        logits = self.logits(encoded)
        loss = None if labels is None else self.loss(logits, labels)
        return TaskOutput(loss, logits, encoded.hidden_states, encoded.attentions)

    def logits(self, encoded: BaseOutput) -> Tensor:
        """What the head makes of the hidden states."""
        logits: Tensor = self.run_head(encoded.last_hidden_state)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return cross_entropy(logits, labels)


class MaskedLM(TokenClassification):
    """Logits ``(batch, seq, vocab)``; ``labels`` ``(batch, seq)``, -100 where nothing is masked."""


class SequenceClassification(TokenClassification):
    """Logits ``(batch, num_labels)`` from the pooled output, or from the first token where there is no pooler.

    The first labelled call decides ``config.problem_type`` if the configuration does not.
    """

    def logits(self, encoded: BaseOutput) -> Tensor:
        """``(batch, num_labels)``."""
        pooled = encoded.pooler_output
        logits: Tensor = self.run_head(encoded.last_hidden_state[:, 0] if pooled is None else pooled)
        return logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Regression, one label or several, see ``classification_loss``."""
        problem_type = self.config.problem_type
        if problem_type is None:
            problem_type = infer_problem_type(self.config.num_labels, labels)
            self.config = replace(self.config, problem_type=problem_type)
        return classification_loss(logits, labels, problem_type)


class NextSentence(SequenceClassification):
    """Logits ``(batch, 2)``; ``labels`` ``(batch,)``: 0 = the second sentence follows the first, 1 = it does not."""

    targets: ClassVar[tuple[str, ...]] = ("labels", "next_sentence_label")

    def answer(
        self, encoded: BaseOutput, labels: Tensor | None = None, next_sentence_label: Tensor | None = None
    ) -> Output:
        """Logits, and the loss when there are labels, also under their old name."""
        if next_sentence_label is not None:
            warnings.warn("next_sentence_label is deprecated: use labels", FutureWarning, stacklevel=2)
            labels = next_sentence_label
        return super().answer(encoded, labels)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy."""
        return cross_entropy(logits, labels)


class MultipleChoice(TokenClassification):
    """Logits ``(batch, choices)`` from inputs ``(batch, choices, seq)``; ``labels`` ``(batch,)``."""

    flattened: ClassVar = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Make the choices part of the batch: ``(batch, choices, ...)`` -> ``(batch * choices, ...)``."""
        ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
        given, axes = (ids, 3) if embeds is None else (embeds, 4)
        if given is not None and given.dim() != axes:
            raise InputError(f"multiple choice takes inputs [batch, choices, seq], got {list(given.shape)}")
        flat = {name: inputs[name].flatten(0, 1) for name in self.flattened if inputs.get(name) is not None}
        return {**inputs, **flat, "choices": None if given is None else given.shape[1]}

    def answer(self, encoded: BaseOutput, labels: Tensor | None = None, choices: int = 1) -> Output:
        """One score per choice, side by side."""
        logits = self.run_head(encoded.pooler_output).view(-1, choices)
        loss = None if labels is None else cross_entropy(logits, labels)
        return TaskOutput(loss, logits, encoded.hidden_states, encoded.attentions)

    targets: ClassVar[tuple[str, ...]] = ("labels", "choices")


class QuestionAnswering(EncoderModel):
    """Start and end logits ``(batch, seq)``; ``start_positions`` and ``end_positions`` ``(batch,)``."""

    targets: ClassVar[tuple[str, ...]] = ("start_positions", "end_positions")

    def answer(
        self, encoded: BaseOutput, start_positions: Tensor | None = None, end_positions: Tensor | None = None
    ) -> Output:
        """Logits, and the loss when both positions are given."""
        start, end = self.run_head(encoded.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        return QuestionAnsweringOutput(loss, start, end, encoded.hidden_states, encoded.attentions)


class CausalLM(EncoderModel):
    """Logits ``(batch, seq, vocab)`` for the next token; ``labels`` ``(batch, seq)`` are shifted here."""

    targets: ClassVar[tuple[str, ...]] = ("labels",)

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Training needs no cache."""
        return inputs if inputs.get("labels") is None else {**inputs, "use_cache": False}

    def answer(self, encoded: BaseOutput, labels: Tensor | None = None) -> Output:
        """Logits, cache, and the loss when there are labels."""
        logits = self.run_head(encoded.last_hidden_state)
        return CausalLMOutput(
            loss=None if labels is None else next_token_loss(logits, labels),
            logits=logits,
            past_key_values=encoded.past_key_values,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            cross_attentions=encoded.cross_attentions,
        )


class PreTraining(EncoderModel):
    """Masked tokens ``(batch, seq, vocab)`` and next sentence ``(batch, 2)``; the loss sums both."""

    targets: ClassVar[tuple[str, ...]] = ("labels", "next_sentence_label")
    output: ClassVar[Any] = PreTrainingOutput

    def answer(self, encoded: BaseOutput, **labels: Tensor | None) -> Output:
        """Both logits, and the loss."""
        logits = self.run_head(encoded.last_hidden_state, encoded.pooler_output)
        losses = [
            cross_entropy(scores, label, name)
            for (name, label), scores in zip(labels.items(), logits, strict=True)
            if label is not None
        ]
        loss = losses[0] + losses[1] if len(losses) == 2 else None
        output: Output = self.output(loss, *logits, encoded.hidden_states, encoded.attentions)
        return output


class SentenceOrderPreTraining(PreTraining):
    """ALBERT: masked tokens, and the order of two sentences (0 = original, 1 = swapped)."""

    targets: ClassVar[tuple[str, ...]] = ("labels", "sentence_order_label")
    output = SentenceOrderOutput
