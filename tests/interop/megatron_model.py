"""A small BERT with the names and the computation of Megatron-LM, written from its documentation for comparisons."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

HIDDEN, HEADS, LAYERS, INNER, VOCAB, POSITIONS = 24, 4, 2, 32, 40, 16
SIZE = HIDDEN // HEADS


@dataclass
class Trained:
    """A checkpoint in Megatron core's layout, and what its model computes.

    Args:
        engine: Whether the norms are inside the linear layers, as Transformer Engine keeps them.
        groups: The number of heads of keys and values.
        centered: Whether norms are stored without their one.
        biases: Whether linear layers have biases.
        types: Whether there are token types and a binary head.
        untied: Whether the language-model head has a matrix of its own.
        tanh: Whether GELU is the one with tanh.
        args: Further arguments of the training.
    """

    engine: bool = True
    groups: int = HEADS
    centered: bool = False
    biases: bool = True
    types: bool = True
    untied: bool = False
    tanh: bool = False
    args: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(self.seed)

        def new(*shape: int, around: float = 0.0) -> Tensor:
            return torch.randn(*shape, generator=draw) * 0.3 + around

        one = 0.0 if self.centered else 1.0
        rows = (HEADS + 2 * self.groups) * SIZE
        state = {
            "embedding.word_embeddings.weight": new(VOCAB, HIDDEN),
            "embedding.position_embeddings.weight": new(POSITIONS, HIDDEN),
        }
        if self.types:
            state["embedding.tokentype_embeddings.weight"] = new(2, HIDDEN)
        for index in range(LAYERS):
            layer = f"encoder.layers.{index}."
            attention, up = layer + "self_attention.linear_qkv.", layer + "mlp.linear_fc1."
            first = attention + "layer_norm_" if self.engine else layer + "input_layernorm."
            second = up + "layer_norm_" if self.engine else layer + "pre_mlp_layernorm."
            state |= {first + "weight": new(HIDDEN, around=one), first + "bias": new(HIDDEN)}
            state |= {second + "weight": new(HIDDEN, around=one), second + "bias": new(HIDDEN)}
            shapes = {attention: (rows, HIDDEN), layer + "self_attention.linear_proj.": (HIDDEN, HIDDEN)}
            shapes |= {up: (INNER, HIDDEN), layer + "mlp.linear_fc2.": (HIDDEN, INNER)}
            for name, shape in shapes.items():
                state[name + "weight"] = new(*shape)
                if self.biases:
                    state[name + "bias"] = new(shape[0])
        state |= {
            "encoder.final_layernorm.weight": new(HIDDEN, around=one),
            "encoder.final_layernorm.bias": new(HIDDEN),
        }
        state |= {"lm_head.dense.weight": new(HIDDEN, HIDDEN), "lm_head.dense.bias": new(HIDDEN)}
        state |= {"lm_head.layer_norm.weight": new(HIDDEN, around=one), "lm_head.layer_norm.bias": new(HIDDEN)}
        state["output_layer.bias"] = new(VOCAB)
        if self.untied:
            state["output_layer.weight"] = new(VOCAB, HIDDEN)
        if self.types:
            state |= {"pooler.dense.weight": new(HIDDEN, HIDDEN), "pooler.dense.bias": new(HIDDEN)}
            state |= {"binary_head.weight": new(2, HIDDEN), "binary_head.bias": new(2)}
        self.state = state

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the training."""
        found = {
            "num_layers": LAYERS,
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "ffn_hidden_size": INNER,
            "kv_channels": SIZE,
            "max_position_embeddings": POSITIONS,
            "padded_vocab_size": VOCAB,
            "layernorm_epsilon": 1e-5,
            "apply_layernorm_1p": self.centered,
            "add_bias_linear": self.biases,
            "group_query_attention": self.groups != HEADS,
            "num_query_groups": self.groups,
            "untie_embeddings_and_output_weights": self.untied,
            "bert_binary_head": self.types,
        }
        return found | self.args

    def write(self, folder: Path, *, state: dict[str, Any] | None = None, **more: Any) -> Path:
        """Write the checkpoint as Megatron-LM does, and return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        document = {
            "args": argparse.Namespace(**self.arguments),
            "checkpoint_version": 3.0,
            "iteration": 7,
            "model": self.state if state is None else state,
            **more,
        }
        torch.save(document, folder / "model_optim_rng.pt")
        return folder / "model_optim_rng.pt"

    # --- what the model computes ---

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.state[f"{name}weight"] + (1.0 if self.centered else 0.0)
        return F.layer_norm(x, (HIDDEN,), weight, self.state[f"{name}bias"], 1e-5)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def _gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh" if self.tanh else "none")

    def _attention(self, x: Tensor, layer: str, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        shared = HEADS // self.groups
        mixed = self._linear(x, f"{layer}self_attention.linear_qkv").view(batch, length, self.groups, shared + 2, SIZE)
        query, key, value = mixed.split([shared, 1, 1], dim=3)
        context = torch.zeros(batch, length, self.groups, shared, SIZE)
        for group in range(self.groups):
            for head in range(shared):
                scores = query[:, :, group, head] @ key[:, :, group, 0].transpose(1, 2) / SIZE**0.5
                scores = scores.masked_fill(mask[:, None] == 0, float("-inf"))
                context[:, :, group, head] = scores.softmax(-1) @ value[:, :, group, 0]
        return self._linear(context.flatten(2), f"{layer}self_attention.linear_proj")

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the hidden states, the scores of the words, and those of the second sentence."""
        s = self.state
        x = s["embedding.word_embeddings.weight"][ids] + s["embedding.position_embeddings.weight"][: ids.shape[1]]
        if self.types:
            x = x + s["embedding.tokentype_embeddings.weight"][types]
        for index in range(LAYERS):
            layer = f"encoder.layers.{index}."
            up = f"{layer}mlp.linear_fc1"
            first = f"{layer}self_attention.linear_qkv.layer_norm_" if self.engine else f"{layer}input_layernorm."
            second = f"{up}.layer_norm_" if self.engine else f"{layer}pre_mlp_layernorm."
            x = x + self._attention(self._norm(x, first), layer, mask)
            x = x + self._linear(self._gelu(self._linear(self._norm(x, second), up)), f"{layer}mlp.linear_fc2")
        x = self._norm(x, "encoder.final_layernorm.")
        head = self._norm(self._gelu(self._linear(x, "lm_head.dense")), "lm_head.layer_norm.")
        matrix = s["output_layer.weight" if self.untied else "embedding.word_embeddings.weight"]
        words = F.linear(head, matrix, s["output_layer.bias"])
        pair = self._linear(self._linear(x[:, 0], "pooler.dense").tanh(), "binary_head") if self.types else None
        return x, words, pair


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Two texts, the second one shorter."""
    draw = torch.Generator().manual_seed(9)
    ids, types = torch.randint(0, VOCAB, (2, 9), generator=draw), torch.randint(0, 2, (2, 9), generator=draw)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    return ids, mask, types


def older(state: dict[str, Tensor]) -> dict[str, Any]:
    """The same tensors with the names of the older implementation, nested as it nests them."""
    renamed = {
        "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
        "mlp.linear_fc1.layer_norm_": "post_attention_layernorm.",
        "pre_mlp_layernorm.": "post_attention_layernorm.",
        "self_attention.linear_qkv.": "self_attention.query_key_value.",
        "self_attention.linear_proj.": "self_attention.dense.",
        "mlp.linear_fc1.": "mlp.dense_h_to_4h.",
        "mlp.linear_fc2.": "mlp.dense_4h_to_h.",
        "lm_head.layer_norm.": "lm_head.layernorm.",
        "output_layer.bias": "lm_head.bias",
        "output_layer.weight": "language_model.output_layer.weight",
    }
    found: dict[str, Any] = {"language_model": {"embedding": {}, "encoder": {}}}
    for given, tensor in state.items():
        name = given
        for theirs, ours in renamed.items():
            name = name.replace(theirs, ours)
        where, _, rest = name.partition(".")
        if where == "embedding":
            table, _, leaf = rest.partition(".")
            found["language_model"]["embedding"][table] = {leaf: tensor}
        elif where == "encoder":
            found["language_model"]["encoder"][rest] = tensor
        elif where in ("pooler", "language_model"):
            table, _, leaf = name.removeprefix("language_model.").partition(".")
            found["language_model"].setdefault(table, {})[leaf] = tensor
        else:
            found.setdefault(where, {})[rest] = tensor
    return found


def divided(state: dict[str, Tensor], tensor: int, pipeline: int) -> list[list[dict[str, Tensor]]]:
    """The parts of a model by pipeline stage and tensor-parallel rank, as Megatron-LM divides it."""
    rows = ("linear_qkv.weight", "linear_qkv.bias", "linear_fc1.weight", "linear_fc1.bias", "word_embeddings.weight")
    rows += ("output_layer.bias", "output_layer.weight")
    columns = ("linear_proj.weight", "linear_fc2.weight")

    def part(name: str, value: Tensor, rank: int) -> Tensor:
        if name.endswith(rows) or name.endswith(columns):
            return value.chunk(tensor, dim=1 if name.endswith(columns) else 0)[rank].clone()
        return value

    grid: list[list[dict[str, Tensor]]] = []
    layers = LAYERS // pipeline
    for stage in range(pipeline):
        own = {}
        for name, value in state.items():
            if name.startswith("encoder.layers."):
                index = int(name.split(".")[2])
                if index // layers == stage:
                    own[name.replace(f"layers.{index}.", f"layers.{index % layers}.")] = value
            elif stage == (0 if name.startswith("embedding.") else pipeline - 1):
                own[name] = value
        if stage == pipeline - 1 and pipeline > 1 and "output_layer.weight" not in own:
            own["output_layer.weight"] = state["embedding.word_embeddings.weight"]
        grid.append([{name: part(name, value, rank) for name, value in own.items()} for rank in range(tensor)])
    return grid
