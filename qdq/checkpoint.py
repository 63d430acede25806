"""Write and read a quantized checkpoint: a Hugging Face directory with the state of the quantizers beside it.

    config.json  model.safetensors  tokenizer ...     the float model, which transformers loads as before
    quantization.json                                 format version, recipe, spec of every slot, how it was calibrated,
                                                      checksums of the files that decide the model's outputs
    quantizers.safetensors                            tensors of every slot and linear layer:
        scale, zero_point                             of quantized slots
        lower, upper, amax                            the range that was found, of activations
        transform.shift                               the transform before the quantizer: its shift,
        transform.factor, transform.rows              its smoothing scale and its row scale
        rounding                                      a chosen rounding, of weights
        bias_correction                               of linear layers

The ranges of slots that stay float are stored too, so that the checkpoint can be exported with another recipe.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import Tensor

from qdq.data.tokenizer import TOKENIZER_FILES
from qdq.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    RecipeError,
    StorageError,
    describe_problems,
)
from qdq.models.huggingface import load_model, read_weights, save_model
from qdq.models.registry import task_of
from qdq.quantization.modules import QuantAdd, QuantLinear
from qdq.quantization.quantizer import Mode, Quantizer, Range, quantizers, set_mode
from qdq.quantization.spec import QuantSpec
from qdq.quantization.transform import Transform
from qdq.quantization.wrap import apply_specs, named_slots, slots, unshared_slots, wrap
from qdq.sentence.copying import copy_sentence_files
from qdq.source import QUANTIZATION_FILE, QUANTIZERS_FILE, ModelDirectory
from qdq.storage import atomic_directory, check_readable, refuse_pointer, write_json

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from torch import nn

    from qdq.models.attention import AttentionImplementation
    from qdq.models.model import Model
    from qdq.quantization.slot import Slot
    from qdq.recipes.recipe import Recipe

__all__ = ["copy_tokenizer", "load", "load_float", "save", "write"]

FORMAT = 3

_CHECKED = ("config.json", "model.safetensors", QUANTIZERS_FILE)
"""The files whose contents decide what the model computes; ``quantization.json`` holds their checksums."""

_RANGE = ("lower", "upper", "amax")
_TRANSFORM = {"shift": "shift", "factor": "smoothing_scale", "rows": "row_scale"}  # names on disk and in code
_CORRECTION = "bias_correction"
_WEIGHT = ".weight_quantizer"


def save(
    model: Model,
    path: str | Path,
    *,
    recipe: Recipe,
    calibration: Mapping[str, Any],
    source: str | Path | ModelDirectory | None = None,
) -> None:
    """Write a quantized checkpoint. The directory appears whole or not at all.

    Args:
        model: A wrapped and calibrated model.
        path: Directory to write. An older checkpoint of qdq there is replaced.
        recipe: The recipe that the specs came from, for the record.
        calibration: How the ranges were found, for the record: ``CalibrationSummary.to_dict()``.
        source: Directory that the model came from, whose tokenizer is copied.

    Raises:
        CalibrationError: The model is not wrapped, or slots are not calibrated; all of them are named.
        ConfigError: The directory holds something that qdq did not write.
        StorageError: The disk is full, a permission is missing, or another I/O error occurred.
    """
    with atomic_directory(Path(path), kind="checkpoint") as folder:
        write(model, folder, recipe=recipe, calibration=calibration, source=source)


def write(
    model: Model,
    folder: Path,
    *,
    recipe: Recipe,
    calibration: Mapping[str, Any],
    source: str | Path | ModelDirectory | None = None,
) -> None:
    """Write the files of a quantized checkpoint into ``folder``, which exists; :func:`save` replaces a folder whole."""
    if not any(quantizers(model)):
        raise CalibrationError("the model has no quantizers: wrap it first with qdq.quantize(model, recipe)")
    if missing := [name for name, quantizer in quantizers(model) if not quantizer.is_calibrated]:
        raise CalibrationError(describe_problems("not calibrated", missing))
    save_model(model, folder)
    if source is not None:
        copy_tokenizer(source, folder)
    (folder / QUANTIZERS_FILE).write_bytes(serialize(_tensors(model)))
    document = {
        "format": FORMAT,
        "recipe": recipe.to_dict(),
        "slots": {str(slot): q.spec.to_dict() for slot, q in named_slots(model) if q.spec is not None},
        "unshared": [str(slot) for slot in unshared_slots(model)],
        "calibration": dict(calibration),
        "sha256": {name: _checksum(folder / name) for name in _CHECKED},
    }
    write_json(folder / QUANTIZATION_FILE, {**document, "sha256_of_this": _own_checksum(document)})


def copy_tokenizer(source: str | Path | ModelDirectory, target: Path) -> None:
    """Copy the files of the tokenizer and of sentence-transformers, as far as they exist.

    Contents are copied, never links, and get usual permissions. A handle whose settings of loading name another
    directory for the tokenizer gives the tokenizer's files of that one.

    Raises:
        CheckpointError: There is no such directory, or a file is a pointer of Git LFS.
        ConfigError: ``modules.json`` is damaged, or a path in it leaves the directory.
    """
    directory = ModelDirectory.of(source)
    for name in TOKENIZER_FILES:
        file = directory.tokenizer_folder / name
        if file.is_file():
            refuse_pointer(file)
            shutil.copyfile(file, target / name)
    copy_sentence_files(directory.root or directory.path, directory.path, target)


def load(
    path: str | Path | ModelDirectory,
    task: str | None = None,
    *,
    allow_missing: Collection[str] = (),
    attn_implementation: AttentionImplementation = "eager",
) -> Model:
    """Load a model from a directory: the float reference, or a quantizing model if the checkpoint is quantized.

    A QDQBERT checkpoint quantizes too, as it does where it comes from: with the ranges that it holds, and dynamically
    where it holds none. ``qdq.models.huggingface.load_model`` loads the float model of any checkpoint.

    Args:
        path: Hugging Face directory, or one that ``qdq calibrate`` wrote. A handle brings its settings of loading.
        task: Task whose head is loaded. None reads it from ``architectures`` in config.json.
        allow_missing: ``{"head"}`` to put a new head on a base checkpoint, besides what the handle's settings allow.
        attn_implementation: ``eager``, or for float models ``sdpa``, torch's fused attention.

    Raises:
        CheckpointError: Files are damaged, missing or left over; all problems at once.
        ConfigError: The configuration is not supported, or fused attention is asked of a quantized model: its
            quantizers sit between the products that it fuses.
    """
    directory = ModelDirectory.of(path)
    path = directory.path
    if directory.is_quantized and attn_implementation != "eager":
        raise ConfigError(f"{path} is quantized: attn_implementation must be eager, not {attn_implementation}")
    document = directory.quantization
    model = load_float(directory, task, allow_missing=allow_missing, attn_implementation=attn_implementation)
    if document is not None:
        wrap(model)
        # The float weights may hold a head or a pooler that this task does not have; so may the quantizers' file.
        elsewhere = () if model.task == task_of(model.config)[0] else ("head.", "pooler.")
        specs = _specs(model, document, path / QUANTIZATION_FILE, elsewhere)
        try:
            apply_specs(model, specs, unshared=_unshared(model, document, path / QUANTIZATION_FILE, elsewhere))
        except (RecipeError, CalibrationError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        _fill(model, path / QUANTIZERS_FILE, elsewhere)
        _check_checksums(path, document)  # last, because the messages of the other checks are more helpful
        set_mode(model, Mode.QUANTIZE)
    elif model.config.model_type == "qdqbert":
        from qdq.interop.pytorch_quantization import load_amax

        try:
            ranges = read_weights(path, directory.config, ignore_keys=directory.loading.ignore_keys, warn=False)
            load_amax(model, ranges, source=str(path))
        except CalibrationError as error:
            raise CheckpointError(f"{path}: {error}") from error
    return model


def load_float(
    directory: ModelDirectory,
    task: str | None = None,
    *,
    allow_missing: Collection[str] = (),
    attn_implementation: AttentionImplementation = "eager",
    seed: int | None = None,
) -> Model:
    """Load the float model of any checkpoint as the settings of its handle say.

    Args:
        directory: The handle.
        task: Task whose head is loaded. None reads it from ``architectures`` in config.json.
        allow_missing: Modules that may be missing, besides those of the handle's settings.
        attn_implementation: ``eager`` or ``sdpa``.
        seed: Seed of weights that are drawn where the handle's settings have none.

    Raises:
        CheckpointError: Files are damaged, missing or left over; all problems at once.
        ConfigError: The configuration is not supported.
    """
    loading = directory.loading
    return load_model(
        directory.path,
        task,
        allow_missing={*allow_missing, *loading.allow_missing},
        ignore_keys=loading.ignore_keys,
        seed=seed if loading.seed is None else loading.seed,
        attn_implementation=attn_implementation,
        config=directory.config,
    )


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _own_checksum(document: Mapping[str, Any]) -> str:
    """Return the checksum of the contents of ``quantization.json``, whatever their order and layout."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _check_checksums(path: Path, document: Mapping[str, Any]) -> None:
    """Raise if files have changed since they were written: one flipped bit in a scale silently changes the model.

    Checkpoints of format 1 carry no checksums.
    """
    if document["format"] == 1:
        return
    recorded = document.get("sha256")
    if not isinstance(recorded, dict) or set(recorded) != set(_CHECKED):
        raise CheckpointError(f"{path / QUANTIZATION_FILE}: sha256 must hold the checksums of {', '.join(_CHECKED)}")
    own = {key: value for key, value in document.items() if key != "sha256_of_this"}
    changed = [name for name in _CHECKED if (path / name).is_file() and _checksum(path / name) != recorded[name]]
    if document.get("sha256_of_this") != _own_checksum(own):
        changed.append(QUANTIZATION_FILE)
    if changed:
        raise CheckpointError(
            f"{path}: {' and '.join(changed)} changed after the checkpoint was written, by damage or by hand: quantize "
            "again, or load the float model alone with qdq.models.huggingface.load_model and save that"
        )


