"""Figures of similarity against numpy's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from calibration.sensitivity.similarity import EXACT_DB, Similarity, output_vectors
from exporters.verification.verify import cosine, sqnr_db
from qdq.errors import CalibrationError
from qdq.models.outputs import BaseOutput, TaskOutput

if TYPE_CHECKING:
    from collections.abc import Callable

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def test_hidden_states_against_numpy() -> None:
    want, got = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    got = want + 0.1 * got
    found = Similarity.of(output_vectors(BaseOutput(want), MASK), output_vectors(BaseOutput(got), MASK))
    visible = MASK.numpy().astype(bool)
    noise = (got.numpy() - want.numpy())[visible].astype(np.float64)
    assert found.sqnr_db == pytest.approx(
        10 * np.log10(np.square(want.numpy()[visible], dtype=np.float64).sum() / np.square(noise).sum()), rel=1e-5
    )
    means = [np.stack([x.numpy()[row][visible[row]].mean(axis=0) for row in (0, 1)]) for x in (want, got)]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*means, strict=True)]
    assert found.cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.count == 2


def test_agrees_with_verification() -> None:
    want, got = torch.randn(5, 7), torch.randn(5, 7)
    found = Similarity.of(output_vectors(TaskOutput(logits=want), None), output_vectors(TaskOutput(logits=got), None))
    assert found.sqnr_db == pytest.approx(sqnr_db(want.numpy(), got.numpy()), rel=1e-5)
    assert found.cosine == pytest.approx(cosine(want.numpy(), got.numpy()), abs=1e-6)


@pytest.mark.parametrize(
    ("output", "shape"),
    [
        pytest.param(BaseOutput, (2, 4, 8), id="hidden states"),
        pytest.param(lambda x: TaskOutput(logits=x), (2, 4, 3), id="tags"),
        pytest.param(lambda x: TaskOutput(start_logits=x), (2, 4), id="scores"),
    ],
)
def test_padding_does_not_count(
    output: Callable[[torch.Tensor], BaseOutput | TaskOutput], shape: tuple[int, ...]
) -> None:
    want = torch.randn(shape)
    got = want.clone()
    got[MASK == 0] = 1e6
    wanted, found = (output_vectors(output(x), MASK) for x in (want, got))
    similarity = Similarity.of(wanted, found)
    assert (similarity.sqnr_db, similarity.cosine) == (EXACT_DB, 1.0)


def test_all_logits_count_and_nothing_else() -> None:
    start, end = torch.randn(2, 4), torch.randn(2, 4)
    output = TaskOutput(loss=torch.tensor(1.0), start_logits=start, end_logits=end, hidden_states=(torch.randn(1),))
    assert [len(vectors.values) for vectors in output_vectors(output, MASK)] == [5, 5]
    base = BaseOutput(torch.randn(2, 4, 8), pooler_output=torch.randn(2, 8))
    assert [len(vectors.values) for vectors in output_vectors(base, MASK)] == [5 * 8]


def test_as_many_labels_as_tokens_are_labels_all_the_same() -> None:
    (vectors,) = output_vectors(TaskOutput(logits=torch.randn(2, 4)), MASK)
    assert vectors.values.numel() == 8


def test_batches_add_up() -> None:
    want, got = torch.randn(6, 3), torch.randn(6, 3)
    parts = Similarity()
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        pair = (output_vectors({"logits": x[rows]}, None) for x in (want, got))
        parts += Similarity.of(*pair)
    whole = Similarity.of(output_vectors({"logits": want}, None), output_vectors({"logits": got}, None))
    assert (parts.sqnr_db, parts.cosine, parts.count) == (
        pytest.approx(whole.sqnr_db),
        pytest.approx(whole.cosine),
        6,
    )


def test_the_ends() -> None:
    zeros, ones = torch.zeros(2, 3), torch.ones(2, 3)

    def of(want: torch.Tensor, got: torch.Tensor) -> Similarity:
        return Similarity.of(output_vectors({"logits": want}, None), output_vectors({"logits": got}, None))

    assert (of(ones, ones).sqnr_db, of(ones, ones).cosine) == (EXACT_DB, pytest.approx(1.0))
    assert (of(zeros, zeros).sqnr_db, of(zeros, zeros).cosine) == (EXACT_DB, 1.0)
    assert of(zeros, ones).sqnr_db == -EXACT_DB
    assert of(ones, -ones).cosine == pytest.approx(-1.0)
    assert (Similarity().sqnr_db, Similarity().cosine) == (EXACT_DB, 1.0)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(CalibrationError, match="the output logits has NaN or infinite values"):
        output_vectors({"logits": torch.tensor([[1.0, float("nan")]])}, None)
