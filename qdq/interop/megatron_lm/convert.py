"""Convert a BERT checkpoint of Megatron-LM, of either implementation and in any number of parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qdq.errors import CheckpointError, ConfigError
from qdq.interop.conversion import Conversion, Converted, Skipped, build_model
from qdq.interop.megatron_lm import arguments
from qdq.interop.megatron_lm.names import NOT_A_WEIGHT, canonical, is_of_core, rename
from qdq.interop.megatron_lm.parts import merge_stages, merge_tensors
from qdq.interop.megatron_lm.reader import read
from qdq.models.registry import configure

if TYPE_CHECKING:
    from qdq.interop.megatron_lm.reader import Documents
    from qdq.models.config import ModelConfig

__all__ = ["convert"]

_DECODER = "cls.predictions.decoder.weight"
_TOKEN_TYPES = "bert.embeddings.token_type_embeddings.weight"
# Linear layers that Megatron-LM builds without a bias if it is told so.
_LINEARS = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)


def convert(source: str | Path, *, task: str | None = None, overrides: Mapping[str, Any] | None = None) -> Converted:
    """Convert a checkpoint of Megatron-LM.

    Sizes come from the arguments in the file, or else from the tensors. The epsilon of the norms is that of the
    arguments; without them it is the family's 1e-12, which the converter of transformers always takes.

    Args:
        source: The file ``model_optim_rng.pt``, a directory above it, or NVIDIA's archive (.zip) with it. All parts of
            a model that was trained with tensor or pipeline parallelism are merged.
        task: The task of the model; by default the one that uses all heads in the file.
        overrides: Fields of the configuration that override all others: ``num_attention_heads``, ``hidden_act``, ...

    Returns:
        The model and the report.

    Raises:
        CheckpointError: A file is damaged, a part is missing, or a pickle could run code; the arguments say that the
            model computes something else than megatron-bert; or tensors are unknown, missing or of another size. The
            message lists all of them.
        ConfigError: A size is unknown, or not supported.
    """
    documents = read(Path(source))
    first, overrides = documents.first, overrides or {}
    report = Conversion(documents.name, "megatron-lm")
    args = arguments.arguments_of(first, documents.name)
    version = _version(first)
    tensors = _tensors(documents, version, report)
    _check_is_bert(tensors, task, report.source)
    arguments.check(args, report.source)
    _check_parts(documents, args, tensors, {**arguments.fields(args), **overrides})
    config = _config(args, tensors, overrides, report)
    groups = arguments.query_groups(args, config.num_attention_heads, report.source)
    state = rename(tensors, config, version, groups, report)
    report.check()
    _follow(args, state, config, report)
    untied = args.get("untie_embeddings_and_output_weights") and "cls.predictions.bias" in state
    if untied and not any(canonical(name).endswith("output_layer.weight") for name in tensors):
        raise CheckpointError(f"{report.source}: untie_embeddings_and_output_weights is set; output_layer is missing")
    if _DECODER in state:
        config = replace(config, tie_word_embeddings=False)
    model = build_model(config, task or _task(state), state, report)
    return Converted(model, report, _folders(Path(source)), arguments.lowercases(args))


def _folders(source: Path) -> tuple[Path, ...]:
    """Return the directories above a part of the model, in which a vocabulary may lie."""
    inside = re.compile(r"mp_rank_.*|iter_\d+|release")
    folder = source if source.is_dir() else source.parent
    found = [folder]
    while inside.fullmatch(folder.name):
        folder = folder.parent
        found.append(folder)
    return tuple(found)


def _tensors(documents: Documents, version: float, report: Conversion) -> dict[str, Tensor]:
    """Return the tensors of all parts, merged."""
    for key in documents.first:
        if not re.fullmatch(r"model\d*", str(key)):
            report.skipped.append(Skipped(str(key), "read for the sizes" if key == "args" else NOT_A_WEIGHT))
    chunks = [key for key in documents.first if re.fullmatch(r"model\d*", str(key))]
    if not chunks:
        raise CheckpointError(f"{documents.name}: not a checkpoint of Megatron-LM: it has no 'model'")
    stages = []
    # With an interleaved pipeline, each stage has several pieces of the model: all first pieces come first.
    for chunk in sorted(chunks, key=lambda key: (len(key), key)):
        for stage in documents.stages:
            parts = [_leaves(_model(part, chunk, documents.name), report) for part in stage]
            stages.append(merge_tensors(parts, version, report))
    count = len(documents.stages) * len(documents.stages[0])
    if count > 1:
        report.notes.append(
            f"merged {count} parts: {len(documents.stages[0])} by tensor and {len(documents.stages)} by pipeline "
            "parallelism"
        )
    return merge_stages(stages, report)


def _model(document: Mapping[str, Any], chunk: str, name: str) -> Mapping[str, Any]:
    found = document.get(chunk)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{name}: not a checkpoint of Megatron-LM: '{chunk}' is {type(found).__name__}")
    return found


def _check_parts(
    documents: Documents, args: Mapping[str, Any], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Check that tensors of a smaller size than the arguments say are not those of a few parts of the model."""
    measured = _measured(tensors)
    divided = ("vocab_size", "intermediate_size", "num_hidden_layers")
    if all(measured.get(name, values.get(name)) == values.get(name, measured.get(name)) for name in divided):
        return
    for names, found in (
        (("tensor_model_parallel_size", "model_parallel_size"), len(documents.stages[0])),
        (("pipeline_model_parallel_size",), len(documents.stages)),
    ):
        said = next((args[name] for name in names if isinstance(args.get(name), int)), found)
        if said != found:
            raise CheckpointError(
                f"{documents.name}: {names[0]} is {said}, and the number of such parts here is {found}: give the "
                "directory with all directories mp_rank_*"
            )


