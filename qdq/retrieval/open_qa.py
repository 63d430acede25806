"""Answer questions from an index: embedder, searcher and reader together, as RealmForOpenQA of transformers.

qa = load("openqa-checkpoint", index.records, index.searcher())
qa.answer("Who invented the telephone?")       # answers with their text, score and block
qa(question_ids, answer_ids=[...])             # the output of the reader, with losses
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from qdq.errors import CheckpointError, ConfigError, DataError
from qdq.models.huggingface import config_to_json, load_weights, read_tensors, read_weights, upstream_state
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

__all__ = ["ARCHITECTURE", "Answer", "OpenQA", "OpenQAOutput", "load", "load_component", "save"]

_LOG = logging.getLogger(__name__)

ARCHITECTURE = "RealmForOpenQA"
_COMPONENTS = {"retrieval": "embedder", "question-answering": "reader"}  # by task
_TARGETS = ("start_positions", "end_positions", "has_answers")  # what the reader takes to compute losses


@dataclass(frozen=True)
class Answer:
    """An answer, and the block that has it.

    Args:
        text: The answer, as the tokenizer decodes it.
        score: The score of the span plus the relevance of its block; comparable among answers to one question.
        relevance: The relevance of the block for the question.
        block: The number of the block in the index.
        context: The text of the block.
    """

    text: str
    score: float
    relevance: float
    block: int
    context: str


@dataclass(frozen=True)
class OpenQAOutput:
    """The result of the reader, and the blocks that it is based on.

    Args:
        reader_output: The best span, and the losses if answers were given.
        predicted_answer_ids: The token ids of the best span.
        block_ids: The retrieved blocks, best first ``(k,)``.
        relevance: The relevance of these blocks ``(k,)``.
        candidates: The question paired with each of these blocks.
        targets: Where the answers are in the blocks, if answers were given.
    """

    reader_output: ReaderOutput
    predicted_answer_ids: Tensor
    block_ids: Tensor
    relevance: Tensor
    candidates: Candidates
    targets: Targets | None


class OpenQA(nn.Module):
    """A module of embedder, searcher and reader.

    It retrieves ``searcher_beam_size`` blocks in training and ``reader_beam_size`` blocks otherwise.

    Args:
        embedder: A REALM model of the task ``retrieval``.
        reader: A REALM model of the task ``question-answering``.
        searcher: Searches the embeddings of the blocks, which get no gradient.
        records: The text of every block.
        tokenizer: The tokenizer of both models.
        sep_token: The separator after the question and after the block.
        pad_token: The padding token.

    Raises:
        ConfigError: A model is of another family or task, or the tokenizer has no such token.
        DataError: There are more or fewer texts than embeddings.
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
                raise ConfigError(
                    f"the {_COMPONENTS[task]} must be a realm model of the task '{task}', not '{model.task}'"
                )
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
        """The number of blocks that are retrieved."""
        return self.config.searcher_beam_size if self.training else self.config.reader_beam_size

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        answer_ids: Sequence[Sequence[int]] | None = None,
    ) -> OpenQAOutput:
        """Retrieve blocks for one question and read them.

        Args:
            input_ids: The token ids of the question ``(1, seq)``.
            attention_mask: Its attention mask ``(1, seq)``.
            token_type_ids: Its token types ``(1, seq)``.
            answer_ids: The token ids of the true answers, to compute the losses.

        Raises:
            DataError: There is more than one question, or no block has a token that the tokenizer knows.
        """
        if input_ids.dim() != 2 or input_ids.shape[0] != 1:
            raise DataError(f"input_ids has shape {list(input_ids.shape)}, must be [1, seq]: one question at a time")
        count = self.config.reader_beam_size
        embedded: Any = self.embedder(input_ids, attention_mask, token_type_ids, return_dict=True)
        query = embedded.projected_score
        ids = self._retrieve(query)
        device = next(self.reader.parameters()).device
        blocks = self.searcher.embeddings_of(ids).to(device)
        # Computed again, because the searcher may be approximate and gives no gradient to the embedder.
        relevance = blocks @ query[0].to(device)

        question = self.tokenizer.decode(input_ids[0].tolist(), skip_special_tokens=True)
        candidates = pair_with_blocks(
            question,
            [self.records[index] for index in ids.tolist()],
            self.tokenizer,
            max_length=self.config.reader_seq_len,
            min_length=self.config.max_span_width,
            pad_token_id=self._pad,
        )
        targets = None if answer_ids is None else find_answers(candidates, answer_ids, self._sep)
        gold: dict[str, Tensor] = {}
        if targets is not None:
            gold = {name: getattr(targets, name).to(device) for name in _TARGETS}
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

    def _retrieve(self, query: Tensor) -> Tensor:
        """Return the ids of the best blocks, at most ``beam_size``; those without a token are never among them."""
        wanted = count = min(self.beam_size, len(self.searcher))
        while True:
            _, found = self.searcher.search(query, count)
            ids = found[0]
            ids = ids[[self._has_tokens(index) for index in ids.tolist()]][:wanted]
            if len(ids) == wanted or count == len(self.searcher):
                break
            count = min(2 * count, len(self.searcher))
        if not len(ids):
            raise DataError("no block has a token that the tokenizer knows: the index has nothing to read")
        return ids

    def _has_tokens(self, index: int) -> bool:
        return len(self.tokenizer.encode(self.records[index], add_special_tokens=False)) > 0

    def answer(self, question: str, *, top_k: int = 1) -> list[Answer]:
        """Return the best answers to a question, one from each block, best first.

        Args:
            question: The question.
            top_k: The number of answers. There are fewer, with a warning, if the reader reads fewer blocks.

        Raises:
            DataError: The question is empty, or longer than the model takes.
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
        if top_k > len(best):
            _LOG.warning(
                "top_k is %d, but there are %d answers: one for each block that the reader reads (reader_beam_size is "
                "%d, the index has %d blocks)",
                *(top_k, len(best), self.config.reader_beam_size, len(self.searcher)),
            )
        rows = best.argsort(descending=True, stable=True)[:top_k]
        return [self._answer(found, int(row), float(best[row]), starts, ends, int(candidate[row])) for row in rows]

    def _span_scores(self, found: OpenQAOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores of all spans ``(blocks, spans)`` and their first and last tokens."""
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
        # An answer of characters that the tokenizer does not know would be empty without its special tokens.
        text = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True) or self.tokenizer.decode(
            tokens.tolist(), skip_special_tokens=False
        )
        return Answer(text, score, float(found.relevance[row]), block, self.records[block])


