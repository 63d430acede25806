"""Make the golden files of tests/interop/megatron from the converter and the model of transformers 4.40.2.

    python -m venv golden && golden/bin/pip install torch 'transformers==4.40.2'
    golden/bin/python tools/golden_megatron.py tests/interop/megatron

Each file holds a random tiny checkpoint as Megatron-LM lays it out (``megatron:``, paths with dots), an input (``in:``)
and the outputs of transformers' model with what its converter makes of the checkpoint (``out:``).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import MegatronBertConfig, MegatronBertForPreTraining
from transformers.models.megatron_bert.convert_megatron_bert_checkpoint import convert_megatron_checkpoint

HIDDEN, HEADS, LAYERS, INNER, VOCAB, POSITIONS = 24, 4, 2, 32, 40, 16
ARGUMENTS = {
    "num_layers": LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "ffn_hidden_size": INNER,
    "max_position_embeddings": POSITIONS,
    "padded_vocab_size": VOCAB,
    "tokenizer_type": "BertWordPieceLowerCase",
}


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * 0.3


def checkpoint(attention: str, layers: str) -> dict[str, torch.Tensor]:
    both = {"weight": (HIDDEN,), "bias": (HIDDEN,)}
    found = {
        "language_model.embedding.word_embeddings.weight": draw(VOCAB, HIDDEN),
        "language_model.embedding.position_embeddings.weight": draw(POSITIONS, HIDDEN),
        "language_model.embedding.tokentype_embeddings.weight": draw(2, HIDDEN),
        "language_model.pooler.dense.weight": draw(HIDDEN, HIDDEN),
        "language_model.pooler.dense.bias": draw(HIDDEN),
        "lm_head.bias": draw(VOCAB),
        "lm_head.dense.weight": draw(HIDDEN, HIDDEN),
        "lm_head.dense.bias": draw(HIDDEN),
        "binary_head.weight": draw(2, HIDDEN),
        "binary_head.bias": draw(2),
    }
    found |= {f"lm_head.layernorm.{leaf}": 1 + draw(*shape) for leaf, shape in both.items()}
    sizes = {"query_key_value": (3 * HIDDEN, HIDDEN), "dense": (HIDDEN, HIDDEN)}
    for index in range(LAYERS):
        layer = f"language_model.{layers}.layers.{index}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            found |= {f"{layer}.{name}.{leaf}": 1 + draw(*shape) for leaf, shape in both.items()}
        linears = {f"{attention}.{name}": shape for name, shape in sizes.items()}
        linears |= {"mlp.dense_h_to_4h": (INNER, HIDDEN), "mlp.dense_4h_to_h": (HIDDEN, INNER)}
        for name, shape in linears.items():
            found |= {f"{layer}.{name}.weight": draw(*shape), f"{layer}.{name}.bias": draw(shape[0])}
    found |= {f"language_model.{layers}.final_layernorm.{leaf}": 1 + draw(*shape) for leaf, shape in both.items()}
    return found


def nested(flat: dict[str, torch.Tensor]) -> dict:
    """Nest a state dict as Megatron-LM does: in dicts, with undivided names of parameters in the innermost one."""
    tree: dict = {}
    roots = ("language_model.embedding.word_embeddings", "language_model.embedding.position_embeddings")
    roots += ("language_model.embedding.tokentype_embeddings", "language_model.transformer", "language_model.encoder")
    roots += ("language_model.pooler", "lm_head", "binary_head")
    for name, tensor in flat.items():
        root = next(root for root in roots if name.startswith(f"{root}."))
        inner = tree
        for part in root.split("."):
            inner = inner.setdefault(part, {})
        inner[name.removeprefix(f"{root}.")] = tensor
    return tree


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for version, attention, layers in (
        (None, "attention", "transformer"),
        (1.0, "attention", "transformer"),
        (2.0, "attention", "transformer"),
        (3.0, "self_attention", "encoder"),
    ):
        flat = checkpoint(attention, layers)
        document = {"model": nested(flat), "args": argparse.Namespace(**ARGUMENTS)}
        if version is not None:
            document["checkpoint_version"] = version
        config = MegatronBertConfig()
        state = convert_megatron_checkpoint(None, document, config)
        model = MegatronBertForPreTraining(config).eval()
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert missing == ["cls.predictions.decoder.bias"], missing  # which is the bias itself
        assert not unexpected, unexpected
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[1, 6:] = 0
        inputs = {
            "input_ids": torch.randint(1, VOCAB, (2, 9)),
            "attention_mask": mask,
            "token_type_ids": torch.randint(0, 2, (2, 9)),
        }
        with torch.no_grad():
            output = model(**inputs)
        tensors = {f"megatron:{name}": tensor.contiguous() for name, tensor in flat.items()}
        tensors |= {f"in:{name}": tensor for name, tensor in inputs.items()}
        tensors |= {f"out:{name}": tensor.contiguous() for name, tensor in output.items()}
        name = "none" if version is None else f"{version:g}"
        about = {"version": json.dumps(version), "args": json.dumps(ARGUMENTS)}
        save_file(tensors, folder / f"version-{name}.safetensors", metadata=about)
        print(f"version-{name}: {len(flat)} tensors")


if __name__ == "__main__":
    main()
