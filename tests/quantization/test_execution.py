"""Wrapped models under all that torch does with a model: types, autocast, compilers, copies, threads, memory."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.quantization.spec import PerAxis, PerGroup, PerToken, QuantSpec
from qdq.recipes.apply import quantize

# Activations and weights: what is stored, what is found in every call, what is trained.
STATIC = (QuantSpec(), QuantSpec(granularity=PerAxis(0)))
GROUPED = (QuantSpec(signed=False, symmetric=False), QuantSpec(bits=4, granularity=PerGroup(7)))
DYNAMIC = (QuantSpec(dynamic=True, granularity=PerToken()), QuantSpec(granularity=PerAxis(0)))
LEARNED = (QuantSpec(learned_scale=True), QuantSpec(learned_scale=True, granularity=PerAxis(0)))
KINDS = [
    pytest.param(STATIC, id="static"),
    pytest.param(GROUPED, id="grouped"),
    pytest.param(DYNAMIC, id="dynamic"),
    pytest.param(LEARNED, id="learned"),
]
SLOW_TO_COMPILE = [
    pytest.param(kind, id=name, marks=pytest.mark.slow)
    for name, kind in (("static", STATIC), ("grouped", GROUPED), ("dynamic", DYNAMIC))
]
MASKED = ("bert", "masked-lm")


def on(device: torch.device, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found = model(**inputs).logits
    assert isinstance(found, Tensor)
    return found


def assert_same_gradients(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert list(got) == list(want)
    assert got
    assert all(torch.equal(got[name], gradient) for name, gradient in want.items())


# --- types ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_scales_and_trains(
    dtype: torch.dtype, kind: Any, device: torch.device, workshop: Any
) -> None:
    model = workshop.specified(*kind, *MASKED)
    scales = {name: q.scale.detach().clone() for name, q in quantizers(model) if hasattr(q, "scale")}
    model.to(device, dtype)
    inputs = on(device, workshop.inputs(*MASKED))
    for name, quantizer in quantizers(model):
        if name in scales:
            assert quantizer.scale.dtype == torch.float32
            assert torch.equal(quantizer.scale.cpu(), scales[name]), name
    output = model(**inputs)
    assert output.logits.dtype == dtype
    gradients = workshop.gradients(model, inputs)
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert {g.dtype for name, g in gradients.items() if name.endswith("_quantizer.scale")} <= {torch.float32}
    assert {g.dtype for name, g in gradients.items() if not name.endswith("_quantizer.scale")} == {dtype}


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: Any, device: torch.device, workshop: Any) -> None:
    """Products are in bfloat16, as in the float model; grids and gradients of the scales stay float32."""
    model, inputs = workshop.specified(*kind, *MASKED).to(device), on(device, workshop.inputs(*MASKED))
    plain = workshop.model(*MASKED).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        want = plain(**inputs)
        got = model(**inputs)
    assert got.logits.dtype == want.logits.dtype == torch.bfloat16
    exact = logits(model, inputs)
    error = (got.logits.detach().float() - exact).abs().mean()
    assert float(error) < 0.1 * float(exact.std()), "bfloat16 has 8 bits"
    with torch.autocast(device.type, torch.bfloat16):
        gradients = workshop.gradients(model, inputs)
    assert set(gradients) == set(workshop.gradients(model, inputs))
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_float64_model_quantizes_in_float32(workshop: Any) -> None:
    model, inputs = workshop.quantized("qdqbert", *MASKED), workshop.inputs(*MASKED)
    want = logits(model, inputs)
    got = logits(model.double(), inputs)
    assert got.dtype == torch.float64
    assert {q.scale.dtype for _, q in quantizers(model) if q.spec} == {torch.float32}
    assert float((got - want).abs().mean()) < 0.02 * float(want.std())


# --- compilers ---


@pytest.mark.parametrize("kind", [pytest.param(LEARNED, id="learned"), *SLOW_TO_COMPILE])
def test_compiled_equals_eager(kind: Any, device: torch.device, workshop: Any) -> None:
    """aot_eager takes forward and backward apart and runs the same kernels: the same bits."""
    model, inputs = workshop.specified(*kind, *MASKED, num_hidden_layers=1).to(device), workshop.inputs(*MASKED)
    inputs = on(device, inputs)
    want, gradients = logits(model, inputs), workshop.gradients(model, inputs)
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
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_by_inductor_differs_by_flips_alone(kind: Any, device: torch.device, workshop: Any) -> None:
    """Fused kernels round in another order: an integer may flip by one step, and no more of them than a few."""
    model = workshop.specified(*kind, *MASKED, num_hidden_layers=1).to(device)
    inputs = on(device, workshop.inputs(*MASKED))
    want, gradients = logits(model, inputs), workshop.gradients(model, inputs)
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


@pytest.mark.parametrize("kind", KINDS)
def test_exported_equals_eager(kind: Any, workshop: Any) -> None:
    model, inputs = workshop.specified(*kind, *MASKED), workshop.unlabelled(workshop.inputs(*MASKED))
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


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled, saved], ids=["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("kind", KINDS)
def test_copy_after_a_training_step_is_equal_and_independent(kind: Any, duplicate: Any, workshop: Any) -> None:
    model, inputs = workshop.specified(*kind, *MASKED).train(), workshop.inputs(*MASKED)
    model(**inputs).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    model(**inputs)  # a graph that nobody has used up
    twin = duplicate(model)
    want = logits(model, inputs)
    assert torch.equal(logits(twin, inputs), want)
    assert twin.training
    attention = twin.encoder.layers[0].attention
    assert attention.query.input_quantizer is attention.key.input_quantizer is attention.value.input_quantizer
    assert twin.head.decoder.weight is twin.embeddings.word.weight
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert_same_gradients(workshop.gradients(twin, inputs), workshop.gradients(model, inputs))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(logits(model, inputs), want)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_round_trip(kind: Any, workshop: Any) -> None:
    model, inputs = workshop.specified(*kind, *MASKED), workshop.inputs(*MASKED)
    other = workshop.model(*MASKED)
    quantize(other, workshop.recipe(*kind))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert other.load_state_dict(state, strict=True).missing_keys == []
    set_mode(other, Mode.QUANTIZE)
    assert torch.equal(logits(other, inputs), logits(model, inputs))
    learned = [name for name, _ in model.named_parameters() if name.endswith(".scale")]
    assert bool(learned) is (kind is LEARNED)
    assert set(learned) <= set(state)


def test_moved_there_and_back(device: torch.device, workshop: Any) -> None:
    model, inputs = workshop.quantized("qdqbert", *MASKED), workshop.inputs(*MASKED)
    want = logits(model, inputs)
    model.to(device)
    assert {t.device.type for t in model.state_dict().values()} == {device.type}
    got = logits(model, on(device, inputs)).cpu()
    assert float((got - want).abs().mean()) < 0.02 * float(want.std())
    assert torch.equal(logits(model.cpu(), inputs), want)


# --- training ---


@pytest.mark.parametrize("model_type", ["bert", "qdqbert", "megatron-bert", "roberta-prelayernorm"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_gives_the_same_bits(
    kind: Any, model_type: str, device: torch.device, workshop: Any
) -> None:
    model = workshop.specified(*kind, model_type, "masked-lm", hidden_dropout_prob=0.1).to(device).train()
    inputs = on(device, workshop.inputs(model_type, "masked-lm"))
    torch.manual_seed(3)
    want = workshop.gradients(model, inputs)
    model.gradient_checkpointing_enable()
    torch.manual_seed(3)
    assert_same_gradients(workshop.gradients(model, inputs), want)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_accumulate_over_calls(kind: Any, device: torch.device, workshop: Any) -> None:
    model, inputs = workshop.specified(*kind, *MASKED).to(device).train(), on(device, workshop.inputs(*MASKED))
    once = workshop.gradients(model, inputs)
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


@pytest.mark.parametrize("kind", KINDS)
def test_results_follow_the_parameters(kind: Any, workshop: Any) -> None:
    """Nothing that was computed before a step is given out after it."""
    model, inputs = workshop.specified(*kind, *MASKED).train(), workshop.inputs(*MASKED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    assert torch.equal(logits(model, inputs), logits(copy.deepcopy(model), inputs))


# --- threads ---


@pytest.mark.parametrize("kind", KINDS)
def test_threads_share_one_model(kind: Any, device: torch.device, workshop: Any) -> None:
    model = workshop.specified(*kind, *MASKED).to(device)
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


def watch_activations(model: Any) -> list[Any]:
    """Weak references to the output of every module, filled by the next call."""
    alive: list[Any] = []

    def note(module: Any, given: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            alive.append(weakref.ref(result))

    for module in model.modules():
        module.register_forward_hook(note)
    return alive


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_step_keeps_no_activation_alive(kind: Any, checkpointing: bool, workshop: Any) -> None:
    model, inputs = workshop.specified(*kind, *MASKED).train(), workshop.inputs(*MASKED)
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


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_keeps_no_activation_alive(kind: Any, workshop: Any) -> None:
    model, inputs = workshop.specified(*kind, *MASKED), workshop.inputs(*MASKED)
    alive = watch_activations(model)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            model(**inputs)
    gc.collect()
    parameters = {id(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    assert [ref for ref in alive if ref() is not None and id(ref()) not in parameters] == []
