"""Compute embeddings of texts as ``SentenceTransformer.encode`` does; one window of texts is in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdq.data.batches import in_order
from qdq.sentence.embedder import load_embedder
from qdq.sentence.prompts import prompt_tokens, with_prompt
from qdq.tasks.similarity import normalized

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from numpy.typing import NDArray

    from qdq.data.batches import Batch
    from qdq.data.examples import TextExample
    from qdq.sentence.embedder import SentenceEmbedder
    from qdq.sentence.folder import SentenceFolder
    from qdq.tasks.evaluator import Evaluator
    from qdq.tasks.pooling import Vectors

__all__ = ["Embeddings"]

_OWN = "sentence_embedding"  # the output of a file that pools by itself


@dataclass(frozen=True)
class Embeddings:
    """Computes the embeddings of one model.

    Args:
        evaluator: The model, and how to evaluate it.
    """

    evaluator: Evaluator

    @property
    def folder(self) -> SentenceFolder:
        """What the files of sentence-transformers say."""
        return self.evaluator.model.directory.sentence

    @property
    def similarity(self) -> str:
        """How embeddings are compared."""
        return self.folder.similarity

    @property
    def length(self) -> int:
        """The longest text in tokens."""
        most = self.evaluator.model.max_length
        return self.evaluator.settings.seq_len or min(self.folder.max_length or most, most)

    @cached_property
    def embedder(self) -> SentenceEmbedder:
        """What follows the transformer.

        Raises:
            ConfigError: The directory has modules that are not supported, and no pooling is chosen.
        """
        return load_embedder(self.folder, self.evaluator.settings.pooling)  # type: ignore[arg-type]

    def settings(self, **prompts: str) -> dict[str, Any]:
        """Return what the embeddings depend on; of prompts and of the usual values only those that are not empty.

        Args:
            **prompts: What is put in front of the texts, by the name of the setting.
        """
        similarity = "" if self.similarity == "cosine" else self.similarity
        more = {**prompts, "similarity": similarity, "truncate_dim": self.folder.truncate_dim}
        return {
            "pooling": str(self._pooling),
            "seq_len": self.length,
            **{name: value for name, value in more.items() if value},
        }

    @property
    def _pooling(self) -> object:
        settings = self.evaluator.settings
        if self._pools_itself:
            return self._interface.get("pooling") or settings.pooling or "mean"
        return settings.pooling or self.folder.pooling

    @property
    def _pools_itself(self) -> bool:
        """Whether the model gives one vector for each text; models in memory know their outputs after the first run."""
        return self._takes_own(self.evaluator.model.runner.output_names)

    def _takes_own(self, names: Container[str]) -> bool:
        """Return whether the model's own vectors are taken: not if a pooling is chosen and there are token vectors."""
        return _OWN in names and not (self.evaluator.settings.pooling is not None and "last_hidden_state" in names)

    @property
    def _interface(self) -> dict[str, Any]:
        """The export interface of an export of ours; empty for any other model."""
        interface: dict[str, Any] = (self.evaluator.model.directory.export or {}).get("form", {})
        return interface

    def embed(self, texts: Iterable[TextExample], *, prompt: str = "", rows_per_example: int = 1) -> Iterator[Vectors]:
        """Yield embeddings ``(width,)`` in the order of the texts, whose indices count from 0."""
        batches = self.embed_in_batches(texts, prompt=prompt, rows_per_example=rows_per_example)
        rows = (
            (index, vector)
            for batch, vectors in batches
            for index, vector in zip(batch.index.tolist(), vectors, strict=True)
        )
        return in_order(rows)

    def embed_in_batches(
        self, texts: Iterable[TextExample], *, prompt: str = "", rows_per_example: int = 1
    ) -> Iterator[tuple[Batch, Vectors]]:
        """Yield batches of texts of similar length with their embeddings ``(batch, width)``.

        They have length 1 if they are compared by their cosine.

        Args:
            texts: The texts.
            prompt: What is put in front of each text.
            rows_per_example: Texts that make one example, for the progress.
        """
        evaluator = self.evaluator
        batches = evaluator.batches(with_prompt(texts, prompt), "feature-extraction", max_length=self.length)
        tokens = prompt_tokens(evaluator.encoder, prompt, self.length)
        for batch, outputs in evaluator.outputs(batches, rows_per_example=rows_per_example):
            vectors = self._vectors(batch, outputs, tokens)[:, : self.folder.truncate_dim]
            yield batch, normalized(vectors) if self.similarity == "cosine" else vectors

    def _vectors(self, batch: Batch, outputs: dict[str, NDArray[Any]], prompt_tokens: int) -> Vectors:
        if self._takes_own(outputs):
            return outputs[_OWN]
        with torch.inference_mode():
            # torch warns of arrays that it cannot write to, as some runtimes return them.
            hidden = torch.from_numpy(np.require(outputs["last_hidden_state"], requirements="W"))
            found: Vectors = self.embedder(hidden, batch["attention_mask"], prompt_tokens).numpy()
        return found

    def notes(self) -> tuple[str, ...]:
        """Return what makes the embeddings differ from those of sentence-transformers, in sentences."""
        folder, chosen, notes = self.folder, self.evaluator.settings.pooling, []
        if not self._pools_itself:
            notes += folder.left_out_by(chosen) if chosen is not None else []
        else:
            if chosen is not None:
                notes.append(f"the pooling {chosen} has no effect: the model gives one vector for each text")
            interface = self._interface
            if pooling := interface.get("pooling"):
                # A cosine does not depend on the length of the vectors.
                normalizes = bool(interface.get("normalize")) or self.similarity == "cosine"
                notes += folder.left_out_of_file(pooling, normalize=normalizes, cuts=True)
        limit = folder.max_length
        if limit is not None and self.length > limit:
            notes.append(f"texts of up to {self.length} tokens were read, sentence-transformers cuts them at {limit}")
        return tuple(notes)
