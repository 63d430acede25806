"""Continue texts with a causal language model: greedy and beam search with a cache of keys and values.

    decoder = TorchDecoder(model)                       or RunnerDecoder(OnnxRuntimeRunner("step/model.onnx"), config)
    generate(decoder, input_ids, attention_mask, settings=GenerationSettings(max_new_tokens=20, num_beams=4))

The ids are those of ``generate`` of transformers 5 on the same weights, padding included. One difference is meant:
positions count from where the family's do. RoBERTa's count from behind the padding token, which transformers 4 did
and 5 does not: ``first_position=0`` gives what the latter computes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from qdq.errors import ConfigError, DataError, describe_problems
from qdq.models.cache import reorder_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from qdq.models.config import ModelConfig
    from qdq.models.model import Model
    from qdq.models.outputs import Cache

__all__ = ["Decoder", "GenerationSettings", "RunnerDecoder", "TorchDecoder", "generate", "visible_tokens"]

_LOG = logging.getLogger(__name__)
_NEVER = -1.0e9  # upstream's, not infinity: what is added to it still has an order


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How texts are continued.

    Args:
        max_new_tokens: the most tokens that are added.
        num_beams: texts that are followed at a time; 1 is greedy search.
        length_penalty: exponent of the number of new tokens by which the score of a finished text is divided.
        early_stopping: True: end when there are ``num_beams`` finished texts. False: end when the best running text is
            behind the worst finished one at its present length. ``"never"``: at the length that suits it best.
        num_return_sequences: the best texts of each prompt that are returned, at most ``num_beams``.
        eos_token_id: token or tokens that end a text. None takes the configuration's; ``()`` is for no end.
        pad_token_id: behind the end. None takes the configuration's, or else the (first) end token.
        first_position: position of the first visible token. None takes the family's.

    Raises:
        ConfigError: for values that cannot be followed, all of them at once.
    """

    max_new_tokens: int = 20
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None
    first_position: int | None = None

    def __post_init__(self) -> None:
        counts = ("max_new_tokens", "num_beams", "num_return_sequences")
        problems = [
            f"{name} is {getattr(self, name)}, must be at least 1" for name in counts if getattr(self, name) < 1
        ]
        if self.num_return_sequences > self.num_beams >= 1:
            problems.append(f"num_return_sequences is {self.num_return_sequences}, there are {self.num_beams} beams")
        if self.early_stopping not in (True, False, "never"):
            problems.append(f"early_stopping is {self.early_stopping!r}, must be true, false or 'never'")
        if problems:
            raise ConfigError(describe_problems("generation", problems))


class Decoder(Protocol):
    """A model that gives the scores of the next token, and remembers what it has read in a cache of its own making."""

    @property
    def config(self) -> ModelConfig:
        """Of the model."""

    @property
    def takes_positions(self) -> bool:
        """Whether positions can be given; where not, they are counted through, whatever is masked."""

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Read tokens.

        Args:
            ids: those that are new, ``(batch, seq)``.
            mask: 1 = visible, over all there are so far, ``(batch, cached + seq)``.
            positions: of the new tokens, ``(batch, seq)``.
            cache: what the last call returned, None in the first.

        Returns:
            Scores of the token that follows, ``(batch, vocab)`` in float32, and the cache.
        """

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """The cache with the rows ``(batch,)`` of its batch, in this order."""


class TorchDecoder:
    """A causal language model of ours, float or quantized.

    Args:
        model: of the task ``causal-lm`` with ``is_decoder`` set; in training mode it is put into evaluation mode.
        memory: states of an encoder ``(batch, keys, hidden)`` that a decoder with cross-attention attends to; one row
            for each prompt.
        memory_mask: of them, ``(batch, keys)``.

    Raises:
        ConfigError: for another model.
    """

    takes_positions = True

    def __init__(self, model: Model, *, memory: Tensor | None = None, memory_mask: Tensor | None = None) -> None:
        if model.task != "causal-lm":
            raise ConfigError(f"the task is '{model.task}': only a causal-lm continues texts")
        if not model.config.is_decoder:
            raise ConfigError("is_decoder is false in the configuration: such a model looks ahead; set it to continue")
        self.model = model.eval()
        self.config = model.config
        self._memory = {"encoder_hidden_states": memory, "encoder_attention_mask": memory_mask}

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """See :class:`Decoder`."""
        device = next(self.model.parameters()).device
        given: dict[str, Any] = {name: value for name, value in self._memory.items() if value is not None}
        given = {name: _one_each(name, value, ids.shape[0]).to(device) for name, value in given.items()}
        with torch.inference_mode():
            output: Any = self.model(
                ids.to(device),
                mask.to(device),
                position_ids=positions.to(device),
                past_key_values=cache,
                use_cache=True,
                return_dict=True,
                **given,
            )
        return output.logits[:, -1].float().to(ids.device), output.past_key_values

    def reorder(self, cache: Cache, rows: Tensor) -> Cache:
        """See :class:`Decoder`."""
        return reorder_cache(cache, rows)


class FileRunner(Protocol):
    """What :class:`RunnerDecoder` needs of a runner: those of ``exporters.runners`` have it."""

    @property
    def inputs(self) -> Iterable[Any]:
        """Name, dtype and shape of every input."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name."""


