"""Continue texts with greedy search or beam search."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdq.errors import DataError
from qdq.generation.settings import GenerationSettings, SpecialTokens, check_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qdq.generation.decoders import Decoder

__all__ = ["generate", "visible_tokens"]

_LOG = logging.getLogger(__name__)

# The score of a text that must not be chosen, as in transformers: finite, so that sums with it keep an order.
_NEVER = -1.0e9


def generate(
    decoder: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    settings: GenerationSettings | None = None,
) -> Tensor:
    """Continue prompts with a causal language model, greedily or with beam search.

    Prompts of unequal length are padded on the left. For padding on the right a warning is logged and the padding is
    continued, as transformers does. An exported file takes no positions: it refuses padding on the right, and reads
    prompts that are padded on the left one length at a time.

    Args:
        decoder: The model.
        input_ids: Prompts ``(batch, seq)`` of at least one token.
        attention_mask: 1 for visible tokens ``(batch, seq)``. By default padding tokens are hidden, unless the padding
            token is an end token, too.
        settings: How to continue the prompts.

    Returns:
        The prompts and their continuations ``(batch * num_return_sequences, seq + new)``. Rows that end early are
        filled up with ``pad_token_id``, or, in beam search where that is 0, with the end token, as transformers does.

    Raises:
        ConfigError: An end or padding token is not in the vocabulary.
        DataError: The prompts have a wrong shape or no visible token, or are too long for the model together with
            ``max_new_tokens``.
    """
    settings = settings or GenerationSettings()
    special = SpecialTokens.of(decoder.config, settings)
    mask = _default_mask(input_ids, special) if attention_mask is None else attention_mask.long()
    check_prompts(input_ids, mask, config=decoder.config, settings=settings, special=special)
    is_padded = not bool(mask.all())
    if is_padded and not bool(mask[:, -1].all()):
        if not decoder.takes_positions:
            raise DataError(
                "a prompt ends with padding: an exported file continues only prompts that are padded on the left"
            )
        _LOG.warning("a prompt ends with padding, and the model continues the padding: pad prompts on the left")
    if is_padded and not decoder.takes_positions:
        return _by_length(decoder, input_ids, mask, settings, special)
    search = _beams if settings.num_beams > 1 else _greedy
    return search(decoder, input_ids, mask, settings, special)


def visible_tokens(ids: Sequence[int], prompt: int, eos: Sequence[int]) -> list[int]:
    """Return the new tokens of a row, up to the first end token, which is left out.

    Args:
        ids: The row.
        prompt: The number of tokens of the prompt.
        eos: The end tokens.
    """
    added = list(ids[prompt:])
    return added[: next((index for index, token in enumerate(added) if token in eos), len(added))]


def _default_mask(input_ids: Tensor, special: SpecialTokens) -> Tensor:
    if special.has_pad and special.pad not in special.eos:
        return input_ids.ne(special.pad).long()
    return torch.ones_like(input_ids)


def _positions(mask: Tensor, first: int) -> Tensor:
    """Count the visible tokens of prompts from ``first``; hidden tokens get ``first``, which no token sees."""
    counted = mask.cumsum(dim=1) - 1 + first
    return torch.where(mask == 0, first, counted)


def _by_length(
    decoder: Decoder, ids: Tensor, mask: Tensor, settings: GenerationSettings, special: SpecialTokens
) -> Tensor:
    """Continue the prompts of each length together, without their padding, and join the results."""
    lengths = mask.sum(dim=1)
    several = settings.num_return_sequences
    search = _beams if settings.num_beams > 1 else _greedy
    added: dict[int, Tensor] = {}
    for length in sorted({*lengths.tolist()}):
        rows = (lengths == length).nonzero()[:, 0]
        prompts = torch.stack([ids[row][mask[row] == 1] for row in rows])
        found = search(decoder, prompts, torch.ones_like(prompts), settings, special)[:, length:]
        added |= {row: found[n * several : (n + 1) * several] for n, row in enumerate(rows.tolist())}
    longest = max(found.shape[1] for found in added.values())
    fill = special.pad if settings.num_beams == 1 else _beam_fill(special)
    tails = [
        torch.nn.functional.pad(added[row], (0, longest - added[row].shape[1]), value=fill) for row in range(len(ids))
    ]
    return torch.cat([ids.repeat_interleave(several, dim=0), torch.cat(tails)], dim=1)


# --- greedy search ---


def _greedy(
    decoder: Decoder, ids: Tensor, mask: Tensor, settings: GenerationSettings, special: SpecialTokens
) -> Tensor:
    sequences, positions, cache = ids, _positions(mask, special.first_position), None
    running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(settings.max_new_tokens):
        logits, cache = decoder(ids, mask, positions, cache)
        chosen = torch.where(running, logits.argmax(dim=-1), special.pad)
        sequences = torch.cat([sequences, chosen[:, None]], dim=1)
        running &= ~special.ends(chosen)
        if not running.any():
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return sequences


# --- beam search ---


def _beams(decoder: Decoder, ids: Tensor, mask: Tensor, settings: GenerationSettings, special: SpecialTokens) -> Tensor:
    """Search with beams.

    1. The candidates are the best continuations of all running texts of a prompt. There are so many of them that
       ``num_beams`` remain even if all others end.
    2. Candidates that end, and are among the first ``num_beams``, compete with the finished texts.
    3. The best candidates that do not end are the next running texts.
    4. The search ends when no running text can become better than the finished ones, or at ``max_new_tokens``.
    """
    count, batch, prompt = settings.num_beams, len(ids), ids.shape[1]
    # As many as transformers takes, so that ties break alike.
    wanted = count * max(2, 1 + len(special.eos))
    ids, mask = ids.repeat_interleave(count, dim=0), mask.repeat_interleave(count, dim=0)
    positions, cache = _positions(mask, special.first_position), None
    running = ids.view(batch, count, prompt)
    scores = torch.full((batch, count), _NEVER, device=ids.device)
    scores[:, 0] = 0.0  # all beams of a prompt are equal in the beginning: only the first one may be continued
    finished = _Finished(batch, settings, fill=_beam_fill(special), device=ids.device)
    first_row = torch.arange(batch, device=ids.device)[:, None] * count

    for length in range(1, settings.max_new_tokens + 1):
        logits, cache = decoder(ids, mask, positions, cache)
        # (batch, beams, vocab): the score of every text with every next token.
        total = torch.log_softmax(logits, dim=-1).view(batch, count, -1) + scores[:, :, None]
        vocabulary = total.shape[-1]
        candidates, indices = total.flatten(1).topk(wanted)  # case 1
        origin, tokens = indices // vocabulary, indices % vocabulary
        ends = special.ends(tokens) | (length == settings.max_new_tokens)
        texts = torch.cat([_rows(running, origin), tokens[:, :, None]], dim=2)
        finished.add(texts, candidates, ends, length)  # case 2

        scores, best = (candidates + ends * _NEVER).topk(count)  # case 3
        running = _rows(texts, best)
        if not finished.may_improve(scores, length) or bool(ends.all()):  # case 4
            break
        # Each row of the cache follows its text to the beam that continues it.
        cache = decoder.reorder(cache, (_rows(origin, best) + first_row).flatten())
        ids, positions = running[:, :, -1].reshape(-1, 1), positions[:, -1:] + 1
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return finished.best(prompt)


class _Finished:
    """Keep the best finished texts of every prompt, ``num_beams`` of each.

    Args:
        batch: The number of prompts.
        settings: How the prompts are continued.
        fill: The token that fills up shorter texts.
        device: The device of the texts.
    """

    def __init__(self, batch: int, settings: GenerationSettings, *, fill: int, device: torch.device) -> None:
        count = settings.num_beams
        self._settings = settings
        self._fill = fill
        self._texts: Tensor | None = None
        self._lengths = torch.zeros(batch, count, dtype=torch.long, device=device)
        self._scores = torch.full((batch, count), _NEVER, device=device)
        self._is_finished = torch.zeros(batch, count, dtype=torch.bool, device=device)
        self._open = torch.ones(batch, 1, dtype=torch.bool, device=device)

    def add(self, texts: Tensor, totals: Tensor, ends: Tensor, length: int) -> None:
        """Add the candidates that end and are good enough.

        Args:
            texts: The candidates ``(batch, candidates, seq)``.
            totals: The sums of their log-probabilities ``(batch, candidates)``.
            ends: Which of them end ``(batch, candidates)``.
            length: The number of their new tokens.
        """
        count = self._settings.num_beams
        # Candidates beyond the beams are only there to replace those that end.
        ends = ends & (torch.arange(ends.shape[1], device=ends.device) < count)
        closed = ~self._open
        if self._settings.early_stopping is True:
            closed = closed | self._is_finished.all(dim=1, keepdim=True)
        scores = totals / length**self._settings.length_penalty
        # The penalties are added separately, as in transformers: the order of the refused candidates depends on it.
        scores = scores + closed * _NEVER + ~ends * _NEVER
        old = texts[:, :count, :-length] if self._texts is None else self._texts
        old = torch.nn.functional.pad(old, (0, texts.shape[2] - old.shape[2]), value=self._fill)
        self._scores, best = torch.cat([self._scores, scores], dim=1).topk(count)
        self._texts = _rows(torch.cat([old, texts], dim=1), best)
        self._is_finished = _rows(torch.cat([self._is_finished, ends], dim=1), best)
        lengths = torch.cat([self._lengths, torch.full_like(ends, length, dtype=torch.long)], dim=1)
        self._lengths = _rows(lengths, best)

    def may_improve(self, running: Tensor, length: int) -> bool:
        """Return whether a running text with these log-probabilities may still beat the finished texts."""
        settings = self._settings
        best_length = (
            settings.max_new_tokens if settings.early_stopping == "never" and settings.length_penalty > 0 else length
        )
        reachable = running[:, :1] / best_length**settings.length_penalty
        worst = torch.where(self._is_finished, self._scores.amin(dim=1, keepdim=True), _NEVER)
        self._open &= (reachable > worst).any(dim=1, keepdim=True)
        full = settings.early_stopping is True and bool(self._is_finished.all())
        return bool(self._open.any()) and not full

    def best(self, prompt: int) -> Tensor:
        """Return the best texts of all prompts, padded to the longest one."""
        assert self._texts is not None
        count = self._settings.num_return_sequences
        width = prompt + int(self._lengths[:, :count].max())
        return self._texts[:, :count, :width].flatten(0, 1)


def _beam_fill(special: SpecialTokens) -> int:
    return special.pad or special.eos[0] if special.eos else special.pad


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Take the entries ``(batch, m)`` of values ``(batch, n, ...)`` and return ``(batch, m, ...)``."""
    return torch.stack([row[chosen] for row, chosen in zip(values, index, strict=True)])
