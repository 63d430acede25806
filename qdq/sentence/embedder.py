"""The vectors of sentence-transformers from token vectors: the pooling and the modules behind it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qdq.errors import CheckpointError, ConfigError, describe_problems
from qdq.models.huggingface import read_tensors
from qdq.sentence.folder import PoolingSettings
from qdq.sentence.modules_file import EMPTY_KINDS, read_json_file
from qdq.sentence.pooling import pool, without_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.sentence.folder import Pooling, SentenceFolder
    from qdq.sentence.modules_file import ModuleEntry

__all__ = ["SentenceEmbedder", "load_embedder"]

_LOG = logging.getLogger(__name__)

_POOLED = "sentence_embedding"  # the tensor that modules behind the pooling read and write


class SentenceEmbedder(nn.Module):
    """Map token vectors ``(batch, seq, hidden)`` to vectors of texts ``(batch, width)``.

    Args:
        pooling: How token vectors become one vector.
        modules: What is done with the vector afterwards, in order.
    """

    def __init__(self, pooling: PoolingSettings, modules: list[nn.Module]) -> None:
        super().__init__()
        self.pooling = pooling
        self.after = nn.Sequential(*modules)

    def forward(self, hidden: Tensor, mask: Tensor, prompt_tokens: int = 0) -> Tensor:
        """Return the vectors, in float32.

        Args:
            hidden: Token vectors.
            mask: Attention mask ``(batch, seq)``.
            prompt_tokens: The number of tokens of the prompt at the beginning of each text, which the pooling may leave
                out.
        """
        hidden = hidden.to(torch.float32)
        kept = mask if self.pooling.include_prompt or not prompt_tokens else without_prompt(mask, prompt_tokens)
        pooled = [pool(hidden, kept, how, attended=mask) for how in self.pooling.modes]
        vectors: Tensor = self.after(pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1))
        return vectors


class _Dense(nn.Module):
    """A linear layer with an activation, and with a residual connection where the directory has one."""

    def __init__(self, linear: nn.Linear, activation: nn.Module, residual: nn.Module | None) -> None:
        super().__init__()
        self.linear, self.activation, self.residual = linear, activation, residual

    def forward(self, vectors: Tensor) -> Tensor:
        found: Tensor = self.activation(self.linear(vectors))
        return found if self.residual is None else found + self.residual(vectors)


class _Normalize(nn.Module):
    """Scale vectors to length 1."""

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1)


def load_embedder(
    folder: SentenceFolder, pooling: Pooling | None = None, *, cure: str = "--pooling mean leaves it out"
) -> SentenceEmbedder:
    """Load what follows the transformer, without gradients for its weights.

    Args:
        folder: The directory of sentence-transformers.
        pooling: A pooling that replaces the one of the directory; modules that need the directory's own vectors are
            then left out, see :attr:`SentenceFolder.changes_vectors`.
        cure: What to do about modules that are not supported, for the message.

    Raises:
        CheckpointError: Weights are missing or damaged.
        ConfigError: The directory has modules that are not supported; all are named.
    """
    if pooling is not None:
        modules: list[nn.Module] = [_Normalize()] if folder.normalizes else []
        settings = folder.stated_pooling or PoolingSettings()
        return SentenceEmbedder(PoolingSettings((pooling,), settings.include_prompt), modules).eval()
    if folder.unsupported:
        raise ConfigError(
            f"{folder.file}: this module is not supported: {', '.join(map(str, folder.unsupported))}; {cure}"
        )
    settings = folder.pooling
    modules, pooled = [], folder.modules is None
    for entry in folder.after_transformer:
        if entry.kind == "Pooling":
            pooled = True
            continue
        if not pooled:
            raise ConfigError(f"{folder.file}: {entry} comes before the pooling, which is not supported")
        modules += _load(folder.root / entry.path, entry)
    return SentenceEmbedder(settings, modules).eval().requires_grad_(requires_grad=False)


def _load(path: Path, entry: ModuleEntry) -> list[nn.Module]:
    """Return the module of an entry; none where it has no effect."""
    # What has no settings of its own may have no directory either: git, for one, keeps no empty directories.
    missing: dict[str, Any] | None = {} if entry.kind in EMPTY_KINDS else None
    config = read_json_file(path / "config.json", dict, missing=missing) if entry.path else missing
    if config is None:
        raise ConfigError(f"{path / 'config.json'}: no such file, although modules.json names {entry}: copy it there")
    names = {config.get(key) or _POOLED for key in ("module_input_name", "module_output_name")}
    if names != {_POOLED}:
        raise ConfigError(
            f"{path / 'config.json'}: it reads or writes {', '.join(sorted(names - {_POOLED}))}; only {_POOLED} is "
            "supported"
        )
    if entry.kind == "Dropout":
        return []
    if entry.kind == "Normalize":
        return [_Normalize()]
    return [_layer_norm(path, config) if entry.kind == "LayerNorm" else _dense(path, config)]


def _dense(path: Path, config: dict[str, Any]) -> nn.Module:
    inner, outer = _size(path, config, "in_features"), _size(path, config, "out_features")
    activation = _activation(path, config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    linear = nn.Linear(inner, outer, bias=bool(config.get("bias", True)))
    residual: nn.Module | None = None
    if config.get("use_residual"):
        residual = nn.Identity() if inner == outer else nn.Linear(inner, outer, bias=False)
    dense = _Dense(linear, activation, residual)
    _fill(dense, path)
    return dense


def _layer_norm(path: Path, config: dict[str, Any]) -> nn.Module:
    holder = nn.ModuleDict({"norm": nn.LayerNorm(_size(path, config, "dimension"))})
    _fill(holder, path)
    return holder["norm"]


def _size(path: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{path / 'config.json'}: {name} is {value!r}, must be a whole number of at least 1")
    return value


def _activation(path: Path, name: Any) -> nn.Module:
    """Return a module of torch by its name; sentence-transformers takes Tanh for one of any other package."""
    file = path / "config.json"
    if not isinstance(name, str):
        raise ConfigError(f"{file}: activation_function is {name!r}, must be the name of a module of torch")
    if not name.startswith("torch."):
        _LOG.warning(
            "%s: the activation_function %s is not of torch; Tanh takes its place, as in sentence-transformers",
            file,
            name,
        )
        return nn.Tanh()
    # Only classes that torch.nn itself offers: importing any other name could run code.
    found = getattr(nn, name.rpartition(".")[-1], None)
    try:
        if isinstance(found, type) and issubclass(found, nn.Module) and name.startswith("torch.nn."):
            return found()
    except TypeError as error:
        raise ConfigError(f"{file}: the activation_function {name} needs arguments ({error})") from error
    raise ConfigError(f"{file}: the activation_function {name} is not a module of torch.nn")


def _fill(module: nn.Module, path: Path) -> None:
    """Set the weights of a module from the files in its directory."""
    tensors = read_tensors(path)
    wanted = module.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is not expected" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {list(tensors[name].shape)}, must be {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(describe_problems(str(path), problems))
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