class RunnerDecoder:
    """An exported causal language model with a cache among its inputs (``qdq export --cache step``).

    Args:
        runner: of the file.
        config: of the model.

    Raises:
        ConfigError: for a file without such inputs, or a decoder that attends to another text.
    """

    takes_positions = False

    def __init__(self, runner: FileRunner, config: ModelConfig) -> None:
        self.config = config
        self._runner = runner
        self._inputs = {entry.name: entry for entry in runner.inputs}
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        if not self._past:
            raise ConfigError("the file takes no cache: export the model with --cache step")
        if any(".encoder." in name for name in self._past):
            raise ConfigError("a file of a decoder with cross-attention cannot begin a text: continue it in torch")

    def __call__(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: dict[str, NDArray[Any]] | None
    ) -> tuple[Tensor, dict[str, NDArray[Any]]]:
        """See :class:`Decoder`."""
        del positions  # the file counts by itself
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": torch.zeros_like(ids)}
        given: dict[str, NDArray[Any]] = {
            name: np.asarray(value, dtype=self._inputs[name].dtype)
            for name, value in feed.items()
            if name in self._inputs
        }
        found = self._runner({**given, **(self._empty(ids.shape[0]) if cache is None else cache)})
        logits = torch.from_numpy(np.ascontiguousarray(found["logits"][:, -1])).float()
        return logits, {name: found[name.replace("past_key_values", "present", 1)] for name in self._past}

    def reorder(self, cache: dict[str, NDArray[Any]], rows: Tensor) -> dict[str, NDArray[Any]]:
        """See :class:`Decoder`."""
        index = rows.numpy()
        return {name: value[index] for name, value in cache.items()}

    def _empty(self, batch: int) -> dict[str, NDArray[Any]]:
        """A cache of nothing: ``(batch, heads, 0, head size)``, as many heads as the file says."""
        entries = {name: self._inputs[name] for name in self._past}
        return {name: np.zeros((batch, e.shape[1], 0, e.shape[3]), dtype=e.dtype) for name, e in entries.items()}


