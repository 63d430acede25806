"""Wrapped models under all that torch does with a model: types, autocast, compilers, copies, threads, memory."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from torch import nn

    from qdq.models.model import Model
    from tests.quantization.conftest import Duplicate, QuantizedModels, SpecPair

MASKED = ("bert", "masked-lm")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("static", "grouped", "dynamic")]


def on(device: torch.device, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def logits(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = model(**inputs).logits
    assert isinstance(found, Tensor)
    return found


def assert_same_gradients(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want)
    assert got
    assert all(torch.equal(got[name], gradient) for name, gradient in want.items())


# --- types ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_scales_and_trains(
    dtype: torch.dtype, kind: SpecPair, device: torch.device, quantized_models: QuantizedModels
) -> None:
    model = quantized_models.specified(*kind, *MASKED)
    scales = {name: q.scale.detach().clone() for name, q in quantizers(model) if hasattr(q, "scale")}
    model.to(device, dtype)
    inputs = on(device, quantized_models.inputs(*MASKED))
    for name, quantizer in quantizers(model):
        if name in scales:
            assert quantizer.scale.dtype == torch.float32
            assert torch.equal(quantizer.scale.cpu(), scales[name]), name
    output = model(**inputs)
    assert output.logits.dtype == dtype
    gradients = quantized_models.gradients(model, inputs)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert {g.dtype for name, g in gradients.items() if name.endswith("_quantizer.scale")} <= {torch.float32}
    assert {g.dtype for name, g in gradients.items() if not name.endswith("_quantizer.scale")} == {dtype}


def test_autocast(kind: SpecPair, device: torch.device, quantized_models: QuantizedModels) -> None:
    """Products are in bfloat16, as in the float model; grids and gradients of the scales stay float32."""
    model, inputs = quantized_models.specified(*kind, *MASKED).to(device), on(device, quantized_models.inputs(*MASKED))
    plain = quantized_models.model(*MASKED).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        want = plain(**inputs)
        got = model(**inputs)
    assert got.logits.dtype == want.logits.dtype == torch.bfloat16
    exact = logits(model, inputs)
    error = (got.logits.detach().float() - exact).abs().mean()
    assert float(error) < 0.1 * float(exact.std()), "bfloat16 has 8 bits"
    with torch.autocast(device.type, torch.bfloat16):
        gradients = quantized_models.gradients(model, inputs)
    assert set(gradients) == set(quantized_models.gradients(model, inputs))
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_float64_model_quantizes_in_float32(quantized_models: QuantizedModels) -> None:
    model, inputs = quantized_models.quantized("qdqbert", *MASKED), quantized_models.inputs(*MASKED)
    want = logits(model, inputs)
    got = logits(model.double(), inputs)
    assert got.dtype == torch.float64
    assert {q.scale.dtype for _, q in quantizers(model) if q.spec} == {torch.float32}
    assert float((got - want).abs().mean()) < 0.02 * float(want.std())


# --- compilers ---


@pytest.mark.parametrize("kind", ["learned", *SLOW], indirect=True)
def test_compiled_equals_eager(kind: SpecPair, device: torch.device, quantized_models: QuantizedModels) -> None:
    """aot_eager takes forward and backward apart and runs the same kernels: the same bits."""
    model, inputs = (
        quantized_models.specified(*kind, *MASKED, num_hidden_layers=1).to(device),
        quantized_models.inputs(*MASKED),
    )
    inputs = on(device, inputs)
    want, gradients = logits(model, inputs), quantized_models.gradients(model, inputs)
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        output = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs)
        output.loss.backward()
    assert torch.equal(output.logits, want)
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(gradients)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiled_by_inductor_differs_by_flips_alone(
    kind: SpecPair, device: torch.device, quantized_models: QuantizedModels
) -> None:
    """Fused kernels round in another order: an integer may flip by one step, and no more of them than a few."""
    model = quantized_models.specified(*kind, *MASKED, num_hidden_layers=1).to(device)
    inputs = on(device, quantized_models.inputs(*MASKED))
    want, gradients = logits(model, inputs), quantized_models.gradients(model, inputs)
    torch.compiler.reset()
    compiled = torch.compile(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        output = compiled(**inputs)
        output.loss.backward()
    got = output.logits.detach()
    spread = float(want.std())
    assert float((got - want).abs().median()) < 1e-5 * spread, "most positions saw no flip"
    assert float((got - want).abs().max()) < 0.2 * spread
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            difference = float((parameter.grad - gradients[name]).norm())
            assert difference <= 0.05 * float(gradients[name].norm()) + 1e-6, name


def test_exported_equals_eager(kind: SpecPair, quantized_models: QuantizedModels) -> None:
    model, inputs = (
        quantized_models.specified(*kind, *MASKED),
        quantized_models.unlabelled(quantized_models.inputs(*MASKED)),
    )
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", min=2, max=40)}
    with torch.no_grad():
        program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, axes), strict=False)
        module = program.module()
        for rows, length in ((3, 12), (2, 5)):
            part = {name: tensor[:rows, :length].contiguous() for name, tensor in inputs.items()}
            assert torch.equal(module(**part).logits, model(**part).logits)
    names = [str(node.target) for node in program.graph.nodes]
    assert any("qdq" in name and "fake_quantize" in name for name in names)


# --- copies ---


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved], ids=["deepcopy", "pickle", "torch.save"])
def test_copy_after_a_training_step_is_equal_and_independent(
    kind: SpecPair, duplicate: Duplicate, quantized_models: QuantizedModels
) -> None:
    model, inputs = quantized_models.specified(*kind, *MASKED).train(), quantized_models.inputs(*MASKED)
    model(**inputs).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model(**inputs)  # a graph whose backward pass has not run
    copied = duplicate(model)
    want = logits(model, inputs)
    assert torch.equal(logits(copied, inputs), want)
    assert copied.training
    attention = copied.encoder.layers[0].attention
    assert attention.query.input_quantizer is attention.key.input_quantizer is attention.value.input_quantizer
    assert copied.head.decoder.weight is copied.embeddings.word.weight
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert_same_gradients(quantized_models.gradients(copied, inputs), quantized_models.gradients(model, inputs))
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(1.5)
    assert torch.equal(logits(model, inputs), want)


def test_state_dict_round_trip(kind: SpecPair, quantized_models: QuantizedModels) -> None:
    model, inputs = quantized_models.specified(*kind, *MASKED), quantized_models.inputs(*MASKED)
    other = quantized_models.model(*MASKED)
    quantize(other, quantized_models.recipe(*kind))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert other.load_state_dict(state, strict=True).missing_keys == []
    set_mode(other, Mode.QUANTIZE)
    assert torch.equal(logits(other, inputs), logits(model, inputs))
    learned = [name for name, _ in model.named_parameters() if name.endswith(".scale")]
    assert bool(learned) is kind[0].learned_scale
    assert set(learned) <= set(state)


def test_moved_there_and_back(device: torch.device, quantized_models: QuantizedModels) -> None:
    model, inputs = quantized_models.quantized("qdqbert", *MASKED), quantized_models.inputs(*MASKED)
    want = logits(model, inputs)
    model.to(device)
    assert {t.device.type for t in model.state_dict().values()} == {device.type}
    got = logits(model, on(device, inputs)).cpu()
    assert float((got - want).abs().mean()) < 0.02 * float(want.std())
    assert torch.equal(logits(model.cpu(), inputs), want)


# --- training ---


@pytest.mark.parametrize("model_type", ["bert", "qdqbert", "megatron-bert", "roberta-prelayernorm"])
def test_gradient_checkpointing_gives_the_same_bits(
    kind: SpecPair, model_type: str, device: torch.device, quantized_models: QuantizedModels
) -> None:
    model = quantized_models.specified(*kind, model_type, "masked-lm", hidden_dropout_prob=0.1).to(device).train()
    inputs = on(device, quantized_models.inputs(model_type, "masked-lm"))
    torch.manual_seed(3)
    want = quantized_models.gradients(model, inputs)
    model.gradient_checkpointing_enable()
    torch.manual_seed(3)
    assert_same_gradients(quantized_models.gradients(model, inputs), want)


def test_gradients_accumulate_over_calls(
    kind: SpecPair, device: torch.device, quantized_models: QuantizedModels
) -> None:
    model, inputs = (
        quantized_models.specified(*kind, *MASKED).to(device).train(),
        on(device, quantized_models.inputs(*MASKED)),
    )
    once = quantized_models.gradients(model, inputs)
    for _ in range(2):
        model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        if name in once:
            assert torch.equal(parameter.grad, once[name] + once[name]), name
    model.zero_grad()
    first, second = model(**inputs).loss, model(**inputs).loss  # two graphs alive at once
    (first + second).backward()
    for name, parameter in model.named_parameters():
        if name in once:
            torch.testing.assert_close(parameter.grad, once[name] * 2, rtol=1e-5, atol=1e-7)


def test_results_follow_the_parameters(kind: SpecPair, quantized_models: QuantizedModels) -> None:
    """Nothing that was computed before a step is given out after it."""
    model, inputs = quantized_models.specified(*kind, *MASKED).train(), quantized_models.inputs(*MASKED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    assert torch.equal(logits(model, inputs), logits(copy.deepcopy(model), inputs))


# --- threads ---


def test_threads_share_one_model(kind: SpecPair, device: torch.device, quantized_models: QuantizedModels) -> None:
    model = quantized_models.specified(*kind, *MASKED).to(device)
    batches = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        batches.append({"input_ids": torch.randint(4, 83, (2, 6 + seed), generator=generator).to(device)})
    want = [logits(model, batch) for batch in batches]
    wrong: list[str] = []
    start = threading.Barrier(len(batches))

    def work(index: int) -> None:
        torch.set_num_threads(1)
        start.wait()
        for _ in range(8):
            if not torch.equal(logits(model, batches[index]), want[index]):
                wrong.append(f"batch {index}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- memory ---


def watch_activations(model: nn.Module) -> list[weakref.ref[Tensor]]:
    """Weak references to the output of every module, filled by the next call."""
    alive: list[weakref.ref[Tensor]] = []

    def note(module: nn.Module, given: tuple[object, ...], result: object) -> None:
        if isinstance(result, Tensor):
            alive.append(weakref.ref(result))

    for module in model.modules():
        module.register_forward_hook(note)
    return alive


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_training_step_keeps_no_activation_alive(
    kind: SpecPair, checkpointing: bool, quantized_models: QuantizedModels
) -> None:
    model, inputs = quantized_models.specified(*kind, *MASKED).train(), quantized_models.inputs(*MASKED)
    if checkpointing:
        model.gradient_checkpointing_enable()
    alive = watch_activations(model)
    output = model(**inputs)
    output.loss.backward()
    assert len(alive) > 50
    del output
    gc.collect()
    parameters = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    left = [ref() for ref in alive if ref() is not None and id(ref()) not in parameters]
    assert left == []


def test_evaluation_keeps_no_activation_alive(kind: SpecPair, quantized_models: QuantizedModels) -> None:
    model, inputs = quantized_models.specified(*kind, *MASKED), quantized_models.inputs(*MASKED)
    alive = watch_activations(model)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            model(**inputs)
    gc.collect()
    parameters = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    assert [ref for ref in alive if ref() is not None and id(ref()) not in parameters] == []
