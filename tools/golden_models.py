"""Make the golden files of tests/models from transformers 4.40.2.

That release is the last with REALM and QDQBERT, and has relative positions, head masks, pruning and chunking, which
later ones dropped. It needs an environment of its own:

    python -m venv golden && golden/bin/pip install torch 'transformers==4.40.2' pytorch-quantization==2.1.3
    golden/bin/python tools/golden_models.py tests/models/golden

Each file holds a random tiny model (``weight:``), the inputs of one or two calls (``in:``, ``next:``), the outputs
(``out:``, ``then:``), and gradients of the loss (``grad:``); the metadata holds ``config.json`` and how the model was
called.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

TINY = {
    "vocab_size": 37,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "initializer_range": 0.3,
}
REALM = {
    "retriever_proj_size": 6,
    "num_candidates": 2,
    "span_hidden_size": 5,
    "max_span_width": 3,
    "reader_beam_size": 2,
}
ALBERT = {"embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
DECODER = {"is_decoder": True, "add_cross_attention": True, "use_cache": True}
PREFIX = {
    "bert": "Bert",
    "albert": "Albert",
    "megatron": "MegatronBert",
    "roberta": "RobertaPreLayerNorm",
    "qdqbert": "QDQBert",
    "realm": "RealmBert",
}


def ids(*shape: int) -> Tensor:
    return torch.randint(4, TINY["vocab_size"], shape)


def text(*shape: int) -> dict[str, Tensor]:
    """Make ids with padding on the right of one row, and token types."""
    tokens, mask = ids(*shape), torch.ones(shape, dtype=torch.long)
    mask[..., -1, -3:] = 0
    tokens[mask == 0] = 1
    return {"input_ids": tokens, "attention_mask": mask, "token_type_ids": torch.randint(0, 2, shape)}


def memory() -> dict[str, Tensor]:
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[0, 3:] = 0
    return {"encoder_hidden_states": torch.randn(2, 5, 16), "encoder_attention_mask": mask}


def cases() -> dict[str, dict[str, Any]]:
    """Return class, configuration, inputs and further steps of each case, by name."""
    found: dict[str, dict[str, Any]] = {}

    def case(name: str, cls: str, inputs: dict[str, Tensor], config: dict[str, Any] | None = None, **how: Any) -> None:
        found[name] = {"cls": cls, "config": config or {}, "inputs": inputs, **how}

    for family in ("bert", "megatron", "roberta", "albert"):
        stem, own = PREFIX[family], ALBERT if family == "albert" else {}
        for kind in ("relative_key", "relative_key_query"):
            case(f"{family}-{kind}", f"{stem}Model", text(2, 9), {**own, "position_embedding_type": kind})
        layers = 4 if family == "albert" else 2
        case(f"{family}-head-mask", f"{stem}Model", text(2, 9) | {"head_mask": torch.rand(layers, 4)}, own)
        case(f"{family}-pruned", f"{stem}Model", text(2, 9), own, prune=[{"0": [1]}, {"0": [1, 3], "1": [0]}])
        case(f"{family}-chunked", f"{stem}Model", text(2, 9), {**own, "chunk_size_feed_forward": 3})
    for family in ("bert", "megatron", "roberta", "qdqbert", "realm"):
        stem = PREFIX[family]
        causal = {"bert": "LMHeadModel", "qdqbert": "LMHeadModel", "realm": "Model"}.get(family, "ForCausalLM")
        step = {"input_ids": ids(2, 2), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
        prefix = {"input_ids": ids(2, 7), **memory()}
        case(f"{family}-decoder", f"{stem}{causal}", prefix, DECODER, then=step)
        if family in {"bert", "megatron"}:
            relative = {**DECODER, "position_embedding_type": "relative_key_query"}
            case(f"{family}-decoder-relative", f"{stem}{causal}", prefix, relative, then=step)
        per_query = torch.randint(0, 2, (2, 7, 7)) | torch.eye(7, dtype=torch.long)
        case(f"{family}-decoder-mask-per-query", f"{stem}Model", {"input_ids": ids(2, 7), "attention_mask": per_query},
             {"is_decoder": True, "use_cache": True})  # fmt: skip
        case(f"{family}-base", f"{stem}Model", text(2, 9))
    labels = torch.where(torch.rand(2, 9) < 0.5, ids(2, 9), -100)
    case("qdqbert-masked-lm", "QDQBertForMaskedLM", text(2, 9) | {"labels": labels}, gradients=True)
    case("qdqbert-next-sentence", "QDQBertForNextSentencePrediction", text(2, 9) | {"labels": torch.tensor([0, 1])})
    case("qdqbert-multiple-choice", "QDQBertForMultipleChoice", text(2, 3, 9) | {"labels": torch.tensor([0, 2])})
    case("qdqbert-sequence-classification", "QDQBertForSequenceClassification", text(2, 9))
    case("qdqbert-token-classification", "QDQBertForTokenClassification", text(2, 9))
    case("qdqbert-question-answering", "QDQBertForQuestionAnswering",
         text(2, 9) | {"start_positions": torch.tensor([1, 30]), "end_positions": torch.tensor([4, -2])})  # fmt: skip

    candidates = {f"candidate_{name}": value for name, value in text(2, 2, 8).items()}
    case("realm-embedder", "RealmEmbedder", text(2, 9), REALM)
    case("realm-scorer", "RealmScorer", text(2, 9) | candidates, REALM)
    marginal = {"relevance_score": torch.randn(2, 2), "labels": labels, "mlm_mask": torch.randint(0, 2, (2, 9))}
    case("realm-encoder", "RealmKnowledgeAugEncoder", text(2, 2, 9) | marginal, REALM, gradients=True)
    blocks = text(2, 9) | {
        "relevance_score": torch.randn(3),
        "block_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0]] * 3),
        "start_positions": torch.tensor([[3, 4], [-1, -1], [2, -1]]),
        "end_positions": torch.tensor([[4, 6], [-1, -1], [2, -1]]),
        "has_answers": torch.tensor([True, False, True]),
    }
    case("realm-reader", "RealmReader", blocks, REALM, gradients=True)
    return found


def flat(name: str, value: Any, into: dict[str, Tensor]) -> None:
    if isinstance(value, Tensor):
        into[name] = value.detach().clone().contiguous()
    elif isinstance(value, (tuple, list)):
        for index, entry in enumerate(value):
            flat(f"{name}.{index}", entry, into)


def order(output: Any, values: tuple[Any, ...]) -> list[str]:
    """Return the names of the fields in the order of the tuple, which is not always that of the object."""

    def first(value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else first(value[-1])

    names = []
    for value in values:
        if value is not None:
            names += [key for key in output if key not in names and torch.equal(first(output[key]), first(value))][:1]
    return names


def make(name: str, case: dict[str, Any], folder: Path) -> None:
    cls = getattr(transformers, case["cls"], None) or getattr(transformers.models.realm.modeling_realm, case["cls"])
    config = cls.config_class(**{**TINY, **case["config"]})
    model = cls(config).eval()
    for module in model.modules():
        if type(module).__name__ == "TensorQuantizer":
            module.disable()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tensors = {f"weight:{key}": value.clone() for key, value in model.state_dict().items()}
    written = config.to_diff_dict() | {"model_type": config.model_type, "architectures": [case["cls"]]}
    for request in case.get("prune", []):
        model.prune_heads({int(layer): heads for layer, heads in request.items()})

    inputs = case["inputs"]
    if case.get("gradients") and "relevance_score" in inputs:
        inputs["relevance_score"].requires_grad_()
    options = {} if case["cls"] == "RealmScorer" else {"output_hidden_states": True, "output_attentions": True}
    output = model(**inputs, **options)
    for key, value in inputs.items():
        flat(f"in:{key}", value, tensors)
    for key, value in output.items():
        flat(f"out:{key}", value, tensors)
    if case.get("gradients"):
        output.loss.backward()
        named = {key: parameter.grad for key, parameter in model.named_parameters()}
        for key, gradient in {
            **named,
            "input:relevance_score": getattr(inputs.get("relevance_score"), "grad", None),
        }.items():
            if gradient is not None:
                tensors[f"grad:{key}"] = gradient.clone()
    if "then" in case:
        keep = {key: value for key, value in inputs.items() if key.startswith("encoder_")}
        second = model(**case["then"], **keep, **options, past_key_values=output.past_key_values)
        for key, value in case["then"].items():
            flat(f"next:{key}", value, tensors)
        for key, value in second.items():
            flat(f"then:{key}", value, tensors)
    metadata = {
        "config": json.dumps(written),
        "prune": json.dumps(case.get("prune", [])),
        "options": json.dumps(options),
    }
    metadata["fields"] = json.dumps(order(output, model(**inputs, **options, return_dict=False)))
    save_file(tensors, folder / f"{name}.safetensors", metadata=metadata)
    print(f"{name}: {len(tensors)} tensors")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, case in cases().items():
        make(name, case, folder)


if __name__ == "__main__":
    main()
