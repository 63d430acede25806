from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jsonschema
import pytest

from qdq.errors import ConfigError, RecipeError
from qdq.settings import (
    Rule,
    check,
    choice,
    documented,
    flag,
    json_schema,
    number,
    problems_in,
    setting,
    whole,
)


@documented
@dataclass(frozen=True, kw_only=True)
class Search:
    """How texts are searched.

    Raises:
        ConfigError: If values are out of range.
    """

    beams: int = setting(1, "Number of beams.", whole(1))
    order: str = setting("best", "Order of the results.", choice("best", "first"))
    share: float | None = setting(None, "Share of the texts.", number(0, 1).or_none())
    other: int = 0  # no setting: neither checked nor shown

    def __post_init__(self) -> None:
        check(self, "settings of the search", self._conflicts)

    def _conflicts(self) -> list[str]:
        return ["order first needs one beam"] if self.order == "first" and self.beams > 1 else []


VALUES: list[Any] = [None, True, False, -1, 0, 1, 2, 0.5, 1.5, math.inf, math.nan, "best", "first", "other", [], {}]
RULES = [
    whole(1),
    whole(0, 1),
    number(0),
    number(0, 1),
    number(0, 1, above=True),
    number(),
    number(high=1),
    choice("best", "first"),
    flag(),
]
RULES += [rule.or_none() for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=[rule.words for rule in RULES])
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_rule_and_its_schema_agree(rule: Rule, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        assert not rule.holds(value)  # JSON has no such number
        return
    wanted = jsonschema.Draft7Validator(dict(rule.schema)).is_valid(value)
    assert rule.holds(value) is wanted


def test_all_problems_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Search(beams=0, order="worst", share=2.0)
    assert "settings of the search" in str(caught.value)
    assert "beams is 0, must be a whole number of at least 1" in str(caught.value)
    assert "order is 'worst', must be one of best, first" in str(caught.value)
    assert "share is 2.0, must be a number from 0 to 1, or null" in str(caught.value)


def test_conflicts_are_judged_when_each_setting_is_right() -> None:
    with pytest.raises(ConfigError, match="order first needs one beam"):
        Search(beams=2, order="first")
    with pytest.raises(ConfigError) as caught:
        Search(beams=True, order="first")
    assert "one beam" not in str(caught.value)


def test_the_error_is_the_callers() -> None:
    settings = Search()
    with pytest.raises(RecipeError, match="no such thing"):
        check(settings, "search", lambda: ["no such thing"], error=RecipeError)


def test_unknown_names_are_told_with_the_known_ones() -> None:
    assert problems_in(Search, {"beam": 1}) == ["unknown key 'beam' (known: beams, order, share)"]


def test_the_docstring_has_the_help_of_every_setting() -> None:
    assert Search.__doc__ == (
        "How texts are searched.\n\n"
        "Args:\n    beams: Number of beams.\n    order: Order of the results.\n    share: Share of the texts.\n\n"
        "Raises:\n    ConfigError: If values are out of range."
    )


def test_the_schema_carries_help_and_default() -> None:
    assert json_schema(Search)["beams"] == {
        "type": "integer",
        "minimum": 1,
        "description": "Number of beams.",
        "default": 1,
    }
    assert set(json_schema(Search)) == {"beams", "order", "share"}
