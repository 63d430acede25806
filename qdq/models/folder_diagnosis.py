"""Say what a folder holds that is not a model directory, and what to do with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = [
    "ADAPTER_CONFIG",
    "check_no_adapter",
    "describe_missing_config",
    "describe_missing_weights",
    "with_diagnosis",
]

ADAPTER_CONFIG = "adapter_config.json"

_MERGE = (
    'peft.AutoPeftModel.from_pretrained("{folder}").merge_and_unload().save_pretrained("merged"), or with the class of '
    "the task, such as AutoPeftModelForSequenceClassification"
)


def describe_missing_config(folder: Path) -> str:
    """Return the message for a folder without ``config.json``: what it is instead, and the cure."""
    missing = f"{folder / 'config.json'}: no such file; a model directory needs a config.json"
    return with_diagnosis(missing, folder)


def describe_missing_weights(folder: Path, expected: Sequence[str]) -> str:
    """Return the message for a folder with a ``config.json`` and no weights: what lies there instead, and the cure."""
    missing = f"{folder}: no weights; expected one of {', '.join(expected)}"
    looks = (lambda folder: _no_plain_file(folder, expected), _adapter, _other_framework, _other_weights, _tensorflow)
    return with_diagnosis(missing, folder, looks)


def with_diagnosis(missing: str, folder: Path, looks: Iterable[Callable[[Path], str | None]] | None = None) -> str:
    """Return a message about a folder with what it holds instead, and the cure, where that is recognized.

    Args:
        missing: The message.
        folder: The folder.
        looks: Functions that describe what they recognize; those for a folder without ``config.json`` if None.

    Raises:
        StorageError: The folder cannot be read.
    """
    looks = _KINDS if looks is None else looks
    try:
        found = next((text for look in looks if (text := look(folder))), None)
    except OSError as error:
        raise StorageError(f"cannot read {error.filename or folder}: {error.strerror or error}") from error
    return missing if found is None else f"{missing}. {found}"


def check_no_adapter(folder: Path) -> None:
    """Raise if an adapter lies beside the weights of a model: transformers with peft would apply it.

    Raises:
        CheckpointError: There is an adapter.
    """
    if (folder / ADAPTER_CONFIG).is_file() and _matching(folder, "adapter_model.*"):
        raise CheckpointError(
            f"{folder}: holds {_adapter_words(folder)} beside the weights, which transformers applies when peft is "
            f"installed, and qdq does not. Merge it first: {_MERGE.format(folder=folder)}; or remove {ADAPTER_CONFIG} "
            "if the weights hold it already"
        )


# --- what a folder may be ---


def _empty(folder: Path) -> str | None:
    return None if any(folder.iterdir()) else "The folder is empty"


def _hub_cache(folder: Path) -> str | None:
    """Describe the folder of one model in the cache of huggingface_hub, or the cache itself."""
    snapshots = [path for path in _children(folder / "snapshots") if path.is_dir()]
    if snapshots:
        named = [folder / "snapshots" / text for text in _texts_in(folder / "refs")]
        chosen = next((path for path in named if path in snapshots), snapshots[0])
        others = f" (or one of {len(snapshots) - 1} others there)" if len(snapshots) > 1 else ""
        return f"It is a folder of the cache of huggingface_hub: give its snapshot {chosen}{others}"
    if models := _matching(folder, "models--*"):
        return f"It is the cache of huggingface_hub: give a snapshot in it, such as {models[0] / 'snapshots'}/..."
    return None


def _adapter(folder: Path) -> str | None:
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    return f"It holds {_adapter_words(folder)}, without that model. Merge the two: {_MERGE.format(folder=folder)}"


def _adapter_words(folder: Path) -> str:
    settings = _json_or_empty(folder / ADAPTER_CONFIG)
    kind, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
    return f"an adapter ({kind or 'of peft'}) of {base or 'another model'}"


def _tensorflow(folder: Path) -> str | None:
    checkpoints = _matching(folder, "*.index") or _matching(folder, "variables/*.index")
    if not checkpoints and not (folder / "saved_model.pb").is_file():
        return None
    if not checkpoints:
        return "It is a SavedModel of TensorFlow without variables: give a folder with its checkpoint files"
    prefix = checkpoints[0].with_suffix("")
    return f"It is a checkpoint of TensorFlow: qdq convert --from tensorflow {prefix} -o DIR converts it"


def _megatron(folder: Path) -> str | None:
    found = _matching(folder, "mp_rank_*/model_optim_rng.pt") or _matching(folder, "*/mp_rank_*/model_optim_rng.pt")
    if not found:
        return None
    return (
        f"It is a checkpoint of Megatron-LM: qdq convert --from megatron-lm {found[0]} -o DIR makes a model directory"
    )


def _distributed(folder: Path) -> str | None:
    """Describe weights that a distributed training has left in pieces."""
    if (folder / "zero_to_fp32.py").is_file() or _matching(folder, "global_step*/*model_states.pt"):
        return (
            "It is a checkpoint of DeepSpeed in pieces: python zero_to_fp32.py . OUT, in that folder, joins them to "
            "weights; put the model's config.json beside them"
        )
    if pieces := _matching(folder, "*.distcp") or _matching(folder, "*/*.distcp"):
        return (
            f"It is a checkpoint of FSDP in pieces: accelerate merge-weights {pieces[0].parent} OUT joins them; put "
            "the model's config.json beside them"
        )
    return None


def _models_inside(folder: Path) -> str | None:
    """Describe a folder of model directories, such as the output of a trainer with its checkpoints."""
    inside = [path.parent for path in _matching(folder, "*/config.json")]
    if not inside:
        return None
    latest = max(inside, key=lambda path: (_number_in(path.name), path.name))
    others = f"; there are {len(inside)}" if len(inside) > 1 else ""
    return f"A model lies in a folder of it: give {latest}{others}"


def _number_in(name: str) -> int:
    digits = "".join(character for character in name if character.isdigit())
    return int(digits) if digits.isascii() and digits else -1


def _other_framework(folder: Path) -> str | None:
    """Describe weights of the right model for another program."""
    with_four = 'with transformers 4, which still reads them: AutoModel.from_pretrained("{}", {}=True).save_pretrained'
    if _matching(folder, "tf_model*.h5"):
        how = with_four.format(folder, "from_tf")
        return f"The weights are for TensorFlow (tf_model.h5): convert them {how}(...)"
    if _matching(folder, "flax_model*.msgpack"):
        how = with_four.format(folder, "from_flax")
        return f"The weights are for Flax (flax_model.msgpack): convert them {how}(...)"
    if files := _matching(folder, "*.gguf"):
        return f"{files[0].name} is in the format of llama.cpp, which is not read: take the model it was made from"
    if files := _matching(folder, "*.onnx") or _matching(folder, "onnx/*.onnx"):
        return (
            f"{files[0]} is an ONNX file, which qdq inspect and qdq benchmark take; all else needs the weights that it "
            "was made from"
        )
    if _matching(folder, "openvino_model.bin"):
        return "The weights are for OpenVINO: calibration and export need those they were made from"
    return None


def _other_weights(folder: Path) -> str | None:
    """Describe weights under a name that nobody looks for."""
    endings = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
    optimizer = ("optimizer", "scheduler", "rng_state", "training_args", "scaler", "adapter_model", "random_states")
    files = [
        path
        for path in _children(folder)
        if path.suffix in endings and path.is_file() and not path.name.startswith(optimizer)
    ]
    if not files:
        return None
    if any("-of-" in path.name for path in files):
        index = f"{files[0].name.partition('-')[0]}{files[0].suffix}.index.json"
        return f"There are shards ({files[0].name}, ...), but not the index that lists them: copy {index} too"
    named = "model.safetensors" if files[0].suffix == ".safetensors" else "pytorch_model.bin"
    several = f" (or another of {len(files)} such files)" if len(files) > 1 else ""
    return f"If {files[0].name}{several} holds the weights, rename it to {named}"


def _weights_alone(folder: Path) -> str | None:
    found = [*_matching(folder, "model*.safetensors"), *_matching(folder, "pytorch_model*.bin")]
    if not found:
        return None
    if old := _matching(folder, "*bert_config.json"):
        return f"Rename {old[0].name}, as old releases call it, to config.json, and add its model_type to it"
    return f"The weights are there ({found[0].name}): copy the config.json that belongs to them"


def _no_plain_file(folder: Path, names: Sequence[str]) -> str | None:
    """Describe weights whose name is there, but is no file."""
    for name in names:
        path = folder / name
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to {path.readlink()}, which does not exist: download the model again"
        if path.is_dir():
            return f"{path} is a directory, not a file: if the weights lie in it, move them here"
    return None


_KINDS: tuple[Callable[[Path], str | None], ...] = (
    _empty,
    _hub_cache,
    _adapter,
    _tensorflow,
    _megatron,
    _distributed,
    _models_inside,
    _weights_alone,
    _other_framework,
)


# --- looking into folders ---


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _matching(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def _texts_in(folder: Path) -> Iterator[str]:
    """Yield the texts of the files in a folder, ``main`` first."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    for path in sorted(files, key=lambda path: (path.name != "main", path.name)):
        try:
            yield path.read_text("utf-8").strip()
        except (OSError, ValueError):
            continue


def _json_or_empty(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one: a diagnosis does not fail on a damaged file."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
