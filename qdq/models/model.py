"""The base classes of all models: embeddings, encoder, pooler and head, and what concerns several of them."""

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
    """Base class of all models, with a configuration and a task.

    Subclasses define ``run``, which returns the output for a dict of all arguments of a call.

    Args:
        config: The configuration.
        task: The name of the task.
    """

    run: Callable[[dict[str, Any]], Output]
    # transformers' Trainer asks for it: False says that the loss is a mean over the batch, not a sum to normalize.
    accepts_loss_kwargs: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, task: str) -> None:
        super().__init__()
        self.config = config
        self.task = task

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the state dict with a copy of each tensor that already has another name.

        safetensors files cannot hold tensors that share memory, so code that saves a state dict, such as transformers'
        Trainer, would fail for tied weights. Nothing is copied for a model inside another one or with ``keep_vars``.
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
        """Compute the output of the task.

        Args:
            input_ids: ``(batch, seq)``.
            attention_mask: ``(batch, seq)``; 1 = visible.
            token_type_ids: ``(batch, seq)``.
            return_dict: Whether to return a dataclass instead of a tuple. None follows the configuration.
            inputs: The other arguments of the task, see ``encode``, and its labels.
        """
        texts = dict(zip(TEXTS, (input_ids, attention_mask, token_type_ids), strict=True))
        result = self.run({**texts, **inputs})
        configured = self.config.return_dict and not self.config.torchscript
        if configured if return_dict is None else return_dict:
            return result
        given = result.to_tuple()
        # As upstream, the second entry of a bare encoder's tuple is the pooled output, even without a pooler.
        lacks_pooled = isinstance(result, BaseOutput) and result.pooler_output is None
        return (given[0], None, *given[1:]) if lacks_pooled else given

    def shared_names(self) -> list[list[str]]:
        """Return the names of every distinct weight; a shared weight has several.

        Modules with the attribute ``stored_apart`` (quantizers) are skipped, since checkpoints keep their parameters
        in a file of their own.
        """
        # A tied weight is one Parameter with several names, so Parameters are told apart by identity.
        foreign = {id(p) for m in self.modules() if getattr(m, "stored_apart", False) for p in m.parameters()}
        names: dict[int, list[str]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        return [own for key, own in names.items() if key not in foreign]

    def assign(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Replace all parameters of the model.

        Args:
            parameters: The new parameter of every name. Names of a shared weight get the same one.
        """
        # assign=True puts the given objects into the modules, instead of copying their values into the old ones.
        self.load_state_dict(parameters, assign=True)
        for module in self.modules():
            if isinstance(module, EncoderModel):
                module.tie_weights()

    def set_attn_implementation(self, implementation: AttentionImplementation) -> None:
        """Set how attention is computed: in modules (``"eager"``), or by torch's fused function (``"sdpa"``).

        Raises:
            ConfigError: The implementation is unknown.
        """
        known = get_args(AttentionImplementation)
        if implementation not in known:
            raise ConfigError(f"attn_implementation is {implementation!r}, must be one of {', '.join(known)}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.implementation = implementation


class EncoderModel(Model):
    """Embeddings, encoder, pooler and head. This class extracts features; subclasses add the other tasks.

    A subclass overrides ``apply_head``, which computes the output from that of the encoder, and ``targets``, the names
    of the arguments of a call (such as labels) that go to ``apply_head``. All others go to ``encode``.

    Args:
        config: The configuration of the family.
        embeddings: Computes hidden states from ids.
        encoder: Computes new hidden states from these.
        pooler: Computes one vector per text. None leaves the pooler out.
        head: Computes logits from hidden states or the pooled output. None leaves the head out.
        task: The name of the task.
    """

    targets: ClassVar[Names] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # The signature names the labels of the task; see forward_signature.
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
        # The checkpoint of a pruned model has smaller projections, and its configuration says which heads are gone.
        self._prune(config.pruned_heads)
        self.tie_weights()

    def run(self, inputs: dict[str, Any]) -> Output:
        """Return the output for the arguments of a call: those of ``encode``, and the task's ``targets``."""
        inputs = self.prepare(inputs)
        own = {name: inputs.pop(name, None) for name in self.targets}
        return self.apply_head(self.encode(**inputs), **own)

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call as ``encode`` and ``apply_head`` take them; a hook for tasks."""
        return inputs

    def apply_head(self, encoded: BaseOutput, **targets: Any) -> Output:
        """Compute the output of the task from that of the encoder.

        Args:
            encoded: The output of ``encode``.
            targets: The arguments that the class attribute ``targets`` names, in that order; None if not given.
        """
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
            input_ids: ``(batch, seq)``; alternatively ``inputs_embeds``.
            attention_mask: 1 = visible; ``(batch, cached + seq)``, or for each query ``(batch, seq, cached + seq)``.
            token_type_ids: ``(batch, seq)``. None stands for zeros.
            position_ids: ``(batch or 1, seq)``. None counts positions as the family does.
            head_mask: 1 = keep; ``(heads,)`` or ``(layers, heads)``.
            inputs_embeds: ``(batch, seq, embedding width)``.
            encoder_hidden_states: States to attend to, ``(batch, keys, hidden)``, for decoders with cross-attention.
            encoder_attention_mask: The mask of these states, ``(batch, keys)`` or ``(batch, seq, keys)``.
            past_key_values: The cache that an earlier call returned.
            use_cache: Whether to return ``past_key_values``, for decoders. None follows the configuration.
            output_attentions: Whether to return the attention weights ``(batch, heads, seq, keys)`` of every layer.
            output_hidden_states: Whether to return the hidden states ``(batch, seq, hidden)`` before the first and
                after every layer.

        Raises:
            InputError: Arguments do not fit the model or each other.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("give exactly one of input_ids and inputs_embeds")
        if encoder_hidden_states is not None and not config.is_decoder:
            raise InputError(
                "encoder_hidden_states are for decoders, but the model is no decoder: set is_decoder in its config"
            )
        # Only a decoder returns a cache, but every model accepts one, for instance of learned prefixes.
        past = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        caching = config.is_decoder and (config.use_cache if use_cache is None else use_cache)
        if caching and self.encoder.checkpointing and self.training:
            warnings.warn("use_cache is off: a cache cannot be combined with gradient checkpointing", stacklevel=3)
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
        """Yield the tensors that the linear layers of the encoder read, in the order of the computation."""
        origin = self.embeddings.origin()
        for block in self.encoder.blocks():
            yield from block.linear_reads(origin)
            origin = block.origin()

    def output_embedding(self) -> nn.Linear | None:
        """Return the linear layer from hidden states to the vocabulary, or None if the model has none."""
        head = self.head.predictions if isinstance(self.head, PreTrainingHead) else self.head
        return head.decoder if isinstance(head, LanguageModelHead) else None

    def tie_weights(self) -> None:
        """Give the linear layer to the vocabulary the word embedding's weight, if ``tie_word_embeddings`` is set.

        With ``torchscript``, the layer gets a copy, once the weight has values: traced modules cannot share parameters.
        """
        decoder, table = self.output_embedding(), self.embeddings.word.weight
        if decoder is not None and self.config.tie_word_embeddings:
            copied = self.config.torchscript and not table.is_meta
            decoder.weight = nn.Parameter(table.detach().clone()) if copied else table

    def resize_token_embeddings(self, size: int, pad_to_multiple_of: int | None = None) -> nn.Embedding:
        """Resize the vocabulary, and return the new word embedding. New rows are initialized.

        As upstream, the new table has no padding row.

        Args:
            size: The new number of tokens.
            pad_to_multiple_of: Round ``size`` up to a multiple of this number.
        """
        multiple = pad_to_multiple_of or 1
        size = -(-size // multiple) * multiple  # rounded up
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
        """Remove attention heads permanently.

        Args:
            heads: The heads to remove from each layer. Both are counted as in the unpruned model. ALBERT counts
                distinct layers, ``group * inner_group_num + inner``, and every repetition of a layer loses the heads.

        Raises:
            ConfigError: The model does not have these layers or heads.
            InputError: Projections were replaced, for instance by quantized ones, which pruning would lose.
        """
        for name, block in self.named_modules():
            if isinstance(block, Attention) and (replaced := block.replaced_projection()):
                what = f"{name}.{replaced} is {type(getattr(block, replaced)).__name__}, not a plain Linear"
                raise InputError(f"{what}: heads can only be pruned before a model is quantized")
        before = self.config.pruned_heads
        after = {layer: tuple(sorted({*before.get(layer, ()), *heads.get(layer, ())})) for layer in {*before, *heads}}
        # The new configuration checks layers and heads before any layer is changed.
        self.config = replace(self.config, pruned_heads={layer: cut for layer, cut in after.items() if cut})
        self._prune(heads)

    def _prune(self, heads: Mapping[int, Iterable[int]]) -> None:
        # Heads are counted by distinct layers, and depths that repeat one are pruned like it.
        order = self.config.layer_order
        distinct = sorted(set(order))
        for layer, indices in zip(self.encoder.layers, order, strict=True):
            cast("Layer", layer).attention.prune(heads.get(distinct.index(indices), ()))
        # Every depth got smaller projections of its own; repeated layers have to share one set again.
        self.encoder.share_parameters()

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations.

        Raises:
            InputError: Upstream does not offer it for this family.
        """
        if not self.config.supports_gradient_checkpointing:
            raise InputError(f"model_type '{self.config.model_type}' does not offer gradient checkpointing")
        self.encoder.checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass."""
        self.encoder.checkpointing = False


class TaskModel(EncoderModel):
    """A model with a head. Class attributes describe the task; the defaults are those of token classification.

    ``loss`` takes the logits and then the targets, in their order. It is computed if a call gives all ``targets``.
    """

    targets: ClassVar[Names] = ("labels",)
    """Names of the arguments of a call that are not for the encoder."""
    logits_fields: ClassVar[Names] = ("logits",)
    """Fields of the output for the results of ``logits``, in their order."""
    encoder_fields: ClassVar[Names] = ("hidden_states", "attentions")
    """Fields of the output that are copied from the encoder's."""
    output: ClassVar[type[Output]] = TaskOutput
    loss: Callable[..., Tensor] = staticmethod(cross_entropy)
    head: nn.Module

    def apply_head(self, encoded: BaseOutput, **targets: Any) -> Output:
        """Return the logits, and the loss if there are labels."""
        logits = self.logits(encoded)
        fields: dict[str, Any] = dict(zip(self.logits_fields, logits, strict=True))
        fields |= {name: getattr(encoded, name) for name in self.encoder_fields}
        if targets and all(target is not None for target in targets.values()):
            fields["loss"] = self.loss(*logits, *targets.values())
        return self.output(**fields)

    def logits(self, encoded: BaseOutput) -> tuple[Tensor, ...]:
        """Return the results of the head, one for each of ``logits_fields``."""
        return (self.head(encoded.last_hidden_state),)


class PooledModel(TaskModel):
    """A model whose head reads the pooled output ``(batch, hidden)``, or the first token if there is no pooler."""

    def logits(self, encoded: BaseOutput) -> tuple[Tensor, ...]:
        """Return the result of the head for one vector per text."""
        pooled = encoded.pooler_output
        return (self.head(encoded.last_hidden_state[:, 0] if pooled is None else pooled),)


def _resized(weight: Tensor, size: int, std: float) -> Tensor:
    """Return ``weight`` with ``size`` rows. New ones are normally distributed with ``std``, or zeros if that is 0."""
    new = weight.detach().new_zeros(size, *weight.shape[1:]).normal_(0.0, std)
    kept = min(size, weight.shape[0])
    new[:kept] = weight.detach()[:kept]
    return new


def fresh_parameter(
    model: Model, name: str, dtype: torch.dtype | None = None, generator: torch.Generator | None = None
) -> nn.Parameter:
    """Return a fresh value for a parameter: normal weights, zeros for biases and the padding row, ones for norms.

    Args:
        model: The model, which may be on the meta device.
        name: The name of the parameter.
        dtype: The dtype of the value. None takes torch's default.
        generator: Source of the random numbers. None takes torch's own.
    """
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    new = torch.zeros(owner.get_parameter(leaf).shape, dtype=dtype)
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm) and leaf == "weight":
        new.fill_(1.0)
    elif leaf == "weight":
        new.normal_(0.0, model.config.initializer_range, generator=generator)
        if isinstance(owner, nn.Embedding) and owner.padding_idx is not None and model.config.zero_padding_row:
            new[owner.padding_idx] = 0.0
    return nn.Parameter(new)
