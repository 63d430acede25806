"""The models of REALM: embedder, scorer, knowledge-augmented encoder, reader.

Shape letters: (b) questions, (n) candidates of a question, (k) retrieved blocks, (s) tokens, (c) candidate spans,
(r) projection.
"""

from typing import Any

import torch
from torch import Tensor, nn

from qdq.models.heads import LanguageModelHead
from qdq.models.inputs import InputError, check_shape, is_tracing
from qdq.models.losses import IGNORED
from qdq.models.masks import additive
from qdq.models.model import TEXTS, Model, PooledModel, TaskModel
from qdq.models.outputs import BaseOutput, Output, Tensors
from qdq.models.realm_config import RealmConfig


class EmbedderOutput(Output):
    """``projected_score`` is ``(b, r)``."""

    projected_score: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


class ScorerOutput(Output):
    """Scores ``(b, n)``, and what they are the inner products of: ``(b, r)`` and ``(b, n, r)``."""

    relevance_score: Tensor
    query_score: Tensor
    candidate_score: Tensor


class ReaderOutput(Output):
    """Losses if asked for, and the best span: its block and candidate (scalars), first and last token ``(1,)``."""

    loss: Tensor | None = None
    retriever_loss: Tensor | None = None
    reader_loss: Tensor | None = None
    retriever_correct: Tensor | None = None
    reader_correct: Tensor | None = None
    block_idx: Tensor | None = None
    candidate: Tensor | None = None
    start_pos: Tensor | None = None
    end_pos: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


class EmbedderHead(nn.Module):
    """Linear and LayerNorm from the pooled output to the space of retrieval. Nothing calls ``predictions``."""

    def __init__(self, hidden: int, width: int, *, norm: nn.Module, predictions: LanguageModelHead) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden, width)
        self.norm = norm
        self.predictions = predictions

    def forward(self, pooled: Tensor) -> Tensor:
        """``(b, hidden)`` -> ``(b, r)``."""
        projected: Tensor = self.norm(self.projection(pooled))
        return projected


class Embedder(PooledModel):
    """Text to a vector ``(b, r)``; relevance is the inner product of two of them."""

    targets = ()
    returns = ("projected_score",)
    output = EmbedderOutput


class Scorer(Model):
    """Relevance of ``num_candidates`` texts for a question; one embedder serves both until another is assigned."""

    config: RealmConfig

    def __init__(self, config: RealmConfig, *, task: str = "scoring", **options: Any) -> None:
        super().__init__(config, task)
        self.embedder = Embedder(config, task="retrieval", **options)
        self.query_embedder = self.embedder

    def run(self, inputs: dict[str, Any]) -> Output:
        """Score candidates for questions ``(b, s)``.

        Candidates come as ``candidate_input_ids``, ``candidate_attention_mask``, ``candidate_token_type_ids``
        ``(b, n, s)`` or as ``candidate_inputs_embeds`` ``(b * n, s, hidden)``; ``position_ids`` and ``head_mask`` serve
        both sides.
        """
        shared = {name: inputs.get(name) for name in ("position_ids", "head_mask")}
        given = {name: inputs.pop(f"candidate_{name}", None) for name in (*TEXTS, "inputs_embeds")}
        if given["input_ids"] is None and given["inputs_embeds"] is None:
            raise InputError("give candidate_input_ids or candidate_inputs_embeds")
        given |= {name: _flat(given[name]) for name in TEXTS} | shared
        candidates = self.embedder(**given, return_dict=True).projected_score
        query = self.query_embedder(**inputs, return_dict=True).projected_score
        found, questions, wanted = candidates.shape[0], query.shape[0], self.config.num_candidates
        if not is_tracing() and found != questions * wanted:
            raise InputError(f"{found} candidates for {questions} questions: num_candidates is {wanted}")
        candidates = candidates.view(-1, wanted, candidates.shape[-1])
        relevance = torch.einsum("br,bnr->bn", query, candidates)
        return ScorerOutput(relevance, query, candidates)


