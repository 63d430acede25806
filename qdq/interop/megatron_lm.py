"""Convert BERT checkpoints of Megatron-LM (Shoeybi et al. 2019) to models of the family megatron-bert.

A checkpoint has nested dicts whose leaves have names with dots: ``model.language_model.embedding``, the layers below
``transformer`` (later ``encoder``), ``pooler``, and the heads ``lm_head`` and ``binary_head``. Query, key and value are
one matrix, whose shape depends on ``checkpoint_version``:

    0 or none     [3, heads, head size]
    1.0           [heads, head size, 3]
    2.0 or more   [heads, 3, head size]
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qdq.errors import CheckpointError, ConfigError, StorageError
from qdq.interop.conversion import Conversion, Converted, Mapped, Skipped, build_model
from qdq.models.registry import configure

if TYPE_CHECKING:
    from qdq.models.config import ModelConfig

__all__ = ["convert", "split"]

_FILE = "model_optim_rng.pt"
_ITERATION = "latest_checkpointed_iteration.txt"
_NOT_A_WEIGHT = "training state, not a weight"

# Modules of a layer, and their names in transformers. Norms have had several names over the years.
_LAYER = {
    r"input_(layer)?norm": "attention.ln",
    r"post_attention_(layer)?norm": "ln",
    r"(self_)?attention\.dense": "attention.output.dense",
    r"mlp\.dense_h_to_4h": "intermediate.dense",
    r"mlp\.dense_4h_to_h": "output.dense",
}
_FUSED = re.compile(r"(self_)?attention\.query_key_value")
_HEADS = {
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.layernorm": "cls.predictions.transform.LayerNorm",
    "lm_head.norm": "cls.predictions.transform.LayerNorm",
    "binary_head": "cls.seq_relationship",
    "language_model.pooler.dense": "bert.pooler.dense",
}
_TABLES = {"word": "word", "position": "position", "tokentype": "token_type"}
# The arguments of Megatron-LM, and the fields of the configuration.
_ARGUMENTS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "ffn_hidden_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "padded_vocab_size": "vocab_size",
    "layernorm_epsilon": "layer_norm_eps",
    "norm_epsilon": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "init_method_std": "initializer_range",
}


def convert(source: str | Path, *, task: str | None = None, overrides: Mapping[str, Any] | None = None) -> Converted:
    """Convert a checkpoint of Megatron-LM.

    Sizes come from the arguments in the file, or else from the tensors. The epsilon of the norms is that of the
    arguments; without them it is the family's 1e-12, which the converter of transformers always takes.

    Args:
        source: The file ``model_optim_rng.pt``, a directory above it, or NVIDIA's archive (.zip) with it.
        task: The task of the model; by default the one that uses all heads in the file.
        overrides: Fields of the configuration that override all others: ``num_attention_heads``, ``hidden_act``, ...

    Returns:
        The model and the report.

    Raises:
        CheckpointError: The file is damaged, is one of several shards, or is a pickle that could run code; or tensors
            are unknown, missing or of another size. The message lists all of them.
        ConfigError: A size is unknown, or not supported.
    """
    name, document = _read(Path(source))
    report = Conversion(name, "megatron-lm")
    if not isinstance(document.get("model"), Mapping):
        raise CheckpointError(f"{name}: not a checkpoint of Megatron-LM: it has no 'model'")
    for key in document:
        if key != "model":
            report.skipped.append(Skipped(key, "read for the sizes" if key == "args" else _NOT_A_WEIGHT))
    tensors = _leaves(document["model"], report)
    config = _config(document, tensors, overrides or {}, report)
    version = _version(document)
    state = _rename(tensors, config, version, report)
    report.check()
    return Converted(build_model(config, task or _task(state), state, report), report)


# --- reading ---


def _read(path: Path) -> tuple[str, Mapping[str, Any]]:
    """Return the name of the file and its contents."""
    if path.is_dir():
        path = _inside(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give {_FILE} or a directory above it")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.namelist() if member.endswith(f"/{_FILE}")]
                if members:
                    _check_single(str(path), members)
                    return f"{path}/{members[0]}", _load(f"{path}/{members[0]}", io.BytesIO(archive.read(members[0])))
        return str(path), _load(str(path), path)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _inside(folder: Path) -> Path:
    """Find the file in the directory of a training run, of an iteration, or of a rank."""
    if (folder / _FILE).is_file():
        return folder / _FILE
    if (folder / _ITERATION).is_file():
        last = (folder / _ITERATION).read_text(encoding="utf-8", errors="replace").strip()
        inner = folder / (f"iter_{int(last):07d}" if last.isdecimal() else last)
        if not inner.is_dir() or inner.parent != folder:
            raise CheckpointError(f"{folder / _ITERATION} says {last!r}, and there is no {inner.name}")
        folder = inner
    elif (folder / "release").is_dir():
        folder /= "release"
    found = sorted(folder.glob(f"mp_rank_*/{_FILE}"))
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint of Megatron-LM: there is no mp_rank_00/{_FILE}")
    _check_single(str(folder), [str(file.relative_to(folder)) for file in found])
    return found[0]


def _check_single(where: str, files: list[str]) -> None:
    if len(files) > 1:
        raise CheckpointError(
            f"{where}: the model is in {len(files)} shards ({', '.join(files[:4])}, ...): "
            "merge them first with the tool of Megatron-LM, to tensor and pipeline parallel size 1"
        )


def _load(name: str, file: Path | io.BytesIO) -> Mapping[str, Any]:
    """Load a file of which only data is allowed: arguments, tensors, and arrays of random number generators."""
    harmless = [argparse.Namespace, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("u4", "i8", "f4", "u1"))]
    multiarray: Any = getattr(np, "_core", None) or np.core
    harmless.append(multiarray.multiarray._reconstruct)
    # NumPy 1 wrote this name.
    old_name = (multiarray.multiarray._reconstruct, "numpy.core.multiarray._reconstruct")
    try:
        with torch.serialization.safe_globals([*harmless, old_name]):
            document = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)|global ([\w.]+)", str(error))
        if wanted is None:
            raise CheckpointError(f"{name}: not a file of PyTorch, or damaged") from error
        what = next(filter(None, wanted.groups()))
        raise CheckpointError(
            f"{name}: refused: the pickle holds more than tensors and arguments ({what}) and could run code; if "
            "you trust it, load it with Megatron-LM and save only 'model', 'args' as a dict and 'checkpoint_version'"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name}: damaged or incomplete PyTorch file ({error})") from error
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{name}: not a checkpoint of Megatron-LM: it holds a {type(document).__name__}")
    return document


def _leaves(tree: Mapping[str, Any], report: Conversion) -> dict[str, Tensor]:
    """Return all tensors of nested dicts by their paths."""
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = _leaves(value, report)
            found |= {f"{key}.{name}": tensor for name, tensor in inner.items()}
        elif isinstance(value, Tensor) and value.is_floating_point():
            found[str(key)] = value
        elif str(key).endswith("_extra_state"):
            report.skipped.append(Skipped(str(key), _NOT_A_WEIGHT))
        else:
            kind = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
            report.problems.append(f"{key} is {kind}, must be a tensor of floating point numbers")
    return found


# --- sizes ---


def _version(document: Mapping[str, Any]) -> float:
    given = document.get("checkpoint_version", 0)
    try:
        version = float(given)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint_version is {given!r}, must be a number") from error
    if not (version in (0.0, 1.0) or version >= 2.0):
        raise CheckpointError(f"checkpoint_version is {given!r}; it must be 0 (or absent), 1, or 2 or more")
    return version


def _config(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], overrides: Mapping[str, Any], report: Conversion
) -> ModelConfig:
    args = document.get("args")
    args = args if isinstance(args, Mapping) else vars(args) if isinstance(args, argparse.Namespace) else {}
    values = {ours: args[theirs] for theirs, ours in _ARGUMENTS.items() if args.get(theirs) is not None}
    measured = _measured(tensors)
    if values:
        if "hidden_size" in values:
            # The argument may be missing because Megatron-LM computes this default itself.
            values.setdefault("intermediate_size", 4 * values["hidden_size"])
    else:
        report.notes.append(
            "the file holds no arguments: sizes are those of the tensors, all other fields have the family's defaults"
        )
    # Arguments override the sizes of the tensors: where they differ, loading reports the shapes that do not fit.
    values = {**measured, **values, **overrides}
    usual = configure("megatron-bert")
    if "num_attention_heads" not in values and values.get("hidden_size") != usual.hidden_size:
        raise ConfigError(f"{report.source}: num_attention_heads is unknown: set it (--set num_attention_heads=N)")
    return configure("megatron-bert", **values)


def _measured(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of the tensors."""
    found: dict[str, int] = {}
    layers = set()
    for name, tensor in tensors.items():
        if name.endswith("word_embeddings.weight") and tensor.dim() == 2:
            found.setdefault("vocab_size", tensor.shape[0])
            found["hidden_size"] = tensor.shape[1]
        elif name.endswith("position_embeddings.weight"):
            found["max_position_embeddings"] = tensor.shape[0]
        elif name.endswith("tokentype_embeddings.weight"):
            found["type_vocab_size"] = tensor.shape[0]
        elif name.endswith("mlp.dense_h_to_4h.weight"):
            found["intermediate_size"] = tensor.shape[0]
        if match := re.search(r"\.layers\.(\d+)\.", name):
            layers.add(int(match[1]))
    if "lm_head.bias" in tensors:
        found["vocab_size"] = tensors["lm_head.bias"].shape[0]
    if layers:
        found["num_hidden_layers"] = max(layers) + 1
    return found


