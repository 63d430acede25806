"""Models that give the scores of the next token: PyTorch models and exported files, each with its own cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qdq.errors import ConfigError, DataError
from qdq.models.cache import reorder_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from qdq.models.config import ModelConfig
    from qdq.models.model import Model
    from qdq.models.outputs import Cache

__all__ = ["Decoder", "FileRunner", "RunnerDecoder", "TorchDecoder"]


class Decoder(Protocol):
    """A model that gives the scores of the next token and keeps what it has read in a cache of its own format."""

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model."""

    @property
    def takes_positions(self) -> bool:
        """Whether the caller gives the positions. Otherwise the model counts them, masked tokens included."""

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Read new tokens.

        Args:
            ids: The new tokens ``(batch, seq)``.
            mask: 1 for visible tokens, of the new tokens and those in the cache ``(batch, cached + seq)``.
            positions: The positions of the new tokens ``(batch, seq)``.
            cache: The cache that the last call returned; None in the first call.

        Returns:
            The scores of the next token ``(batch, vocab)`` in float32, and the cache.
        """

    def reorder(self, cache: Any, rows: Tensor) -> Any:
        """Return the cache of these rows ``(batch,)``, in this order."""


class TorchDecoder:
    """A causal language model in PyTorch, float or quantized.

    Args:
        model: A model of the task ``causal-lm`` with ``is_decoder`` set. It is put into evaluation mode.
        memory: The encoder states ``(batch, keys, hidden)`` that cross-attention reads, with one row for each prompt.
        memory_mask: The attention mask of the encoder states ``(batch, keys)``.

    Raises:
        ConfigError: The model is not such a model.
    """

    takes_positions = True

    def __init__(self, model: Model, *, memory: Tensor | None = None, memory_mask: Tensor | None = None) -> None:
        if model.task != "causal-lm":
            raise ConfigError(f"the task is '{model.task}': only a model of the task causal-lm continues texts")
        if not model.config.is_decoder:
            raise ConfigError(
                "is_decoder is false in the configuration, so every token sees later ones; set it to continue texts"
            )
        self.model = model.eval()
        self.config = model.config
        self._memory = {"encoder_hidden_states": memory, "encoder_attention_mask": memory_mask}

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
        """See :class:`Decoder`."""
        device = next(self.model.parameters()).device
        given: dict[str, Any] = {name: value for name, value in self._memory.items() if value is not None}
        given = {name: _repeated(name, value, ids.shape[0]).to(device) for name, value in given.items()}
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
    """What :class:`RunnerDecoder` needs of a runner; the runners of ``exporters.runners`` have it."""

    @property
    def inputs(self) -> Iterable[Any]:
        """The inputs, each with its name, dtype and shape."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the file and return its outputs by name."""


class RunnerDecoder:
    """An exported causal language model that takes a cache (``qdq export --cache step``).

    Args:
        runner: The runner of the file.
        config: The configuration of the model.

    Raises:
        ConfigError: The file takes no cache, or its model has cross-attention.
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
            raise ConfigError(
                "an exported decoder with cross-attention cannot begin a text: use the checkpoint in PyTorch"
            )

    def __call__(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: dict[str, NDArray[Any]] | None
    ) -> tuple[Tensor, dict[str, NDArray[Any]]]:
        """See :class:`Decoder`."""
        del positions  # the file counts positions itself
        feed = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": torch.zeros_like(ids)}
        given: dict[str, NDArray[Any]] = {
            name: np.asarray(value, dtype=self._inputs[name].dtype)
            for name, value in feed.items()
            if name in self._inputs
        }
        # The first call reads the prompt with an empty cache.
        found = self._runner({**given, **(self._empty(ids.shape[0]) if cache is None else cache)})
        logits = torch.from_numpy(np.ascontiguousarray(found["logits"][:, -1])).float()
        return logits, {name: found[name.replace("past_key_values", "present", 1)] for name in self._past}

    def reorder(self, cache: dict[str, NDArray[Any]], rows: Tensor) -> dict[str, NDArray[Any]]:
        """See :class:`Decoder`."""
        index = rows.numpy()
        return {name: value[index] for name, value in cache.items()}

    def _empty(self, batch: int) -> dict[str, NDArray[Any]]:
        """Return an empty cache ``(batch, heads, 0, head size)`` for the heads of the file."""
        entries = {name: self._inputs[name] for name in self._past}
        return {name: np.zeros((batch, e.shape[1], 0, e.shape[3]), dtype=e.dtype) for name, e in entries.items()}


def _repeated(name: str, value: Tensor, batch: int) -> Tensor:
    """Repeat each row of ``value`` for the beams of its prompt."""
    if batch % len(value):
        raise DataError(f"{name} has {len(value)} rows for {batch} prompts: give one each")
    return value.repeat_interleave(batch // len(value), dim=0)
