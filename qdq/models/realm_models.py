"""The models of REALM: embedder, scorer, knowledge-augmented encoder and reader.

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
    """Output of the embedder: ``projected_score`` ``(b, r)``."""

    projected_score: Tensor
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


class ScorerOutput(Output):
    """Output of the scorer: ``relevance_score`` ``(b, n)``, the inner products of the other two scores.

    ``query_score`` is ``(b, r)``, ``candidate_score`` ``(b, n, r)``.
    """

    relevance_score: Tensor
    query_score: Tensor
    candidate_score: Tensor


class ReaderOutput(Output):
    """Output of the reader: the best span, as its block and candidate (scalars) and its first and last token ``(1,)``.

    Losses are computed if a call has labels.
    """

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
    """Linear layer and norm from the pooled output to the vectors of retrieval.

    Args:
        hidden: Width of the hidden states.
        width: Width of the vectors, (r).
        norm: The norm of the vectors.
        predictions: A language-model head that checkpoints hold, but nothing calls.
    """

    def __init__(self, hidden: int, width: int, *, norm: nn.Module, predictions: LanguageModelHead) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden, width)
        self.norm = norm
        self.predictions = predictions

    def forward(self, pooled: Tensor) -> Tensor:
        """Return vectors ``(b, r)`` of pooled outputs ``(b, hidden)``."""
        projected: Tensor = self.norm(self.projection(pooled))
        return projected


class Embedder(PooledModel):
    """One vector ``(b, r)`` per text. The relevance of two texts is the inner product of their vectors."""

    targets = ()
    logits_fields = ("projected_score",)
    output = EmbedderOutput


class Scorer(Model):
    """The relevance of ``num_candidates`` texts for each question.

    One embedder serves questions and candidates, until another is assigned to ``query_embedder``.

    Args:
        config: The configuration.
        task: The name of the task.
        options: The modules of the embedder, see :class:`EncoderModel`.
    """

    config: RealmConfig

    def __init__(self, config: RealmConfig, *, task: str = "scoring", **options: Any) -> None:
        super().__init__(config, task)
        self.embedder = Embedder(config, task="retrieval", **options)
        self.query_embedder = self.embedder

    def run(self, inputs: dict[str, Any]) -> Output:
        """Return the scores of the candidates for questions ``(b, s)``.

        Candidates are ``candidate_input_ids``, ``candidate_attention_mask`` and ``candidate_token_type_ids``
        ``(b, n, s)``, or ``candidate_inputs_embeds`` ``(b * n, s, hidden)``. ``position_ids`` and ``head_mask`` are
        used for questions and candidates.
        """
        shared = {name: inputs.get(name) for name in ("position_ids", "head_mask")}
        given = {name: inputs.pop(f"candidate_{name}", None) for name in (*TEXTS, "inputs_embeds")}
        if given["input_ids"] is None and given["inputs_embeds"] is None:
            raise InputError("give candidate_input_ids or candidate_inputs_embeds")
        given |= {name: _flatten_candidates(given[name]) for name in TEXTS} | shared
        candidates = self.embedder(**given, return_dict=True).projected_score
        query = self.query_embedder(**inputs, return_dict=True).projected_score
        found, questions, wanted = candidates.shape[0], query.shape[0], self.config.num_candidates
        if not is_tracing() and found != questions * wanted:
            raise InputError(f"{found} candidates for {questions} questions: num_candidates is {wanted}")
        candidates = candidates.view(-1, wanted, candidates.shape[-1])
        relevance = torch.einsum("br,bnr->bn", query, candidates)
        return ScorerOutput(relevance, query, candidates)


class KnowledgeAugmentedEncoder(TaskModel):
    """A masked language model over several retrieved texts, marginalised by their relevance.

    Ids, mask and token types are ``(b, n, s)``, other inputs ``(b * n, ...)``; logits are ``(b * n, s, vocab)``. The
    loss needs ``labels`` ``(b, s)``, the same for all candidates, and ``relevance_score`` ``(b, n)``, which gets
    gradients as well. ``mlm_mask`` ``(b, s)`` selects the positions of the mean; by default all, even those labeled
    -100.
    """

    config: RealmConfig

    targets = ("labels", "relevance_score", "mlm_mask")

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move the candidates into the batch axis."""
        labels, inputs = inputs.get("labels"), inputs | {name: _flatten_candidates(inputs.get(name)) for name in TEXTS}
        if labels is None:
            return inputs
        if inputs.get("relevance_score") is None:
            raise InputError("labels need a relevance_score [batch, candidates] to weigh the candidates")
        mask = inputs.get("mlm_mask")
        return inputs | {"mlm_mask": torch.ones_like(labels) if mask is None else mask}

    def loss(self, logits: Tensor, labels: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of the labels, marginalised over the candidates."""
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
        # An empty mask divides zero by zero. nansum makes it a loss of 0, so that such a batch trains nothing.
        return -torch.nansum(torch.sum(marginal * weight) / torch.sum(weight))


class ReaderHead(nn.Module):
    """Logits of all spans of up to ``max_span_width`` tokens, computed from their first and last tokens.

    Args:
        hidden: Width of the hidden states.
        width: Width of the features of a span.
        max_span_width: Number of tokens in the widest span.
        norm: The norm of the features.
        predictions: A language-model head that checkpoints hold, but nothing calls.
    """

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
        """Return the first and last token of every span ``(c,)``: all of width 1 from the left, then of width 2, ..."""
        widths = range(1, self.max_span_width + 1)
        starts = torch.cat([torch.arange(length - width + 1, device=device) for width in widths])
        ends = torch.cat([torch.arange(width - 1, length, device=device) for width in widths])
        return starts, ends

    def forward(self, hidden: Tensor, block_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the logits of all spans.

        Args:
            hidden: ``(k, s, hidden)``.
            block_mask: ``(k, s)``, 1 for tokens of the evidence.

        Returns:
            Logits ``(k, c)``, and the first and last token of every span ``(c,)``.
        """
        starts, ends = self.spans(hidden.shape[1], hidden.device)
        first, last = self.intermediate(hidden).chunk(2, dim=-1)
        features = self.norm(torch.relu(first[:, starts] + last[:, ends]))
        logits = self.output(features).squeeze(-1)
        # As upstream, only the two ends have to be evidence, not the tokens between them.
        evidence = block_mask[:, starts].bool() & block_mask[:, ends].bool()
        return logits + additive(evidence, logits.dtype), starts, ends


class Reader(TaskModel):
    """The best answer span in ``reader_beam_size`` blocks ``(k, s)``, each a question with one retrieved text.

    A call needs ``relevance_score`` ``(retrieved,)`` of at least k blocks, which is added to the logits of each, and
    ``block_mask`` ``(retrieved, s)``, 1 for tokens of the evidence. Losses need ``start_positions`` and
    ``end_positions`` ``(retrieved, answers)``, inclusive and padded with -1, and ``has_answers`` ``(retrieved,)``.
    """

    config: RealmConfig

    targets = ("relevance_score", "block_mask", "start_positions", "end_positions", "has_answers")

    def apply_head(self, encoded: BaseOutput, **targets: Any) -> Output:
        """Return the best span, and the losses if there are labels."""
        relevance, block_mask, first, last, has_answers = targets.values()
        if relevance is None or block_mask is None:
            raise InputError("the reader needs relevance_score [retrieved] and block_mask [retrieved, seq]")
        length, widest = encoded.last_hidden_state.shape[1], self.config.max_span_width
        if not is_tracing() and length < widest:
            raise InputError(f"a sequence of {length} tokens is shorter than max_span_width {widest}")
        count = self.config.reader_beam_size
        logits, starts, ends = self.head(encoded.last_hidden_state, block_mask[:count])
        logits = logits + relevance[:count, None]
        candidate = logits.amax(dim=0, keepdim=True).argmax(dim=1)[0]  # TensorRT has no argmax of a vector
        result = ReaderOutput(
            block_idx=logits.amax(dim=1, keepdim=True).argmax(dim=0)[0],
            candidate=candidate,
            start_pos=starts[candidate][None],
            end_pos=ends[candidate][None],
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        if not any(target is None for target in (first, last, has_answers)):
            # Without a correct block or span, the marginal loss has no meaning, and is multiplied by 0.
            gold_starts, gold_ends = (gold[:count].clamp(-1, length)[:, :, None] for gold in (first, last))
            correct = ((gold_starts == starts) & (gold_ends == ends)).any(dim=1)  # (k, c) of (k, answers, c)
            result.retriever_correct = has_answers
            result.reader_correct = correct
            result.retriever_loss = _marginal_loss(relevance, has_answers) * has_answers.any()
            result.reader_loss = _marginal_loss(logits.flatten(), correct.flatten()) * correct.any()
            result.loss = result.retriever_loss + result.reader_loss
        return result


def _marginal_loss(logits: Tensor, good: Tensor) -> Tensor:
    """Return the negative log of the total probability of the ``good`` entries; both arguments are ``(n,)``."""
    return torch.logsumexp(logits, dim=0) - torch.logsumexp(logits + additive(good, logits.dtype), dim=0)


def _flatten_candidates(tensor: Tensor | None) -> Tensor | None:
    """Return ``(b * n, s)`` of ``(b, n, s)``; a tensor with two axes is returned unchanged."""
    return tensor if tensor is None or tensor.dim() <= 2 else tensor.reshape(-1, tensor.shape[-1])
