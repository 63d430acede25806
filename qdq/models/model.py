"""The model: embeddings, encoder, pooler and head, with everything that concerns them together."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar, cast, get_args

import torch
from torch import Tensor, nn

from qdq.errors import ConfigError
from qdq.models.attention import Attention, AttentionImplementation
from qdq.models.config import ModelConfig
from qdq.models.dataflow import LinearRead
from qdq.models.embeddings import Embeddings
from qdq.models.encoder import Call, Encoder, Layer
from qdq.models.forward_signature import with_named_inputs
from qdq.models.heads import LanguageModelHead, Pooler, PreTrainingHead
from qdq.models.inputs import InputError
from qdq.models.losses import cross_entropy
from qdq.models.masks import attention_bias, head_mask_rows, memory_bias
from qdq.models.outputs import BaseOutput, Cache, Output, TaskOutput

Names = tuple[str, ...]
TEXTS: Names = ("input_ids", "attention_mask", "token_type_ids")


class Model(nn.Module):
    """Configuration and task of a model, and how it answers."""

    run: Callable[[dict[str, Any]], Output]  # the output for the arguments of a call, by name
    accepts_loss_kwargs: ClassVar[bool] = False  # asked by transformers' Trainer: the loss is a mean over the batch

    def __init__(self, config: ModelConfig, task: str) -> None:
        super().__init__()
        self.config = config
        self.task = task

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """As of any module, but that no two names share a tensor: a safetensors file could not hold them.

        Models inside others, and parameters asked for as they are (``keep_vars``), are not copied.
        """
        state: dict[str, Any] = super().state_dict(*args, **options)
        if args or options.get("prefix") or options.get("keep_vars"):
            return state
        held = chain(self.named_parameters(remove_duplicate=False), self.named_buffers(remove_duplicate=False))
        seen: set[int] = set()
        for name, tensor in held:
            if id(tensor) in seen and name in state:
                state[name] = state[name].clone()
            seen.add(id(tensor))
        return state

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Output | tuple[Any, ...]:
        """The output of ``run`` for these arguments and its others, as a tuple unless ``return_dict``."""
        texts = dict(zip(TEXTS, (input_ids, attention_mask, token_type_ids), strict=True))
        result = self.run({**texts, **inputs})
        configured = self.config.return_dict and not self.config.torchscript
        if configured if return_dict is None else return_dict:
            return result
        given = result.to_tuple()
        # The pooled output of the bare encoder keeps its place even when there is no pooler.
        place_kept = isinstance(result, BaseOutput) and result.pooler_output is None
        return (given[0], None, *given[1:]) if place_kept else given

    def shared_names(self) -> list[list[str]]:
        """The names of every distinct weight, several where it is shared.

        Parameters of modules that say ``stored_apart``, which others have put into the model, are none of its weights.
        """
        foreign = {id(p) for part in self.modules() if getattr(part, "stored_apart", False) for p in part.parameters()}
        names: dict[int, list[str]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return [own for key, own in names.items() if key not in foreign]

    def assign(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Make ``parameters`` those of this model, in the places of their names: all there are."""
        self.load_state_dict(parameters, assign=True)
        for module in self.modules():
            if isinstance(module, EncoderModel):
                module.tie_weights()

    def set_attn_implementation(self, implementation: AttentionImplementation) -> None:
        """Compute attention in modules (``"eager"``) or by torch's fused function (``"sdpa"``) from now on."""
        known = get_args(AttentionImplementation)
        if implementation not in known:
            raise ConfigError(f"attn_implementation is {implementation!r}, must be one of {', '.join(known)}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.implementation = implementation


class EncoderModel(Model):
    """Embeddings, encoder, pooler and head: the base of the models for the tasks.

    A task says by ``answer`` what it makes of the encoder's output, and by ``targets`` which arguments of a call are
    for ``answer``; all others are for ``encode``. This class itself extracts features and has neither.

    Args:
        config: Configuration of the family.
        embeddings: From ids to hidden states.
        encoder: The layers.
        pooler: From hidden states to one vector per text; None for no pooler.
        head: From hidden states or the pooled output to what the task returns.
        task: The name of the task.
    """

    targets: ClassVar[Names] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.forward = with_named_inputs(Model.forward, cls.encode, cls.targets)  # type: ignore[method-assign]

    def __init__(
        self,
        config: ModelConfig,
        *,
        embeddings: Embeddings,
        encoder: Encoder,
        pooler: Pooler | None = None,
        head: nn.Module | None = None,
        task: str = "feature-extraction",
    ) -> None:
        super().__init__(config, task)
        self.embeddings = embeddings
        self.encoder = encoder
        self.pooler = pooler
        self.head = head
        self._prune(config.pruned_heads)
        self.tie_weights()

    def run(self, inputs: dict[str, Any]) -> Output:
        """The task's output for arguments as in ``encode`` and the task's own ``targets``."""
        inputs = self.prepare(inputs)
        own = {name: inputs.pop(name, None) for name in self.targets}
        return self.answer(self.encode(**inputs), **own)

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Change the arguments of a call before anything is computed."""
        return inputs

    def answer(self, encoded: BaseOutput, **targets: Any) -> Output:
        """What becomes of the encoder's output; ``targets`` come in their order, with None for those not given."""
        assert not targets
        return encoded

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseOutput:
        """Run embeddings, encoder and pooler.

        Args:
            input_ids: ``(batch, seq)``; or give ``inputs_embeds``.
            attention_mask: 1 = visible. ``(batch, cached + seq)``, or per query ``(batch, seq, cached + seq)``.
            token_type_ids: ``(batch, seq)``, zeros by default.
            position_ids: ``(batch or 1, seq)``.
            head_mask: 1 = keep; ``(heads,)`` or ``(layers, heads)``.
            inputs_embeds: ``(batch, seq, embedding width)``.
            encoder_hidden_states: ``(batch, keys, hidden)`` to attend to; decoders with cross-attention only.
            encoder_attention_mask: ``(batch, keys)`` or ``(batch, seq, keys)`` for them.
            past_key_values: what an earlier call returned under this name.
            use_cache: return ``past_key_values``; decoders only.
            output_attentions: return the attention weights ``(batch, heads, seq, keys)`` of every layer.
            output_hidden_states: return the states ``(batch, seq, hidden)`` before the first and after every layer.

        Raises:
            InputError: arguments that do not fit together or do not fit the model.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        if encoder_hidden_states is not None and not config.is_decoder:
            raise InputError("encoder_hidden_states given, but the model is no decoder: set is_decoder in its config")
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        caching = config.is_decoder and (config.use_cache if use_cache is None else use_cache)
        if caching and self.encoder.checkpointing and self.training:
            warnings.warn("use_cache is off: it does not go together with gradient checkpointing", stacklevel=3)
            caching = False

        hidden = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds, past)
        call = Call(
            mask=attention_bias(attention_mask, hidden, past=past, causal=config.is_decoder),
            head_mask=head_mask_rows(head_mask, config.num_hidden_layers, config.num_attention_heads, hidden.dtype),
            memory=encoder_hidden_states,
            memory_mask=memory_bias(encoder_attention_mask, encoder_hidden_states, hidden),
            past=past_key_values,
            use_cache=caching,
            output_attentions=config.output_attentions if output_attentions is None else output_attentions,
            output_hidden_states=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )
        result: BaseOutput = self.encoder(hidden, call)
        if self.pooler is not None:
            result.pooler_output = self.pooler(result.last_hidden_state)
        return result

    def linear_reads(self) -> Iterator[LinearRead]:
        """Yield what the linear layers of the encoder read, from the first to the last."""
        origin = self.embeddings.origin()
        for block in self.encoder.blocks():
            yield from block.linear_reads(origin)
            origin = block.origin()

    def output_embedding(self) -> nn.Linear | None:
        """The linear from hidden states to the vocabulary, in models that have one."""
        head = self.head.predictions if isinstance(self.head, PreTrainingHead) else self.head
        return head.decoder if isinstance(head, LanguageModelHead) else None

    def tie_weights(self) -> None:
        """Let the vocabulary linear use the word embedding's parameter, if the configuration says so.

        With ``torchscript`` it gets a copy, as soon as there are values.
        """
        decoder, table = self.output_embedding(), self.embeddings.word.weight
        if decoder is not None and self.config.tie_word_embeddings:
            copied = self.config.torchscript and not table.is_meta
            decoder.weight = nn.Parameter(table.detach().clone()) if copied else table

    def resize_token_embeddings(self, size: int, pad_to_multiple_of: int | None = None) -> nn.Embedding:
        """Cut or extend the vocabulary to ``size`` rows, rounded up to a multiple; new rows are initialised.

        As upstream, the new table has no padding row any more.
        """
        multiple = pad_to_multiple_of or 1
        size = -(-size // multiple) * multiple
        old, std = self.embeddings.word, self.config.initializer_range
        new = nn.Embedding(size, old.embedding_dim, _weight=_resized(old.weight, size, std))
        self.embeddings.word = new
        decoder = self.output_embedding()
        if decoder is not None:
            if not self.config.tie_word_embeddings:
                decoder.weight = nn.Parameter(_resized(decoder.weight, size, std))
            decoder.bias = nn.Parameter(_resized(decoder.bias, size, 0.0))
            decoder.out_features = size
        self.config = replace(self.config, vocab_size=size)
        self.tie_weights()
        return new

    def prune_heads(self, heads: Mapping[int, Iterable[int]]) -> None:
        """Remove attention heads for good: layer index -> heads, both counted as in the unpruned model.

        ALBERT counts distinct layers, ``group * inner_group_num + inner``; all repetitions of one lose the heads.

        Raises:
            ConfigError: layers or heads that the model has not.
            InputError: projections were replaced, as quantization does: what replaced them would be lost.
        """
        for name, block in self.named_modules():
            if isinstance(block, Attention) and (replaced := block.replaced()):
                what = f"{name}.{replaced} is {type(getattr(block, replaced)).__name__}, not a plain Linear"
                raise InputError(f"{what}: heads can only be pruned before a model is quantized")
        before = self.config.pruned_heads
        after = {layer: tuple(sorted({*before.get(layer, ()), *heads.get(layer, ())})) for layer in {*before, *heads}}
        self.config = replace(self.config, pruned_heads={layer: cut for layer, cut in after.items() if cut})
        self._prune(heads)

    def _prune(self, heads: Mapping[int, Iterable[int]]) -> None:
        order = self.config.layer_order
        distinct = sorted(set(order))
        for layer, indices in zip(self.encoder.layers, order, strict=True):
            cast("Layer", layer).attention.prune(heads.get(distinct.index(indices), ()))
        self.encoder.share()

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        if not self.config.supports_gradient_checkpointing:
            raise InputError(f"model_type '{self.config.model_type}' does not offer gradient checkpointing")
        self.encoder.checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass."""
        self.encoder.checkpointing = False


class TaskModel(EncoderModel):
    """A model with a head, described by class attributes; these here are for labels of tokens.

    The loss is computed when a call gives every one of ``targets``.
    """

    targets: ClassVar[Names] = ("labels",)
    returns: ClassVar[Names] = ("logits",)  # the fields of the output that take what ``logits`` gives
    keeps: ClassVar[Names] = ("hidden_states", "attentions")  # the fields that come from the encoder
    output: ClassVar[type[Output]] = TaskOutput
    loss: Callable[..., Tensor] = staticmethod(cross_entropy)  # of the logits and the targets, in their order
    head: nn.Module

    def answer(self, encoded: BaseOutput, **targets: Any) -> Output:
        """Logits, and the loss when there are labels."""
        logits = self.logits(encoded)
        fields: dict[str, Any] = dict(zip(self.returns, logits, strict=True))
        fields |= {name: getattr(encoded, name) for name in self.keeps}
        if targets and all(target is not None for target in targets.values()):
            fields["loss"] = self.loss(*logits, *targets.values())
        return self.output(**fields)

    def logits(self, encoded: BaseOutput) -> tuple[Tensor, ...]:
        """What the head makes of the encoder's output."""
        return (self.head(encoded.last_hidden_state),)


class PooledModel(TaskModel):
    """The head reads the pooled output ``(batch, hidden)``, or the first token where there is no pooler."""

    def logits(self, encoded: BaseOutput) -> tuple[Tensor, ...]:
        """What the head makes of one vector per text."""
        pooled = encoded.pooler_output
        return (self.head(encoded.last_hidden_state[:, 0] if pooled is None else pooled),)


def _resized(weight: Tensor, size: int, std: float) -> Tensor:
    """``weight`` with ``size`` rows: the first ones kept, new ones normal with ``std`` (0: zeros)."""
    new = weight.detach().new_zeros(size, *weight.shape[1:]).normal_(0.0, std)
    kept = min(size, weight.shape[0])
    new[:kept] = weight.detach()[:kept]
    return new


def fresh_parameter(model: Model, name: str, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Return an initialised parameter ``name``: normal weights, zero biases and padding row, norms of one."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    new = torch.zeros(owner.get_parameter(leaf).shape, dtype=dtype)
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm) and leaf == "weight":
        new.fill_(1.0)
    elif leaf == "weight":
        new.normal_(0.0, model.config.initializer_range)
        if isinstance(owner, nn.Embedding) and owner.padding_idx is not None and model.config.zero_padding_row:
            new[owner.padding_idx] = 0.0
    return nn.Parameter(new)
