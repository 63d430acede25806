"""Make the golden file of tests/retrieval from RealmForOpenQA and RealmRetriever of transformers 4.40.2.

    python -m venv golden && golden/bin/pip install torch 'transformers==4.40.2'
    golden/bin/python tools/golden_realm.py tests/retrieval/golden

The folder gets a random tiny model (``model.safetensors`` with ``config.json``, ``vocab.txt``), its records
(``records.jsonl``) and ``golden.safetensors``: for every question, in eval and in train mode, what the retriever
returns, the reader's output, the losses, and the gradients of the loss.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.models.realm import RealmConfig, RealmTokenizerFast
from transformers.models.realm.modeling_realm import RealmForOpenQA
from transformers.models.realm.retrieval_realm import RealmRetriever

WORDS = """the a of in is was first second third fourth longer record this test question who what where when invented
telephone light bulb city river capital country king queen war year born died wrote book play song by and to"""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
QUESTIONS = {
    "invented": ("Who invented the telephone?", ["a", "the light bulb", "city"]),
    "capital": ("What is the capital of the country?", ["the", "river city"]),
    "record": ("Test question", ["the fourth", "longer longer"]),
    "nothing": ("When was the king born?", ["zzz"]),
}


def records(count: int) -> list[str]:
    rng = np.random.default_rng(1)
    words = WORDS.split()
    found = ["This is the first record", "This is the fourth record", "This is a longer longer longer record"]
    found += [
        "Bell invented the telephone",
        "The light bulb was invented by a king",
        "The capital city is a river city.",
    ]
    while len(found) < count:
        found.append(" ".join(rng.choice(words, size=int(rng.integers(4, 30)))))
    return found


def make_model(folder: Path) -> tuple[RealmForOpenQA, RealmTokenizerFast]:
    """Write a random tiny model with its vocabulary and records, and return it with its tokenizer."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), "?", ".", ","]
    vocabulary = list(dict.fromkeys([*vocabulary, *WORDS.split()]))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = RealmTokenizerFast(str(folder / "vocab.txt"))
    texts = records(40)
    (folder / "records.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    blocks = np.array([text.encode() for text in texts], dtype=object)
    config = RealmConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=20,
        max_position_embeddings=64,
        initializer_range=0.3,
        retriever_proj_size=6,
        span_hidden_size=5,
        max_span_width=4,
        reader_beam_size=3,
        reader_seq_len=40,
        num_block_records=len(texts),
        searcher_beam_size=7,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = RealmForOpenQA(config, RealmRetriever(blocks, tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        model.block_emb.copy_(torch.randn_like(model.block_emb))
        # Scores of texts that are far apart: the same order wherever they are computed.
        model.block_emb.copy_(model.block_emb * torch.linspace(0.5, 1.5, len(texts))[:, None])
    state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    written = config.to_diff_dict() | {"model_type": "realm", "architectures": ["RealmForOpenQA"]}
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    return model, tokenizer


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, tokenizer = make_model(folder)
    tensors: dict[str, torch.Tensor] = {}
    about = {}
    for name, (question, answers) in QUESTIONS.items():
        given = tokenizer([question], return_tensors="pt")
        answer_ids = tokenizer(answers, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        about[name] = json.dumps({"question": question, "answers": answers, "answer_ids": answer_ids})
        for mode in ("eval", "train"):
            model.train(mode == "train")
            model.zero_grad()
            seen = {}
            retriever = model.retriever

            def spy(ids, *args, seen=seen, retriever=retriever, **kwargs):
                seen["found"] = (ids, retriever(ids, *args, **kwargs))
                return seen["found"][1]

            model.retriever = spy
            output = model(**given, answer_ids=answer_ids)
            model.retriever = retriever
            ids, (has_answers, starts, ends, inputs) = seen["found"]
            where = f"{name}:{mode}:"
            tensors[f"{where}retrieved"] = torch.as_tensor(ids)
            tensors[f"{where}has_answers"] = torch.tensor(has_answers)
            tensors[f"{where}start_positions"] = torch.tensor(starts)
            tensors[f"{where}end_positions"] = torch.tensor(ends)
            for key in ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask"):
                tensors[f"{where}{key}"] = inputs[key].clone()
            for key, value in output.reader_output.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{where}reader:{key}"] = value.detach().clone()
            tensors[f"{where}predicted_answer_ids"] = output.predicted_answer_ids.clone()
            if bool(torch.isfinite(output.reader_output.loss)):
                output.reader_output.loss.backward()
                for key in ("embedder.cls.dense.weight", "reader.qa_outputs.dense_intermediate.weight",
                            "embedder.realm.embeddings.word_embeddings.weight"):  # fmt: skip
                    gradient = model.get_parameter(key).grad
                    if gradient is not None:
                        tensors[f"{where}grad:{key}"] = gradient.clone()
            print(name, mode, ids.tolist(), output.reader_output.loss.item(), bool(torch.tensor(has_answers).any()))
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, folder / "golden.safetensors", metadata=about
    )


if __name__ == "__main__":
    main()
