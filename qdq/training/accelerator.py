"""accelerate: devices, processes, precision, and how a model is distributed over them."""

from __future__ import annotations

import copy
import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, MissingPackageError
from qdq.quantization.quantizer import quantizers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from qdq.training.settings import TrainingSettings

__all__ = ["TrainingAccelerator", "open_accelerator", "unwrap_model", "wrap_model"]


class TrainingAccelerator:
    """An ``accelerate.Accelerator`` that also knows whether weights are sharded (FSDP).

    All other attributes are those of the accelerator.

    Args:
        accelerator: The ``accelerate.Accelerator``.

    Attributes:
        plain: The same.
        is_sharded: Whether weights are sharded.

    Raises:
        ConfigError: If accelerate is set up for something else than one process, several (DDP) or FSDP 1.
    """

    def __init__(self, accelerator: Any) -> None:
        from accelerate.utils import DistributedType

        self.plain = accelerator
        kind = accelerator.distributed_type
        if kind not in {DistributedType.NO, DistributedType.FSDP} and not kind.startswith("MULTI_"):
            raise ConfigError(
                f"accelerate is set up for {kind}, which is not supported: use one process, several (DDP) or FSDP"
            )
        self.is_sharded = kind == DistributedType.FSDP
        if self.is_sharded and accelerator.state.fsdp_plugin.fsdp_version != 1:
            raise ConfigError(
                "FSDP 2 is not supported: set fsdp_version to 1 in accelerate's configuration (FSDP_VERSION=1)"
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)


@contextmanager
def open_accelerator(settings: TrainingSettings, accelerator: Any = None) -> Iterator[TrainingAccelerator]:
    """Yield the accelerator of this process for the duration of a training.

    Args:
        settings: Settings of the training, for the precision.
        accelerator: An ``accelerate.Accelerator`` of the caller; None makes one.

    Raises:
        ConfigError: If accelerate cannot be set up, or is set up for something that is not supported.
        MissingPackageError: If accelerate is not installed.
    """
    if accelerator is not None:
        yield TrainingAccelerator(accelerator)
        return
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ModuleNotFoundError as error:
        raise MissingPackageError("accelerate", extra="train", purpose="training") from error
    # accelerate keeps its state per process: another precision in a second training would be refused.
    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        made = Accelerator(mixed_precision=settings.mixed_precision)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"accelerate cannot be set up: {error}") from error
    try:
        yield TrainingAccelerator(made)
    finally:
        AcceleratorState._reset_state(reset_partial_state=False)


def wrap_model(
    accelerator: TrainingAccelerator, model: nn.Module, *, is_own_loss: bool, settings: TrainingSettings
) -> tuple[nn.Module, nn.Module | None]:
    """Wrap a model for the processes that train it.

    1. One process: accelerate adds the precision at most.
    2. Several processes: torch's DDP. Some parameters may have no gradient in a step: those that a user's loss does
       not reach, and learned scales before their quantizer is switched on.
    3. FSDP: each layer is a unit, unless accelerate's configuration says otherwise. A model whose layers share weights
       (ALBERT) is refused: FSDP gathers and frees the weights of a unit together, and other units would miss them.
       Quantizers are not sharded.

    Args:
        accelerator: Accelerator of this process.
        model: The model to train.
        is_own_loss: Whether the loss is the user's, not the model's.
        settings: Settings of the training.

    Returns:
        The wrapped model; and where weights are sharded, in the first process, a whole copy of the model to save.

    Raises:
        ConfigError: If the model cannot be sharded.
    """
    whole = None
    if accelerator.is_sharded:
        whole = copy.deepcopy(model).cpu() if accelerator.is_main_process else None
        _set_up_sharding(accelerator.state.fsdp_plugin, model)
    elif accelerator.num_processes > 1:
        from accelerate.utils import DistributedDataParallelKwargs

        is_late = settings.activations_from > 0 or settings.weights_from > 0
        accelerator.plain.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=is_own_loss or is_late)
    return accelerator.plain.prepare(model), whole


def _set_up_sharding(plugin: Any, model: nn.Module) -> None:
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    from qdq.models.encoder import Encoder, Layer

    encoders = [module for module in model.modules() if isinstance(module, Encoder)]
    if any(encoder.repeats != list(range(len(encoder.layers))) for encoder in encoders):
        raise ConfigError(
            "the layers of this model share their weights (ALBERT), which FSDP would shard once for each layer: "
            "train it with several processes without FSDP"
        )
    if plugin.auto_wrap_policy is transformer_auto_wrap_policy and not plugin.transformer_cls_names_to_wrap:
        plugin.auto_wrap_policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={Layer})
    plugin.use_orig_params = True  # weights and scales are trained at different rates
    plugin.ignored_modules = [quantizer for _, quantizer in quantizers(model)]


def unwrap_model(accelerator: TrainingAccelerator, wrapped: nn.Module) -> None:
    """Undo what :func:`wrap_model` did to the model itself, and free the accelerator's memory."""
    if not accelerator.is_sharded:
        accelerator.plain.unwrap_model(wrapped, keep_fp32_wrapper=False)
    accelerator.plain.free_memory()
