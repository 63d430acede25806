"""A model as a file has it: named tensors in, named tensors out, in one :class:`~exporters.interface.Form`.

Export traces it and verification runs it, so both mean the same function.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from exporters.interface import Form, check_form
from exporters.io_signature import PAST_AND_SEQ, TEXTS, Input, Signature, example_inputs
from qdq.models.model import EncoderModel, Model
from qdq.models.realm_models import Reader, Scorer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Deployed", "cache_names", "deploy"]

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
_OFF = {"output_attentions": False, "output_hidden_states": False}  # whatever the configuration says


class Deployed(nn.Module):
    """Tensors in the order of ``signature.inputs`` to tensors in the order of ``signature.outputs``.

    Args:
        model: in eval mode.
        inputs: what it is given.
        form: that it has.
    """

    signature: Signature

    def __init__(self, model: nn.Module, inputs: tuple[Input, ...], form: Form) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.form = form

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in order."""
        found = self.compute(dict(zip(self.signature.input_names, inputs, strict=True)))
        return tuple(found[name] for name in self.signature.outputs)

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, without gradients; what the model does not take is ignored."""
        with torch.inference_mode():
            found = self.compute({entry.name: batch[entry.name] for entry in self.inputs})
        return {name: found[name] for name in self.signature.outputs}

    def compute(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """All outputs by name from all inputs by name."""
        values = {name: value.long() if value.dtype == torch.int32 else value for name, value in values.items()}
        arguments: dict[str, Any] = dict(values)
        if isinstance(self.model, EncoderModel):
            arguments |= {"use_cache": self.form.cache is not None, **_OFF}
        if self.form.cache == "step":
            arguments |= self._with_cache(arguments)
        output = dict(self.model(**arguments, **self._return_dict()).items())
        cache = output.pop("past_key_values", None)
        found = {name: value for name, value in output.items() if isinstance(value, Tensor)}
        found = self._fused(found, values)
        if self.form.cache is not None and cache is not None:
            found |= self._cache_outputs(cache)
        return found

    def _return_dict(self) -> dict[str, Any]:
        return {"return_dict": True} if isinstance(self.model, Model) else {}

    def _with_cache(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """``past_key_values`` for the model, out of ``arguments``."""
        layers = len(self.model.encoder.layers)  # type: ignore[union-attr, arg-type]
        crossed = bool(self.model.config.add_cross_attention)  # type: ignore[union-attr]
        cache = tuple(tuple(arguments.pop(name) for name in cache_names(n, crossed=crossed)) for n in range(layers))
        more: dict[str, Any] = {"past_key_values": cache}
        if crossed:  # the keys and values of what it attends to are in the cache: only its length counts
            key = cache[0][2]
            hidden = self.model.config.hidden_size  # type: ignore[union-attr]
            more["encoder_hidden_states"] = key.new_zeros(key.shape[0], key.shape[2], hidden)
        return more

    def _cache_outputs(self, cache: tuple[tuple[Tensor, ...], ...]) -> dict[str, Tensor]:
        """Of a step only what grew: keys and values of what a decoder attends to stay as they are."""
        kept = 2 if self.form.cache == "step" else 4
        crossed = len(cache[0]) > 2
        return {
            name: value
            for n, layer in enumerate(cache)
            for name, value in list(
                zip(cache_names(n, "present", crossed=crossed), layer, strict=True),
            )[:kept]
        }

    def _fused(self, found: dict[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        form = self.form
        if form.pooling is not None:
            hidden = found["last_hidden_state"]
            pooled = _pooled(hidden, values["attention_mask"], form.pooling)
            return {"sentence_embedding": nn.functional.normalize(pooled, dim=-1) if form.normalize else pooled}
        if form.normalize:
            return {name: nn.functional.normalize(value, dim=-1) for name, value in found.items()}
        if form.softmax or form.argmax:
            logits = found.pop("logits")
            if form.softmax:
                several = self.model.config.problem_type == "multi_label_classification"  # type: ignore[union-attr]
                found["probabilities"] = torch.sigmoid(logits) if several else torch.softmax(logits, dim=-1)
            if form.argmax:
                found["labels"] = logits.argmax(dim=-1)
        return found


def deploy(model: nn.Module, form: Form | None = None) -> Deployed:
    """``model`` in a form, and the signature that it has there.

    Raises:
        ExportError: for a form that the model cannot have.
    """
    form = form or Form()
    if isinstance(model, Model):
        check_form(model, form)
    deployed = Deployed(model, _inputs(model, form), form)
    config: Any = model.config
    vocab_size = int(config.vocab_size)
    # Long enough for the widest span that a reader looks for.
    seq_len = max(8, getattr(config, "min_length", 1))
    batch = example_inputs(deployed.inputs, vocab_size=vocab_size, seq_len=seq_len)
    with torch.inference_mode():
        outputs = tuple(deployed.compute(batch))
    deployed.signature = Signature(deployed.inputs, outputs)
    return deployed


def cache_names(layer: int, prefix: str = "past_key_values", *, crossed: bool) -> list[str]:
    """Names of key and value of a layer; with cross-attention those of its own text, then those of the other."""
    sides = ("decoder.", "encoder.") if crossed else ("",)
    return [f"{prefix}.{layer}.{side}{part}" for side in sides for part in ("key", "value")]


def _pooled(hidden: Tensor, mask: Tensor, how: str) -> Tensor:
    """``(batch, seq, hidden)`` to ``(batch, hidden)``; tokens where the mask is 0 do not count."""
    if how == "cls":
        first = (mask != 0).int().argmax(dim=1)
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), first]
    visible = (mask != 0)[..., None]
    if how == "max":
        return torch.where(visible, hidden, torch.finfo(hidden.dtype).min).amax(dim=1)
    return torch.where(visible, hidden, 0).sum(dim=1) / visible.sum(dim=1).clamp_min(1).to(hidden.dtype)


def _inputs(model: nn.Module, form: Form) -> tuple[Input, ...]:
    """What a file of ``model`` takes.

    1. Tokens ``(batch, seq)``. 2. Multiple choice: ``(batch, choices, seq)``. 3. REALM's scorer: a question, and its
    candidates ``(batch, candidates, seq)``. 4. REALM's reader: its blocks with their relevance and where the evidence
    is. 5. A decoder that attends to another text: its states and mask. 6. A cache: keys and values, and a mask that
    covers them.
    """
    accepted = inspect.signature(model.forward).parameters
    names = [name for name in TEXTS if name in accepted and (form.token_type_ids or name != "token_type_ids")]
    ids = "int32" if form.int32_ids else "int64"
    config: Any = model.config
    kind = _NAMES[next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)]
    axes: tuple[str | int, ...] = ("batch", "seq")
    if getattr(model, "task", None) == "multiple-choice":  # case 2
        axes = ("batch", "choices", "seq")
    elif isinstance(model, Reader):  # case 4
        axes = (config.reader_beam_size, "seq")
    found = [Input(name, axes, ids) for name in names]
    if form.inputs_embeds:
        found[0] = Input("inputs_embeds", (*axes, config.embedding_width), kind)
    if isinstance(model, Scorer):  # case 3
        candidates = ("batch", config.num_candidates, "candidate_seq")
        found += [Input(f"candidate_{name}", candidates, ids) for name in names]
    elif isinstance(model, Reader):
        blocks = config.reader_beam_size
        found += [Input("relevance_score", (blocks,), kind), Input("block_mask", (blocks, "seq"), ids)]
    elif isinstance(model, EncoderModel) and config.is_decoder:
        found = _decoder_inputs(model, form, found, kind=kind, ids=ids)
    return tuple(found)


def _decoder_inputs(model: EncoderModel, form: Form, found: list[Input], *, kind: str, ids: str) -> list[Input]:
    config = model.config
    crossed = config.add_cross_attention
    stepping = form.cache == "step"
    if crossed:  # case 5
        if not stepping:
            found.append(Input("encoder_hidden_states", ("batch", "encoder_seq", config.hidden_size), kind))
        found.append(Input("encoder_attention_mask", ("batch", "encoder_seq"), ids))
    if stepping:  # case 6
        found = [
            Input(entry.name, ("batch", PAST_AND_SEQ), ids) if entry.name == "attention_mask" else entry
            for entry in found
        ]
        for n, layer in enumerate(model.encoder.layers):
            for name in cache_names(n, crossed=crossed):
                other = ".encoder." in name
                block: Any = layer.cross_attention if other else layer.attention
                length = "encoder_seq" if other else "past_seq"
                found.append(Input(name, ("batch", len(block.heads), length, block.head_size), kind))
    return found