def _check_is_bert(tensors: Mapping[str, Tensor], task: str | None, source: str) -> None:
    """Refuse a GPT, whose encoder has the same names; a task that is asked for says that it is none."""
    known = {canonical(name) for name in tensors}
    of_bert = ("lm_head.", "binary_head.", "language_model.pooler.", "language_model.embedding.tokentype_embeddings.")
    if task is None and known and not any(name.startswith(of_bert) for name in known):
        unknown = ", ".join(list(tensors)[:3])
        raise CheckpointError(
            f"{source}: no BERT: there is no lm_head, binary_head, pooler or table of token types, as in a GPT "
            f"({unknown}, ...); if it is one without heads, name the task (--task feature-extraction)"
        )


def _leaves(tree: Mapping[str, Any], report: Conversion) -> dict[str, Tensor]:
    """Return all tensors of nested dicts by their paths."""
    found: dict[str, Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = _leaves(value, report)
            found |= {f"{key}.{name}": tensor for name, tensor in inner.items()}
        elif str(key).endswith("_extra_state"):
            shape = tuple(value.shape) if isinstance(value, Tensor) else None
            report.skipped.append(Skipped(str(key), NOT_A_WEIGHT, shape))
        elif isinstance(value, Tensor) and value.is_floating_point():
            found[str(key)] = value
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
    args: Mapping[str, Any], tensors: Mapping[str, Tensor], overrides: Mapping[str, Any], report: Conversion
) -> ModelConfig:
    values = arguments.fields(args)
    if not values:
        report.notes.append(
            "the file holds no arguments: sizes are those of the tensors, all other fields have the family's defaults"
        )
    values["hidden_act"] = _activation(args, is_of_core(tensors), overrides, report)
    # Arguments override the sizes of the tensors: where they differ, loading reports the shapes that do not fit.
    values = {**_measured(tensors), **values, **overrides}
    usual = configure("megatron-bert")
    if "num_attention_heads" not in values and values.get("hidden_size") != usual.hidden_size:
        raise ConfigError(f"{report.source}: num_attention_heads is unknown: set it (--set num_attention_heads=N)")
    return configure("megatron-bert", **values)


