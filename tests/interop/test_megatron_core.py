"""Megatron core's layout, the arguments of a training, and models in several parts.

They are compared with an implementation of Megatron-LM's computation in ``megatron_model.py``.
"""

from __future__ import annotations

import argparse
import collections
import enum
import io
import os
import sys
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.errors import CheckpointError, ConfigError
from qdq.interop.megatron_lm import convert
from tests.interop.megatron_model import HEADS, LAYERS, Trained, divided, inputs, older

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.interop.conversion import Converted


def compare(found: Converted, trained: Trained) -> None:
    """Compare the converted model with the one that was trained."""
    ids, mask, types = inputs()
    hidden, words, pair = trained.forward(ids, mask, types)
    visible = mask.bool()
    with torch.no_grad():
        encoded = found.model.encode(ids, mask, types).last_hidden_state
        output = found.model(ids, mask, types)
    torch.testing.assert_close(encoded[visible], hidden[visible], atol=2e-5, rtol=2e-5)
    logits = output.prediction_logits if pair is not None else output.logits
    torch.testing.assert_close(logits[visible], words[visible], atol=2e-5, rtol=2e-5)
    if pair is not None:
        torch.testing.assert_close(output.seq_relationship_logits, pair, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("layout", ["core", "older"])
@pytest.mark.parametrize(
    "trained",
    [
        Trained(),
        Trained(engine=False),
        Trained(groups=2),
        Trained(groups=1, seed=1),
        Trained(centered=True),
        Trained(biases=False),
        Trained(types=False),
        Trained(untied=True),
    ],
    ids=["engine", "local", "two groups", "one group", "centered norms", "no biases", "no token types", "untied"],
)
def test_outputs_are_those_of_the_training(trained: Trained, layout: str, tmp_path: Path) -> None:
    state = trained.state if layout == "core" else older(trained.state)
    found = convert(trained.write(tmp_path, state=state))
    assert found.model.task == ("pre-training" if trained.types else "masked-lm")
    compare(found, trained)
    assert len(found.report.mapped) == len(trained.state)


def test_the_other_gelu(tmp_path: Path) -> None:
    trained = Trained(tanh=True, args={"openai_gelu": True, "bias_gelu_fusion": False})
    found = convert(trained.write(tmp_path, state=older(trained.state)))
    assert found.model.config.hidden_act == "gelu_new"
    assert any("openai_gelu" in note for note in found.report.notes)
    compare(found, trained)


def test_what_the_fused_gelu_computes_is_told(tmp_path: Path) -> None:
    source = Trained(args={"bias_gelu_fusion": True}).write(tmp_path)
    found = convert(source)
    assert found.model.config.hidden_act == "gelu"
    assert any("--set hidden_act=gelu_new" in note for note in found.report.notes)
    asked = convert(source, overrides={"hidden_act": "gelu_new"})
    assert asked.model.config.hidden_act == "gelu_new"
    assert not any("gelu" in note for note in asked.report.notes)


def test_usual_arguments_need_no_word(tmp_path: Path) -> None:
    usual = {
        "apply_residual_connection_post_layernorm": False,
        "normalization": "LayerNorm",
        "position_embedding_type": "learned_absolute",
        "num_experts": None,
        "swiglu": False,
        "bias_gelu_fusion": False,
        "onnx_safe": None,
        "lr": 1e-4,
        "data_path": ["wiki"],
    }
    assert convert(Trained(args=usual).write(tmp_path)).report.notes == []


def test_no_token_types_and_no_heads_for_pairs(tmp_path: Path) -> None:
    trained = Trained(types=False)
    found = convert(trained.write(tmp_path))
    assert any("rows of zeros" in note for note in found.report.notes)
    table = found.model.get_parameter("embeddings.token_type.weight")
    assert table.shape[0] == 2
    assert not table.any()
    features = convert(tmp_path, task="feature-extraction")
    assert any("there is no pooler" in note for note in features.report.notes)
    ids, mask, types = inputs()
    with torch.no_grad():
        output = features.model(ids, mask, types)
    assert output.pooler_output is None


def test_a_table_of_token_types_that_is_lost_is_missing(tmp_path: Path) -> None:
    trained = Trained()
    del trained.state["embedding.tokentype_embeddings.weight"]
    with pytest.raises(CheckpointError, match=r"missing: embeddings\.token_type_embeddings\.weight"):
        convert(trained.write(tmp_path))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"apply_residual_connection_post_layernorm": True}, "residuals begin after the norms"),
        ({"normalization": "RMSNorm"}, "the norms are no LayerNorms"),
        ({"swiglu": True}, "gates"),
        ({"squared_relu": True}, "squared_relu is True"),
        ({"position_embedding_type": "rope"}, "positions are no learned embeddings"),
        ({"num_experts": 8}, "experts"),
        ({"kv_channels": 8}, "kv_channels is 8"),
        ({"window_size": (128, 0)}, "only a window"),
        ({"qk_layernorm": True}, "queries and keys are normalized"),
        ({"softmax_type": "learnable"}, "the softmax has a sink"),
        ({"num_query_groups": 3, "group_query_attention": True}, "num_query_groups 3 does not divide 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_computations_are_refused_by_the_name_of_their_argument(
    args: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=words) as raised:
        convert(Trained(args=args).write(tmp_path))
    assert next(iter(args)) in str(raised.value)


