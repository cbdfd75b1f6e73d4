from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oaem.calibration.artefacts import QuantizedState, to_dense
from oaem.errors import UserError
from oaem.models.load import load_model
from oaem.pv.loss import kl_divergence, kl_divergence_reference
from oaem.pv.optimizer import PVOptimizer
from oaem.pv.student import Student
from oaem.pv.teacher import Teacher, TeacherPlace
from oaem.quantization.weight import AdditiveWeight, dequantize, weight_gradients
from tests.unit.pv.toy import make_model, make_settings, make_state, make_tokens, quantise


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def _student(model: Path, **choices: bool) -> Student:
    return Student(model, make_state(model), torch.bfloat16, torch.float32, "cpu", **choices)


def test_starts_as_the_dequantised_model(model: Path) -> None:
    student, state = _student(model), make_state(model)
    for name, weight in state.linears.items():  # dequantise in float32, as the student does
        state.linears[name] = AdditiveWeight(weight.codes, weight.codebooks.float(), weight.row_scales.float())
    dense = to_dense(model, state, torch.float32, "cpu")
    tokens = make_tokens(1)
    with torch.no_grad():
        torch.testing.assert_close(student.model(tokens).logits, dense(tokens).logits, rtol=1e-5, atol=1e-5)


def test_everything_is_trainable_and_the_head_is_untied(model: Path) -> None:
    student = _student(model)
    embeddings = student.parameters["model.embed_tokens.weight"]
    assert student.head is student.parameters["lm_head.weight"]
    assert student.head.data_ptr() != embeddings.data_ptr() and torch.equal(student.head, embeddings)
    assert {parameter.dtype for parameter in student.model.parameters()} == {torch.float32}
    student.hidden(make_tokens(1)).sum().backward()
    for name, parameter in student.parameters.items():
        assert name == "lm_head.weight" or bool(parameter.grad.any()), name
    for name, linear in student.linears.items():
        assert bool(linear.weight_gradient.any()), name


