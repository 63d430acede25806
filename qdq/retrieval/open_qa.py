"""Answers to questions from an index of blocks: embedder, searcher and reader together, as upstream's RealmForOpenQA.

qa = load("openqa-checkpoint", index)          or OpenQA(embedder, reader, searcher, records, tokenizer)
qa.answer("Who invented the telephone?")       text, score, block
qa(question_ids, answer_ids=[...])             the reader's output, with losses in training
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from qdq.errors import CheckpointError, ConfigError, DataError
from qdq.models.huggingface import config_to_json, load_weights, read_tensors, upstream_state
from qdq.models.registry import construct
from qdq.retrieval.candidates import find_answers, pair_with_blocks
from qdq.retrieval.search import ExactSearcher
from qdq.source import ModelDirectory
from qdq.storage import atomic_directory, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from qdq.models.model import Model
    from qdq.models.realm_config import RealmConfig
    from qdq.models.realm_models import ReaderOutput
    from qdq.retrieval.candidates import Candidates, Targets
    from qdq.retrieval.records import Texts
    from qdq.retrieval.search import Searcher

__all__ = ["ARCHITECTURE", "Answer", "OpenQA", "OpenQAOutput", "load", "load_part", "save"]

ARCHITECTURE = "RealmForOpenQA"
_PARTS = {"retrieval": "embedder", "question-answering": "reader"}


@dataclass(frozen=True)
class Answer:
    """An answer, and where it is from.

    Args:
        text: of the answer, as the tokenizer writes it.
        score: of the span in its block, relevance of the block included; comparable within a question.
        relevance: of the block for the question.
        block: its number in the index.
        context: its text.
    """

    text: str
    score: float
    relevance: float
    block: int
    context: str


@dataclass(frozen=True)
class OpenQAOutput:
    """What the reader found, and how it came to that.

    Args:
        reader_output: losses in case answers were given, and the best span.
        predicted_answer_ids: tokens of that span.
        block_ids: of the blocks that were retrieved, best first, ``(k,)``.
        relevance: of these blocks, ``(k,)``.
        candidates: the question with each of them.
        targets: where the answers are in them.
    """

    reader_output: ReaderOutput
    predicted_answer_ids: Tensor
    block_ids: Tensor
    relevance: Tensor
    candidates: Candidates
    targets: Targets | None


class OpenQA(nn.Module):
    """Embedder, searcher and reader. In training it retrieves ``searcher_beam_size`` blocks, else ``reader_beam_size``.

    Args:
        embedder: of the task ``retrieval``.
        reader: of the task ``question-answering``.
        searcher: over the embeddings of the blocks; they get no gradient.
        records: the text of every block.
        tokenizer: of both models.
        sep_token: ends a part of a row.
        pad_token: fills rows up.

    Raises:
        ConfigError: models of other tasks.
        DataError: as many texts as embeddings there must be.
    """

    def __init__(
        self,
        embedder: Model,
        reader: Model,
        searcher: Searcher,
        records: Texts,
        tokenizer: Tokenizer,
        *,
        sep_token: str = "[SEP]",
        pad_token: str = "[PAD]",
    ) -> None:
        super().__init__()
        for model, task in ((embedder, "retrieval"), (reader, "question-answering")):
            if model.task != task or model.config.model_type != "realm":
                raise ConfigError(f"the {_PARTS[task]} must be a realm model of the task '{task}', not '{model.task}'")
        if len(searcher) != len(records):
            raise DataError(
                f"{len(records):,} records, but {len(searcher):,} embeddings: they are not of the same blocks"
            )
        self.embedder = embedder
        self.reader = reader
        self.searcher = searcher
        self.records = records
        self.tokenizer = tokenizer
        self.config = cast("RealmConfig", reader.config)
        self._sep = _token(tokenizer, sep_token)
        self._pad = _token(tokenizer, pad_token)

    @property
    def beam_size(self) -> int:
        """How many blocks are retrieved."""
        return self.config.searcher_beam_size if self.training else self.config.reader_beam_size

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        answer_ids: Sequence[Sequence[int]] | None = None,
    ) -> OpenQAOutput:
        """Retrieve blocks for one question ``(1, seq)`` and read them; with the tokens of answers also the losses.

        Raises:
            DataError: more than one question, or fewer blocks than the reader reads.
        """
        if input_ids.dim() != 2 or input_ids.shape[0] != 1:
            raise DataError(f"input_ids has shape {list(input_ids.shape)}, must be [1, seq]: one question at a time")
        count = self.config.reader_beam_size
        if len(self.searcher) < count:
            raise DataError(f"{len(self.searcher)} blocks, the reader reads {count} (reader_beam_size)")
        embedded: Any = self.embedder(input_ids, attention_mask, token_type_ids, return_dict=True)
        query = embedded.projected_score
        _, found = self.searcher.search(query, self.beam_size)
        ids = found[0]
        device = next(self.reader.parameters()).device
        blocks = self.searcher.embeddings_of(ids).to(device)
        # Computed once more: the searcher may be approximate, and this is what the embedder learns from.
        relevance = blocks @ query[0].to(device)

        question = self.tokenizer.decode(input_ids[0].tolist(), skip_special_tokens=True)
        candidates = pair_with_blocks(
            question,
            [self.records[index] for index in ids.tolist()],
            self.tokenizer,
            max_length=self.config.reader_seq_len,
            pad_token_id=self._pad,
        )
        targets = None if answer_ids is None else find_answers(candidates, answer_ids, self._sep)
        gold: dict[str, Tensor] = {}
        if targets is not None:
            gold = {name: getattr(targets, name).to(device) for name in _GOLD}
        output: Any = self.reader(
            candidates.input_ids[:count].to(device),
            candidates.attention_mask[:count].to(device),
            candidates.token_type_ids[:count].to(device),
            relevance_score=relevance,
            block_mask=candidates.block_mask.to(device),
            return_dict=True,
            **gold,
        )
        row = candidates.input_ids[int(output.block_idx)]
        predicted = row[int(output.start_pos) : int(output.end_pos) + 1]
        return OpenQAOutput(output, predicted, ids, relevance, candidates, targets)

    def answer(self, question: str, *, top_k: int = 1) -> list[Answer]:
        """The best answers to ``question``, one from each of the best blocks, best first.

        Raises:
            DataError: an empty question, or one longer than the model takes.
        """
        if not question.strip():
            raise DataError("the question is empty")
        encoding = self.tokenizer.encode(question)
        longest = self.config.max_length
        if len(encoding) > longest:
            raise DataError(f"the question has {len(encoding)} tokens, the model takes at most {longest}")
        if len(encoding.ids) <= 2:
            raise DataError(f"the question has no token that the model knows: {question!r}")
        with torch.inference_mode():
            found = self(torch.tensor([encoding.ids]))
            scores, starts, ends = self._span_scores(found)
        best, candidate = scores.max(dim=1)
        rows = best.argsort(descending=True, stable=True)[:top_k]
        return [self._answer(found, int(row), float(best[row]), starts, ends, int(candidate[row])) for row in rows]

    def _span_scores(self, found: OpenQAOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of all spans ``(blocks, spans)``, and their first and last tokens."""
        count = self.config.reader_beam_size
        reader: Any = self.reader
        candidates = found.candidates
        device = found.relevance.device
        hidden = reader.encode(
            candidates.input_ids[:count].to(device),
            candidates.attention_mask[:count].to(device),
            candidates.token_type_ids[:count].to(device),
        ).last_hidden_state
        logits, starts, ends = reader.head(hidden, candidates.block_mask[:count].to(device))
        return logits + found.relevance[:count, None], starts, ends

    def _answer(
        self, found: OpenQAOutput, row: int, score: float, starts: Tensor, ends: Tensor, candidate: int
    ) -> Answer:
        tokens = found.candidates.input_ids[row][int(starts[candidate]) : int(ends[candidate]) + 1]
        block = int(found.block_ids[row])
        text = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        return Answer(text, score, float(found.relevance[row]), block, self.records[block])


