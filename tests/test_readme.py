"""The Python of README.md runs as it is written there, on small models of the kinds that it speaks of."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import qdq
from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}


def block(*marks: str) -> str:
    """The one block that holds all of these."""
    (found,) = [text for text in BLOCKS if all(mark in text for mark in marks)]
    return found


def run(text: str, **names: Any) -> dict[str, Any]:
    """What a block leaves behind; it may use ``names``."""
    exec(compile(text, str(README), "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def model_in(folder: Path, task: str = "feature-extraction", kind: str = "bert", **fields: Any) -> Path:
    torch.manual_seed(0)
    save_model(build(configure(kind, **{**SMALL, **fields}), task), folder)
    return folder


def test_every_block_is_run_here() -> None:
    """But for the one with packages that are not installed for the tests, which test_ecosystem.py runs elsewhere."""
    kinds = ("all-MiniLM", "onnxruntime.InferenceSession", "optimum", "qdqbert", "TorchDecoder", "qdq.finetune")
    assert [sum(mark in text for text in BLOCKS) for mark in kinds] == [1] * len(kinds)
    assert len(BLOCKS) == len(kinds)


def test_from_a_checkpoint_to_a_proven_file(folder: Path, minilm_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_in(folder / "all-MiniLM-L6-v2")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(minilm_dir / name, model / name)
    (folder / "sentences.txt").write_text("A cat sat on the mat.\nThe dog was there, too.\nNobody saw them.\n" * 8)
    left = run(block("all-MiniLM"))
    assert capsys.readouterr().out == "True\n"
    assert left["summary"].samples == 24
    left = run(block("onnxruntime.InferenceSession"))
    assert left["hidden"].shape == (1, len(left["encoding"].ids), 32)


def test_qdqbert(folder: Path) -> None:
    from qdq.interop import pytorch_quantization

    torch.manual_seed(0)
    config = configure("qdqbert", **SMALL, vocab_size=60, max_position_embeddings=32)
    model = build(config, "question-answering")
    qdq.quantize(model, "qdqbert")
    qdq.calibrate(model, [{"input_ids": torch.randint(0, 60, (2, 16))} for _ in range(2)])
    pytorch_quantization.save(model, "qdqbert-squad")
    text = block("qdqbert")
    live = text.index("pytorch_quantization.from_live")  # needs that package
    run(text[:live], qdq=qdq)
    assert qdq.load("quantized").task == "question-answering"
    assert (folder / "trt" / "model.onnx").is_file()
    assert (folder / "qdqbert-again" / "config.json").is_file()


def test_continuing_texts(folder: Path) -> None:
    model_in(folder / "causal-lm", "causal-lm", vocab_size=60, max_position_embeddings=64, is_decoder=True)
    ids = torch.randint(5, 60, (2, 6))
    text = block("TorchDecoder")
    *_, last = text.rstrip().splitlines()
    left = run(text.replace(last, f"made = {last}"), qdq=qdq, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert left["made"] is not None


def test_the_loop_as_a_function(folder: Path) -> None:
    model = build(configure("bert", **SMALL, vocab_size=60, num_labels=2), "sequence-classification")
    ids = torch.randint(5, 60, (4, 8))
    loader = [{"input_ids": ids, "labels": ids[:, 1] % 2}] * 2
    seen: list[float] = []

    def my_loss(current: Any, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(current(batch["input_ids"]).logits, batch["labels"])

    def my_metric(current: Any) -> float:
        seen.append(float(my_loss(current, loader[0])))
        return -seen[-1]

    left = run(block("qdq.finetune"), qdq=qdq, model=model, loader=loader, my_loss=my_loss, my_metric=my_metric)
    assert left["result"].steps == 6
    assert len(seen) == 3
    assert (folder / "run" / "state.pt").is_file()