def generate(
    decoder: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    settings: GenerationSettings | None = None,
) -> Tensor:
    """The prompts and what follows them, ``(batch * num_return_sequences, seq + new)``.

    Rows that have ended are filled up with ``pad_token_id``. (In beam search with the end token where that is 0, as
    upstream does.) Prompts of unequal length are padded on the left. On the right the model continues the padding,
    with a warning, as upstream does; a file, which cannot be told positions, refuses that, and for padding on the left
    reads prompts of one length at a time.

    Args:
        decoder: the model.
        input_ids: prompts ``(batch, seq)`` with at least one token.
        attention_mask: 1 = visible, ``(batch, seq)``; None hides the padding tokens, if there are any and they are not
            the end token too.
        settings: :class:`GenerationSettings`; their defaults when None.

    Raises:
        ConfigError: an end or padding token outside the vocabulary.
        DataError: prompts of a wrong shape, without a visible token, or too long for the model together with
            ``max_new_tokens``.
    """
    settings = settings or GenerationSettings()
    plan = _Plan.of(decoder.config, settings)
    mask = _default_mask(input_ids, plan) if attention_mask is None else attention_mask.long()
    _check(decoder, input_ids, mask, settings, plan)
    is_padded = not bool(mask.all())
    if is_padded and not bool(mask[:, -1].all()):
        if not decoder.takes_positions:
            raise DataError("a prompt ends with padding: a file continues prompts that are padded on the left only")
        _LOG.warning("a prompt ends with padding, which is what gets continued: pad prompts on the left")
    if is_padded and not decoder.takes_positions:
        return _by_length(decoder, input_ids, mask, settings, plan)
    search = _beams if settings.num_beams > 1 else _greedy
    return search(decoder, input_ids, mask, settings, plan)


def visible_tokens(ids: Sequence[int], prompt: int, eos: Sequence[int]) -> list[int]:
    """What was added behind ``prompt`` tokens of a row, up to the first end token, which is left out."""
    added = list(ids[prompt:])
    return added[: next((place for place, token in enumerate(added) if token in eos), len(added))]


@dataclass(frozen=True)
class _Plan:
    """Tokens of an end and of padding, and where positions begin, settled."""

    eos: tuple[int, ...]
    pad: int
    has_pad: bool
    first: int

    @classmethod
    def of(cls, config: ModelConfig, settings: GenerationSettings) -> _Plan:
        given = config.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
        eos = () if given is None else (given,) if isinstance(given, int) else tuple(given)
        pad = config.pad_token_id if settings.pad_token_id is None else settings.pad_token_id
        first = settings.first_position
        if first is None:
            first = config.first_position
        named = [("eos_token_id", token) for token in eos] + ([] if pad is None else [("pad_token_id", pad)])
        problems = [
            f"{name} is {token}, the vocabulary has {config.vocab_size} tokens"
            for name, token in named
            if not 0 <= token < config.vocab_size
        ]
        if problems:
            raise ConfigError(describe_problems("generation", problems))
        return cls(eos, pad if pad is not None else eos[0] if eos else 0, pad is not None, first)

    def ends(self, tokens: Tensor) -> Tensor:
        """Which of ``tokens`` end a text."""
        return torch.isin(tokens, torch.tensor(self.eos, dtype=tokens.dtype, device=tokens.device))


def _default_mask(input_ids: Tensor, plan: _Plan) -> Tensor:
    if plan.has_pad and plan.pad not in plan.eos:
        return input_ids.ne(plan.pad).long()
    return torch.ones_like(input_ids)


def _check(decoder: Decoder, ids: Tensor, mask: Tensor, settings: GenerationSettings, plan: _Plan) -> None:
    config, problems = decoder.config, []
    if ids.dim() != 2 or ids.shape[0] < 1 or ids.shape[1] < 1:
        raise DataError(f"prompts have shape {list(ids.shape)}, must be [batch, seq] with at least one token")
    if mask.shape != ids.shape:
        raise DataError(f"attention_mask has shape {list(mask.shape)}, the prompts have {list(ids.shape)}")
    if empty := [str(row) for row, visible in enumerate(mask.any(dim=1).tolist()) if not visible]:
        problems.append(f"no visible token in row {', '.join(empty)}: give each prompt at least one")
    room = config.max_position_embeddings - max(plan.first, config.first_position)
    longest = ids.shape[1] + settings.max_new_tokens
    # The last token is put out and never read.
    if longest - 1 > room:
        problems.append(
            f"prompts of {ids.shape[1]} tokens and {settings.max_new_tokens} new ones are too long: "
            f"the model reads at most {room}"
        )
    if problems:
        raise DataError(describe_problems("generation", problems))


