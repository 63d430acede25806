"""NVIDIA's own BERT (DeepLearningExamples): other names, nested weights, its configuration, and the ranges used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from qdq.checkpoint import load
from qdq.conversion import convert
from qdq.errors import CheckpointError
from qdq.models.huggingface import load_model

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.models.model import Model

SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
LINEARS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
LINEARS += ("intermediate.dense", "output.dense")


def weights(seed: int = 0) -> dict[str, Tensor]:
    """The weights of a BERT for questions, under the names of transformers."""
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(seed)
    model = BertForQuestionAnswering(BertConfig(**SIZES))
    return {name: tensor.clone() * (3 if tensor.dim() > 1 else 1) for name, tensor in model.state_dict().items()}


def amax(state: dict[str, Tensor], kinds: tuple[str, ...] = LINEARS) -> dict[str, Tensor]:
    """Ranges of inputs and weights of linear layers, as pytorch-quantization stores them; inputs are clipped a lot."""
    found = {}
    for layer in range(2):
        for place, kind in enumerate(kinds):
            name = f"bert.encoder.layer.{layer}.{kind}"
            found[f"{name}._input_quantizer._amax"] = torch.tensor(0.3 + 0.1 * (place if place > 2 else 0))
            found[f"{name}._weight_quantizer._amax"] = state[f"{name}.weight"].abs().amax(1, keepdim=True)
    return found


def nvidia(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of NVIDIA's own BERT."""
    return {name.replace("intermediate.dense.", "intermediate.dense_act."): tensor for name, tensor in state.items()}


def written(folder: Path, document: Any, *, config: str = "bert_config.json", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / config).write_text(json.dumps({**SIZES, **changes}))
    torch.save(document, folder / "pytorch_model.bin")
    return folder


def outputs(model: Model) -> Tensor:
    ids = torch.arange(1, 11)[None]
    with torch.no_grad():
        output: Any = model(ids, torch.ones_like(ids), torch.zeros_like(ids))
    return torch.stack([output.start_logits, output.end_logits])


def expected(state: dict[str, Tensor], ranges: dict[str, Tensor]) -> Tensor:
    """What transformers' BERT computes when its linear layers round as pytorch-quantization does."""
    from transformers import BertConfig, BertForQuestionAnswering

    model = BertForQuestionAnswering(BertConfig(**SIZES, attn_implementation="eager")).eval()
    model.load_state_dict(state)

    def rounded(x: Tensor, largest: Tensor) -> Tensor:
        return (x * (127.0 / largest)).round().clamp(-127, 127) / (127.0 / largest)

    for name, module in model.named_modules():
        if f"{name}._input_quantizer._amax" in ranges:
            largest = ranges[f"{name}._input_quantizer._amax"]
            with torch.no_grad():
                module.weight.copy_(rounded(module.weight, ranges[f"{name}._weight_quantizer._amax"]))
            module.register_forward_pre_hook(lambda _, args, largest=largest: (rounded(args[0], largest),))
    ids = torch.arange(1, 11)[None]
    with torch.no_grad():
        output = model(ids, torch.ones_like(ids), torch.zeros_like(ids))
    return torch.stack([output.start_logits, output.end_logits])


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "module."])
def test_ranges_are_used(wrapper: str, tmp_path: Path) -> None:
    state = weights()
    ranges = amax(state)
    document: Any = nvidia({**state, **ranges})
    if wrapper == "module.":
        document = {f"module.{name}": tensor for name, tensor in document.items()}
    elif wrapper:
        document = {wrapper: document, "optimizer": {"step": 3}, "epoch": 1}
    report = convert(written(tmp_path / "source", document), tmp_path / "out", format="pytorch-quantization")
    model = load(tmp_path / "out")
    assert model.task == "question-answering"
    # A sum in another order may fall on the other side of a rounding step.
    torch.testing.assert_close(outputs(model), expected(state, ranges), atol=2e-3, rtol=0)
    assert (outputs(model) - expected(state, {})).abs().max() > 2e-2
    assert any("stay float" in note for note in report.notes)
    assert not any("dynamic" in note for note in report.notes)
    skipped = {entry.name for entry in report.skipped} - {"bert.embeddings.position_ids"}
    assert skipped == ({"optimizer", "epoch"} if wrapper in ("model", "state_dict") else set())


def test_linears_without_ranges_are_dynamic_and_told(tmp_path: Path) -> None:
    state = weights()
    ranges = amax(state, ("attention.self.query", "intermediate.dense"))
    source = written(tmp_path / "source", {"model": nvidia({**state, **ranges})})
    report = convert(source, tmp_path / "out", format="pytorch-quantization")
    assert "16 of 24 quantizers have no range in the file and are dynamic" in report.notes
    (row,) = (entry for entry in report.mapped if "layer.1.intermediate.dense_act._input" in entry.name)
    assert row.targets == ("encoder.layers.1.feed_forward.up.input",)


def test_without_ranges_the_result_is_float(tmp_path: Path) -> None:
    state = weights()
    source = written(tmp_path / "source", {"model": nvidia(state)})
    report = convert(source, tmp_path / "out", format="pytorch-quantization")
    assert any("the result is a float model" in note for note in report.notes)
    assert not (tmp_path / "out" / "quantization.json").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "bert"
    torch.testing.assert_close(outputs(load_model(tmp_path / "out")), expected(state, {}), atol=1e-5, rtol=1e-5)


def test_a_padded_vocabulary_and_a_file(tmp_path: Path) -> None:
    state = weights()
    source = written(tmp_path / "source", {"model": nvidia({**state, **amax(state)})}, vocab_size=21)
    file = (source / "pytorch_model.bin").rename(source / "ckpt_8601.pt")
    report = convert(file, tmp_path / "out", format="pytorch-quantization")
    assert "the vocabulary is padded: vocab_size is 24, not 21" in report.notes
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 24
    convert(source, tmp_path / "again", format="pytorch-quantization")


def test_old_names_of_the_norms(tmp_path: Path) -> None:
    state = weights()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in nvidia(state).items()
    }
    convert(written(tmp_path / "source", old), tmp_path / "out", format="pytorch-quantization")
    torch.testing.assert_close(outputs(load_model(tmp_path / "out")), expected(state, {}), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"model": {"a": 1}}, "not a state dict of tensors: a are others"),
        ([1, 2], "no tensors; it holds a list"),
        ({}, "no tensors; it holds a dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(document: Any, message: str, tmp_path: Path) -> None:
    source = written(tmp_path / "source", document)
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "out", format="pytorch-quantization")
    with pytest.raises(CheckpointError, match="no such"):
        convert(tmp_path / "none", tmp_path / "out", format="pytorch-quantization")
    (source / "bert_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"none of config\.json, bert_config\.json"):
        convert(source, tmp_path / "out", format="pytorch-quantization")


def test_the_tokenizer_goes_both_ways(tmp_path: Path) -> None:
    from qdq.interop.pytorch_quantization import save

    state = weights()
    source = written(tmp_path / "source", state, architectures=["BertForQuestionAnswering"], config="config.json")
    (source / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    convert(source, tmp_path / "ours", format="pytorch-quantization")
    save(load(tmp_path / "ours"), tmp_path / "theirs", source=tmp_path / "ours")
    for folder in ("ours", "theirs"):
        assert (tmp_path / folder / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
