"""A small checkpoint with its own vocabulary, every kind of directory that the commands write, and ways to run them."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch

from qdq.cli.main import main
from qdq.data.text import sample_text
from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGETS = ("onnxruntime", "openvino", "tensorrt")
SENTENCES = "\n".join(sample_text("calibration").read_text().splitlines()[:40])


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """What stdout holds: one JSON document and nothing else."""
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


class Run(Protocol):
    """Runs ``qdq`` with these arguments."""

    def __call__(self, *arguments: object) -> Ended: ...


class RunInProcess(Protocol):
    """Runs ``python -m qdq`` in a process of its own; options are those of ``subprocess.run``."""

    def __call__(self, *arguments: object, **options: Any) -> Ended: ...


class Refused(Protocol):
    """Runs a command that must refuse, and returns its message."""

    def __call__(self, *arguments: object, code: int = 2, kind: str | None = None) -> str: ...


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """These models are too small for two threads, which then only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs ``qdq`` in this process, which has torch loaded already; what libraries in C print is seen too."""

    def run(*arguments: object) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def process() -> RunInProcess:
    """Runs ``python -m qdq`` as a shell does."""

    def run(*arguments: object, **options: Any) -> Ended:
        command = [sys.executable, "-m", "qdq", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def refused(run: Run, model_folders: ModelFolders, tmp_path: Path) -> Refused:
    """Runs a command that must refuse: one message on stderr, the same in JSON, and the test's folder as it was.

    Returns the message.
    """

    def refused(*arguments: object, code: int = 2, kind: str | None = None) -> str:
        before = model_folders.contents(tmp_path)
        shown = run(*arguments)
        assert model_folders.contents(tmp_path) == before
        assert (shown.code, shown.out) == (code, "")
        assert shown.err.startswith("error: "), shown.err
        assert shown.err.count("error: ") == 1
        assert "Traceback" not in shown.err
        message = shown.err.removeprefix("error: ").rstrip("\n")
        told = run(*arguments, "--json")
        assert told.code == code
        assert told.document == {"error": message, "kind": told.document["kind"], "exit_code": code}
        assert kind in (None, told.document["kind"])
        assert model_folders.contents(tmp_path) == before
        return message

    return refused


def quietly(*arguments: object) -> None:
    """``qdq`` in this process, which must succeed; for fixtures."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments), "-q"])
    assert not ended.value.code, arguments


@dataclass(frozen=True)
class ModelFolders:
    """Makes, copies and compares folders with models."""

    def model(self, folder: Path, *, task: str = "feature-extraction", **changes: Any) -> Path:
        """A small BERT with a WordPiece vocabulary of the words that the sample text uses most."""
        words = re.findall(r"[a-z]+|[.,]", SENTENCES.lower())
        letters = "abcdefghijklmnopqrstuvwxyz"
        frequent = sorted(set(words), key=lambda word: (-words.count(word), word))[:100]
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        vocabulary = list(dict.fromkeys([*tokens, *frequent]))
        torch.manual_seed(0)
        fields = {
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 48,
            "initializer_range": 0.2,
        }
        save_model(build(configure("bert", **{**fields, **changes}), task), folder)
        (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
        return folder

    def copy(self, source: Path, target: Path) -> Path:
        """A copy to damage."""
        return Path(shutil.copytree(source, target))

    def contents(self, folder: Path) -> dict[str, bytes | None]:
        """Everything below a folder: equal when nothing was written, changed or deleted."""
        return {
            str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))
        }

    @contextmanager
    def files_of_at_most(self, size: int) -> Iterator[None]:
        """A disk on which larger ones do not fit."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def model_folders() -> ModelFolders:
    return ModelFolders()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def model(root: Path, model_folders: ModelFolders) -> Path:
    """The float checkpoint; read only."""
    return model_folders.model(root / "model")


@pytest.fixture(scope="session")
def text(root: Path) -> Path:
    """40 sentences."""
    path = root / "sentences.txt"
    path.write_text(SENTENCES)
    return path


@pytest.fixture(scope="session")
def checkpoint(root: Path, model: Path, text: Path) -> Path:
    """The quantized checkpoint; read only."""
    quietly("calibrate", "-m", model, "-o", root / "quantized", "--calib-data", text)
    return root / "quantized"


@dataclass
class Exports(dict[str, Path]):
    """The folder of an export by its target, or ``float``; written when somebody first asks for it."""

    root: Path
    checkpoint: Path

    def __missing__(self, name: str) -> Path:
        assert name in {"float", *TARGETS}
        what = ["--float"] if name == "float" else ["--target", name]
        quietly("export", "-m", self.checkpoint, "-o", self.root / f"export-{name}", *what)
        return self.setdefault(name, self.root / f"export-{name}")


@pytest.fixture(scope="session")
def exports(root: Path, checkpoint: Path) -> dict[str, Path]:
    """An export for every target, and one in float; read only."""
    return Exports(root, checkpoint)
