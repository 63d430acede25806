"""Our models train under ``transformers.Trainer`` as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.training.quantization import ready_for_training

if TYPE_CHECKING:
    from pathlib import Path

SLOW = pytest.mark.slow


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", ["learned", pytest.param("float", marks=SLOW), pytest.param("fixed", marks=SLOW)])
def test_trainer_takes_the_loss_from_our_outputs(kit: Any, kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = kit.model() if kind == "float" else kit.quantized()
    if kind == "learned":
        ready_for_training(model, learned=True)
    rows = [{name: tensor[i] for name, tensor in batch.items()} for batch in kit.batches() for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"),
        per_device_train_batch_size=8,
        num_train_epochs=8,
        learning_rate=1e-2,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=1,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5
    predictions = trainer.predict(rows).predictions.argmax(-1)
    right = torch.tensor(predictions) == torch.stack([row["labels"] for row in rows])
    assert float(right.float().mean()) > 0.8
    assert float(right.float().mean()) == pytest.approx(kit.accuracy(model.eval())["accuracy"])