def load_component(path: str | Path | ModelDirectory, task: str) -> Model:
    """Load the embedder (``retrieval``) or the reader (``question-answering``) of a directory.

    Args:
        path: A float or quantized checkpoint of this task, a directory with the checkpoints ``embedder`` and
            ``reader``, or a checkpoint of ``RealmForOpenQA`` of transformers.
        task: ``retrieval`` or ``question-answering``.

    Raises:
        CheckpointError: Files are missing or damaged, or tensors do not fit.
        ConfigError: The configuration is not supported, or is not of the family REALM.
    """
    from qdq.checkpoint import load as load_checkpoint

    directory, component = ModelDirectory.of(path), _COMPONENTS[task]
    path = directory.path
    if (path / component / "config.json").is_file():
        return load_checkpoint(ModelDirectory.of(path / component, directory.loading), task)
    config = directory.config
    if config.model_type != "realm":
        raise ConfigError(f"{path}: model_type is '{config.model_type}', open question answering needs realm")
    if ARCHITECTURE not in config.architectures:
        return load_checkpoint(directory, task)
    model = construct(config, task)
    tensors = read_weights(path, config, part=f"{component}.", ignore_keys=directory.loading.ignore_keys)
    load_weights(model, tensors, source=f"{path} ({component})")
    return model.eval()


def load(
    path: str | Path | ModelDirectory,
    records: Texts,
    searcher: Searcher | None = None,
    *,
    reader: str | Path | ModelDirectory | None = None,
) -> OpenQA:
    """Load the embedder and the reader of a directory and join them with an index.

    Args:
        path: See :func:`load_component`. Both models use its tokenizer.
        records: The text of every block.
        searcher: Searches the embeddings of the blocks; by default an exact search in ``block_emb`` of the checkpoint.
        reader: Another directory for the reader.

    Raises:
        CheckpointError: Files are missing or damaged, or tensors do not fit.
        ConfigError: The configuration is not supported.
        DataError: There are more or fewer texts than embeddings.
    """
    directory = ModelDirectory.of(path)
    path = directory.path
    if searcher is None:
        blocks = read_tensors(path).get("block_emb")
        if blocks is None:
            raise CheckpointError(f"{path} has no block_emb: give an index (qdq realm index)")
        searcher = ExactSearcher(blocks)
    tokenizer_folder = path / "embedder" if (path / "embedder" / "config.json").is_file() else path
    tokenizer = ModelDirectory.of(tokenizer_folder, directory.loading).tokenizer
    models = load_component(directory, "retrieval"), load_component(reader or directory, "question-answering")
    return OpenQA(*models, searcher, records, tokenizer).eval()


def save(model: OpenQA, path: str | Path) -> None:
    """Write embedder and reader as a checkpoint of ``RealmForOpenQA``, without the embeddings of the blocks.

    Raises:
        ConfigError: ``path`` holds something other than a checkpoint.
        StorageError: A file cannot be written, for instance because the disk is full.
    """
    from safetensors.torch import save_file

    state = {
        f"{component}.{key}": tensor.contiguous()
        for component, inner in (("embedder", model.embedder), ("reader", model.reader))
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
        raise ConfigError(f"the tokenizer has no {name}")
    return int(found)
