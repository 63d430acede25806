"""Notice that a data set numbers its labels in another order than the head does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from qdq.data.labels import Labels
    from qdq.tasks.example_table import Numbers

__all__ = ["order_notes"]

#: So few examples say nothing.
_TOO_FEW = 10

#: How much better another order has to fit, as a difference of accuracies.
_MUCH_BETTER = 0.3


def order_notes(prediction: Numbers, label: Numbers, labels: Labels) -> list[str]:
    """Return a note if the numbers of the data fit the head far better in another order.

    Another order counts only where the accuracy is near that of guessing, or below, and where it would make the
    accuracy higher by 30 points. The order is found greedily, from the most frequent pair of label and prediction on.

    Args:
        prediction: Predicted ids ``(examples,)``.
        label: Ids in the data ``(examples,)``.
        labels: The labels of the head.
    """
    known = np.isfinite(prediction) & np.isfinite(label)
    predicted_ids, true_ids = prediction[known].astype(np.int64), label[known].astype(np.int64)
    count = len(labels.names)
    if len(true_ids) < _TOO_FEW:
        return []
    accuracy = float((predicted_ids == true_ids).mean())
    pairs = np.zeros((count, count), dtype=np.int64)
    np.add.at(pairs, (true_ids, predicted_ids), 1)
    order: dict[int, int] = {}
    right = 0
    for flat in np.argsort(-pairs, axis=None, kind="stable")[: count * count]:
        true, predicted = divmod(int(flat), count)
        if not pairs[true, predicted]:
            break
        if true not in order and predicted not in order.values():
            order[true] = predicted
            right += int(pairs[true, predicted])
    best = right / len(true_ids)
    if accuracy > 1.2 / count or best < accuracy + _MUCH_BETTER:
        return []
    shown = ", ".join(f"{true} for {labels.names[predicted]!r}" for true, predicted in sorted(order.items())[:10])
    return [
        f"the accuracy of {100 * accuracy:.1f} % is no better than guessing; the numbers of the data are taken as ids "
        f"of the head ({labels.describe()}). If the data counts in another order ({shown}), it is {100 * best:.1f} %: "
        "give names instead of numbers"
    ]
