"""Options without effect are refused by name, together with what they need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Refused, Run

CASES = [
    ("calibrate -m x -o y -r dynamic", "--save-statistics s", "--calib-data"),
    ("calibrate -m x -o y -r dynamic", "--num-samples 512", "--calib-data"),
    ("calibrate -m x -o y -r dynamic", "--resume", "--calib-data"),
    ("finetune -m x -o y --train-data t", "--refine", "--recipe"),
    ("finetune -m x -o y --train-data t", "--temperature 2", "--teacher"),
    ("finetune -m x -o y --train-data t", "--eval-steps 4", "--eval-data"),
    ("finetune -m x -o y --train-data t -r linear", "--scale-lr 0.001", "--ranges learned"),
    ("export -m x -o y --float", "--rounds 5", "--tune"),
    ("evaluate x --task sts --data d", "--always-answer", "--task question-answering"),
    ("evaluate x --task masked-lm --data d", "--pooling cls", "--task sts or retrieval"),
    ("analyze x --data d", "--task-samples 512", "--task"),
    ("generate -m x text", "--early-stopping", "several beams (--num-beams)"),
    ("inspect x", "--threads 2", "--profile"),
]


@pytest.mark.parametrize(("command", "option", "needs"), CASES)
def test_an_option_alone_is_refused_even_with_its_default(
    refused: Refused, command: str, option: str, needs: str
) -> None:
    message = refused(*command.split(), *option.split(), kind="ConfigError")
    name, given = command.partition(" ")[0], option.partition(" ")[0]
    assert message == f"qdq {name}: {given} needs {needs}, and has no effect without it"


def test_all_of_them_are_named(refused: Refused) -> None:
    message = refused("inspect", "x", "--runtime", "openvino", "--shape", "1x8")
    assert "--runtime needs --profile" in message
    assert "--shape needs --profile" in message


@pytest.mark.parametrize(
    "command",
    [
        "finetune -m x -o y --train-data t --teacher z --temperature 2",
        "evaluate x --task question-answering --data d --n-best 3",
        "generate -m x text --num-beams 2 --early-stopping",
        "inspect x --profile --threads 2",
    ],
)
def test_with_what_it_needs_it_is_taken(run: Run, command: str) -> None:
    ended = run(*command.split())
    assert ended.code == 2
    assert "x: no such" in ended.err