def test_all_arguments_are_told_together(tmp_path: Path) -> None:
    args = {"swiglu": True, "normalization": "RMSNorm", "num_experts": 4}
    with pytest.raises(CheckpointError) as raised:
        convert(Trained(args=args).write(tmp_path))
    assert all(name in str(raised.value) for name in args)


def test_a_gpt_is_no_bert(tmp_path: Path) -> None:
    trained = Trained(types=False)
    state = {name: value for name, value in trained.state.items() if name.startswith(("embedding.", "encoder."))}
    with pytest.raises(CheckpointError, match="no BERT"):
        convert(trained.write(tmp_path, state=state))
    assert convert(tmp_path, task="feature-extraction").model.task == "feature-extraction"


# --- pickles ---


class Kind(enum.Enum):
    """An enumeration that the converting machine does not have."""

    ENCODER = 1
    DECODER = 2


def foreign(monkeypatch: pytest.MonkeyPatch) -> type[enum.Enum]:
    """Return the enumeration under the name of a module that can only be pickled, not imported."""
    module = argparse.Namespace(Kind=Kind)
    monkeypatch.setattr(Kind, "__module__", "megatron_that_is_not_here")
    monkeypatch.setitem(sys.modules, "megatron_that_is_not_here", module)  # type: ignore[arg-type]
    return Kind


def test_members_of_unknown_enumerations_need_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = foreign(monkeypatch)
    trained = Trained(args={"model_type": kind.ENCODER, "attention_backend": kind.DECODER})
    states = {f"encoder.layers.{i}.mlp.linear_fc1._extra_state": io.BytesIO(b"x") for i in range(LAYERS)}
    source = trained.write(tmp_path, state={**trained.state, **states}, rerun_state_machine={"mode": kind.ENCODER})
    monkeypatch.delitem(sys.modules, "megatron_that_is_not_here")
    found = convert(source)
    compare(found, trained)
    assert {entry.name for entry in found.report.skipped} >= {*states, "rerun_state_machine"}


def test_an_argument_that_cannot_be_read_is_not_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Trained(args={"position_embedding_type": foreign(monkeypatch).DECODER}).write(tmp_path)
    with pytest.raises(CheckpointError, match=r"position_embedding_type is Kind\(2\)"):
        convert(source)