_GOLD = ("start_positions", "end_positions", "has_answers")


def load_part(path: str | Path | ModelDirectory, task: str) -> Model:
    """The embedder (``retrieval``) or the reader (``question-answering``) of a directory.

    The directory is a checkpoint of this task, float or quantized; one with ``embedder`` and ``reader`` in it; or one
    of upstream's ``RealmForOpenQA``.

    Raises:
        CheckpointError: files that are missing or damaged, tensors that do not fit.
        ConfigError: a configuration that cannot be followed, or of another family.
    """
    from qdq.checkpoint import load as load_checkpoint

    directory, part = ModelDirectory.of(path), _PARTS[task]
    path = directory.path
    if (path / part / "config.json").is_file():
        return load_checkpoint(path / part, task)
    config = directory.config
    if config.model_type != "realm":
        raise ConfigError(f"{path}: model_type is '{config.model_type}', open question answering needs realm")
    if ARCHITECTURE not in config.architectures:
        return load_checkpoint(directory, task)
    model = construct(config, task)
    prefix = f"{part}."
    tensors = {key.removeprefix(prefix): t for key, t in read_tensors(path).items() if key.startswith(prefix)}
    load_weights(model, tensors, source=f"{path} ({part})")
    return model.eval()


def load(
    path: str | Path | ModelDirectory,
    records: Texts,
    searcher: Searcher | None = None,
    *,
    reader: str | Path | ModelDirectory | None = None,
) -> OpenQA:
    """Embedder and reader of a directory, with an index.

    Args:
        path: see :func:`load_part`; its tokenizer serves both.
        records: text of every block.
        searcher: over their embeddings; None takes ``block_emb`` of the checkpoint, exactly.
        reader: another directory for the reader.

    Raises:
        CheckpointError: files that are missing or damaged, tensors that do not fit.
        ConfigError: a configuration that cannot be followed.
        DataError: records and embeddings of different length.
    """
    path = ModelDirectory.of(path).path
    if searcher is None:
        blocks = read_tensors(path).get("block_emb")
        if blocks is None:
            raise CheckpointError(f"{path} has no block_emb: give an index (qdq realm index)")
        searcher = ExactSearcher(blocks)
    part = path / "embedder" if (path / "embedder" / "config.json").is_file() else path
    tokenizer = ModelDirectory.of(part).tokenizer
    models = load_part(path, "retrieval"), load_part(reader or path, "question-answering")
    return OpenQA(*models, searcher, records, tokenizer).eval()


def save(model: OpenQA, path: str | Path) -> None:
    """Write embedder and reader as upstream's ``RealmForOpenQA`` has them, without the embeddings of the blocks.

    Raises:
        ConfigError: when something that is not ours is in the way.
        StorageError: when the disk is full, or the like.
    """
    from safetensors.torch import save_file

    state = {
        f"{part}.{key}": tensor.contiguous()
        for part, inner in (("embedder", model.embedder), ("reader", model.reader))
        for key, tensor in upstream_state(inner).items()
    }
    with atomic_directory(Path(path), kind="checkpoint") as folder:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        values = config_to_json(model.config, "question-answering") | {"architectures": [ARCHITECTURE]}
        write_json(folder / "config.json", dict(sorted(values.items())))
        model.tokenizer.save(str(folder / "tokenizer.json"))


def _token(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise ConfigError(f"the tokenizer has no {name}, which separates question and block")
    return int(found)
