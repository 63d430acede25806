"""Settings of a training: their rules, their defaults, and that they load nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

import qdq.training
from qdq.errors import ConfigError
from qdq.training.settings import Distillation, TaskSettings, TrainingSettings


def test_all_wrong_settings_at_once() -> None:
    with pytest.raises(ConfigError, match="4 problems") as caught:
        TrainingSettings(epochs=0, lr=-1, schedule="square", warmup=2)
    for problem in ("epochs is 0", "lr is -1", "schedule is 'square', must be one of linear", "warmup is 2"):
        assert problem in str(caught.value)
    with pytest.raises(ConfigError, match="activations must be quantized first"):
        TrainingSettings(activations_from=0.5, weights_from=0.2)
    assert replace(TrainingSettings(), epochs=2).epochs == 2


def test_distillation_needs_a_weight() -> None:
    with pytest.raises(ConfigError, match="2 problems") as caught:
        Distillation(task=-1, temperature=0)
    assert "task is -1" in str(caught.value)
    with pytest.raises(ConfigError, match="nothing to learn"):
        Distillation(task=0, logits=0)


def test_rows_and_batches_have_a_smallest_size() -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        TaskSettings(batch_size=0, seq_len=2)


def test_plain_values_hold_the_learning_rate_that_is_used() -> None:
    assert TrainingSettings().lr is None
    assert TrainingSettings().to_dict()["lr"] == TrainingSettings().highest_lr == 5e-5
    assert TrainingSettings(lr=1e-3).to_dict()["lr"] == 1e-3


def test_settings_load_no_torch() -> None:
    code = "import sys, qdq.training.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", qdq.training.__all__)
def test_the_package_offers_its_names(name: str) -> None:
    assert getattr(qdq.training, name).__name__ == name


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'train'"):
        qdq.training.train  # noqa: B018
