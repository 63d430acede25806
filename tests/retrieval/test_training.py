"""A small retriever and reader learn from the paragraphs of SQuAD."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch

from qdq.data.tokenizer import load_tokenizer
from qdq.models.registry import build, configure
from qdq.retrieval.embedding import TextEmbedder, torch_runner
from qdq.retrieval.open_qa import OpenQA
from qdq.retrieval.search import ExactSearcher

if TYPE_CHECKING:
    from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def vocabulary(text: str, folder: Path) -> Path:
    words = [word for word, _ in Counter(re.findall(r"[a-z]+", text.lower())).most_common(1500)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *".,?'-"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys([*tokens, *words])) + "\n")
    return folder


@pytest.mark.slow
def test_retriever_and_reader_learn_from_squad(data_dir: Path, tmp_path: Path) -> None:
    articles = json.loads((data_dir / "squad" / "dev-subset.json").read_text())["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]][:24]
    texts = [paragraph["context"] for paragraph in paragraphs]
    tokenizer = load_tokenizer(vocabulary(" ".join(texts), tmp_path))
    config = configure(
        "realm",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.3,  # vectors of untrained texts that differ
        retriever_proj_size=16,
        span_hidden_size=16,
        reader_beam_size=3,
        reader_seq_len=200,
        searcher_beam_size=len(texts),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    embedder, reader = build(config, "retrieval"), build(config, "question-answering")
    blocks = TextEmbedder(torch_runner(embedder), tokenizer, max_length=168)(texts)
    model = OpenQA(embedder, reader, ExactSearcher(blocks), texts, tokenizer).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    asked = [qa for paragraph in paragraphs[:6] for qa in paragraph["qas"] if qa["answers"]][:8]

    rounds = []
    for _ in range(6):
        total = {"retriever": 0.0, "reader": 0.0}
        for qa in asked:
            ids = torch.tensor([tokenizer.encode(qa["question"]).ids])
            answers = {answer["text"] for answer in qa["answers"]}
            answer_ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in sorted(answers)]
            output = model(ids, answer_ids=answer_ids).reader_output
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            total["retriever"] += float(output.retriever_loss.detach())
            total["reader"] += float(output.reader_loss.detach())
        rounds.append(total)
    # The blocks keep the vectors that the first embedder gave them: it learns to find them for these questions.
    assert 0 < rounds[-1]["retriever"] < 0.7 * rounds[0]["retriever"], rounds
    assert rounds[-1]["reader"] < rounds[0]["reader"] or rounds[0]["reader"] == 0, rounds
