"""The settings of text generation, and the checks of prompts against them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from qdq.errors import ConfigError, DataError, describe_problems
from qdq.storage import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from qdq.models.config import ModelConfig

__all__ = ["GenerationSettings", "SpecialTokens", "check_prompts", "mention_other_settings"]

_LOG = logging.getLogger(__name__)

# What ``generate`` of transformers reads from a folder and is not offered here, with the value that does nothing.
# temperature, top_k and their like count only if do_sample is true, which is mentioned.
_NOT_HERE: dict[str, Any] = {
    "do_sample": False,
    "min_length": 0,
    "min_new_tokens": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "renormalize_logits": False,
}

_LARGEST_PENALTY = 50  # the number of tokens to this power is still a floating-point number


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """The settings of a generation. The names and defaults are those of ``generate`` of transformers.

    Args:
        max_new_tokens: The largest number of tokens that are added.
        num_beams: The number of beams; 1 is greedy search.
        length_penalty: The score of a finished text is divided by the number of new tokens to the power of this.
        early_stopping: When beam search ends. True: when there are ``num_beams`` finished texts. False: when the best
            running text, at its present length, scores below the worst finished text. ``"never"``: when it would also
            do so at its best possible length.
        num_return_sequences: How many of the best texts of each prompt are returned, at most ``num_beams``.
        eos_token_id: The token or tokens that end a text; by default those of the configuration. ``()`` is for none.
        pad_token_id: The token after the end; by default that of the configuration, or else the (first) end token.
        first_position: The position of the first visible token; by default that of the family.

    Raises:
        ConfigError: Values are out of range; the message lists all of them.
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
        if not abs(self.length_penalty) <= _LARGEST_PENALTY:  # neither for a value that is not a number
            problems.append(
                f"length_penalty is {self.length_penalty}, must be a number between -{_LARGEST_PENALTY} and "
                f"{_LARGEST_PENALTY}"
            )
        if self.early_stopping not in (True, False, "never"):
            problems.append(f"early_stopping is {self.early_stopping!r}, must be true, false or 'never'")
        if problems:
            raise ConfigError(describe_problems("generation", problems))


@dataclass(frozen=True)
class SpecialTokens:
    """The end and padding tokens and the first position: the settings, completed by the configuration.

    Args:
        eos: The tokens that end a text.
        pad: The token after the end.
        has_pad: Whether the settings or the configuration name a padding token.
        first_position: The position of the first visible token.
    """

    eos: tuple[int, ...]
    pad: int
    has_pad: bool
    first_position: int

    @classmethod
    def of(cls, config: ModelConfig, settings: GenerationSettings) -> SpecialTokens:
        """Complete the settings by the configuration.

        Raises:
            ConfigError: A token is not in the vocabulary, or there are more beams than tokens.
        """
        given = config.eos_token_id if settings.eos_token_id is None else settings.eos_token_id
        eos = () if given is None else tuple(given) if isinstance(given, list | tuple) else (given,)
        pad = config.pad_token_id if settings.pad_token_id is None else settings.pad_token_id
        first = settings.first_position
        if first is None:
            first = config.first_position
        named = [("eos_token_id", token) for token in eos] + ([] if pad is None else [("pad_token_id", pad)])
        problems = [
            f"{name} is {token!r}, the vocabulary has {config.vocab_size} tokens"
            for name, token in named
            if not isinstance(token, int) or not 0 <= token < config.vocab_size
        ]
        if settings.num_beams > config.vocab_size:
            problems.append(f"num_beams is {settings.num_beams}, the vocabulary has {config.vocab_size} tokens")
        if problems:
            raise ConfigError(describe_problems("generation", problems))
        return cls(eos, pad if pad is not None else eos[0] if eos else 0, pad is not None, first)

    def ends(self, tokens: Tensor) -> Tensor:
        """Return which of the tokens end a text."""
        return torch.isin(tokens, torch.tensor(self.eos, dtype=tokens.dtype, device=tokens.device))


def mention_other_settings(folder: str | Path, config: ModelConfig, settings: GenerationSettings) -> None:
    """Warn about settings of a folder that ``generate`` of transformers would follow and that differ from these.

    transformers reads ``generation_config.json``, and without one the same fields in ``config.json``.

    Args:
        folder: The folder of the model.
        config: The configuration of the model.
        settings: The settings in use.

    Raises:
        ConfigError: The file is not JSON.
    """
    file = Path(folder) / "generation_config.json"
    values = read_json(file, error=ConfigError) if file.is_file() else config.extra
    here = {name: getattr(settings, name) for name in ("num_beams", "length_penalty", "early_stopping")}
    here |= {"max_new_tokens": settings.max_new_tokens, "num_return_sequences": settings.num_return_sequences}
    here |= {
        "eos_token_id": config.eos_token_id if settings.eos_token_id is None else settings.eos_token_id,
        "pad_token_id": config.pad_token_id if settings.pad_token_id is None else settings.pad_token_id,
    }
    other = [name for name, value in (_NOT_HERE | here).items() if values.get(name) not in (None, value)]
    if other:
        source = file if file.is_file() else Path(folder) / "config.json"
        listed = ", ".join(f"{name} {values[name]!r}" for name in other)
        _LOG.warning("%s: %s: not followed, the options decide; generate of transformers follows it", source, listed)
    if settings.first_position is None and config.first_position:
        _LOG.warning(
            "positions begin at %d, as in training; generate of transformers 5 begins at 0 and gives other texts "
            "(in Python, GenerationSettings(first_position=0) does the same)",
            config.first_position,
        )


def check_prompts(
    ids: Tensor, mask: Tensor, *, config: ModelConfig, settings: GenerationSettings, special: SpecialTokens
) -> None:
    """Check that prompts can be continued.

    Args:
        ids: Prompts ``(batch, seq)``.
        mask: Attention mask ``(batch, seq)``.
        config: The configuration of the model.
        settings: How the prompts are continued.
        special: The end and padding tokens and the first position.

    Raises:
        DataError: The prompts have a wrong shape or no visible token, or are too long for the model.
    """
    problems = []
    if ids.dim() != 2 or ids.shape[0] < 1 or ids.shape[1] < 1:
        raise DataError(f"prompts have shape {list(ids.shape)}, must be [batch, seq] with at least one token")
    if mask.shape != ids.shape:
        raise DataError(f"attention_mask has shape {list(mask.shape)}, the prompts have {list(ids.shape)}")
    if empty := [str(row) for row, visible in enumerate(mask.any(dim=1).tolist()) if not visible]:
        problems.append(f"no visible token in row {', '.join(empty)}: give each prompt at least one")
    # Positions may begin later than 0, which leaves less room.
    room = config.max_position_embeddings - max(special.first_position, config.first_position)
    longest = ids.shape[1] + settings.max_new_tokens
    # The last new token is never read by the model.
    if longest - 1 > room:
        problems.append(
            f"prompts of {ids.shape[1]} tokens and {settings.max_new_tokens} new ones are too long: "
            f"the model reads at most {room}; shorten the texts or ask for fewer tokens"
        )
    if problems:
        raise DataError(describe_problems("generation", problems))