def _positions(mask: Tensor, first: int) -> Tensor:
    """Of prompts: visible tokens counted from ``first``; of the hidden ones it does not matter."""
    counted = mask.cumsum(dim=1) - 1 + first
    return torch.where(mask == 0, first, counted)


def _by_length(decoder: Decoder, ids: Tensor, mask: Tensor, settings: GenerationSettings, plan: _Plan) -> Tensor:
    """Continue the prompts of each length without their padding, and put them together again."""
    lengths = mask.sum(dim=1)
    several = settings.num_return_sequences
    search = _beams if settings.num_beams > 1 else _greedy
    added: dict[int, Tensor] = {}
    for length in sorted({*lengths.tolist()}):
        rows = (lengths == length).nonzero()[:, 0]
        prompts = torch.stack([ids[row][mask[row] == 1] for row in rows])
        found = search(decoder, prompts, torch.ones_like(prompts), settings, plan)[:, length:]
        added |= {row: found[n * several : (n + 1) * several] for n, row in enumerate(rows.tolist())}
    longest = max(found.shape[1] for found in added.values())
    fill = plan.pad if settings.num_beams == 1 else _beam_fill(plan)
    tails = [
        torch.nn.functional.pad(added[row], (0, longest - added[row].shape[1]), value=fill) for row in range(len(ids))
    ]
    return torch.cat([ids.repeat_interleave(several, dim=0), torch.cat(tails)], dim=1)


def _greedy(decoder: Decoder, ids: Tensor, mask: Tensor, settings: GenerationSettings, plan: _Plan) -> Tensor:
    sequences, positions, cache = ids, _positions(mask, plan.first), None
    running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(settings.max_new_tokens):
        logits, cache = decoder(ids, mask, positions, cache)
        chosen = torch.where(running, logits.argmax(dim=-1), plan.pad)
        sequences = torch.cat([sequences, chosen[:, None]], dim=1)
        running &= ~plan.ends(chosen)
        if not running.any():
            break
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return sequences


def _beam_fill(plan: _Plan) -> int:
    return plan.pad or plan.eos[0] if plan.eos else plan.pad


def _beams(decoder: Decoder, ids: Tensor, mask: Tensor, settings: GenerationSettings, plan: _Plan) -> Tensor:
    """Beam search.

    1. Of all continuations of the running texts of a prompt the best are candidates: so many that, were the best ones
       all at their end, enough would be left to go on with.
    2. Candidates among the first ``num_beams`` that are at their end compete with the finished texts.
    3. The best candidates that are not at their end are the next running texts.
    4. It ends when no running text can become better than the finished ones, or there is no room.
    """
    count, batch, prompt = settings.num_beams, len(ids), ids.shape[1]
    wanted = count * max(2, 1 + len(plan.eos))
    ids, mask = ids.repeat_interleave(count, dim=0), mask.repeat_interleave(count, dim=0)
    positions, cache = _positions(mask, plan.first), None
    running = ids.view(batch, count, prompt)
    scores = torch.full((batch, count), _NEVER, device=ids.device)
    scores[:, 0] = 0.0  # all texts of a prompt are equal in the beginning: only one may have followers
    finished = _Finished(batch, settings, fill=_beam_fill(plan), device=ids.device)
    first_row = torch.arange(batch, device=ids.device)[:, None] * count

    for length in range(1, settings.max_new_tokens + 1):
        logits, cache = decoder(ids, mask, positions, cache)
        total = torch.log_softmax(logits, dim=-1).view(batch, count, -1) + scores[:, :, None]
        vocabulary = total.shape[-1]
        candidates, places = total.flatten(1).topk(wanted)  # case 1
        origin, tokens = places // vocabulary, places % vocabulary
        ends = plan.ends(tokens) | (length == settings.max_new_tokens)
        texts = torch.cat([_rows(running, origin), tokens[:, :, None]], dim=2)
        finished.take(texts, candidates, ends, length)  # case 2

        scores, best = (candidates + ends * _NEVER).topk(count)  # case 3
        running = _rows(texts, best)
        if not finished.may_improve(scores, length) or bool(ends.all()):  # case 4
            break
        cache = decoder.reorder(cache, (_rows(origin, best) + first_row).flatten())
        ids, positions = running[:, :, -1].reshape(-1, 1), positions[:, -1:] + 1
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return finished.best(prompt)