# --- names ---


def _rename(
    tensors: Mapping[str, Tensor], config: ModelConfig, version: float, report: Conversion
) -> dict[str, Tensor]:
    """Return the tensors under the keys of transformers, and report unknown ones as problems."""
    state: dict[str, Tensor] = {}

    def put(name: str, tensors_by_key: dict[str, Tensor], how: str = "") -> None:
        if taken := state.keys() & tensors_by_key.keys():
            report.problems.append(f"{name} would be {', '.join(sorted(taken))}, which another tensor is")
        state.update(tensors_by_key)
        report.mapped.append(Mapped(name, tuple(tensors[name].shape), tuple(tensors_by_key), how))

    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if leaf == "_extra_state":
            report.skipped.append(Skipped(name, _NOT_A_WEIGHT, tuple(tensor.shape)))
        elif name == "lm_head.bias":
            put(name, _cut({"cls.predictions.bias": tensor}, config.vocab_size))
        elif module in _HEADS and leaf in ("weight", "bias"):
            put(name, {f"{_HEADS[module]}.{leaf}": tensor})
        elif match := re.fullmatch(r"language_model\.embedding\.(word|position|tokentype)_embeddings\.weight", name):
            key = f"bert.embeddings.{_TABLES[match[1]]}_embeddings.weight"
            named = {key: tensor}
            if match[1] == "word":
                named = _cut(named, config.vocab_size)
            cut = named[key].shape != tensor.shape
            put(name, named, f"the first {config.vocab_size} of {len(tensor)} rows" if cut else "")
        # With pipeline parallelism the last stage has its own copy for the head.
        elif re.fullmatch(r"word_embeddings(_for_head)?\.weight", name):
            report.skipped.append(Skipped(name, "a copy of the word embeddings", tuple(tensor.shape)))
        elif match := re.fullmatch(r"language_model\.(?:transformer|encoder)\.(.+)\.(weight|bias)", name):
            _put_layer(name, match[1], match[2], tensor, config, version, report, put)
        else:
            report.problems.append(f"{name} is unknown")
    return state


