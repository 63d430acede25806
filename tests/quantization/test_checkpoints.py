"""Quantized checkpoints: every kind survives the disk to the bit, and damage is an error, never another model."""

from __future__ import annotations

import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import calibration
import qdq
from qdq.errors import QDQError
from qdq.models.registry import FAMILIES
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.quantization.spec import PerAxis, PerGroup, PerToken, QuantSpec
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from qdq.models.model import Model
    from tests.quantization.conftest import QuantizedModels, SpecPair

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

FOREIGN = {"arithmetic": "pytorch-quantization"}
CHANNELS = {"granularity": PerAxis(0)}
KINDS = {
    **{f"int{bits}": (QuantSpec(bits=bits), QuantSpec(bits=bits, **CHANNELS)) for bits in range(2, 9)},
    "uint8": (QuantSpec(signed=False), QuantSpec(signed=False, granularity=PerAxis(-1))),
    "affine": (QuantSpec(signed=False, symmetric=False), QuantSpec(bits=5, symmetric=False)),
    "narrow": (QuantSpec(narrow_range=True), QuantSpec(narrow_range=True, **CHANNELS)),
    "overflow safe": (QuantSpec(signed=False, symmetric=False), QuantSpec(overflow_safe=True, **CHANNELS)),
    "group": (QuantSpec(), QuantSpec(bits=4, granularity=PerGroup(7))),
    "affine group": (QuantSpec(), QuantSpec(bits=3, signed=False, symmetric=False, granularity=PerGroup(16))),
    "dynamic": (QuantSpec(dynamic=True, signed=False, symmetric=False), QuantSpec(dynamic=True, **CHANNELS)),
    "token": (QuantSpec(dynamic=True, granularity=PerToken()), QuantSpec(bits=4, granularity=PerGroup(8))),
    "learned": (QuantSpec(learned_scale=True), QuantSpec(learned_scale=True, **CHANNELS)),
    "foreign": (QuantSpec(**FOREIGN), QuantSpec(**FOREIGN, **CHANNELS)),
    "foreign unsigned": (QuantSpec(signed=False, **FOREIGN), QuantSpec(narrow_range=True, **FOREIGN)),
    "foreign dynamic": (QuantSpec(dynamic=True, **FOREIGN), QuantSpec(**FOREIGN)),
    "weights alone": (None, QuantSpec(bits=4, granularity=PerGroup(8))),
    "activations alone": (QuantSpec(), None),
}
LIVE = ("bert", "albert", "megatron-bert", "roberta", "roberta-prelayernorm")


def results(model: Model, inputs: dict[str, Tensor], quantized_models: QuantizedModels) -> list[Tensor]:
    with torch.no_grad():
        found = quantized_models.leaves(model(**inputs))
    assert found
    return list(found)


def assert_same_bits(got: list[Tensor], want: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def stored(path: Path, quantized_models: QuantizedModels, kind: SpecPair | str, *args: str, **changes: Any) -> Model:
    """A quantizing model that was saved to ``path``."""
    recipe = quantized_models.recipe(*kind) if isinstance(kind, tuple) else qdq.load_recipe(kind)
    model = quantized_models.model(*args, **changes)
    quantize(model, recipe)
    summary = calibration.calibrate(model, [quantized_models.inputs(*args)])
    set_mode(model, Mode.QUANTIZE)
    qdq.save(model, path, recipe=recipe, calibration=summary.to_dict())
    return model


# --- there and back ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_loaded_to_the_bit(kind: str, quantized_models: QuantizedModels, tmp_path: Path) -> None:
    model = stored(tmp_path / "c", quantized_models, KINDS[kind], "bert", "masked-lm", num_hidden_layers=1)
    loaded = qdq.load(tmp_path / "c")
    inputs = quantized_models.inputs("bert", "masked-lm")
    assert_same_bits(results(loaded, inputs, quantized_models), results(model, inputs, quantized_models))
    want, got = model.state_dict(), loaded.state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) and got[name].dtype == want[name].dtype for name in want)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]
    for (slot, one), (_, other) in zip(named_slots(loaded), named_slots(model), strict=True):
        assert (one.spec, one.mode, one.readers) == (other.spec, other.mode, other.readers), slot
    assert len(list(quantizers(loaded))) == len(list(quantizers(model)))


@pytest.mark.parametrize("kind", ["int8", "group", "token", "learned"])
def test_trained_model_is_loaded_to_the_bit(kind: str, quantized_models: QuantizedModels, tmp_path: Path) -> None:
    """Scales of weights belong to the weights of calibration time, learned ones to training: both are kept."""
    model = stored(tmp_path / "before", quantized_models, KINDS[kind], "bert", "masked-lm", num_hidden_layers=1)
    inputs = quantized_models.inputs("bert", "masked-lm")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    qdq.save(model, tmp_path / "after", recipe=quantized_models.recipe(*KINDS[kind]), calibration={})
    assert_same_bits(
        results(qdq.load(tmp_path / "after"), inputs, quantized_models), results(model, inputs, quantized_models)
    )


@pytest.mark.parametrize(
    ("model_type", "task"),
    [pytest.param(name, task, id=f"{name}/{task}") for name in LIVE for task in FAMILIES[name].tasks],
)
def test_transformers_loads_the_float_part(
    model_type: str, task: str, quantized_models: QuantizedModels, tmp_path: Path
) -> None:
    model = stored(tmp_path / "c", quantized_models, "qdqbert", model_type, task)
    cls = getattr(transformers, FAMILIES[model_type].tasks[task].name)
    theirs, info = cls.from_pretrained(tmp_path / "c", output_loading_info=True, attn_implementation="eager")
    assert {name: keys for name, keys in info.items() if keys} == {}
    set_mode(model, Mode.OFF)
    inputs = quantized_models.inputs(model_type, task)
    with torch.no_grad():
        for got, want in zip(model(**inputs).to_tuple()[:2], theirs.eval()(**inputs).to_tuple()[:2], strict=True):
            if isinstance(got, torch.Tensor):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


