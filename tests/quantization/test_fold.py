"""Folding into norms without bias, which other families have; those of the registry are in the tests of refinement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

import calibration
from qdq.models.assembly import embeddings, layer
from qdq.models.bert import BertConfig
from qdq.models.encoder import Encoder
from qdq.models.model import EncoderModel
from qdq.quantization.fold import folded
from qdq.quantization.graph import quantized_reads
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from qdq.models.config import ModelConfig


def rms_norm(config: ModelConfig, width: int) -> nn.Module:
    return nn.RMSNorm(width, eps=config.layer_norm_eps)


def model_with_rms_norm(*, norm_first: bool) -> EncoderModel:
    """Return a wrapped model whose norms have an outlier channel."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    encoder = Encoder([layer(config, norm=rms_norm, norm_first=norm_first) for _ in range(2)])
    model = EncoderModel(config, embeddings=embeddings(config, norm=rms_norm), encoder=encoder).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.RMSNorm):
                module.weight.copy_(torch.rand(16) + 0.5)
                module.weight[3] *= 20
    quantize(model, "linear")
    return model


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(1, 50, (4, 9), generator=generator)} for _ in range(3)]


@torch.no_grad()
def outputs(model: EncoderModel) -> Tensor:
    return torch.cat([model(**batch).last_hidden_state for batch in batches()])


def test_an_rms_norm_absorbs_the_smoothing_scale_and_no_shift_is_asked_for() -> None:
    model = model_with_rms_norm(norm_first=True)
    want = outputs(model)
    assert calibration.smooth(model, batches())
    transformed = outputs(model)
    torch.testing.assert_close(transformed, want, rtol=1e-4, atol=1e-4)
    reads = [read for read in quantized_reads(model) if read.norm is not None]
    assert len(reads) == 4
    transforms = [read.linears[0].input_quantizer.transform for read in reads]
    assert all(transform.shift is None for transform in transforms)
    before = [read.norm.weight.clone() for read in reads]
    with folded(model):
        for read, transform, weight in zip(reads, transforms, before, strict=True):
            assert all(linear.input_quantizer.transform is None for linear in read.linears)
            scale = transform(torch.ones(16))
            assert float(scale.max() / scale.min()) > 5, "there is nothing to fold"
            assert torch.equal(read.norm.weight, weight * scale)
        torch.testing.assert_close(outputs(model), want, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(read.norm.weight, weight) for read, weight in zip(reads, before, strict=True))
    assert torch.equal(outputs(model), transformed)


def test_a_residual_addition_that_reads_the_norm_keeps_its_size() -> None:
    model = model_with_rms_norm(norm_first=False)
    want = outputs(model)
    calibration.smooth(model, batches())
    reads = [read for read in quantized_reads(model) if read.norm is not None]
    before = [read.norm.weight.clone() for read in reads]
    assert len(reads) == 4
    with folded(model):
        for read, weight in zip(reads, before, strict=True):
            assert read.add is not None
            assert torch.equal(read.norm.weight, weight)
            assert read.linears[0].input_quantizer.transform is not None
        torch.testing.assert_close(outputs(model), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre-norm", "post-norm"])
def test_a_shift_without_smoothing_leaves_an_rms_norm_alone(norm_first: bool) -> None:
    model = model_with_rms_norm(norm_first=norm_first)
    calibration.smooth(model, batches(), strength=None)
    for read in quantized_reads(model):
        if read.norm is not None:
            assert read.linears[0].input_quantizer.transform is None
            assert read.add is None or read.add.other_quantizer.transform is None