def _tensors(model: Model) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, quantizer in quantizers(model):
        if quantizer.range is not None and not name.endswith(_WEIGHT):
            tensors |= {f"{name}.{key}": getattr(quantizer.range, key) for key in _RANGE}
        state = quantizer.state_dict()
        if quantizer.spec is not None and quantizer.spec.learned_scale:
            state["scale"] = quantizer.grid(quantizer.scale)[0]
        tensors |= {f"{name}.{key}": tensor for key, tensor in state.items()}
    for name, linear in _linears(model):
        if linear.bias_correction is not None:
            tensors[f"{name}.{_CORRECTION}"] = linear.bias_correction
    return {name: tensor.detach().clone().contiguous().cpu() for name, tensor in tensors.items()}


def _specs(
    model: Model, document: Mapping[str, Any], file: Path, elsewhere: tuple[str, ...]
) -> dict[Slot, QuantSpec | None]:
    """Return the spec of every slot. Names that begin like one of ``elsewhere`` may belong to another task's model."""
    specs: dict[Slot, QuantSpec | None] = dict.fromkeys(slots(model))
    known = {str(slot): slot for slot in specs}
    problems: list[str] = []
    for name, values in document["slots"].items():
        if name not in known:
            if not name.startswith(elsewhere):
                problems.append(f"slot {name!r} does not exist in this model")
        elif not isinstance(values, dict):
            problems.append(f"slot {name}: its spec is {values!r}, must be an object")
        elif wrong := QuantSpec.problems_in(values):
            problems += [f"slot {name}: {problem}" for problem in wrong]
        else:
            specs[known[name]] = QuantSpec.from_dict(values)
    if problems:
        raise CheckpointError(describe_problems(str(file), problems))
    return specs


