"""Exported directories: write one from a checkpoint, and prove one against it.

    model.onnx (+ model.onnx.data above 2 GB)   config.json   tokenizer ...   export.json

``export.json`` says what was exported: target, recipe in force, opset, names of inputs and outputs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.signature import example_inputs
from qdq.checkpoint import copy_companions, load
from qdq.data.text import draw, read_samples, sample_text
from qdq.data.tokenize import encode_batches, load_tokenizer
from qdq.errors import CheckpointError, ExportError, describe_faults
from qdq.models.huggingface import config_to_json
from qdq.prepare import apply_recipe
from qdq.quantizer import Mode, quantizers, set_mode
from qdq.recipe import Recipe
from qdq.storage import atomic_directory, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from exporters.onnx.export import Exported
    from exporters.verify import Verification
    from qdq.models.model import Model

__all__ = ["EXPORT_FILE", "MODEL_FILE", "export", "proof_batches", "read_export", "verify"]

FORMAT = 1
EXPORT_FILE = "export.json"
MODEL_FILE = "model.onnx"

PROOF_SHAPES = ((1, 24), (5, 64), (8, 128))
"""Batch sizes and longest lengths that a verification runs by default; shorter texts give it padding."""


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    target: str | None,
    recipe: Recipe | str | None = None,
    opset: int | None = None,
) -> Exported:
    """Export a checkpoint into a directory, which appears whole or not at all.

    Args:
        checkpoint: directory of a float or quantized checkpoint.
        output: directory to write; an older export of ours there is replaced.
        target: ``onnxruntime``, ``openvino``, ``tensorrt``; None for the float model.
        recipe: to change to first; see :func:`exporters.onnx.export.export_model`.
        opset: of the standard operators, 21 when None.

    Raises:
        CheckpointError: for a checkpoint that cannot be read.
        ConfigError: when something that is not ours is in the way.
        ExportError: for a combination that the target cannot run.
        StorageError: when the disk is full, or the like.
    """
    from exporters.onnx.export import DEFAULT_OPSET, check_options, export_model

    opset = DEFAULT_OPSET if opset is None else opset
    check_options(target, opset)
    with atomic_directory(Path(output), kind="export") as folder:
        model = load(checkpoint)
        exported = export_model(model, folder / MODEL_FILE, target=target, recipe=recipe, opset=opset)
        copy_companions(Path(checkpoint), folder)
        write_json(folder / "config.json", config_to_json(model.config, model.task))
        write_json(folder / EXPORT_FILE, {"format": FORMAT, **exported.to_dict()})
    return exported


def read_export(folder: str | Path) -> dict[str, Any]:
    """The contents of ``export.json``.

    Raises:
        CheckpointError: when the directory is not an export of ours, or of a newer format.
    """
    file = Path(folder) / EXPORT_FILE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{folder} is not an export of qdq: it has no {EXPORT_FILE}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{file}: not a format that this version reads ({FORMAT})")
    missing = [f"{key} is missing" for key in ("target", "recipe", "inputs") if key not in document]
    if missing:
        raise CheckpointError(describe_faults(str(file), missing))
    if not (Path(folder) / MODEL_FILE).is_file():
        raise CheckpointError(f"{folder}: {MODEL_FILE} is missing")
    return document


def verify(
    checkpoint: str | Path, folder: str | Path, batches: Iterable[Mapping[str, Tensor]] | None = None
) -> Verification:
    """Prove that an exported directory computes what the checkpoint computes.

    Args:
        checkpoint: directory of the checkpoint that was exported.
        folder: directory that :func:`export` wrote.
        batches: inputs; None takes :func:`proof_batches`.

    Raises:
        CheckpointError: for a checkpoint or an export that cannot be read.
        ExportError: when the export does not belong to this checkpoint.
    """
    from exporters.onnx.targets import target_named
    from exporters.verify import verify as verify_model

    document = read_export(folder)
    model = load(checkpoint)
    target = document["target"]
    if target == "float":
        set_mode(model, Mode.OFF)
        runtime = "onnxruntime"
    else:
        runtime = target_named(target).runtime
        if not any(quantizers(model)):
            raise ExportError(f"{folder} was exported for {target}, but {checkpoint} is not quantized")
        if document["recipe"] is not None:
            apply_recipe(model, Recipe.from_dict(document["recipe"], source=str(Path(folder) / EXPORT_FILE)))
            set_mode(model, Mode.QUANTIZE)
    if batches is None:
        batches = proof_batches(checkpoint, model, tuple(document["inputs"]))
    return verify_model(model, Path(folder) / MODEL_FILE, batches, runtime=runtime)


def proof_batches(checkpoint: str | Path, model: Model, names: tuple[str, ...]) -> list[dict[str, Tensor]]:
    """Several shapes with padding: text that ships with the package, or random token ids without a tokenizer."""
    longest = model.config.max_position_embeddings - 2  # some families keep the first positions for padding
    shapes = [(batch_size, min(seq_len, longest)) for batch_size, seq_len in PROOF_SHAPES]
    try:
        tokenizer = load_tokenizer(Path(checkpoint))
    except CheckpointError:
        vocab = model.config.vocab_size
        return [
            example_inputs(names, batch_size=b, seq_len=s, vocab_size=vocab, padding=s // 4, seed=s) for b, s in shapes
        ]
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise CheckpointError(
            f"{checkpoint}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {model.config.vocab_size}"
        )
    batches = []
    for index, (batch_size, seq_len) in enumerate(shapes):
        texts = draw(read_samples(sample_text("heldout")), batch_size, seed=index)
        (batch,) = encode_batches(
            texts, tokenizer, batch_size=batch_size, seq_len=seq_len, pad_token_id=model.config.pad_token_id or 0
        )
        batches.append({name: batch[name] for name in names})
    return batches
