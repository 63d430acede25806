"""Make the golden files of tests/interop/tensorflow: true checkpoints, and what transformers 4.40.2 makes of them.

    python -m venv golden && golden/bin/pip install torch 'transformers==4.40.2' tensorflow-cpu
    golden/bin/python tools/golden_tensorflow.py tests/interop/tensorflow

Each folder holds a random tiny checkpoint that TensorFlow wrote, its configuration, and ``golden.safetensors``: the
variables (``variable:``), an input (``in:``) and the outputs of transformers' model, which its own loader filled
(``out:``).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
import torch
from safetensors.torch import save_file
from transformers import AlbertConfig, AlbertForPreTraining, BertConfig, BertForPreTraining
from transformers.models.albert.modeling_albert import load_tf_weights_in_albert
from transformers.models.bert.modeling_bert import load_tf_weights_in_bert
from transformers.models.realm import RealmConfig
from transformers.models.realm.modeling_realm import (
    RealmEmbedder,
    RealmKnowledgeAugEncoder,
    RealmReader,
    load_tf_weights_in_realm,
)

H, INNER, VOCAB, POSITIONS, LAYERS, NARROW = 16, 24, 30, 16, 2, 8
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": H,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
}
REALM = {
    "retriever_proj_size": 6,
    "num_candidates": 2,
    "span_hidden_size": 5,
    "max_span_width": 3,
    "reader_beam_size": 2,
}
Shapes = dict[str, tuple[int, ...]]


def norm(scope: str, width: int = H) -> Shapes:
    return {f"{scope}/gamma": (width,), f"{scope}/beta": (width,)}


def dense(scope: str, given: int = H, taken: int = H) -> Shapes:
    return {f"{scope}/kernel": (given, taken), f"{scope}/bias": (taken,)}


def embeddings(scope: str, width: int = H) -> Shapes:
    sizes = {"word": VOCAB, "position": POSITIONS, "token_type": 2}
    return {f"{scope}/{name}_embeddings": (rows, width) for name, rows in sizes.items()} | norm(
        f"{scope}/LayerNorm", width
    )


def bert(scope: str) -> Shapes:
    found = embeddings(f"{scope}/embeddings") | dense(f"{scope}/pooler/dense")
    for index in range(LAYERS):
        layer = f"{scope}/encoder/layer_{index}"
        for name in ("query", "key", "value"):
            found |= dense(f"{layer}/attention/self/{name}")
        found |= dense(f"{layer}/attention/output/dense") | norm(f"{layer}/attention/output/LayerNorm")
        found |= dense(f"{layer}/intermediate/dense", H, INNER) | dense(f"{layer}/output/dense", INNER, H)
        found |= norm(f"{layer}/output/LayerNorm")
    return found


def predictions(scope: str, width: int = H) -> Shapes:
    return {
        **dense(f"{scope}/transform/dense", H, width),
        **norm(f"{scope}/transform/LayerNorm", width),
        f"{scope}/output_bias": (VOCAB,),
    }


def relation(scope: str) -> Shapes:
    return {f"{scope}/output_weights": (2, H), f"{scope}/output_bias": (2,)}


def albert() -> Shapes:
    found = embeddings("bert/embeddings", NARROW) | dense("bert/encoder/embedding_hidden_mapping_in", NARROW, H)
    layer = "bert/encoder/transformer/group_0/inner_group_0"
    for name in ("query", "key", "value"):
        found |= dense(f"{layer}/attention_1/self/{name}")
    found |= dense(f"{layer}/attention_1/output/dense") | norm(f"{layer}/LayerNorm") | norm(f"{layer}/LayerNorm_1")
    found |= dense(f"{layer}/ffn_1/intermediate/dense", H, INNER)
    found |= dense(f"{layer}/ffn_1/intermediate/output/dense", INNER, H)
    return (
        found | dense("bert/pooler/dense") | predictions("cls/predictions", NARROW) | relation("cls/seq_relationship")
    )


def retriever() -> Shapes:
    """Write the embedder of a fine-tuned model, with a reader beside it."""
    found = bert("module/module/module/module/bert") | predictions("module/module/module/module/cls/predictions")
    found |= dense("module/module/module/dense", H, 6) | norm("module/module/module/LayerNorm", 6)
    found |= bert("reader/module/bert") | predictions("reader/module/cls/predictions")
    found |= dense("reader/dense", H, 10) | dense("reader/dense_1", 5, 1) | norm("reader/layer_normalization", 5)
    return found


CASES: dict[str, tuple[Shapes, Any, dict[str, Any], Any]] = {
    "bert": (bert("bert") | predictions("cls/predictions") | relation("cls/seq_relationship"),
             BertConfig, {}, {"pre-training": (BertForPreTraining, load_tf_weights_in_bert)}),
    "albert": (albert(), AlbertConfig, {"embedding_size": NARROW, "num_hidden_groups": 1, "inner_group_num": 1},
               {"pre-training": (AlbertForPreTraining, load_tf_weights_in_albert)}),
    "realm-openqa": (retriever(), RealmConfig, REALM,
                     {"retrieval": (RealmEmbedder, load_tf_weights_in_realm),
                      "question-answering": (RealmReader, load_tf_weights_in_realm)}),
    "realm-encoder": (bert("bert") | predictions("cls/predictions"), RealmConfig, REALM,
                      {"masked-lm": (RealmKnowledgeAugEncoder, load_tf_weights_in_realm)}),
}  # fmt: skip


def write(folder: Path, variables: dict[str, np.ndarray]) -> None:
    """Write a checkpoint of TensorFlow 1, as Google published them, with the optimizer's state of one variable."""
    graph = tf.Graph()
    with graph.as_default():
        made = [tf.compat.v1.get_variable(name, initializer=value) for name, value in variables.items()]
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            saver = tf.compat.v1.train.Saver(made)
            saver.save(session, str(folder / "model.ckpt"), write_meta_graph=False, write_state=False)


