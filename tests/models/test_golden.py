"""The same numbers as transformers 4.40.2, from files that ``tools/golden_models.py`` made.

They cover what later releases dropped: REALM, QDQBERT's float side, relative positions, head masks, pruning, chunking.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qdq.models.huggingface import load_model, save_model, upstream_state
from tests.models.support import assert_same

if TYPE_CHECKING:
    from qdq.models.outputs import Output

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
SHARED = ("decoder.weight", "decoder.bias")


class Golden:
    """The tensors and the description in one golden file."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.about = {key: json.loads(value) for key, value in file.metadata().items()}
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def tensors_of(self, kind: str) -> dict[str, torch.Tensor]:
        """Return the tensors of one kind ("weight", "in", "out", "grad", ...) by name."""
        return {key.partition(":")[2]: value for key, value in self.tensors.items() if key.startswith(f"{kind}:")}

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.about["config"]))
        save_file(self.tensors_of("weight"), folder / "model.safetensors")
        return folder


def nested(output: Output, name: str) -> torch.Tensor:
    """Return the tensor of an output that a name such as ``hidden_states.1`` stands for."""
    field, *indices = name.split(".")
    value: Any = output[field]
    for index in indices:
        value = value[int(index)]
    assert isinstance(value, torch.Tensor)
    return value


def compare(output: Output, expected: dict[str, torch.Tensor]) -> None:
    assert set(output) == {name.partition(".")[0] for name in expected}
    for name, tensor in expected.items():
        assert_same(nested(output, name), tensor, where=name)


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_there_are_golden_files() -> None:
    assert len(GOLDEN) > 40


def test_outputs_and_gradients_agree(golden: Golden, tmp_path: Path) -> None:
    model = load_model(golden.write(tmp_path))
    for request in golden.about["prune"]:
        model.prune_heads({int(layer): heads for layer, heads in request.items()})
    inputs, options = golden.tensors_of("in"), golden.about["options"]
    gradients = golden.tensors_of("grad")
    if "input:relevance_score" in gradients:
        inputs["relevance_score"].requires_grad_()
    output = model(**inputs, **options)
    compare(output, golden.tensors_of("out"))
    assert list(output) == golden.about["fields"]
    assert_same(model(**inputs, **options, return_dict=False), [output[name] for name in output])

    if then := golden.tensors_of("then"):
        again = {key: value for key, value in inputs.items() if key.startswith("encoder_")}
        second = model(**golden.tensors_of("next"), **again, **options, past_key_values=output.past_key_values)
        compare(second, then)

    if gradients:
        output.loss.backward()
        found = {parameter.data_ptr(): parameter.grad for parameter in model.parameters()}
        for key, tensor in upstream_state(model).items():
            wanted = gradients.get(key, gradients.get(key.removeprefix("bert.")))
            if wanted is not None:
                torch.testing.assert_close(found[tensor.data_ptr()], wanted, atol=1e-4, rtol=1e-4)
        if "input:relevance_score" in gradients:
            wanted = gradients["input:relevance_score"]
            torch.testing.assert_close(inputs["relevance_score"].grad, wanted, atol=1e-4, rtol=1e-4)


def test_written_checkpoint_has_upstreams_keys_and_values(golden: Golden, tmp_path: Path) -> None:
    weights = golden.tensors_of("weight")
    model = load_model(golden.write(tmp_path / "theirs"))
    save_model(model, tmp_path / "ours")
    written = load_file(tmp_path / "ours" / "model.safetensors")
    assert written.keys() <= weights.keys()
    absent = {key for key in weights.keys() - written.keys() if not key.startswith("query_embedder.")}
    assert all(key.endswith("decoder.weight") for key in absent)
    for key, tensor in written.items():
        assert torch.equal(tensor, weights[key]), key
    before, after = (golden.about["config"], json.loads((tmp_path / "ours" / "config.json").read_text()))
    # a value that upstream writes is ours too, unless it is upstream's default and ours
    assert {key: value for key, value in before.items() if key in after and after[key] != value} == {}


def test_pruned_model_survives_the_disk(tmp_path: Path) -> None:
    for name in ("bert-pruned", "albert-pruned"):
        golden = Golden(Path(__file__).parent / "golden" / f"{name}.safetensors")
        model = load_model(golden.write(tmp_path / f"{name}-theirs"))
        model.prune_heads({0: [1, 3], 1: [0]})
        save_model(model, tmp_path / f"{name}-ours")
        again = load_model(tmp_path / f"{name}-ours")
        assert again.config.pruned_heads == {0: (1, 3), 1: (0,)}
        assert again.encoder.layers[0].attention.query.out_features == 8
        compare(again(**golden.tensors_of("in"), **golden.about["options"]), golden.tensors_of("out"))