def test_biases_are_trained_too(tmp_path: Path) -> None:
    folder = make_model(tmp_path, attention_bias=True)
    student = _student(folder)
    student.hidden(make_tokens(1)).square().sum().backward()
    bias = student.parameters["model.layers.1.self_attn.v_proj.bias"]
    assert bool(bias.grad.any())
    assert "model.layers.1.self_attn.v_proj.bias" in student.state().tensors


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_batch_equal_those_of_the_whole_graph(model: Path, checkpointing: bool) -> None:
    """Oracle: dequantise inside the graph, full logits, mean over the batch, autograd all the way. float32: 1e-4."""
    student = _student(model, gradient_checkpointing=checkpointing)
    tokens = make_tokens(3)
    teacher = Teacher(model, tokens, torch.float32, "cpu", "live", Path("unused"))
    student.clear_gradients()
    student.model.eval()  # as a measure of perplexity leaves it; checkpointing must survive that
    recomputed: list[object] = []
    student.model.model.layers[0].self_attn.register_forward_hook(lambda *call: recomputed.append(call[0]))
    for index in range(3):
        hidden = student.hidden(tokens[index : index + 1])
        (kl_divergence(hidden, student.head, teacher.hidden(index), teacher.head, 10) / 3).backward()
    assert len(recomputed) == (6 if checkpointing else 3)

    dense = load_model(model, torch.float32, "cpu")
    leaves = {name: (linear.codebooks, linear.row_scales) for name, linear in student.linears.items()}
    weights = {f"{name}.weight": dequantize(student.linears[name].codes, *pair) for name, pair in leaves.items()}
    weights |= student.parameters
    names = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    states = torch.func.functional_call(
        dense.get_decoder(), {k.removeprefix("model."): v for k, v in names.items()}, (), {"input_ids": tokens}
    )
    with torch.no_grad():
        wanted_states = dense.get_decoder()(input_ids=tokens).last_hidden_state
    loss = kl_divergence_reference(
        states.last_hidden_state.flatten(0, 1), student.head, wanted_states.flatten(0, 1), teacher.head
    )
    for name, linear in student.linears.items():
        wanted = torch.autograd.grad(loss, list(leaves[name]), retain_graph=True)
        found = weight_gradients(linear.weight_gradient, linear.codes, linear.codebooks, linear.row_scales)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))
    for parameter in student.parameters.values():
        wanted = torch.autograd.grad(loss, parameter, retain_graph=True)[0]
        torch.testing.assert_close(parameter.grad, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


def test_bfloat16_gradients_are_summed_in_float32(model: Path) -> None:
    student = Student(model, make_state(model), torch.bfloat16, torch.bfloat16, "cpu")
    linear = next(iter(student.linears.values()))
    assert linear.weight.dtype == torch.bfloat16 and linear.weight_gradient.dtype == torch.float32
    gradient = torch.ones_like(linear.weight)
    for _ in range(300):  # bfloat16 would stand still at 256
        torch.autograd.backward(linear.weight, gradient)
    assert torch.equal(linear.weight_gradient, torch.full_like(linear.weight_gradient, 300.0))


def test_state_round_trips_in_the_dtypes_of_storage(model: Path) -> None:
    before = make_state(model)
    after = _student(model).state()
    for name, weight in before.linears.items():
        for part in ("codes", "codebooks", "row_scales"):
            assert torch.equal(getattr(after.linears[name], part), getattr(weight, part)), (name, part)
    assert {tensor.dtype for tensor in after.tensors.values()} == {torch.bfloat16}
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"} <= set(after.tensors)
    to_dense(model, after, torch.bfloat16, "cpu")  # takes the head apart from the embeddings


def test_the_initial_state_is_never_touched(model: Path) -> None:
    state = make_state(model)
    codes = {name: weight.codes.clone() for name, weight in state.linears.items()}
    student = Student(model, state, torch.bfloat16, torch.float32, "cpu")
    for linear in student.linears.values():
        linear.codes.zero_()
        linear.codebooks.data.zero_()
    assert all(torch.equal(weight.codes, codes[name]) for name, weight in state.linears.items())
    assert all(bool(weight.codebooks.any()) for weight in state.linears.values())


def test_a_state_of_another_model_is_refused(model: Path) -> None:
    weight = quantise(torch.randn(8, 8))
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(UserError, match=r"up_proj\.weight of shape \(8, 8\)"):
        Student(model, QuantizedState({name: weight}), torch.bfloat16, torch.float32, "cpu")
    with pytest.raises(UserError, match=r"layers\.9"):
        Student(model, QuantizedState({"model.layers.9.mlp.up_proj": weight}), torch.bfloat16, torch.float32, "cpu")
    with pytest.raises(UserError, match="nonsense"):
        Student(model, QuantizedState({}, {"nonsense": torch.ones(1)}), torch.bfloat16, torch.float32, "cpu")


def test_codes_of_large_codebooks_keep_their_values(model: Path) -> None:
    state = make_state(model)
    name = "model.layers.0.mlp.up_proj"
    weight = state.linears[name]
    codes = (weight.codes.int() * 20).to(torch.uint16)
    codebooks = torch.randn(2, 301, 4)
    state.linears[name] = AdditiveWeight(codes, codebooks, weight.row_scales)
    student = Student(model, state, torch.bfloat16, torch.float32, "cpu")
    assert torch.equal(student.state().linears[name].codes.int(), codes.int())


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_teacher_states_are_the_same_from_the_cache(model: Path, place: TeacherPlace, tmp_path: Path) -> None:
    tokens = make_tokens(3)
    live = Teacher(model, tokens, torch.bfloat16, "cpu", "live", tmp_path / "cache")
    kept = Teacher(model, tokens, torch.bfloat16, "cpu", place, tmp_path / "cache")
    assert (tmp_path / "cache").exists() == (place == "disk")
    for index in range(3):
        assert torch.equal(live.hidden(index), kept.hidden(index))
    kept.close()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("code_beta1", [0.0, 0.5])
def test_offloaded_state_gives_the_same_bits(model: Path, code_beta1: float) -> None:
    outcomes = []
    for offload in (False, True):
        student = _student(model)
        settings = make_settings(code_beta1=code_beta1, code_lr=0.5)
        optimizer = PVOptimizer(student, settings, 3, offload_buffers=offload, offload_moments=offload)
        for step in range(1, 4):
            student.clear_gradients()
            hidden = student.hidden(make_tokens(1, step))
            (hidden @ student.head.T).square().mean().backward()
            assert optimizer.step(step) > 0
        state = student.state()
        outcomes.append((state, optimizer))
    (plain, first), (offloaded, second) = outcomes
    for name, weight in plain.linears.items():
        assert torch.equal(weight.codes, offloaded.linears[name].codes)
        assert torch.equal(weight.codebooks, offloaded.linears[name].codebooks)
    for kept, visited in ((first.buffers, second.buffers), (first.moments, second.moments)):
        assert all(torch.equal(kept[name][key], visited[name][key]) for name in kept for key in kept[name])


def test_a_step_follows_the_method_to_the_letter(model: Path) -> None:
    """Order of a step: codebooks and scales by LAMB, the buffer by LAMB, then codes towards the buffer."""
    from oaem.pv.lamb import Lamb, lamb_step_reference
    from oaem.pv.straight_through import reencode_reference
    from oaem.runtime.seeds import generator

    student, settings = _student(model), make_settings(max_code_change=0.2, code_lr=0.5)
    optimizer = PVOptimizer(student, settings, 3)
    student.clear_gradients()
    (student.hidden(make_tokens(1)) @ student.head.T).square().mean().backward()
    name = "model.layers.1.mlp.down_proj"
    linear = student.linears[name]
    gradient, codes = linear.weight_gradient.clone(), linear.codes.clone()
    codebooks, scales = linear.codebooks.detach().clone(), linear.row_scales.detach().clone()
    buffer = dequantize(codes, codebooks, scales)
    changes = weight_gradients(gradient, codes, codebooks, scales)
    optimizer.step(1)

    slow, fast = Lamb(3e-4, 0.9, 0.95, 1e-6), Lamb(0.5, 0.0, 0.95, 1e-6)
    zero = torch.zeros(())
    codebooks = lamb_step_reference(codebooks, changes[0], zero, zero, 1, slow)[0]
    scales = lamb_step_reference(scales, changes[1], zero, zero, 1, slow)[0]
    buffer = lamb_step_reference(buffer, gradient, zero, zero, 1, fast)[0]
    order = torch.randperm(2, generator=generator(3, "pv", "reencode", 1, name)).tolist()
    wanted = reencode_reference(codes, codebooks, scales, buffer, 0.2, order)
    assert not torch.equal(wanted, codes)
    torch.testing.assert_close(linear.codebooks.detach(), codebooks, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(linear.row_scales.detach(), scales, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.buffers[name]["buffer"], buffer, rtol=1e-5, atol=1e-6)
    assert torch.equal(linear.codes.int(), wanted.int())
    assert torch.equal(linear.weight.detach(), linear.dequantize())