def _unshared(model: Model, document: Mapping[str, Any], file: Path, elsewhere: tuple[str, ...]) -> list[Slot]:
    """Return the slots that have a quantizer of their own although other slots read the same tensor."""
    names = document.get("unshared", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{file}: unshared is {names!r}, must be a list of slots")
    known = {str(slot): slot for slot in slots(model)}
    if unknown := [name for name in names if name not in known and not name.startswith(elsewhere)]:
        raise CheckpointError(
            describe_problems(str(file), [f"slot {name!r} does not exist in this model" for name in unknown])
        )
    return [known[name] for name in names if name in known]


def _fill(model: Model, file: Path, elsewhere: tuple[str, ...]) -> None:
    """Set scales, zero points and ranges, strictly: every tensor belongs to a slot and every slot has its tensors."""
    check_readable(file)
    refuse_pointer(file)
    try:
        tensors = load_file(file)
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror or error}") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file}: damaged or incomplete ({error}); copy it again, or calibrate again") from error
    problems: list[str] = []
    for name, quantizer in quantizers(model):
        owner = model.get_submodule(name.rpartition(".")[0])
        wrong = _fill_transform(
            quantizer, _taken(tensors, f"{name}.transform"), owner, is_weight=name.endswith(_WEIGHT)
        )
        wrong += _fill_state(quantizer, _taken(tensors, name), owner, is_weight=name.endswith(_WEIGHT))
        problems += [f"{name}: {problem}" for problem in wrong]
    for name, linear in _linears(model):
        correction = tensors.pop(f"{name}.{_CORRECTION}", None)
        if correction is not None and not _is_vector(correction, linear.out_features):
            problems.append(f"{name}: {_CORRECTION} must be {linear.out_features} finite numbers in float32")
        linear.bias_correction = correction
    problems += [f"{name} belongs to no slot" for name in tensors if not name.startswith(elsewhere)]
    if problems:
        raise CheckpointError(describe_problems(str(file), problems))