def _activation(args: Mapping[str, Any], core: bool, overrides: Mapping[str, Any], report: Conversion) -> str:
    """Return the activation. ``onnx_safe`` and ``onnx_safe_gelu`` only write GELU in another way."""
    if "hidden_act" in overrides:
        return str(overrides["hidden_act"])
    if args.get("openai_gelu") and not core:
        report.notes.append("openai_gelu: hidden_act is gelu_new, the GELU that is written with tanh")
        return "gelu_new"
    if args.get("bias_gelu_fusion") and args.get("add_bias_linear", True):
        report.notes.append(
            "bias_gelu_fusion computes GELU with tanh in the layers; hidden_act is gelu, as in the converter of "
            "transformers, whose values differ by up to 0.0005: --set hidden_act=gelu_new takes the form with tanh"
        )
    elif args.get("openai_gelu"):
        report.notes.append("openai_gelu: Megatron core ignores it, so hidden_act is gelu")
    return "gelu"


def _measured(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of the tensors."""
    found: dict[str, int] = {}
    layers = set()
    for given, tensor in tensors.items():
        name = canonical(given)
        if not tensor.dim():
            continue
        if name.endswith("word_embeddings.weight") and tensor.dim() == 2:
            found.setdefault("vocab_size", tensor.shape[0])
            found["hidden_size"] = tensor.shape[1]
        elif name.endswith("position_embeddings.weight"):
            found["max_position_embeddings"] = tensor.shape[0]
        elif name.endswith("tokentype_embeddings.weight"):
            found["type_vocab_size"] = tensor.shape[0]
        elif name.endswith("mlp.dense_h_to_4h.weight"):
            found["intermediate_size"] = tensor.shape[0]
        elif name == "lm_head.bias":
            found["vocab_size"] = tensor.shape[0]
        if match := re.search(r"\.layers\.(\d+)\.", name):
            layers.add(int(match[1]))
    if layers:
        found["num_hidden_layers"] = max(layers) + 1
    return found


# --- what the arguments say about tensors ---


def _follow(args: Mapping[str, Any], state: dict[str, Tensor], config: ModelConfig, report: Conversion) -> None:
    """Complete the tensors so that a megatron-bert model computes what was trained.

    1. A model that was trained without a second sentence has no token types: a table of zeros adds nothing.
    2. Layers without biases get biases of zeros.
    3. Norms that are stored around zero get their one back.
    """
    if _TOKEN_TYPES not in state and "cls.seq_relationship.weight" not in state:  # case 1
        rows, columns = (getattr(config, name, 2) for name in ("type_vocab_size", "hidden_size"))
        state[_TOKEN_TYPES] = torch.zeros(rows, columns)
        report.notes.append(f"there are no token types: their table is {rows} rows of zeros, which change nothing")
    if args.get("add_bias_linear") is False:  # case 2
        added = 0
        for index in range(config.num_hidden_layers):
            for module in _LINEARS:
                name = f"bert.encoder.layer.{index}.{module}"
                if f"{name}.weight" in state and f"{name}.bias" not in state:
                    state[f"{name}.bias"] = torch.zeros(len(state[f"{name}.weight"]))
                    added += 1
        report.notes.append(f"add_bias_linear is off: {added} biases are zeros")
    if args.get("apply_layernorm_1p") or args.get("layernorm_zero_centered_gamma"):  # case 3
        for key in [key for key in state if re.search(r"\.(ln|LayerNorm)\.weight$", key)]:
            state[key] = state[key].float() + 1.0
        report.mapped = [
            replace(entry, how="plus one") if re.search(r"\.(ln|LayerNorm)\.weight$", entry.targets[0]) else entry
            for entry in report.mapped
        ]
        report.notes.append("apply_layernorm_1p: one was added to the weights of the norms, which are stored without")


def _task(state: Mapping[str, Tensor]) -> str:
    """Return the task that uses all heads of the checkpoint."""
    if "cls.predictions.bias" not in state:
        return "feature-extraction"
    return "pre-training" if "cls.seq_relationship.weight" in state else "masked-lm"
