"""Small models with real vocabularies and heads for every task, and the sets that they are evaluated on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.data.tokenizer import load_tokenizer
from qdq.models.huggingface import load_model, save_model
from qdq.models.registry import build, configure

if TYPE_CHECKING:
    from pathlib import Path

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """These models are too small for two threads, which then only wait for each other."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class TinyModels:
    """Saves small models with random weights and a real vocabulary.

    Args:
        vocabulary: The directory with the tokenizer files.
    """

    vocabulary: Path

    def save(self, folder: Path, task: str = "feature-extraction", **changes: Any) -> Path:
        """Save a small BERT in a folder, which is returned."""
        torch.manual_seed(0)
        save_model(build(configure("bert", **{**TINY, **changes}), task), folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
            shutil.copyfile(self.vocabulary / name, folder / name)
        return folder

    def save_labelled(self, folder: Path, task: str, names: list[str], **changes: Any) -> Path:
        """Save one whose head has labels with these names."""
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
        return self.save(folder, task, num_labels=len(names), **labels, **changes)

    def balance(self, folder: Path, texts: list[str]) -> Path:
        """Move the bias of a classifier so that each class has a share of the texts."""
        model, encode = load_model(folder), load_tokenizer(folder).encode
        with torch.no_grad():
            logits = torch.cat([model(torch.tensor([encode(text).ids])).logits.flatten(0, -2) for text in texts])
            model.head.classifier.bias.sub_(logits.median(dim=0).values)
        save_model(model, folder)
        return folder

    def train(self, folder: Path, batches: list[dict[str, torch.Tensor]], *, rate: float = 5e-3) -> None:
        """Train the model in a folder for a few steps."""
        model = load_model(folder).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        save_model(model, folder)


@pytest.fixture(scope="session")
def tiny_models(minilm_dir: Path) -> TinyModels:
    return TinyModels(minilm_dir)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="session")
def sentences(data_dir: Path) -> list[tuple[str, int]]:
    """The first 200 sentences of SST-2 with their labels."""
    rows = (line.rsplit("\t", 1) for line in (data_dir / "sst2" / "dev.tsv").read_text().splitlines()[:200])
    return [(text, int(label)) for text, label in rows]


@pytest.fixture(scope="session")
def small_squad(data_dir: Path, root: Path) -> Path:
    """The first eight paragraphs of an article of SQuAD, questions with and without answer."""
    document = json.loads((data_dir / "squad" / "dev-subset.json").read_text())
    article = document["data"][0]
    path = root / "small-squad.json"
    path.write_text(json.dumps({**document, "data": [{**article, "paragraphs": article["paragraphs"][:8]}]}))
    return path


@pytest.fixture(scope="session")
def sts_file(data_dir: Path, root: Path) -> Path:
    """Three sets of pairs, each without its first 60 scored rows; rows without a score stay in."""
    lines = []
    for name in ("2015-headlines", "2015-images", "2014-deft-news"):
        scored = 0
        for line in (data_dir / "sts" / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
            scored += not line.startswith("\t")
            if line.startswith("\t") or scored > 60:
                lines.append(line)
    path = root / "sts.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
