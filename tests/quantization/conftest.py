"""Whole models that are wrapped, calibrated and quantizing, with inputs for each of their tasks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import calibration
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, Quantizer, set_mode
from qdq.quantization.spec import PerAxis, PerGroup, PerToken, QuantSpec
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import Recipe, Rule
from tests.models.support import SmallModels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qdq.models.model import Model

    Duplicate = Callable[[nn.Module], Any]
    """A way to copy a module."""

SpecPair = tuple[QuantSpec, QuantSpec]
"""The specs of activations and of weights."""

STATIC: SpecPair = (QuantSpec(), QuantSpec(granularity=PerAxis(0)))
GROUPED: SpecPair = (QuantSpec(signed=False, symmetric=False), QuantSpec(bits=4, granularity=PerGroup(7)))
DYNAMIC: SpecPair = (QuantSpec(dynamic=True, granularity=PerToken()), QuantSpec(granularity=PerAxis(0)))
LEARNED: SpecPair = (QuantSpec(learned_scale=True), QuantSpec(learned_scale=True, granularity=PerAxis(0)))
SPEC_PAIRS: dict[str, SpecPair] = {"static": STATIC, "grouped": GROUPED, "dynamic": DYNAMIC, "learned": LEARNED}


@pytest.fixture(params=SPEC_PAIRS)
def kind(request: pytest.FixtureRequest) -> SpecPair:
    """Specs that are calibrated, in groups, dynamic, or trained."""
    return SPEC_PAIRS[request.param]


class Pass(NamedTuple):
    """One tensor that went through a quantizer: before, and after."""

    name: str
    quantizer: Quantizer
    x: Tensor
    y: Tensor


class QuantizedModels:
    """Makes wrapped and quantizing models with inputs for their tasks, and observes what they compute."""

    def __init__(self) -> None:
        self._float = SmallModels()

    def model(self, model_type: str = "bert", task: str = "feature-extraction", **changes: Any) -> Model:
        """A float model in which no parameter is zero or one, always with the same numbers."""
        torch.manual_seed(0)
        fields = self._float.fields(model_type, **{"num_hidden_layers": 2, "initializer_range": 0.2, **changes})
        model = build(configure(model_type, **fields), task).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.3))
        return model

    def inputs(self, model_type: str = "bert", task: str = "feature-extraction") -> dict[str, Tensor]:
        """Padded ids, mask and token types, with what the task needs for a loss."""
        inputs: dict[str, Tensor] = self._float.inputs(task, self._float.fields(model_type))
        if task == "pre-training":
            name = "sentence_order_label" if model_type == "albert" else "next_sentence_label"
            inputs[name] = torch.tensor([0, 1, 1])
        if model_type == "realm":
            inputs = self._retrieval(task, inputs)
        return inputs

    def _retrieval(self, task: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(9)
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        both = {name: torch.stack([text, text.roll(1, 0)], dim=1) for name, text in texts.items()}
        if task == "scoring":
            return texts | {f"candidate_{name}": text for name, text in both.items()}
        if task == "masked-lm":
            return both | {"labels": inputs["labels"], "relevance_score": torch.randn(3, 2, generator=generator)}
        if task == "question-answering":
            evidence = torch.zeros_like(texts["input_ids"])
            evidence[:, 2:9] = 1
            return {name: text[:2] for name, text in texts.items()} | {
                "relevance_score": torch.randn(3, generator=generator),
                "block_mask": evidence,
                "start_positions": torch.tensor([[3, 4], [-1, -1], [2, -1]]),
                "end_positions": torch.tensor([[4, 6], [-1, -1], [2, -1]]),
                "has_answers": torch.tensor([True, False, True]),
            }
        return texts

    def unlabelled(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What of ``inputs`` every model of an encoder takes."""
        return {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids")}

    def recipe(self, activation: QuantSpec | None, weight: QuantSpec | None) -> Recipe:
        """A recipe for every slot of the encoder, with one spec for activations and one for weights."""
        rules = (
            Rule(module="encoder.*", kind="linear", slot="input", spec=activation),
            Rule(module="encoder.*", kind="linear", slot="weight", spec=weight),
            Rule(module="encoder.*", kind="matmul", slot="*", spec=activation),
            Rule(module="encoder.*", kind="add", slot="*", spec=activation),
        )
        return Recipe(name="whole", rules=rules)

    def quantized(self, recipe: Recipe | str = "qdqbert", *args: str, **changes: Any) -> Model:
        """A model that quantizes, calibrated with :meth:`inputs`."""
        model = self.model(*args, **changes)
        quantize(model, recipe)
        calibration.calibrate(model, [self.inputs(*args)])
        set_mode(model, Mode.QUANTIZE)
        return model

    def specified(self, activation: QuantSpec | None, weight: QuantSpec | None, *args: str, **changes: Any) -> Model:
        """A quantizing model with these specs everywhere."""
        return self.quantized(self.recipe(activation, weight), *args, **changes)

    @contextmanager
    def watched(self, model: nn.Module) -> Iterator[list[Pass]]:
        """Everything that goes through a quantizer with a spec, in its order; a shared result counts each time."""
        passes: list[Pass] = []
        names = {id(quantizer): f"{slot.module}.{slot.name}" for slot, quantizer in reversed([*named_slots(model)])}
        hooks = []
        for module in model.modules():
            if isinstance(module, Quantizer) and module.spec is not None:

                def take(quantizer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
                    assert isinstance(quantizer, Quantizer)
                    passes.append(Pass(names[id(quantizer)], quantizer, given[0].detach(), result.detach()))

                hooks.append(module.register_forward_hook(take))
        yield passes
        for hook in hooks:
            hook.remove()

    def leaves(self, output: Any) -> list[Tensor]:
        """All tensors of an output, however deep."""
        if isinstance(output, Tensor):
            return [output]
        if output is None:
            return []
        entries = output.to_tuple() if hasattr(output, "to_tuple") else output
        return [leaf for entry in entries for leaf in self.leaves(entry)]

    def scalar(self, output: Any) -> Tensor:
        """The loss, or for models without one something to differentiate that every output enters."""
        loss = getattr(output, "loss", None)
        if loss is not None:
            assert isinstance(loss, Tensor)
            return loss
        floating = [leaf for leaf in self.leaves(output) if leaf.requires_grad]
        return torch.stack([leaf.float().square().mean() for leaf in floating]).sum()

    def gradients(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Gradients of :meth:`scalar` by the names of the parameters; those that get none are left out."""
        model.zero_grad()
        self.scalar(model(**inputs)).backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found


@pytest.fixture(scope="session")
def quantized_models() -> QuantizedModels:
    return QuantizedModels()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The processor, and with ``-m gpu`` the accelerator."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """These models are too small for two threads, which then only wait for each other."""
    torch.set_num_threads(1)
