"""The model as its exported file computes it: named tensors in, named tensors out.

Export traces this module and verification runs it, so both mean the same function.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exporters.interface import ExportInterface, check_interface
from exporters.io_signature import PAST_AND_SEQ, TOKEN_INPUTS, InputSpec, IOSignature, example_inputs
from qdq.models.model import EncoderModel, Model
from qdq.models.realm_models import Reader, Scorer
from qdq.sentence.pooling import pool

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ExportModel", "cache_names", "wrap_for_export"]

_DTYPE_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_EXTRA_OUTPUTS_OFF = {"output_attentions": False, "output_hidden_states": False}


class ExportModel(nn.Module):
    """Map the tensors of ``signature.inputs`` to those of ``signature.outputs``, both in order.

    Use :func:`wrap_for_export` to make one.

    Args:
        model: The model to wrap.
        inputs: The inputs that the file takes.
        interface: The export interface of the file.
    """

    signature: IOSignature

    def __init__(self, model: nn.Module, inputs: tuple[InputSpec, ...], interface: ExportInterface) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.interface = interface

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs in order."""
        found = self.compute(dict(zip(self.signature.input_names, inputs, strict=True)))
        return tuple(found[name] for name in self.signature.outputs)

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name, without gradients. Tensors that the model does not take are ignored."""
        with torch.inference_mode():
            found = self.compute({entry.name: batch[entry.name] for entry in self.inputs})
        return {name: found[name] for name in self.signature.outputs}

    def compute(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return all outputs by name, from all inputs by name."""
        values = {name: value.long() if value.dtype == torch.int32 else value for name, value in values.items()}
        arguments: dict[str, Any] = dict(values)
        if isinstance(self.model, EncoderModel):
            # The configuration of the checkpoint may ask for attentions and hidden states, which no file returns.
            arguments |= {"use_cache": self.interface.cache is not None, **_EXTRA_OUTPUTS_OFF}
        if self.interface.cache == "step":
            arguments |= self._with_cache(arguments)
        output = dict(self.model(**arguments, **self._return_dict()).items())
        cache = output.pop("past_key_values", None)
        found = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        found = self._with_fused_outputs(found, values)
        if self.interface.cache is not None and cache is not None:
            found |= self._cache_outputs(cache)
        return found

    def _return_dict(self) -> dict[str, Any]:
        return {"return_dict": True} if isinstance(self.model, Model) else {}

    def _with_cache(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Take the cache inputs out of ``arguments`` and return them as ``past_key_values``."""
        layers = len(self.model.encoder.layers)  # type: ignore[union-attr, arg-type]
        crossed = bool(self.model.config.add_cross_attention)  # type: ignore[union-attr]
        cache = tuple(tuple(arguments.pop(name) for name in cache_names(n, crossed=crossed)) for n in range(layers))
        more: dict[str, Any] = {"past_key_values": cache}
        if crossed:  # keys and values of the encoder are in the cache, so only the length of its states matters
            key = cache[0][2]
            hidden = self.model.config.hidden_size  # type: ignore[union-attr]
            more["encoder_hidden_states"] = key.new_zeros(key.shape[0], key.shape[2], hidden)
        return more

    def _cache_outputs(self, cache: tuple[tuple[Tensor, ...], ...]) -> dict[str, Tensor]:
        """Return the keys and values of every layer by name.

        A step returns only those that grew: the keys and values of the encoder stay as they are.
        """
        kept = 2 if self.interface.cache == "step" else 4
        crossed = len(cache[0]) > 2
        return {
            name: value
            for n, layer in enumerate(cache)
            for name, value in list(
                zip(cache_names(n, "present", crossed=crossed), layer, strict=True),
            )[:kept]
        }

    def _with_fused_outputs(self, found: dict[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace the outputs that the interface pools, normalizes or turns into probabilities and labels."""
        interface = self.interface
        if interface.pooling is not None:
            hidden = found["last_hidden_state"]
            pooled = pool(hidden, values["attention_mask"], interface.pooling)
            return {"sentence_embedding": nn.functional.normalize(pooled, dim=-1) if interface.normalize else pooled}
        if interface.normalize:
            return {name: nn.functional.normalize(value, dim=-1) for name, value in found.items()}
        if interface.softmax or interface.argmax:
            logits = found.pop("logits")
            if interface.softmax:
                several = self.model.config.problem_type == "multi_label_classification"  # type: ignore[union-attr]
                found["probabilities"] = torch.sigmoid(logits) if several else torch.softmax(logits, dim=-1)
            if interface.argmax:
                found["labels"] = logits.argmax(dim=-1)
        return found


def wrap_for_export(model: nn.Module, interface: ExportInterface | None = None) -> ExportModel:
    """Wrap ``model`` for export with an interface, and find its signature.

    Args:
        model: A model in eval mode.
        interface: The export interface, the default one if None.

    Raises:
        ExportError: If the model cannot be exported with this interface.
    """
    interface = interface or ExportInterface()
    if isinstance(model, Model):
        check_interface(model, interface)
    export_model = ExportModel(model, _inputs(model, interface), interface)
    config: Any = model.config
    # The reader takes the best spans of up to max_span_width tokens, so the text must be at least that long.
    seq_len = max(8, getattr(config, "min_length", 1))
    # The outputs depend on the task and on the interface, so one run on an example finds their names.
    batch = example_inputs(export_model.inputs, vocab_size=int(config.vocab_size), seq_len=seq_len)
    with torch.inference_mode():
        outputs = tuple(export_model.compute(batch))
    export_model.signature = IOSignature(export_model.inputs, outputs)
    return export_model


def cache_names(layer: int, prefix: str = "past_key_values", *, crossed: bool) -> list[str]:
    """Name the key and value of a layer; with cross-attention those of the decoder, then those of the encoder."""
    sides = ("decoder.", "encoder.") if crossed else ("",)
    return [f"{prefix}.{layer}.{side}{part}" for side in sides for part in ("key", "value")]


def _inputs(model: nn.Module, interface: ExportInterface) -> tuple[InputSpec, ...]:
    """Return the inputs that a file of ``model`` takes.

    Case 1: Tokens ``(batch, seq)``.
    Case 2: Multiple choice takes ``(batch, choices, seq)``.
    Case 3: REALM's scorer takes a question and its candidates ``(batch, candidates, seq)``.
    Case 4: REALM's reader takes its blocks, their relevance, and a mask of the evidence in them.
    Case 5: A decoder with cross-attention takes the states and the mask of the encoder.
    Case 6: A file with a cache takes keys and values, and a mask that covers them as well.
    """
    accepted = inspect.signature(model.forward).parameters
    names = [
        name for name in TOKEN_INPUTS if name in accepted and (interface.token_type_ids or name != "token_type_ids")
    ]
    ids = "int32" if interface.int32_ids else "int64"
    config: Any = model.config
    dtype = _DTYPE_NAMES[next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)]
    axes: tuple[str | int, ...] = ("batch", "seq")
    if getattr(model, "task", None) == "multiple-choice":  # case 2
        axes = ("batch", "choices", "seq")
    elif isinstance(model, Reader):  # case 4
        axes = (config.reader_beam_size, "seq")
    found = [InputSpec(name, axes, ids) for name in names]  # case 1
    if interface.inputs_embeds:
        found[0] = InputSpec("inputs_embeds", (*axes, config.embedding_width), dtype)
    if isinstance(model, Scorer):  # case 3
        candidates = ("batch", config.num_candidates, "candidate_seq")
        found += [InputSpec(f"candidate_{name}", candidates, ids) for name in names]
    elif isinstance(model, Reader):
        blocks = config.reader_beam_size
        found += [InputSpec("relevance_score", (blocks,), dtype), InputSpec("block_mask", (blocks, "seq"), ids)]
    elif isinstance(model, EncoderModel) and config.is_decoder:
        found = _decoder_inputs(model, interface, found, dtype=dtype, ids=ids)
    return tuple(found)


def _decoder_inputs(
    model: EncoderModel, interface: ExportInterface, found: list[InputSpec], *, dtype: str, ids: str
) -> list[InputSpec]:
    config = model.config
    crossed = config.add_cross_attention
    stepping = interface.cache == "step"
    if crossed:  # case 5
        if not stepping:
            found.append(InputSpec("encoder_hidden_states", ("batch", "encoder_seq", config.hidden_size), dtype))
        found.append(InputSpec("encoder_attention_mask", ("batch", "encoder_seq"), ids))
    if stepping:  # case 6
        found = [
            InputSpec(entry.name, ("batch", PAST_AND_SEQ), ids) if entry.name == "attention_mask" else entry
            for entry in found
        ]
        for n, layer in enumerate(model.encoder.layers):
            for name in cache_names(n, crossed=crossed):
                other = ".encoder." in name
                block: Any = layer.cross_attention if other else layer.attention
                length = "encoder_seq" if other else "past_seq"
                found.append(InputSpec(name, ("batch", len(block.heads), length, block.head_size), dtype))
    return found
