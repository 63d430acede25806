"""What the arguments of a training with Megatron-LM say about the model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from qdq.errors import CheckpointError, describe_problems
from qdq.interop.torch_file import StandIn

__all__ = ["arguments_of", "check", "fields", "lowercases", "query_groups"]

#: The arguments that are fields of the configuration.
_FIELDS = {
    "encoder_num_layers": "num_hidden_layers",
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

_OFF = (False, None)
_NONE: tuple[Any, ...] = (None, 0, 1, [1], [])

#: Arguments that change what the model computes: the values that a megatron-bert model can follow, and what others do.
_MUST_BE: dict[str, tuple[tuple[Any, ...], str]] = {
    "apply_residual_connection_post_layernorm": (_OFF, "residuals begin after the norms"),
    "normalization": (("LayerNorm", None), "the norms are no LayerNorms"),
    "swiglu": (_OFF, "the feed-forward layers have gates"),
    "geglu": (_OFF, "the feed-forward layers have gates"),
    "quick_geglu": (_OFF, "the feed-forward layers have gates"),
    "glu_activation": ((None,), "the feed-forward layers have gates"),
    "gated_linear_unit": (_OFF, "the feed-forward layers have gates"),
    "squared_relu": (_OFF, "the activation of the layers is another one than that of lm_head"),
    "activation_func_clamp_value": ((None,), "activations are clipped"),
    "position_embedding_type": (("learned_absolute", "absolute", None), "positions are no learned embeddings"),
    "use_rotary_position_embeddings": (_OFF, "positions are rotations"),
    "add_position_embedding": ((True, None), "positions are no learned embeddings"),
    "num_experts": (_NONE, "the feed-forward layers are mixtures of experts"),
    "num_moe_experts": (_NONE, "the feed-forward layers are mixtures of experts"),
    "window_size": ((None, (-1, -1), [-1, -1]), "attention sees only a window"),
    "qk_layernorm": (_OFF, "queries and keys are normalized"),
    "qk_l2_norm": (_OFF, "queries and keys are normalized"),
    "softmax_type": (("vanilla", None), "the softmax has a sink"),
    "softmax_scale": ((None,), "the scores of attention have a scale of their own"),
    "attention_output_gate": (_OFF, "the output of attention has gates"),
    "multi_latent_attention": (_OFF, "keys and values are compressed"),
    "experimental_attention_variant": ((None,), "attention is another one"),
    "mtp_num_layers": ((None, 0), "there are layers for further tokens"),
    "heterogeneous_layers_config_path": ((None,), "the layers differ"),
    "heterogeneous_layers_config_encoded_json": ((None,), "the layers differ"),
    "is_hybrid_model": (_OFF, "some layers are no attention"),
    "hybrid_override_pattern": ((None,), "some layers are no attention"),
    "retro_add_retriever": (_OFF, "layers read retrieved texts"),
    "use_mup": (_OFF, "outputs are scaled by widths"),
    "enable_hyper_connections": (_OFF, "there are several residual streams"),
}


def arguments_of(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the arguments in a file, or none.

    Raises:
        CheckpointError: The arguments are of a class that is not loaded.
    """
    args = document.get("args")
    if isinstance(args, StandIn):
        # A dataclass keeps its fields in its state, which can be read without the class.
        args = args.state if args.state else args
    if isinstance(args, argparse.Namespace):
        return vars(args)
    if isinstance(args, Mapping):
        return args
    if args is None:
        return {}
    raise CheckpointError(
        f"{name}: refused: the pickle holds more than tensors and arguments: args is {args!r}, whose class could run "
        "code; if you trust it, load it with Megatron-LM and save 'args' as a dict of numbers and texts"
    )


def fields(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the configuration that the arguments name."""
    found = {ours: args[theirs] for theirs, ours in _FIELDS.items() if args.get(theirs) is not None}
    if isinstance(found.get("hidden_size"), int):
        # The argument may be missing because Megatron-LM computes this default itself.
        found.setdefault("intermediate_size", 4 * found["hidden_size"])
    return found


def check(args: Mapping[str, Any], name: str) -> None:
    """Check that a megatron-bert model computes what was trained.

    Raises:
        CheckpointError: Arguments make the model another one; the message lists all of them.
    """
    problems = [
        f"{argument} is {args[argument]!r}: {effect}"
        for argument, (usual, effect) in _MUST_BE.items()
        if argument in args and args[argument] not in usual
    ]
    hidden, heads, channels = (args.get(key) for key in ("hidden_size", "num_attention_heads", "kv_channels"))
    if isinstance(hidden, int) and isinstance(heads, int) and heads and channels not in (None, hidden // heads):
        problems.append(f"kv_channels is {channels!r}: heads are not hidden_size / num_attention_heads wide")
    if problems:
        raise CheckpointError(
            describe_problems(f"{name}: no megatron-bert model computes what these arguments say", problems)
        )


def query_groups(args: Mapping[str, Any], heads: int, name: str) -> int:
    """Return the number of heads of keys and values, which several heads of queries may share.

    Raises:
        CheckpointError: The number does not divide the number of heads.
    """
    groups = args.get("num_query_groups")
    # The number alone means nothing: it has a default, and a flag that uses it.
    if not groups or not args.get("group_query_attention"):
        return heads
    if not isinstance(groups, int) or groups < 1 or heads % groups:
        raise CheckpointError(f"{name}: num_query_groups {groups!r} does not divide {heads} heads")
    return groups


def lowercases(args: Mapping[str, Any]) -> bool | None:
    """Return whether the tokenizer of the training lowercased text, or None if the arguments do not say it."""
    return {"BertWordPieceLowerCase": True, "BertWordPieceCase": False}.get(str(args.get("tokenizer_type")))
