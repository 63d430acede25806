"""Notice that a data set numbers its labels in another order than the head does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdq.data.labels import Labels

__all__ = ["LabelPairs"]

#: So few examples say nothing.
_TOO_FEW = 10

#: Heads with more labels are not looked at, since the counts take the square of their number.
_MOST_LABELS = 500

#: How much better another order has to fit, as a difference of accuracies.
_MUCH_BETTER = 0.3


class LabelPairs:
    """Counts how often each label of the data meets each prediction.

    Args:
        labels: The labels of the head.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        size = len(labels.names) if len(labels.names) <= _MOST_LABELS else 0
        self._counts = np.zeros((size, size), dtype=np.int64)

    def add(self, prediction: NDArray[Any], label: NDArray[Any]) -> None:
        """Count predicted ids ``(items,)`` and ids in the data ``(items,)``; numbers that are no ids do not."""
        ids = np.arange(len(self._counts))
        known = np.isin(prediction, ids) & np.isin(label, ids)
        np.add.at(self._counts, (label[known].astype(np.int64), prediction[known].astype(np.int64)), 1)

    def notes(self) -> list[str]:
        """Return a note if the numbers of the data fit the head far better in another order.

        Another order counts only where the accuracy is near that of guessing, or below, and where it would make the
        accuracy higher by 30 points. The order is found greedily, from the most frequent pair of label and prediction
        on.
        """
        pairs, names = self._counts, self.labels.names
        count, total = len(names), int(pairs.sum())
        if total < _TOO_FEW:
            return []
        accuracy = float(pairs.trace()) / total
        order: dict[int, int] = {}
        right = 0
        for flat in np.argsort(-pairs, axis=None, kind="stable"):
            true, predicted = divmod(int(flat), count)
            if not pairs[true, predicted]:
                break
            if true not in order and predicted not in order.values():
                order[true] = predicted
                right += int(pairs[true, predicted])
        best = right / total
        if accuracy > 1.2 / count or best < accuracy + _MUCH_BETTER:
            return []
        shown = ", ".join(f"{true} for {names[predicted]!r}" for true, predicted in sorted(order.items())[:10])
        return [
            f"the accuracy of {100 * accuracy:.1f} % is no better than guessing; the numbers of the data are taken as "
            f"ids of the head ({self.labels.describe()}). If the data counts in another order ({shown}), it is "
            f"{100 * best:.1f} %: give names instead of numbers"
        ]
