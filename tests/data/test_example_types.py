"""What identifies an example in the checksums of resume files, which must stay as the first release wrote it."""

from __future__ import annotations

import pytest

from qdq.data.example_types import (
    ChoiceExample,
    Example,
    IdsExample,
    QuestionExample,
    TextExample,
    TokenExample,
    fingerprint,
)

FIRST_RELEASE = {
    TextExample(3, "line 4", "it's", None, 1): (
        """TextExample(index=3, place='', text="it's", text_pair=None, label=1)"""
    ),
    TextExample(0, "row 1", "a", "b", (0.0, 1.0)): (
        "TextExample(index=0, place='', text='a', text_pair='b', label=(0.0, 1.0))"
    ),
    TokenExample(1, "line 2", ("a", "b"), (0, 2)): "TokenExample(index=1, place='', tokens=('a', 'b'), tags=(0, 2))",
    QuestionExample(2, "row 3", "q1", "who?", "she", ("she",), (0,)): (
        "QuestionExample(index=2, place='', id='q1', question='who?', context='she', answers=('she',), starts=(0,))"
    ),
    ChoiceExample(4, "row 5", "a", ("b", "c"), None): (
        "ChoiceExample(index=4, place='', text='a', choices=('b', 'c'), label=None)"
    ),
    IdsExample(5, "row 6", (1, 2), None, (0, 0), 0.5): (
        "IdsExample(index=5, place='', input_ids=(1, 2), attention_mask=None, token_type_ids=(0, 0), label=0.5)"
    ),
}


@pytest.mark.parametrize("example", FIRST_RELEASE, ids=lambda example: type(example).__name__)
def test_the_fingerprint_is_that_of_the_first_release(example: Example) -> None:
    assert fingerprint(example) == FIRST_RELEASE[example]
