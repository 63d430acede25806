"""The types that a config.json names against those of the weights: rounding, leftovers and packed weights."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from qdq.errors import CheckpointError
from qdq.models.huggingface import load_model, save_model
from tests.models.support import assert_same

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.models.support import SmallModels

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture
def saved(small_models: SmallModels, tmp_path: Path) -> Path:
    save_model(small_models.build("bert", "sequence-classification"), tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, stored: torch.dtype | None = None, **fields: Any) -> None:
    """Change fields of config.json, and the type of the weights."""
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | fields))
    if stored is not None:
        state = {name: tensor.to(stored) for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def upstream(folder: Path, **options: Any) -> transformers.PreTrainedModel:
    return transformers.BertForSequenceClassification.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("named", TYPES)
@pytest.mark.parametrize("stored", TYPES)
def test_what_is_written_is_read_by_transformers_as_it_is(
    stored: str,
    named: str,
    field: str,
    saved: Path,
    small_models: SmallModels,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(saved, TYPES[stored], **{field: named})
    model = load_model(saved)
    rounded = named not in ("float32", stored)
    assert ("transformers rounds them" in caplog.text) is rounded
    assert ("computes with them in float32" in caplog.text) is (stored == named != "float32")
    save_model(model, tmp_path / "written")
    assert json.loads((tmp_path / "written" / "config.json").read_text())[field] == "float32"
    inputs = small_models.inputs("feature-extraction", small_models.fields("bert"))
    with torch.no_grad():
        ours = model(**inputs).logits
        theirs = upstream(tmp_path / "written")(**inputs).logits
        if not rounded:
            assert_same(ours, upstream(saved, dtype=torch.float32)(**inputs).logits)
    assert theirs.dtype == torch.float32
    assert_same(ours, theirs)


def test_a_type_appears_only_where_the_source_has_one(saved: Path, tmp_path: Path) -> None:
    assert "dtype" not in (saved / "config.json").read_text()
    change(saved, torch.bfloat16)
    save_model(load_model(saved), tmp_path / "written")
    assert "dtype" not in (tmp_path / "written" / "config.json").read_text()
    assert upstream(tmp_path / "written").dtype == torch.float32


def test_half_precision_is_written_as_such(saved: Path, tmp_path: Path) -> None:
    change(saved, dtype="float32")
    save_model(load_model(saved, dtype=torch.bfloat16), tmp_path / "written")
    assert json.loads((tmp_path / "written" / "config.json").read_text())["dtype"] == "bfloat16"
    assert upstream(tmp_path / "written").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("leftover", "name"),
    [
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"_load_in_4bit": True, "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"bits": 8}, "a method without a name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("packed", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn], ids=str)
def test_packed_weights_are_refused_by_name(
    leftover: dict[str, Any], name: str, packed: torch.dtype, saved: Path
) -> None:
    change(saved, quantization_config=leftover)
    state = load_file(saved / "model.safetensors")
    key = "bert.encoder.layer.0.output.dense.weight"
    save_file(state | {key: state[key].to(packed)}, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"quantized by {name} .*{key}.*starts from float weights"):
        load_model(saved)


def test_a_leftover_beside_float_weights(saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(saved, quantization_config={"quant_method": "gptq", "bits": 4})
    save_model(load_model(saved), tmp_path / "written")
    assert "quantization_config (gptq) in config.json is not followed" in caplog.text
    assert "quantization_config" not in (tmp_path / "written" / "config.json").read_text()
    caplog.clear()
    load_model(tmp_path / "written")
    assert caplog.text == ""


def test_positions_of_old_releases_are_no_packed_weights(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(saved, quantization_config={"quant_method": "gptq"})
    state = load_file(saved / "model.safetensors")
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(state, saved / "model.safetensors", metadata={"format": "pt"})
    load_model(saved)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