class _Finished:
    """The best finished texts of every prompt, ``num_beams`` of each."""

    def __init__(self, batch: int, settings: GenerationSettings, *, fill: int, device: torch.device) -> None:
        count = settings.num_beams
        self._settings = settings
        self._fill = fill
        self._texts: Tensor | None = None
        self._lengths = torch.zeros(batch, count, dtype=torch.long, device=device)
        self._scores = torch.full((batch, count), _NEVER, device=device)
        self._real = torch.zeros(batch, count, dtype=torch.bool, device=device)
        self._open = torch.ones(batch, 1, dtype=torch.bool, device=device)

    def take(self, texts: Tensor, totals: Tensor, ends: Tensor, length: int) -> None:
        """Let candidates ``(batch, candidates, seq)`` of ``length`` new tokens in, as far as they are good enough."""
        count = self._settings.num_beams
        ends = ends & (torch.arange(ends.shape[1], device=ends.device) < count)
        closed = ~self._open
        if self._settings.early_stopping is True:
            closed = closed | self._real.all(dim=1, keepdim=True)
        scores = totals / length**self._settings.length_penalty
        # Each reason on its own account: the order of those that are not let in is upstream's, too.
        scores = scores + closed * _NEVER + ~ends * _NEVER
        old = texts[:, :count, :-length] if self._texts is None else self._texts
        old = torch.nn.functional.pad(old, (0, texts.shape[2] - old.shape[2]), value=self._fill)
        self._scores, best = torch.cat([self._scores, scores], dim=1).topk(count)
        self._texts = _rows(torch.cat([old, texts], dim=1), best)
        self._real = _rows(torch.cat([self._real, ends], dim=1), best)
        lengths = torch.cat([self._lengths, torch.full_like(ends, length, dtype=torch.long)], dim=1)
        self._lengths = _rows(lengths, best)

    def may_improve(self, running: Tensor, length: int) -> bool:
        """Whether to go on: some running text, of these log-probabilities, may still beat the finished ones."""
        settings = self._settings
        hoped = (
            settings.max_new_tokens if settings.early_stopping == "never" and settings.length_penalty > 0 else length
        )
        reachable = running[:, :1] / hoped**settings.length_penalty
        worst = torch.where(self._real, self._scores.amin(dim=1, keepdim=True), _NEVER)
        self._open &= (reachable > worst).any(dim=1, keepdim=True)
        full = settings.early_stopping is True and bool(self._real.all())
        return bool(self._open.any()) and not full

    def best(self, prompt: int) -> Tensor:
        """The best texts of all prompts, as wide as the longest of them."""
        assert self._texts is not None
        count = self._settings.num_return_sequences
        width = prompt + int(self._lengths[:, :count].max())
        return self._texts[:, :count, :width].flatten(0, 1)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Of ``(batch, n, ...)`` the entries ``(batch, m)`` of every batch: ``(batch, m, ...)``."""
    return torch.stack([row[chosen] for row, chosen in zip(values, index, strict=True)])


def _one_each(name: str, value: Tensor, batch: int) -> Tensor:
    """A row of ``value`` for every row of the batch, which holds each prompt as often as there are beams."""
    if batch % len(value):
        raise DataError(f"{name} has {len(value)} rows for {batch} prompts: give one each")
    return value.repeat_interleave(batch // len(value), dim=0)
