"""Run batches through a model, one after another, and keep count of the data."""

from __future__ import annotations

import hashlib
import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from calibration.distributed import SINGLE_PROCESS
from qdq.errors import CalibrationError, describe_problems, differences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from calibration.distributed import ProcessRank
    from calibration.statistics.token_mask import TokenMask

__all__ = ["DataCount", "check_batch", "eval_mode", "run_batches"]


@dataclass
class DataCount:
    """The data that was seen so far.

    Args:
        batches: The number of batches.
        samples: The number of rows in them.
        tokens: The number of positions that the attention mask does not exclude.
        data_sha256: A digest of the token ids, row by row without padding. It does not depend on how the rows were cut
            into batches.
    """

    batches: int = 0
    samples: int = 0
    tokens: int = 0
    data_sha256: str = hashlib.sha256().hexdigest()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode inside the block, and every module back into its own mode afterwards."""
    training = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def run_batches(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    masks: Sequence[TokenMask],
    after_batch: Callable[[DataCount], None],
    process: ProcessRank = SINGLE_PROCESS,
    done: DataCount | None = None,
) -> DataCount:
    """Run every batch through the model, without gradients.

    All batches are counted, also those that other processes run.

    Args:
        model: The model; collectors in its quantizers see the tensors.
        batches: Keyword arguments of the model, tensors ``(batch, seq)``.
        masks: Set to the attention mask of each batch before it is run.
        after_batch: Called after each batch with the count so far.
        process: Which of the batches this process runs.
        done: The data that an interrupted run has processed. These batches are counted and compared, but not run, and
            ``after_batch`` is not called for them.

    Returns:
        The count of all data.

    Raises:
        CalibrationError: There is no batch, a batch is empty or has inputs that the model does not take, or the first
            batches are not those that were done.
    """
    device = next(model.parameters()).device
    # Check names before the model runs, because its own TypeError would not name the batch.
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    digest = hashlib.sha256()
    count = DataCount()
    done = done or count
    with torch.no_grad():
        for batch in batches:
            check_batch(batch, count.batches, () if takes_all else parameters)
            inputs = {name: value.to(device) for name, value in batch.items()}
            attention_mask = inputs.get("attention_mask")
            if process.owns(count.batches) and count.batches >= done.batches:
                for mask in masks:
                    mask.set(attention_mask)
                model(**inputs)
            # The digest covers tokens row by row, so that it is the same for any batch size and any padding.
            rows = next(iter(batch.values()))
            for index, row in enumerate(batch.get("input_ids", ())):
                kept = row if attention_mask is None else row[attention_mask[index].to(row.device) != 0]
                digest.update(kept.cpu().contiguous().numpy().tobytes() + b"|")
            tokens = int(rows.numel() if attention_mask is None else (attention_mask != 0).sum())
            count = DataCount(
                count.batches + 1, count.samples + rows.shape[0], count.tokens + tokens, digest.hexdigest()
            )
            if count.batches > done.batches:
                after_batch(count)
            elif count.batches == done.batches:
                # From here on batches are run, so the data must agree up to here.
                _check_same_data(count, done)
    if not count.batches:
        raise CalibrationError("no data: the calibration set has no batch")
    if count.batches < done.batches:
        _check_same_data(count, done)
    return count


def check_batch(batch: Mapping[str, Tensor], index: int, known: Iterable[str]) -> None:
    """Raise if a batch is empty or has inputs that the model does not take.

    Args:
        batch: The inputs by name.
        index: The number of the batch, for the message.
        known: The inputs that the model takes; empty if it takes any.

    Raises:
        CalibrationError: See above.
    """
    if not batch or not next(iter(batch.values())).numel():
        raise CalibrationError(f"batch {index} is empty")
    known = list(known)
    unknown = [name for name in batch if known and name not in known]
    if unknown:
        raise CalibrationError(f"batch {index}: the model has no input {', '.join(unknown)}")
    mask = batch.get("attention_mask")
    if mask is not None and not bool((mask != 0).any()):
        raise CalibrationError(f"batch {index} is empty: its attention_mask excludes every position")


def _check_same_data(count: DataCount, done: DataCount) -> None:
    if problems := differences(vars(done), vars(count)):
        what = "the batches that were processed before the interruption are not those of this run"
        raise CalibrationError(describe_problems(what, problems))