def main() -> None:
    target = Path(sys.argv[1])
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, (shapes, config_class, own, models) in CASES.items():
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        variables = {key: (rng.normal(size=shape) * 0.3).astype("float32") for key, shape in shapes.items()}
        variables |= {key: 1 + value for key, value in variables.items() if key.endswith("gamma")}
        first = next(iter(variables))
        slots = {f"{first}/adam_m": variables[first] * 0, "global_step": np.array(7, dtype="int64")}
        write(folder, variables | slots)
        fields = {**SIZES, **own, "model_type": config_class.model_type}
        written = {key: value for key, value in fields.items() if key != "model_type" or name.startswith("realm")}
        (folder / f"{'albert' if name == 'albert' else 'bert'}_config.json").write_text(json.dumps(written, indent=1))

        tensors = {f"variable:{key}": torch.from_numpy(value) for key, value in (variables | slots).items()}
        batch = {
            "input_ids": torch.randint(1, VOCAB, (2, 9)),
            "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
            "token_type_ids": torch.tensor([[0] * 4 + [1] * 5] * 2),
        }
        tensors |= {f"in:{key}": value for key, value in batch.items()}
        for task, (cls, loader) in models.items():
            config = config_class(**{key: value for key, value in fields.items() if key != "model_type"})
            with tempfile.TemporaryDirectory() as own_part:  # upstream's loader stumbles over the reader's variables
                chosen = {k: v for k, v in variables.items() if task != "retrieval" or not k.startswith("reader/")}
                write(Path(own_part), chosen)
                model = loader(cls(config), config, f"{own_part}/model.ckpt").eval()
            inputs = dict(batch)
            if task == "question-answering":
                inputs |= {"relevance_score": torch.tensor([0.3, 0.7]), "block_mask": batch["token_type_ids"]}
            if task == "masked-lm" and name.startswith("realm"):
                inputs = {key: value[None] for key, value in batch.items()}
            with torch.no_grad():
                output = model(**inputs)
                hidden = model.base_model(**batch).last_hidden_state
            tensors |= {f"out:{task}:{key}": value.contiguous().clone() for key, value in output.items()}
            tensors[f"out:{task}:encoder"] = hidden.contiguous().clone()
        save_file(tensors, folder / "golden.safetensors")
        print(name, len(variables), sum(file.stat().st_size for file in folder.iterdir()))


def write_objects(folder: Path) -> None:
    """Write an object-based checkpoint of TensorFlow 2, which has no names of BERT's."""
    folder.mkdir(parents=True, exist_ok=True)
    module = tf.Module()
    module.kernel, module.bias = tf.Variable(np.zeros((4, 4), np.float32)), tf.Variable(np.zeros(4, np.float32))
    tf.train.Checkpoint(model=module).write(str(folder / "bert_model.ckpt"))
    (folder / "bert_config.json").write_text(json.dumps(SIZES))


if __name__ == "__main__":
    main()
    write_objects(Path(sys.argv[1]) / "objects")