def _taken(tensors: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Take the tensors of ``owner`` out of ``tensors`` and return them by their own names."""
    return {key.rpartition(".")[2]: tensors.pop(key) for key in list(tensors) if key.rpartition(".")[0] == owner}


def _linears(model: Model) -> Iterator[tuple[str, QuantLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            yield name, module


def _is_vector(tensor: Tensor, size: int) -> bool:
    return tensor.dtype == torch.float32 and tensor.shape == (size,) and bool(torch.isfinite(tensor).all())


def _fill_transform(
    quantizer: Quantizer, tensors: dict[str, Tensor], owner: nn.Module, *, is_weight: bool
) -> list[str]:
    if not tensors:
        return []
    if unknown := [f"unexpected tensor transform.{key}" for key in tensors if key not in _TRANSFORM]:
        return unknown
    transform = Transform(**{_TRANSFORM[key]: tensor for key, tensor in tensors.items()})
    channels = owner.in_features if isinstance(owner, QuantLinear) else None
    if isinstance(owner, QuantAdd) and transform.shift is not None and transform.smoothing_scale is None:
        channels = transform.shift.numel()  # an addition does not know the width of its operands
    rows = owner.out_features if is_weight and isinstance(owner, QuantLinear) else None
    if problems := transform.problems(channels, rows):
        return [f"transform.{problem}" for problem in problems]
    quantizer.transform = transform
    return []


def _fill_state(quantizer: Quantizer, tensors: dict[str, Tensor], owner: nn.Module, *, is_weight: bool) -> list[str]:
    rounding = tensors.pop("rounding", None)
    expected = [key for key in quantizer.state_dict() if "." not in key]
    known = expected if is_weight else [*dict.fromkeys([*expected, *_RANGE])]
    problems = [f"unexpected tensor {key!r}" for key in tensors if key not in known]
    for key in known:
        dtype = torch.int32 if key == "zero_point" else torch.float32
        if key in tensors and tensors[key].dtype != dtype:
            problems.append(f"{key} is {tensors[key].dtype}, must be {dtype}")
    if not is_weight:
        bounds = [tensors[key] for key in _RANGE if key in tensors]
        if len(bounds) == len(_RANGE) and all(bound.shape == () for bound in bounds):
            lower, upper, amax = bounds
            if bool(torch.isfinite(torch.stack(bounds)).all()) and lower <= upper and amax >= 0:
                quantizer.range = Range(lower, upper, amax)
            else:
                problems.append(f"not a range: lower {lower:.6g}, upper {upper:.6g}, amax {amax:.6g}")
        elif bounds and {key for key in _RANGE if key in tensors} != {"amax"} & set(expected):
            problems.append("lower, upper and amax must be three numbers")
    missing = [key for key in expected if key not in tensors]
    if missing:
        return [*problems, f"{' and '.join(missing)} missing"]
    try:
        if "amax" in expected:
            quantizer.set_amax(tensors["amax"])
        if "scale" in expected:
            quantizer.set_scale(tensors["scale"], tensors["zero_point"])
    except CalibrationError as error:
        problems.append(str(error))
    if rounding is not None:
        shape = tuple(owner.weight.shape) if is_weight and quantizer.spec and isinstance(owner, QuantLinear) else None
        if rounding.dtype != torch.int8 or tuple(rounding.shape) != shape:
            problems.append("rounding must be int8 steps in the shape of a quantized linear weight")
        quantizer.rounding = rounding
    return problems
