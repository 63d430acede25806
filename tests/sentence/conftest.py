"""Small directories of sentence-transformers, which that package itself writes."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn

WIDTH = 16
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("red", "boat", "lake", "the", "slowly", "wind")
TEXTS = (
    "the red boat",
    "Slowly the WIND turns over the lake",
    "lake",
    "the boat and the wind and the lake and the red barn by the lake",
)
OLD_TYPES = {
    "sentence_transformers.base.modules.transformer": "sentence_transformers.models",
    "sentence_transformers.sentence_transformer.modules.pooling": "sentence_transformers.models",
    "sentence_transformers.base.modules.normalize": "sentence_transformers.models",
    "sentence_transformers.base.modules.dense": "sentence_transformers.models",
}


def save_encoder(folder: Path, *, cased: bool = False, **changes: Any) -> Path:
    """Save a BERT with random weights and a vocabulary of letters, capitals among them if it is cased."""
    letters = LETTERS + (LETTERS.upper() if cased else "")
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ":",
        *letters,
        *("##" + letter for letter in letters),
        *WORDS,
    ]
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"max_position_embeddings": 64, "vocab_size": len(tokens)}
    config = configure("bert", **{**sizes, "initializer_range": 0.5, **changes})
    save_model(build(config, "feature-extraction"), folder)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": not cased, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def in_old_layout(folder: Path) -> Path:
    """Rewrite a directory as releases before 2.0 did: the transformer below, one flag for each pooling."""
    kept = ("modules.json", "config_sentence_transformers.json", "README.md")
    (folder / "0_Transformer").mkdir()
    for entry in folder.iterdir():
        if entry.is_file() and entry.name not in kept:
            shutil.move(entry, folder / "0_Transformer" / entry.name)
    entries = json.loads((folder / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    for entry in entries:
        package, _, kind = entry["type"].rpartition(".")
        entry["type"] = f"{OLD_TYPES.get(package, package)}.{kind}"
    (folder / "modules.json").write_text(json.dumps(entries))
    file = folder / "1_Pooling" / "config.json"
    flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    given = json.loads(file.read_text())
    modes = {f"pooling_mode_{flag}": name == given["pooling_mode"] for name, flag in flags.items()}
    included = given["include_prompt"]
    file.write_text(json.dumps({"word_embedding_dimension": WIDTH, **modes, "include_prompt": included}))
    return folder


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture
def save_sentence_model(tmp_path: Path) -> Callable[..., Path]:
    """Saves a sentence transformer of these modules behind a small encoder, and returns its directory."""

    def save(
        *modules: nn.Module,
        cased: bool = False,
        length: int | None = None,
        lowercases: bool = False,
        name: str = "model",
        **settings: Any,
    ) -> Path:
        encoder = save_encoder(tmp_path / f"{name}.encoder", cased=cased)
        transformer = Transformer(str(encoder), max_seq_length=length, do_lower_case=lowercases)
        model = SentenceTransformer(modules=[transformer, *modules], device="cpu", **settings)
        model.save(str(tmp_path / name), create_model_card=False)
        if lowercases:
            file = tmp_path / name / "sentence_bert_config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), "do_lower_case": True}))
        return tmp_path / name

    return save
