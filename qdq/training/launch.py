"""accelerate: devices, processes, precision, and how a model is spread over them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, MissingPackageError
from qdq.quantization.quantizer import quantizers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from qdq.training.settings import TrainingSettings

__all__ = ["launched", "prepare", "release"]


class Launch:
    """An accelerator, and whether weights are sharded; everything else is the accelerator's."""

    def __init__(self, accelerator: Any) -> None:
        from accelerate.utils import DistributedType

        self.accelerator = accelerator
        kind = accelerator.distributed_type
        if kind not in {DistributedType.NO, DistributedType.FSDP} and not kind.startswith("MULTI_"):
            raise ConfigError(f"accelerate is set up for {kind}: one process, several (DDP) and FSDP are supported")
        self.is_sharded = kind == DistributedType.FSDP
        if self.is_sharded and accelerator.state.fsdp_plugin.fsdp_version != 1:
            raise ConfigError(
                "FSDP 2 is not supported: set fsdp_version 1 in accelerate's configuration (FSDP_VERSION=1)"
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(self.accelerator, name)


@contextmanager
def launched(settings: TrainingSettings, accelerator: Any = None) -> Iterator[Launch]:
    """The accelerator of this process, for as long as a training lasts.

    Raises:
        MissingPackageError: accelerate is not installed.
        ConfigError: it is set up for something else than one process, several, or FSDP.
    """
    if accelerator is not None:
        yield Launch(accelerator)
        return
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ModuleNotFoundError as error:
        raise MissingPackageError("accelerate", extra="train", purpose="training") from error
    # What an earlier training of this process has set up is no business of this one.
    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        made = Accelerator(mixed_precision=settings.mixed_precision)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"accelerate cannot be set up: {error}") from error
    try:
        yield Launch(made)
    finally:
        AcceleratorState._reset_state(reset_partial_state=False)


def prepare(
    launch: Launch, model: nn.Module, *, is_own_loss: bool, settings: TrainingSettings
) -> tuple[nn.Module, nn.Module | None]:
    """The model as the processes share it; where weights are sharded, also a whole one to save, in the first process.

    1. Several processes: torch's DDP. Parameters may go without a gradient in some steps: those that a loss of one's
       own does not reach, and scales before their quantizer is switched on.
    2. FSDP: each layer is a unit, unless accelerate's configuration says otherwise. A model whose layers share weights
       (ALBERT) is refused: the weights of a unit are gathered and freed together, and other units would miss them.
       Quantizers are whole in every process.
    """
    import copy
    import functools

    twin = None
    if launch.is_sharded:
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        from qdq.models.encoder import Encoder, Layer

        twin = copy.deepcopy(model).cpu() if launch.is_main_process else None
        plugin = launch.state.fsdp_plugin
        shares = any(e.repeats != list(range(len(e.layers))) for e in model.modules() if isinstance(e, Encoder))
        if shares:
            raise ConfigError(
                "the layers of this model share their weights (ALBERT), which FSDP would shard once for each of them: "
                "train it with several processes without FSDP"
            )
        if plugin.auto_wrap_policy is transformer_auto_wrap_policy and not plugin.transformer_cls_names_to_wrap:
            plugin.auto_wrap_policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls={Layer})
        plugin.use_orig_params = True  # weights and scales are trained at different rates
        plugin.ignored_modules = [q for _, q in quantizers(model)]
    elif launch.num_processes > 1:
        from accelerate.utils import DistributedDataParallelKwargs

        late = settings.activations_from > 0 or settings.weights_from > 0
        launch.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=is_own_loss or late)
    return launch.accelerator.prepare(model), twin


def release(launch: Launch, wrapped: nn.Module) -> None:
    """Take off what :func:`prepare` put around the model."""
    if not launch.is_sharded:
        launch.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    launch.accelerator.free_memory()
