"""Measure time and memory of indexing and answering as the number of blocks grows, and the recall that int8 costs.

    python tools/bench_retrieval.py growth --blocks 10000 100000 1000000     the index alone, with random embeddings
    python tools/bench_retrieval.py recall MODEL SQUAD.json [--int8 EXPORT]  a real embedder on SQuAD's paragraphs

Each number of blocks and each searcher runs in a process of its own. Memory is the largest resident set, beside that of
the process before it opened anything. It includes the parts of a memory map that were read, which the system may free.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdq.retrieval.index import Index, build_index
from qdq.retrieval.search import KINDS, ExactSearcher, FaissSearcher, recall

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 128
REALM_BLOCKS = 13_353_718


class Drawn:
    """Make random embeddings quickly, so that the index dominates the measurement."""

    width = WIDTH

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        return self._rng.standard_normal((len(texts), WIDTH), dtype=np.float32)


def memory() -> dict[str, float]:
    """Return the largest resident set so far, and the resident memory now that is not a file, in MB."""
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mb": round(peak), "anonymous_mb": round(int(anonymous.split()[1]) / 1024)}


def build(folder: Path, blocks: int) -> dict[str, Any]:
    before = memory()
    begin = time.perf_counter()
    texts = (f"block {number} with some words of its own " * 10 for number in range(blocks))
    build_index(Drawn(), lambda: texts, folder, metadata={}, batch=4096, faiss=["flat", "int8"])
    seconds = time.perf_counter() - begin
    sizes = {path.name: round(path.stat().st_size / 1e6, 1) for path in folder.iterdir()}
    return {"seconds": round(seconds, 2), "before": before, **memory(), "files_mb": sizes}


def search(folder: Path, kind: str, asked: int = 12) -> dict[str, Any]:
    before = memory()
    begin = time.perf_counter()
    index = Index(folder)
    searcher = index.searcher(kind)
    opened = time.perf_counter() - begin
    queries = torch.randn(asked, WIDTH, generator=torch.Generator().manual_seed(5))
    times, found = [], []
    for query in queries:
        begin = time.perf_counter()
        found.append(searcher.search(query[None], 5)[1])
        times.append(time.perf_counter() - begin)
        assert index.records[int(found[-1][0, 0])]
    ids = torch.cat(found)
    exact = ExactSearcher(index.embeddings).search(queries, 5)[1] if kind != "exact" else ids
    return {
        "opened_ms": round(1000 * opened, 1),
        "first_ms": round(1000 * times[0], 1),
        "median_ms": round(1000 * sorted(times)[asked // 2], 1),
        "before": before,
        **memory(),
        "same_ids": bool(torch.equal(ids, exact)),
        "recall_of_best": round(recall(ids, exact[:, 0]), 3),
    }


def growth(counts: Sequence[int]) -> None:
    """Run each measurement in a process of its own."""

    def measured(*arguments: object) -> dict[str, Any]:
        command = [sys.executable, __file__, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return dict(json.loads(done.stdout))

    for blocks in counts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "index"
            print(blocks, "index", json.dumps(measured("_build", folder, blocks)), flush=True)
            for kind in KINDS:
                print(blocks, kind, json.dumps(measured("_search", folder, kind)), flush=True)
    size = REALM_BLOCKS * WIDTH * 4 / 1e9
    print(f"{REALM_BLOCKS:,} blocks: {size:.2f} GB in float32, {size / 4:.2f} GB in int8, read once a question")


def measure_recall(model: Path, squad: Path, exported: Path | None, limit: int) -> None:
    """Measure recall@5 of questions for their paragraphs, with float or int8 embedder and float or int8 index."""
    from exporters.runners import OnnxRuntimeRunner
    from qdq.data.tokenizer import load_tokenizer
    from qdq.models.huggingface import load_model
    from qdq.retrieval.embedding import TextEmbedder, torch_runner

    articles = json.loads(squad.read_text())["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    questions = [(qa["question"], number) for number, p in enumerate(paragraphs) for qa in p["qas"]]
    drawn = np.random.default_rng(0).permutation(len(questions))[:limit]
    texts = [questions[index][0] for index in drawn]
    wanted = torch.tensor([questions[index][1] for index in drawn])
    tokenizer = load_tokenizer(model)

    def mean_pooled(run: Any) -> Any:
        """Pool the vectors of the tokens to one vector of length 1 per text."""

        def pooled(batch: dict[str, Any]) -> dict[str, Any]:
            output = run(batch)
            if "sentence_embedding" in output:
                return dict(output)
            mask = batch["attention_mask"][:, :, None]
            vector = (output["last_hidden_state"] * mask).sum(1) / mask.sum(1)
            return {"sentence_embedding": vector / np.linalg.norm(vector, axis=1, keepdims=True)}

        return pooled

    runs: dict[str, Any] = {"float": torch_runner(load_model(model, "feature-extraction"))}
    if exported is not None:
        runs["int8"] = OnnxRuntimeRunner(exported / "model.onnx", threads=torch.get_num_threads())
    for name, run in runs.items():
        embed = TextEmbedder(mean_pooled(run), tokenizer, max_length=256, batch_size=32)
        begin = time.perf_counter()
        blocks = torch.from_numpy(embed([paragraph["context"] for paragraph in paragraphs]))
        seconds = time.perf_counter() - begin
        asked = torch.from_numpy(embed(texts))
        print(f"{name} embedder: {len(paragraphs)} paragraphs in {seconds:.0f} s, {len(texts)} questions", flush=True)
        for kind in KINDS:
            searcher = ExactSearcher(blocks) if kind == "exact" else FaissSearcher.build(blocks, kind)
            share = recall(searcher.search(asked, 5)[1], wanted)
            print(f"  {kind:6} recall@5 {100 * share:.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    grows = commands.add_parser("growth")
    grows.add_argument("--blocks", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    recalls = commands.add_parser("recall")
    recalls.add_argument("model", type=Path)
    recalls.add_argument("squad", type=Path)
    recalls.add_argument("--int8", type=Path)
    recalls.add_argument("--questions", type=int, default=2000)
    for name in ("_build", "_search"):
        inner = commands.add_parser(name)
        inner.add_argument("folder", type=Path)
        inner.add_argument("what")
    given = parser.parse_args()
    if given.command == "growth":
        growth(given.blocks)
    elif given.command == "recall":
        measure_recall(given.model, given.squad, given.int8, given.questions)
    elif given.command == "_build":
        print(json.dumps(build(given.folder, int(given.what))))
    else:
        print(json.dumps(search(given.folder, given.what)))


if __name__ == "__main__":
    main()