# --- damage ---

JSON_FILES = ("quantization.json", "config.json")
TENSOR_FILES = ("quantizers.safetensors", "model.safetensors")
CASES_EACH = 12


@pytest.fixture(scope="module", params=["int8", "learned"])
def whole(
    request: pytest.FixtureRequest, quantized_models: QuantizedModels, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Tensor]]:
    """A sound checkpoint of a very small model, and what it computes."""
    path = tmp_path_factory.mktemp("whole") / "checkpoint"
    small = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    stored(path, quantized_models, KINDS[request.param], "bert", "sequence-classification", **small)
    inputs = quantized_models.unlabelled(quantized_models.inputs())
    return path, results(qdq.load(path), inputs, quantized_models)


def flip(file: Path, chance: random.Random) -> str:
    content = bytearray(file.read_bytes())
    offset, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
    content[offset] ^= bit
    file.write_bytes(content)
    return f"byte {offset} ^ {bit}"


def cut(file: Path, chance: random.Random) -> str:
    content = file.read_bytes()
    length = chance.randrange(len(content))
    file.write_bytes(content[:length])
    return f"cut to {length} of {len(content)} bytes"


def overwrite(file: Path, chance: random.Random) -> str:
    content = bytearray(file.read_bytes())
    start = chance.randrange(len(content))
    length = chance.randrange(1, 40)
    content[start : start + length] = chance.randbytes(min(length, len(content) - start))
    file.write_bytes(content)
    return f"{length} random bytes at {start}"


def tensors(file: Path, chance: random.Random) -> str:
    """Drop, rename, exchange, reshape or retype a tensor of a file that is otherwise sound."""
    content = load_file(file)
    name, other = chance.choice(sorted(content)), chance.choice(sorted(content))
    what = chance.choice(["drop", "rename", "exchange", "reshape", "double", "half", "nan", "negate"])
    tensor = content[name]
    if what == "drop":
        del content[name]
    elif what == "rename":
        content[f"{name}s"] = content.pop(name)
    elif what == "exchange":
        content[name], content[other] = content[other].clone(), tensor.clone()
    elif what == "reshape":
        content[name] = tensor.reshape(1, *tensor.shape)
    elif what == "half":
        content[name] = tensor.to(torch.float16)
    elif what == "nan":
        content[name] = torch.full_like(tensor.float(), float("nan"))
    else:
        content[name] = tensor * (2 if what == "double" else -1)
    save_file(content, file, metadata={"format": "pt"})
    return f"{what} {name}" + (f" and {other}" if what == "exchange" else "")


def nodes(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is a value in a JSON document."""
    entries = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [node for key, value in entries for node in ((*path, key), *nodes(value, (*path, key)))]


VALUES: list[Any] = [None, True, False, 0, 1, 2, -1, 4, 1.5, 1e308, "", "per-tensor", "per-axis(0)", "x", [], {}, [1], 10**30]  # fmt: skip  # noqa: E501


def settings(file: Path, chance: random.Random) -> str:
    """Drop, rename or change a value of a JSON document that is otherwise sound."""
    document = json.loads(file.read_text())
    *path, last = chance.choice(nodes(document))
    parent = document
    for key in path:
        parent = parent[key]
    what = chance.choice(["drop", "rename", "change", "change"])
    if what == "drop":
        del parent[last]
    elif what == "rename" and isinstance(parent, dict):
        parent[f"{last}x"] = parent.pop(last)
    else:
        parent[last] = chance.choice(VALUES)
    file.write_text(json.dumps(document))
    return f"{what} {'/'.join(map(str, [*path, last]))}"


DAMAGE: list[tuple[str, Callable[[Path, random.Random], str]]] = [
    *((name, damage) for name in (*JSON_FILES, *TENSOR_FILES) for damage in (flip, cut, overwrite)),
    *((name, tensors) for name in TENSOR_FILES),
    *((name, settings) for name in JSON_FILES),
]


@pytest.mark.parametrize(
    ("name", "damage"), [pytest.param(*case, id=f"{case[0]}-{case[1].__name__}") for case in DAMAGE]
)
def test_damage_is_an_error_or_changes_nothing(
    name: str,
    damage: Callable[[Path, random.Random], str],
    whole: tuple[Path, list[Tensor]],
    quantized_models: QuantizedModels,
    tmp_path: Path,
) -> None:
    path, want = whole
    folder = tmp_path / "damaged"
    shutil.copytree(path, folder)
    inputs = quantized_models.unlabelled(quantized_models.inputs())
    chance = random.Random(f"{name} {damage.__name__}")
    wrong, messages = [], []
    for _ in range(CASES_EACH):
        shutil.copyfile(path / name, folder / name)
        what = damage(folder / name, chance)
        try:
            model = qdq.load(folder)
        except QDQError as error:
            messages.append(str(error))
            continue
        got = results(model, inputs, quantized_models)
        if not all(torch.equal(a, b) for a, b in zip(got, want, strict=True)):
            wrong.append(what)
    assert wrong == []
    assert messages
    assert [message for message in messages if str(folder) not in message] == [], "each names the file"