class KnowledgeAugmentedEncoder(TaskModel):
    """Masked language model over several retrieved texts, marginalised by their relevance.

    Ids, mask and token types are ``(b, n, s)``, other inputs ``(b * n, ...)``; logits are ``(b * n, s, vocab)``. A loss
    needs ``labels`` ``(b, s)``, common to all candidates, and ``relevance_score`` ``(b, n)``, which it trains too;
    ``mlm_mask`` ``(b, s)`` says which positions count in the mean (by default all, also those labelled -100).
    """

    config: RealmConfig

    targets = ("labels", "relevance_score", "mlm_mask")

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Make the candidates part of the batch."""
        labels, inputs = inputs.get("labels"), inputs | {name: _flat(inputs.get(name)) for name in TEXTS}
        if labels is None:
            return inputs
        if inputs.get("relevance_score") is None:
            raise InputError("labels need a relevance_score [batch, candidates] to weigh the candidates")
        mask = inputs.get("mlm_mask")
        return inputs | {"mlm_mask": torch.ones_like(labels) if mask is None else mask}

    def loss(self, logits: Tensor, labels: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
        """Mean negative log-likelihood of the labels, marginalised over the candidates."""
        batch, length = labels.shape
        count = self.config.num_candidates
        check_shape("relevance_score", relevance, [(batch, count)])
        if logits.shape[:2] != (batch * count, length):
            found, wanted = list(logits.shape[:2]), [batch, count, length]
            what = f"labels has shape {list(labels.shape)} and num_candidates is {count}"
            raise InputError(f"{what}: the inputs must be {wanted}, together they are {found}")
        target = labels[:, None].expand(batch, count, length).reshape(-1)
        tokens = -nn.functional.cross_entropy(logits.flatten(0, 1), target, ignore_index=IGNORED, reduction="none")
        candidates = torch.log_softmax(relevance, dim=-1)[:, :, None]
        marginal = torch.logsumexp(candidates + tokens.view(batch, count, length), dim=1)  # (b, s)
        weight = mask.to(marginal.dtype)
        # An empty mask divides by zero: such a batch teaches nothing.
        return -torch.nansum(torch.sum(marginal * weight) / torch.sum(weight))


class ReaderHead(nn.Module):
    """Logits of all spans up to ``max_span_width`` tokens from their ends. Nothing calls ``predictions``."""

    def __init__(
        self, hidden: int, width: int, *, max_span_width: int, norm: nn.Module, predictions: LanguageModelHead
    ) -> None:
        super().__init__()
        self.max_span_width = max_span_width
        self.intermediate = nn.Linear(hidden, 2 * width)
        self.norm = norm
        self.output = nn.Linear(width, 1)
        self.predictions = predictions

    def spans(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """First and last token of every candidate ``(c,)``: all of width 1 from the left, then of width 2, ..."""
        widths = range(1, self.max_span_width + 1)
        starts = torch.cat([torch.arange(length - width + 1, device=device) for width in widths])
        ends = torch.cat([torch.arange(width - 1, length, device=device) for width in widths])
        return starts, ends

    def forward(self, hidden: Tensor, block_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(k, s, hidden)`` and the evidence mask ``(k, s)`` to logits ``(k, c)``, starts and ends ``(c,)``."""
        starts, ends = self.spans(hidden.shape[1], hidden.device)
        first, last = self.intermediate(hidden).chunk(2, dim=-1)
        features = self.norm(torch.relu(first[:, starts] + last[:, ends]))
        logits = self.output(features).squeeze(-1)
        # Both ends have to be evidence; what lies between is not looked at.
        evidence = block_mask[:, starts].bool() & block_mask[:, ends].bool()
        return logits + additive(evidence, logits.dtype), starts, ends


class Reader(TaskModel):
    """The best answer span over ``reader_beam_size`` blocks ``(k, s)``, each a question with one retrieved text.

    Needs ``relevance_score`` ``(retrieved,)`` of at least k blocks, added to the logits of each, and ``block_mask``
    ``(retrieved, s)``, 1 where a token belongs to the evidence. Losses need ``start_positions`` and ``end_positions``
    ``(retrieved, answers)``, inclusive and padded with -1, and ``has_answers`` ``(retrieved,)``.
    """

    config: RealmConfig

    targets = ("relevance_score", "block_mask", "start_positions", "end_positions", "has_answers")

    def answer(self, encoded: BaseOutput, **targets: Any) -> Output:
        """The best span, and the losses."""
        relevance, block_mask, first, last, has_answers = targets.values()
        if relevance is None or block_mask is None:
            raise InputError("the reader needs relevance_score [retrieved] and block_mask [retrieved, seq]")
        length, widest = encoded.last_hidden_state.shape[1], self.config.max_span_width
        if not is_tracing() and length < widest:
            raise InputError(f"a sequence of {length} tokens is shorter than max_span_width {widest}")
        count = self.config.reader_beam_size
        logits, starts, ends = self.head(encoded.last_hidden_state, block_mask[:count])
        logits = logits + relevance[:count, None]
        candidate = logits.amax(dim=0, keepdim=True).argmax(dim=1)[0]  # of a matrix: TensorRT has no other
        result = ReaderOutput(
            block_idx=logits.amax(dim=1, keepdim=True).argmax(dim=0)[0],
            candidate=candidate,
            start_pos=starts[candidate][None],
            end_pos=ends[candidate][None],
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        if not any(target is None for target in (first, last, has_answers)):
            gold_starts, gold_ends = (gold[:count].clamp(-1, length)[:, :, None] for gold in (first, last))
            correct = ((gold_starts == starts) & (gold_ends == ends)).any(dim=1)  # (k, c) of (k, answers, c)
            result.retriever_correct = has_answers
            result.reader_correct = correct
            result.retriever_loss = _marginal_loss(relevance, has_answers) * has_answers.any()
            result.reader_loss = _marginal_loss(logits.flatten(), correct.flatten()) * correct.any()
            result.loss = result.retriever_loss + result.reader_loss
        return result


def _marginal_loss(logits: Tensor, good: Tensor) -> Tensor:
    """Negative log of the probability of all ``good`` entries together; both ``(n,)``."""
    return torch.logsumexp(logits, dim=0) - torch.logsumexp(logits + additive(good, logits.dtype), dim=0)


def _flat(tensor: Tensor | None) -> Tensor | None:
    """``(b, n, s)`` -> ``(b * n, s)``; anything of two axes stays."""
    return tensor if tensor is None or tensor.dim() <= 2 else tensor.reshape(-1, tensor.shape[-1])
