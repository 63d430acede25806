"""Make the golden files of tests/interop from QDQBERT in transformers 4.40.2 and pytorch-quantization 2.1.3.

    python -m venv golden && golden/bin/pip install torch 'transformers==4.40.2' pytorch-quantization==2.1.3
    golden/bin/python tools/golden_qdqbert.py tests/interop/golden

Each file holds a random tiny model with the ranges that its max calibration found (``weight:``), the inputs of a call
(``in:``), its outputs with dynamic (``dynamic:``) and with calibrated ranges (``calibrated:``), and the integers that
every quantizer of an activation made on the way (``dynamic-steps:``, ``calibrated-steps:``). The metadata holds
``config.json`` and the quantizers in the order in which they were called.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from pytorch_quantization.nn import TensorQuantizer
from pytorch_quantization.tensor_quant import tensor_quant
from safetensors.torch import save_file
from torch import Tensor, nn

TINY = {
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "initializer_range": 0.3,
    "use_cache": False,
}
DECODER = {"is_decoder": True, "add_cross_attention": True}


def text(*shape: int) -> dict[str, Tensor]:
    """Make ids with padding on the right of one row, and token types."""
    mask = torch.ones(shape, dtype=torch.long)
    mask[..., -1, -3:] = 0
    ids = torch.randint(4, TINY["vocab_size"], shape).where(mask == 1, 1)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.randint(0, 2, shape)}


def with_memory() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(4, TINY["vocab_size"], (2, 7)), "encoder_hidden_states": torch.randn(2, 5, 16)}


CASES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "base": ("QDQBertModel", {}, lambda: text(2, 8)),
    "causal-lm": ("QDQBertLMHeadModel", {"is_decoder": True}, lambda: text(2, 8)),
    "causal-lm-cross": ("QDQBertLMHeadModel", DECODER, with_memory),
    "masked-lm": ("QDQBertForMaskedLM", {}, lambda: text(2, 8)),
    "next-sentence": ("QDQBertForNextSentencePrediction", {}, lambda: text(2, 8)),
    "sequence-classification": ("QDQBertForSequenceClassification", {"num_labels": 3}, lambda: text(2, 8)),
    "multiple-choice": ("QDQBertForMultipleChoice", {}, lambda: text(2, 2, 6)),
    "token-classification": ("QDQBertForTokenClassification", {"num_labels": 5}, lambda: text(2, 8)),
    "question-answering": ("QDQBertForQuestionAnswering", {}, lambda: text(2, 8)),
}


def quantizers(model: nn.Module) -> dict[str, TensorQuantizer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TensorQuantizer)}


def calibrate(model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    for quantizer in quantizers(model).values():
        quantizer.disable_quant()
        quantizer.enable_calib()
    for batch in batches:
        model(**batch)
    for quantizer in quantizers(model).values():
        quantizer.load_calib_amax()
        quantizer.disable_calib()
        quantizer.enable_quant()


def run(model: nn.Module, inputs: dict[str, Tensor], kind: str, into: dict[str, Tensor]) -> list[str]:
    """Add outputs and integers to the tensors. Return the names of the quantizers in the order of their calls."""
    order = []

    def note(name: str) -> Any:
        def hook(module: TensorQuantizer, args: tuple[Tensor], _: Tensor) -> None:
            steps, _ = tensor_quant(args[0], module._get_amax(args[0]), 8, False, False)
            into[f"{kind}-steps:{name}"] = steps.to(torch.int8)
            order.append(name)

        return hook

    found = {name: q for name, q in quantizers(model).items() if not name.endswith("weight_quantizer")}
    hooks = [quantizer.register_forward_hook(note(name)) for name, quantizer in found.items()]
    for key, value in model(**inputs).items():
        into[f"{kind}:{key}"] = value.clone()
    for hook in hooks:
        hook.remove()
    return order


@torch.no_grad()
def make(name: str, folder: Path) -> None:
    cls, changes, draw = CASES[name]
    model = getattr(transformers, cls)(transformers.QDQBertConfig(**TINY, **changes)).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    inputs, tensors = draw(), {}
    order = run(model, inputs, "dynamic", tensors)
    calibrate(model, [inputs, draw()])
    assert run(model, inputs, "calibrated", tensors) == order
    tensors |= {f"weight:{key}": value.clone() for key, value in model.state_dict().items()}
    tensors |= {f"in:{key}": value for key, value in inputs.items()}
    config = model.config.to_diff_dict() | {"model_type": "qdqbert", "architectures": [cls]}
    metadata = {"config": json.dumps(config), "order": json.dumps(order)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors", metadata)
    print(f"{name}: {len(tensors)} tensors, {len(quantizers(model))} quantizers")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name in CASES:
        make(name, folder)


if __name__ == "__main__":
    main()
