"""The search for what to switch off, where the costs are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from calibration.sensitivity.exclusions import SimilarityTarget, find_exclusions
from calibration.sensitivity.groups import Group
from calibration.sensitivity.similarity import Similarity
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from calibration.sensitivity.exclusions import SearchStep


class Case:
    """A model of signal 100 whose noise is a function of the groups that are on."""

    def __init__(self, names: str, noise: Callable[[set[str]], float]) -> None:
        self.groups = [Group(name, (), frozenset(), (f"{name}.*",)) for name in names]
        self.noise = noise
        self.passes: list[int] = []

    def similarity(self, off: Sequence[Group]) -> Similarity:
        noise = self.noise({group.name for group in self.groups} - {group.name for group in off})
        return Similarity(signal=100.0, noise=noise, cosines=1 - noise / 100, count=1)

    def measure(self, choices: Sequence[Sequence[Group]]) -> list[Similarity]:
        self.passes.append(len(choices))
        return [self.similarity(choice) for choice in choices]

    def search(self, target: SimilarityTarget) -> list[SearchStep]:
        without = {group: self.similarity([group]) for group in self.groups}
        return list(find_exclusions(self.measure, without, self.similarity([]), target))


def sum_of(costs: dict[str, float]) -> Callable[[set[str]], float]:
    return lambda on: sum(costs[name] for name in on)


COSTS = dict(zip("abcdefgh", (1.0, 8.0, 0.5, 4.0, 0.1, 2.0, 0.2, 0.3), strict=True))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param(SimilarityTarget(cosine=0.80), "", id="reached already"),
        pytest.param(SimilarityTarget(cosine=0.90), "b", id="one"),
        pytest.param(SimilarityTarget(cosine=0.95), "bd", id="two"),
        pytest.param(SimilarityTarget(sqnr_db=20.0), "bdfac", id="one in a hundred"),
        pytest.param(SimilarityTarget(cosine=0.80, sqnr_db=10.0), "b", id="both must hold"),
        pytest.param(SimilarityTarget(cosine=0.999999), "bdfachge", id="all of them"),
    ],
)
def test_costs_that_add_up(target: SimilarityTarget, expected: str) -> None:
    steps = Case("abcdefgh", sum_of(COSTS)).search(target)
    assert "".join(group.name for group in steps[-1].excluded) == expected
    assert [step.reached for step in steps] == [False] * (len(steps) - 1) + [True]
    assert [len(step.excluded) for step in steps] == list(range(len(expected) + 1))
    assert steps[-1].exclude == tuple(f"{name}.*" for name in expected)
    assert steps[-1].similarity.noise == pytest.approx(sum(c for name, c in COSTS.items() if name not in expected))


def test_every_state_was_measured() -> None:
    """What b hides comes out once b is off: figures from before are not trusted."""

    def noise(on: set[str]) -> float:
        return 10.0 * ("b" in on) + 3.0 * ("a" in on and "b" not in on) + 1.0 * ("c" in on)

    case = Case("abc", noise)
    steps = case.search(SimilarityTarget(cosine=0.995))
    assert ["".join(group.name for group in step.excluded) for step in steps] == ["", "b", "ba", "bac"]
    assert all(step.similarity == case.similarity(step.excluded) for step in steps)


def test_what_turns_out_to_be_dispensable_is_switched_on_again() -> None:
    """a looks best at first, and counts for nothing once b and c are off."""

    def noise(on: set[str]) -> float:
        rest = len(on & {"b", "c"})
        return rest + 4.0 * ("a" in on and rest > 0)

    steps = Case("abc", noise).search(SimilarityTarget(cosine=0.995))
    assert steps[0].excluded == ()
    assert {group.name for group in steps[-2].excluded} == {"a", "b", "c"}
    assert {group.name for group in steps[-1].excluded} == {"b", "c"}
    assert steps[-1].reached


def test_no_more_than_four_candidates_are_measured_at_once() -> None:
    case = Case("abcdefgh", sum_of(COSTS))
    case.search(SimilarityTarget(sqnr_db=20.0))
    assert max(case.passes) == 4
    assert len(case.passes) < 10


def test_a_target_out_of_reach_ends_with_everything_off() -> None:
    steps = Case("ab", lambda on: 5.0 + len(on)).search(SimilarityTarget(cosine=0.99))
    assert [group.name for group in steps[-1].excluded] == ["a", "b"]
    assert not steps[-1].reached


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing is given"),
        ({"cosine": 1.0}, r"the cosine is 1.0, but must be above 0 and below 1"),
        ({"cosine": float("nan")}, "the cosine is nan"),
        ({"sqnr_db": -3.0}, r"the SQNR is -3.0 dB, but must be above 0"),
        ({"sqnr_db": 300.0, "cosine": 2.0}, "(?s)the cosine is 2.0.*the SQNR is 300.0"),
    ],
)
def test_impossible_targets(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimilarityTarget(**fields)
