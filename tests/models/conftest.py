"""Fixtures for the tests of float models."""

from __future__ import annotations

import pytest
import torch

from tests.models.support import SmallModels


@pytest.fixture
def small_models() -> SmallModels:
    return SmallModels()


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """These models are too small for two threads, which then only wait for each other."""
    torch.set_num_threads(1)
