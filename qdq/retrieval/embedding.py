"""Compute the vectors of texts for an index, with a model in PyTorch or an exported file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdq.data.batches import padded
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from qdq.models.model import Model

__all__ = ["TextEmbedder", "torch_runner"]

_OUTPUTS = ("projected_score", "sentence_embedding")


class TextEmbedder:
    """Computes the vectors of texts, in batches of texts of similar length.

    Args:
        run: Takes arrays by name and returns arrays by name: a runner of ``exporters.runners``, or
            :func:`torch_runner`.
        tokenizer: The tokenizer of the model.
        max_length: The largest number of tokens in a text, special ones included; longer texts are cut.
        batch_size: The number of texts in a batch.
        pad_token_id: The padding token of the tokenizer.

    Raises:
        ConfigError: ``run`` returns no vector for each text.
    """

    def __init__(
        self,
        run: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]],
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int = 32,
        pad_token_id: int = 0,
    ) -> None:
        self._run = run
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._pad = pad_token_id
        tokenizer.no_padding()
        self._max_length = max_length
        #: The number of texts that were longer than ``max_length``.
        self.cut = 0
        # The width is known only from a result.
        self.width = int(self(["a"]).shape[1])

    def __call__(self, texts: Sequence[str]) -> NDArray[Any]:
        """Return the vectors ``(texts, width)`` in float32."""
        self._tokenizer.enable_truncation(self._max_length)
        encodings = self._tokenizer.encode_batch(list(texts))
        self._tokenizer.no_truncation()
        self.cut += sum(bool(encoding.overflowing) for encoding in encodings)
        # Similar lengths go together, so that batches have little padding.
        order = sorted(range(len(encodings)), key=lambda index: len(encodings[index]))
        found: dict[int, NDArray[Any]] = {}
        for begin in range(0, len(order), self._batch_size):
            chosen = order[begin : begin + self._batch_size]
            longest = max(len(encodings[index]) for index in chosen)
            batch = {
                "input_ids": padded([encodings[index].ids for index in chosen], longest, self._pad),
                "attention_mask": padded([encodings[index].attention_mask for index in chosen], longest, 0),
                "token_type_ids": padded([encodings[index].type_ids for index in chosen], longest, 0),
            }
            found |= dict(zip(chosen, self._vectors(self._run(batch)), strict=True))
        return np.stack([found[index] for index in range(len(encodings))]).astype(np.float32)

    def _vectors(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        name = next((name for name in _OUTPUTS if name in outputs), None)
        if name is None:
            raise ConfigError(f"the model gives {', '.join(outputs)}, an index needs one of {' or '.join(_OUTPUTS)}")
        return outputs[name]


def torch_runner(model: Model) -> Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]:
    """Return a function that runs a PyTorch model on arrays and returns arrays."""

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        device = next(model.parameters()).device
        with torch.inference_mode():
            output: Any = model(**{name: torch.as_tensor(value, device=device) for name, value in inputs.items()})
        found = [(name, value) for name, value in output.items() if isinstance(value, torch.Tensor)]
        return {name: value.float().cpu().numpy() for name, value in found}

    return run
