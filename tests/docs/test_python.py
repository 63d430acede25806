"""Every Python block compiles, and runs in the order of its page on small models of the kind that the page is about.

A block that cannot run here says why, in a comment above it. Pages share one working directory in which README's blocks
run first: later pages use the checkpoint and the export that these leave there.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch
from safetensors.torch import load_file

import qdq
from qdq.cli.main import main
from qdq.models.huggingface import load_model, save_model
from qdq.models.registry import FAMILIES, build, configure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from qdq.models.family import Family

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = "A cat sat on the mat.\nThe dog was there, too.\nNobody saw them.\n" * 16
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
LITTLE: dict[str, Any] = {**SMALL, "vocab_size": 60, "max_position_embeddings": 64}


class PythonBlock(Protocol):
    """A block of Python; see ``conftest.py``."""

    page: str
    line: int
    language: str
    text: str
    reason: str


def test_python_block(python_block: PythonBlock) -> None:
    """Compiles, also where it is not run."""
    compile(python_block.text, str(python_block), "exec", dont_inherit=True)


def run_page(blocks: list[PythonBlock], page: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Run the blocks of a page one after the other; return what they leave behind."""
    left = dict(names)
    chosen = [block for block in blocks if block.page == page and block.language == "python" and not block.reason]
    assert chosen, f"{page} has no Python to run"
    for block in chosen:
        # Lines of the page in tracebacks: the code begins behind the fence.
        exec(compile("\n" * block.line + block.text, str(ROOT / page), "exec", dont_inherit=True), left)
    return left


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, minilm_dir: Path, blocks: list[PythonBlock]
) -> tuple[Path, dict[str, Any]]:
    """The directory in which README's blocks ran, and the names that they left."""
    folder = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = folder / "all-MiniLM-L6-v2"
    save_model(build(configure("bert", **SMALL), "feature-extraction"), model)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(minilm_dir / name, model / name)
    (folder / "sentences.txt").write_text(SENTENCES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run_page(blocks, "README.md", {})


@pytest.fixture
def folder(workplace: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with README's ``quantized`` and ``ort``."""
    monkeypatch.chdir(workplace[0])
    torch.set_num_threads(1)
    return workplace[0]


def test_readme(workplace: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, left = workplace
    assert left["summary"].samples == 48
    assert left["hidden"].shape == (1, len(left["encoding"].ids), 32)
    assert qdq.verify(folder / "quantized", folder / "ort").holds


def test_tutorial(folder: Path, blocks: list[PythonBlock], capsys: pytest.CaptureFixture[str]) -> None:
    shell = "\n".join(block.text for block in blocks if block.page == "docs/tutorial.md" and block.language == "shell")
    (export,) = re.findall(r"^qdq (export .*-o service/.*)$", shell, flags=re.MULTILINE)
    with pytest.raises(SystemExit) as end:
        main(shlex.split(export))
    assert end.value.code == 0
    left = run_page(blocks, "docs/tutorial.md", {})
    assert left["vectors"].shape == (2, 32)
    assert "cosine " in capsys.readouterr().out
    assert len(ask(left["Handler"], {"texts": ["Where is the cat?"]})["embeddings"][0]) == 32


def ask(handler: Any, question: dict[str, Any]) -> Any:
    """What a service with this handler answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        with urllib.request.urlopen(url, data=json.dumps(question).encode(), timeout=30) as answer:
            return json.loads(answer.read())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def little_qdqbert(folder: Path) -> dict[str, Any]:
    """A calibrated QDQBERT on disk."""
    from qdq.interop import pytorch_quantization

    model = build(configure("qdqbert", **LITTLE), "question-answering")
    qdq.quantize(model, "qdqbert")
    qdq.calibrate(model, [{"input_ids": torch.randint(0, 60, (2, 16))} for _ in range(2)])
    pytorch_quantization.save(model, folder / "qdqbert-squad")
    return {"qdq": qdq}


def little_decoder(folder: Path) -> dict[str, Any]:
    """A decoder on disk, and ids to continue."""
    save_model(build(configure("bert", **LITTLE, is_decoder=True), "causal-lm"), folder / "causal-lm")
    ids = torch.randint(5, 60, (2, 6))
    return {"qdq": qdq, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def little_training(folder: Path) -> dict[str, Any]:
    """A classifier with data, a loss and a metric."""
    ids = torch.randint(5, 60, (4, 8))
    loader = [{"input_ids": ids, "labels": ids[:, 1] % 2}] * 2

    def my_loss(current: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(current(batch["input_ids"]).logits, batch["labels"])

    def my_metric(current: torch.nn.Module) -> float:
        return -float(my_loss(current, loader[0]))

    model = build(configure("bert", **LITTLE, num_labels=2), "sequence-classification")
    return {"qdq": qdq, "model": model, "loader": loader, "my_loss": my_loss, "my_metric": my_metric}


def nothing(folder: Path) -> dict[str, Any]:
    """Nothing but what README left in the directory."""
    return {}


PREPARED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "docs/coming_from.md": little_qdqbert,
    "docs/families.md": nothing,
    "docs/guides/accuracy.md": nothing,
    "docs/guides/data.md": nothing,
    "docs/guides/export.md": nothing,
    "docs/guides/generation.md": little_decoder,
    "docs/guides/loading.md": nothing,
    "docs/guides/recipes.md": nothing,
    "docs/guides/training.md": little_training,
}
"""What the blocks of a page find there; README and the tutorial have tests of their own."""


def is_saved_and_loaded(family: Family, folder: Path) -> bool:
    """Tell whether a model of ``family`` comes back as it was written, its weights fused in the file."""
    sizes = {"vocab_size": 60, "dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    FAMILIES[family.model_type] = family
    try:
        model = build(configure(family.model_type, **sizes), "sequence-classification")
        save_model(model, folder)
        again = load_model(folder)
    finally:
        del FAMILIES[family.model_type]
    stored = load_file(folder / "model.safetensors")
    same = all(torch.equal(parameter, again.get_parameter(name)) for name, parameter in model.named_parameters())
    return same and stored["model.layers.0.attn.Wqkv.weight"].shape == (96, 32)


def holds_for(page: str, folder: Path, left: Mapping[str, Any], printed: str) -> bool:
    """Tell whether the blocks of a page did what its text says."""
    match page:
        case "docs/coming_from.md":
            return (folder / "trt/model.onnx").is_file() and (folder / "qdqbert-again/config.json").is_file()
        case "docs/families.md":
            return is_saved_and_loaded(left["RMS_BERT"], folder / "rms-bert")
        case "docs/guides/accuracy.md":
            return printed.count("%") == 2 and "encoder.layers.0" in printed
        case "docs/guides/data.md":
            return "'input_ids': (2, " in printed
        case "docs/guides/export.md":
            return printed.startswith("True ")
        case "docs/guides/generation.md":
            return left["continued"].shape[0] == 2
        case "docs/guides/loading.md":
            return "pooler.dense.weight" not in load_file(folder / "without-pooler/model.safetensors")
        case "docs/guides/recipes.md":
            return printed.endswith(" slots\n")
        case "docs/guides/training.md":
            return left["result"].steps == 6 and (folder / "run" / "state.pt").is_file()
    return False


@pytest.mark.parametrize("page_name", PREPARED)
def test_page(folder: Path, blocks: list[PythonBlock], capsys: pytest.CaptureFixture[str], page_name: str) -> None:
    names = PREPARED[page_name](folder)
    left = run_page(blocks, page_name, names)
    printed = capsys.readouterr().out
    assert holds_for(page_name, folder, left, printed), printed


def test_every_page_is_run(blocks: list[PythonBlock]) -> None:
    """All pages with Python that is not explained away."""
    pages = {block.page for block in blocks if block.language == "python" and not block.reason}
    assert pages == {"README.md", "docs/tutorial.md", *PREPARED}


def test_what_is_not_run_says_why(blocks: list[PythonBlock]) -> None:
    reasons = [block.reason for block in blocks if block.reason]
    assert all(len(reason.split()) > 4 for reason in reasons)
    assert len(reasons) <= 8
