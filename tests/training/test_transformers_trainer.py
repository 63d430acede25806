"""Our models train under ``transformers.Trainer`` as they are, with its own defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.models.task_models import PreTraining, QuestionAnswering, SequenceClassification
from qdq.training.quantization import ready_for_training

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.models.model import Model
    from tests.training.conftest import ToyTask

SLOW = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


def trainer_for(toy: ToyTask, model: Model, folder: Path, **changes: Any) -> Any:
    """A Trainer whose rows have a column that the model does not take."""
    transformers = pytest.importorskip("transformers")
    rows = [{name: t[i] for name, t in batch.items()} | {"line": i} for batch in toy.batches() for i in range(8)]
    arguments = transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        save_steps=8,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **changes,
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("kind", ["learned", pytest.param("float", marks=SLOW), pytest.param("fixed", marks=SLOW)])
def test_trainer_takes_the_loss_from_our_outputs(toy: ToyTask, kind: str, tmp_path: Path) -> None:
    model = toy.model() if kind == "float" else toy.quantized_model()
    if kind == "learned":
        ready_for_training(model, learned=True)
    trainer = trainer_for(toy, model, tmp_path / "out", num_train_epochs=8)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5
    predictions = trainer.predict(trainer.eval_dataset).predictions.argmax(-1)
    right = torch.tensor(predictions) == torch.stack([row["labels"] for row in trainer.eval_dataset])
    assert float(right.float().mean()) > 0.8
    assert float(right.float().mean()) == pytest.approx(toy.accuracy(model.eval())["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["albert", "learned"])
def test_trainer_resumes_from_what_it_saved(toy: ToyTask, kind: str, tmp_path: Path) -> None:
    def fresh() -> Model:
        if kind == "albert":
            return toy.model("albert", embedding_size=8)
        model = toy.quantized_model()
        ready_for_training(model, learned=True)
        return model

    whole, resumed = fresh(), fresh()
    trainer_for(toy, whole, tmp_path / "out", num_train_epochs=3).train()
    saved = tmp_path / "out" / "checkpoint-16"
    trainer_for(toy, resumed, tmp_path / "again", num_train_epochs=3).train(resume_from_checkpoint=str(saved))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (SequenceClassification, ["labels"]),
        (QuestionAnswering, ["start_positions", "end_positions"]),
        (PreTraining, ["labels", "next_sentence_label"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_labels_are_found_by_their_names(model: type, names: list[str]) -> None:
    generic = pytest.importorskip("transformers.utils.generic")
    assert generic.find_labels(model) == names


def test_no_two_names_of_a_state_share_a_tensor(toy: ToyTask) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    models = [toy.model("albert", embedding_size=8), toy.model(task="masked-lm"), toy.quantized_model()]
    for model in models:
        state = model.state_dict()
        found = safetensors.load(safetensors.save(state))
        assert found.keys() == state.keys() == model.state_dict(keep_vars=True).keys()
        model.load_state_dict({name: tensor + 1 for name, tensor in found.items()})
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, found[name] + 1), name
