"""Every family, every head, every target: torch and the runtime find the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from exporters.export_model import wrap_for_export
from exporters.interface import ExportInterface
from exporters.onnx.export import export_onnx
from exporters.runners import OnnxRuntimeRunner
from exporters.verification.verify import verify
from qdq.models.registry import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.interface import Cache
    from tests.exporters.conftest import TinyModels

TARGETS = (None, "onnxruntime", "openvino", "tensorrt")
RUNTIMES = {None: "onnxruntime", "tensorrt": "reference"}
REALM = {"num_candidates": 3, "retriever_proj_size": 16, "reader_beam_size": 3, "max_span_width": 4}
NARROW = {"albert": {"embedding_size": 16, "num_hidden_layers": 2}, "realm": {**REALM, "span_hidden_size": 16}}

HEADS = [(name, task) for name, family in FAMILIES.items() for task in family.tasks]
DECODERS = [
    (name, {"is_decoder": True, "add_cross_attention": cross}, cache)
    for name, family in FAMILIES.items()
    if "causal-lm" in family.tasks
    for cross in (False, True)
    for cache in (None, "first", "step")
]
SAMPLE = {
    ("bert", "multiple-choice", "onnxruntime"),
    ("realm", "scoring", "onnxruntime"),
    ("realm", "question-answering", "openvino"),
    ("roberta-prelayernorm", "sequence-classification", "tensorrt"),
    ("megatron-bert", "pre-training", None),
}
DECODER_SAMPLE = {("bert", True, "step", "onnxruntime")}


def _cases() -> list[Any]:
    """All of them, those that are not in the sample behind the slow marker."""
    return [
        pytest.param(
            *head, target, id=f"{'-'.join(head)}-{target}", marks=[] if (*head, target) in SAMPLE else pytest.mark.slow
        )
        for head in HEADS
        for target in TARGETS
    ]


def _decoder_cases() -> list[Any]:
    return [
        pytest.param(
            name,
            changes,
            cache,
            target,
            id=f"{name}-{'cross' if changes['add_cross_attention'] else 'self'}-{cache}-{target}",
            marks=[] if (name, changes["add_cross_attention"], cache, target) in DECODER_SAMPLE else pytest.mark.slow,
        )
        for name, changes, cache in DECODERS
        for target in (None, "onnxruntime", "tensorrt")
    ]


def check(
    tiny_models: TinyModels,
    folder: Path,
    target: str | None,
    interface: ExportInterface,
    name: str,
    task: str,
    **changes: Any,
) -> None:
    """Calibrate, export, check the file with onnx, and verify it."""
    arguments = (name, task)
    changes = {**NARROW.get(name, {}), **changes}
    model = tiny_models.model(*arguments, **changes)
    if target is not None:
        model = tiny_models.calibrated(target, *arguments, interface=interface, **changes)
    path = folder / "model.onnx"
    exported = export_onnx(model, path, target=target, interface=interface)
    proto = onnx.load(path)
    assert [value.name for value in proto.graph.output] == list(wrap_for_export(model, interface).signature.outputs)
    for value, entry in zip(proto.graph.input, exported.signature.inputs, strict=True):
        axes = tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
        assert (value.name, axes) == (entry.name, entry.axes)
    if target != "onnxruntime":
        onnx.checker.check_model(proto, full_check=True)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    report = verify(
        model,
        path,
        tiny_models.batches(model, interface),
        runtime=RUNTIMES.get(target, str(target)),
        interface=interface,
    )
    # These weights are random: what one flipped step does to an output end to end says nothing here.
    assert [row.name for row in report.segments if row.wrong] == []
    assert {row.name for row in report.segments} >= set(exported.signature.outputs)
    assert bool([row for row in report.segments if row.unit == "steps"]) == (target is not None)


@pytest.mark.parametrize(("name", "task", "target"), _cases())
def test_heads(tiny_models: TinyModels, name: str, task: str, target: str | None, tmp_path: Path) -> None:
    check(tiny_models, tmp_path, target, ExportInterface(), name, task)


@pytest.mark.parametrize(("name", "changes", "cache", "target"), _decoder_cases())
def test_decoders(
    tiny_models: TinyModels, name: str, changes: dict[str, Any], cache: Cache | None, target: str | None, tmp_path: Path
) -> None:
    check(tiny_models, tmp_path, target, ExportInterface(cache=cache), name, "causal-lm", **changes)
    if cache == "step" and target is None:
        check_an_empty_cache(tiny_models, tmp_path / "model.onnx", name, changes)


def check_an_empty_cache(tiny_models: TinyModels, path: Path, name: str, changes: dict[str, Any]) -> None:
    """The file serves the first step, too, as long as there is no other text, which nobody has looked at yet."""
    if changes["add_cross_attention"]:
        return
    model = tiny_models.model(name, "causal-lm", **changes)
    batch = tiny_models.batches(model)[0]
    rows = len(batch["input_ids"])
    past = {entry.name: entry for entry in wrap_for_export(model, ExportInterface(cache="step")).signature.inputs[3:]}
    empty = {key: np.zeros((rows, entry.axes[1], 0, entry.axes[3]), np.float32) for key, entry in past.items()}
    runner = OnnxRuntimeRunner(path)
    found = runner({**{key: value.numpy() for key, value in batch.items()}, **empty})
    expected = wrap_for_export(model).run(batch)["logits"].numpy()
    visible = batch["attention_mask"].numpy() != 0
    np.testing.assert_allclose(found["logits"][visible], expected[visible], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(18, 26))
@pytest.mark.parametrize("target", TARGETS)
def test_every_opset(tiny_models: TinyModels, target: str | None, opset: int, tmp_path: Path) -> None:
    model = tiny_models.model() if target is None else tiny_models.calibrated(target)
    path = tmp_path / "model.onnx"
    export_onnx(model, path, target=target, opset=opset)
    assert next(entry.version for entry in onnx.load(path).opset_import if not entry.domain) == opset
    report = verify(model, path, tiny_models.batches(model), runtime=RUNTIMES.get(target, str(target)))
    assert report.problems == []


FORMS = {
    "pooled": (
        "feature-extraction",
        ExportInterface(pooling="mean", normalize=True, token_type_ids=False, int32_ids=True),
    ),
    "pooled by the first": ("feature-extraction", ExportInterface(pooling="cls")),
    "pooled by the largest": ("feature-extraction", ExportInterface(pooling="max")),
    "pooled by the last": ("feature-extraction", ExportInterface(pooling="lasttoken")),
    "pooled by a weighted mean": ("feature-extraction", ExportInterface(pooling="weightedmean", normalize=True)),
    "pooled by a sum": ("feature-extraction", ExportInterface(pooling="mean_sqrt_len_tokens")),
    "probabilities and labels": ("sequence-classification", ExportInterface(softmax=True, argmax=True)),
    "embedded tokens": ("token-classification", ExportInterface(inputs_embeds=True)),
}


@pytest.mark.parametrize(
    "case", [name if name == "pooled" else pytest.param(name, marks=pytest.mark.slow) for name in FORMS]
)
def test_forms(tiny_models: TinyModels, case: str, tmp_path: Path) -> None:
    task, interface = FORMS[case]
    check(tiny_models, tmp_path, "onnxruntime", interface, "bert", task)