def _put_layer(
    name: str,
    module: str,
    leaf: str,
    tensor: Tensor,
    config: ModelConfig,
    version: float,
    report: Conversion,
    put: Any,
) -> None:
    if re.fullmatch(r"final_(layer)?norm", module):
        put(name, {f"bert.encoder.ln.{leaf}": tensor})
        return
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    if match is None:
        report.problems.append(f"{name} is unknown")
        return
    layer = f"bert.encoder.layer.{match[1]}"
    if _FUSED.fullmatch(match[2]):
        if tensor.shape[0] != 3 * config.hidden_size:
            report.problems.append(f"{name} has {tensor.shape[0]} rows, must be 3 * hidden_size {config.hidden_size}")
            return
        matrices = split(tensor, config.num_attention_heads, version)
        keys = (f"{layer}.attention.self.{role}.{leaf}" for role in ("query", "key", "value"))
        put(name, dict(zip(keys, matrices, strict=True)), f"split, rows of checkpoint_version {version:g}")
        return
    for pattern, ours in _LAYER.items():
        if re.fullmatch(pattern, match[2]):
            put(name, {f"{layer}.{ours}.{leaf}": tensor})
            return
    report.problems.append(f"{name} is unknown")


def split(fused: Tensor, heads: int, version: float) -> tuple[Tensor, ...]:
    """Split the joint matrix or bias of query, key and value.

    Args:
        fused: The joint matrix ``(3 * heads * head size, hidden)`` or bias ``(3 * heads * head size,)``.
        heads: The number of heads.
        version: ``checkpoint_version``, which decides the order of the rows.

    Returns:
        Query, key and value, each with ``heads * head size`` rows.
    """
    rows, rest = fused.shape[0] // (3 * heads), fused.shape[1:]
    # The order of the rows, by the table at the top of this module.
    if version >= 2.0:
        matrices = fused.view(heads, 3, rows, *rest).transpose(0, 1)
    elif version == 1.0:
        matrices = fused.view(heads, rows, 3, *rest).movedim(2, 0)
    else:
        matrices = fused.view(3, heads, rows, *rest)
    return tuple(matrix.reshape(heads * rows, *rest).contiguous() for matrix in matrices)


def _cut(named: dict[str, Tensor], size: int) -> dict[str, Tensor]:
    return {key: tensor[:size] for key, tensor in named.items()}


def _task(state: Mapping[str, Tensor]) -> str:
    """Return the task that uses all heads of the checkpoint."""
    if "cls.predictions.bias" not in state:
        return "feature-extraction"
    return "pre-training" if "cls.seq_relationship.weight" in state else "masked-lm"
