"""Measure how often verification of a right file fails, on random small models of every family.

python tools/verification_rates.py --models 100 --target onnxruntime
python tools/verification_rates.py --models 20 --target openvino --seed 1000

The models have channels of very different sizes, so that smoothing scales are large and rounding errors as well. Every
file is what the exporter writes, so each verification that does not hold is a false alarm.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from calibration.pipeline import calibrate_and_refine
from exporters.export_model import wrap_for_export
from exporters.io_signature import example_inputs
from exporters.onnx.export import export_onnx
from exporters.verification.verify import verify
from qdq.models.registry import build, configure
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from exporters.verification.report import VerificationReport
    from qdq.models.model import Model

FAMILIES = ("bert", "albert", "roberta", "roberta-prelayernorm", "megatron-bert")
RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "reference"}
SHAPES = ((2, 24, 5), (4, 9, 3), (1, 40, 0))  # batch, longest, padding


def random_model(draw: random.Random) -> Model:
    """Return a random encoder whose channels differ in size by up to three orders of magnitude."""
    heads = draw.choice((2, 4))
    model = build(
        configure(
            draw.choice(FAMILIES),
            vocab_size=97,
            hidden_size=heads * draw.choice((8, 16)),
            num_hidden_layers=draw.choice((1, 2, 3)),
            num_attention_heads=heads,
            intermediate_size=draw.choice((48, 96, 128)),
            max_position_embeddings=48,
            initializer_range=draw.choice((0.02, 0.1, 0.3)),
        )
    ).eval()
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    spread = draw.choice((0.0, 0.5, 1.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if "norm" in name or name.endswith("up.weight"):
                sizes = torch.exp(torch.randn(parameter.shape[:1], generator=generator) * spread)
                parameter.mul_(sizes.reshape(-1, *[1] * (parameter.dim() - 1)))
    return model


def verified(draw: random.Random, target: str, folder: Path) -> tuple[str, VerificationReport]:
    """Make, calibrate, export and verify one model. Return its family and the report."""
    model = random_model(draw)
    recipe = load_recipe(target)
    inputs = wrap_for_export(model).signature.inputs
    seed = draw.randrange(2**31)
    batches = [
        example_inputs(inputs, batch_size=b, seq_len=s, vocab_size=97, padding=p, seed=seed + index)
        for index, (b, s, p) in enumerate(SHAPES * 3)
    ]
    quantize(model, recipe)
    calibrate_and_refine(model, batches[: 2 * len(SHAPES)], recipe.refinement)
    path = folder / "model.onnx"
    export_onnx(model, path, target=target)
    return model.config.model_type, verify(model, path, batches[2 * len(SHAPES) :], runtime=RUNTIMES[target])


def main() -> None:
    """Print the number of false alarms and what they say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100, help="number of random models")
    parser.add_argument("--target", choices=sorted(RUNTIMES), default="onnxruntime")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first model; each model has the next one")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    alarms: Counter[str] = Counter()
    values = ties = 0
    widest = 0.0
    began = time.monotonic()
    for seed in range(arguments.seed, arguments.seed + arguments.models):
        with tempfile.TemporaryDirectory() as folder:
            family, report = verified(random.Random(seed), arguments.target, Path(folder))
        values += sum(row.values for row in report.segments)
        ties += sum(row.ties for row in report.segments)
        widest = max([widest, *(row.tolerance for row in report.segments if row.unit == "steps")])
        if not report.holds:
            alarms[family] += 1
            print(f"seed {seed}, {family}: {'; '.join(report.problems[:3])}", flush=True)
    print(f"{arguments.target}: {sum(alarms.values())} false alarms in {arguments.models} verifications {dict(alarms)}")
    print(f"{values:,} values, {ties:,} ties, widest tolerance {widest:.3g} steps, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