class Runs:
    """Something whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        """Return the call."""
        return self.call


def test_no_function_of_a_pickle_is_called(tmp_path: Path) -> None:
    marker = tmp_path / "called"
    trained = Trained(args={"hook": Runs(open, str(marker), "w")})
    compare(convert(trained.write(tmp_path / "harmless")), trained)
    assert not marker.exists()
    source = Trained(args={"hook": Runs(os.system, f"touch {marker}")}).write(tmp_path / "harmful")
    with pytest.raises(CheckpointError, match=r"refused: the pickle holds more than data \(posix\.system\)"):
        convert(source)
    assert not marker.exists()


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_optim_rng.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        convert(tmp_path)


# --- parts ---


def write_parts(trained: Trained, folder: Path, tensor: int, pipeline: int, *, layout: str = "core") -> Path:
    """Write a model in parts as Megatron-LM names them."""
    trained.args |= {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    for stage, parts in enumerate(divided(trained.state, tensor, pipeline)):
        for rank, part in enumerate(parts):
            name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pipeline > 1 else "")
            trained.write(folder / name, state=part if layout == "core" else older(part))
    return folder


@pytest.mark.parametrize("layout", ["core", "older"])
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_parts_are_merged(tensor: int, pipeline: int, layout: str, tmp_path: Path) -> None:
    trained = Trained(seed=3)
    found = convert(write_parts(trained, tmp_path / "run", tensor, pipeline, layout=layout))
    compare(found, trained)
    assert any(note.startswith(f"merged {tensor * pipeline} parts") for note in found.report.notes)


def test_parts_of_grouped_heads_are_merged(tmp_path: Path) -> None:
    trained = Trained(groups=2, untied=True)
    compare(convert(write_parts(trained, tmp_path, 2, 1)), trained)


def test_the_oldest_order_of_rows_is_merged(tmp_path: Path) -> None:
    trained = Trained()
    write_parts(trained, tmp_path, 2, 1)
    for file in tmp_path.glob("*/*.pt"):
        document = torch.load(file, weights_only=False)
        for name, value in document["model"].items():
            if ".linear_qkv.weight" in name or ".linear_qkv.bias" in name:
                heads = value.view(HEADS // 2, 3, -1, *value.shape[1:])
                document["model"][name] = heads.transpose(0, 1).reshape(value.shape).contiguous()
        torch.save({**document, "checkpoint_version": 0}, file)
    compare(convert(tmp_path), trained)


def test_one_file_stands_for_all_parts_beside_it(tmp_path: Path) -> None:
    trained = Trained()
    write_parts(trained, tmp_path, 2, 1)
    compare(convert(tmp_path / "mp_rank_01" / "model_optim_rng.pt"), trained)
    compare(convert(tmp_path / "mp_rank_00"), trained)


def test_pieces_of_an_interleaved_pipeline_are_joined(tmp_path: Path) -> None:
    trained = Trained()
    (first,), (second,) = divided(trained.state, 1, 2)
    source = trained.write(tmp_path, model0=first, model1=second)
    document = torch.load(source, weights_only=False)
    del document["model"]
    torch.save(document, source)
    compare(convert(source), trained)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    write_parts(Trained(), tmp_path, 2, 2)
    (tmp_path / "mp_rank_01_000" / "model_optim_rng.pt").unlink()
    with pytest.raises(CheckpointError, match="parts of the model are missing: mp_rank_01_000"):
        convert(tmp_path)
    for file in tmp_path.glob("mp_rank_*_001/*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="model_parallel_size is 2"):
        convert(tmp_path)


def test_other_layouts_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"x")
    (folder / "common.pt").write_bytes(b"x")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    with pytest.raises(CheckpointError, match=r"distributed checkpoint.*--ckpt-convert-format torch"):
        convert(tmp_path)
    (tmp_path / "experts" / "mp_rank_00_000_000").mkdir(parents=True)
    Trained().write(tmp_path / "experts" / "mp_rank_00_000_000")
    Trained().write(tmp_path / "experts" / "mp_rank_00_000_001")
    with pytest.raises(CheckpointError, match="expert parallelism"):
        convert(tmp_path / "experts")


def test_one_part_alone_is_not_the_model(tmp_path: Path) -> None:
    write_parts(Trained(), tmp_path / "all", 2, 1)
    file = (tmp_path / "all" / "mp_rank_00" / "model_optim_rng.pt").rename(tmp_path / "model_optim_rng.pt")
    with pytest.raises(CheckpointError, match=r"tensor_model_parallel_size is 2, and the number .* is 1"):
        convert(file)


def test_a_model_that_was_merged_before_may_keep_its_arguments(tmp_path: Path) -> None:
    trained = Trained(args={"tensor_model_parallel_size": 8, "pipeline_model_parallel_size": 4})
    compare(convert(trained.write(tmp_path)), trained)


def test_a_matrix_that_is_lost_is_not_replaced_by_the_word_embeddings(tmp_path: Path) -> None:
    trained = Trained(untied=True)
    del trained.state["output_layer.weight"]
    with pytest.raises(CheckpointError, match="output_layer is missing"):
        convert(trained.write(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding.word_embeddings.weight": torch.tensor(1.0)}, r"word_embeddings\.weight is \[\]"),
        ({"encoder.layers.0.self_attention.linear_qkv.bias": torch.tensor(1.0)}, "has 0 rows"),
        ({3: torch.zeros(2)}, "3 is unknown"),
    ],
    ids=["scalar", "no rows", "number"],
)
def test_tensors_without_a_meaning_are_refused(changes: dict[Any, Any], message: str, tmp_path: Path) -> None:
    trained = Trained()
    with pytest.raises(CheckpointError, match=message):
        convert(trained.write(tmp_path, state={**trained.state, **changes}))


def test_parts_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    trained = Trained()
    write_parts(trained, tmp_path, 2, 1)
    file = tmp_path / "mp_rank_01" / "model_optim_rng.pt"
    document = torch.load(file, weights_only=False)
    document["model"]["encoder.layers.0.mlp.linear_fc2.weight"] = torch.zeros(3, 5)
    document["model"]["encoder.final_layernorm.bias"] = torch.ones(24)
    torch.save(document, file)
    with pytest.raises(CheckpointError, match=r"linear_fc2\.weight has the shapes \[24, 16\], \[3, 5\]"):
        convert(tmp_path)
    document["model"]["encoder.layers.0.mlp.linear_fc2.weight"] = torch.zeros(24, 16)
    torch.save(document, file)
    assert any("final_layernorm.bias differs" in note for note in convert(tmp_path).report.notes)


def test_containers_of_other_classes_are_named(tmp_path: Path) -> None:
    source = Trained().write(tmp_path, queue=collections.deque([1]))
    with pytest.raises(CheckpointError, match="refused: the pickle holds more than data"):
        convert(source)


def test_several_checkpoints_in_an_archive_are_not_mixed(tmp_path: Path) -> None:
    file = Trained().write(tmp_path)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for folder in ("first", "second"):
            archive.write(file, f"{folder}/mp_rank_00/model_optim_rng.pt")
    with pytest.raises(CheckpointError, match="has several checkpoints"):
        convert(tmp_path / "archive.zip")
