from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oaem.config.geometry import Geometry
from oaem.errors import UserError
from oaem.pv import automatic
from oaem.pv.optimizer import PVOptimizer
from oaem.pv.plan import ModelShape, Placement, Plan, block_activations, memory_plan, plan_for, sequences_at_once
from oaem.pv.student import Student
from oaem.pv.teacher import Teacher
from tests.unit.pv.toy import make_model, make_settings, make_state, make_tokens

GEOMETRY = Geometry(2, 8, 8)
# The numbers of Llama 3.1 8B's config.json.
LLAMA_8B = ModelShape(
    blocks=32,
    hidden=4096,
    intermediate=14336,
    query=4096,
    key_value=1024,
    vocabulary=128256,
    linears=((1024, 4096), (1024, 4096), (4096, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)),
)
SEQUENCES, WINDOW = 1200, 4096


def _plan(device: float, host: float | None, disk: float = 0.0) -> Plan:
    host_bytes = None if host is None else int(host * 1e9)
    numbers = int(device * 1e9), host_bytes, int(disk * 1e9)
    return memory_plan(LLAMA_8B, GEOMETRY, make_settings(token_chunk=1024), SEQUENCES, WINDOW, 2, *numbers)


def _items(placement: Placement, **changes: object) -> dict[str, tuple[int, str]]:
    plan = plan_for(LLAMA_8B, GEOMETRY, make_settings(**changes), SEQUENCES, WINDOW, 2, placement)
    return {item.name: (item.bytes, item.place) for item in plan.items}


def test_items_of_llama_8b_by_hand() -> None:
    items = _items(Placement("memory", True, False))
    weights = 32 * (2 * 1024 * 4096 + 2 * 4096 * 4096 + 3 * 14336 * 4096)
    assert weights == 6_979_321_856 == LLAMA_8B.quantised
    assert items["dequantised weights"] == (weights * 2, "device")
    assert items["gradients of dequantised weights"] == (weights * 4, "device")
    assert items["codes"] == (weights // 8 * 2, "device")
    assert items["straight-through buffers with moments"] == (weights * 8, "host")
    embeddings = 128256 * 4096
    unquantised = 2 * embeddings + 65 * 4096
    assert sum(rows for rows, _ in LLAMA_8B.linears) == 2 * 1024 + 3 * 4096 + 2 * 14336
    tables = 32 * (7 * 2 * 256 * 8 + 2 * 1024 + 3 * 4096 + 2 * 14336)
    assert items["codebooks, scales and unquantised parameters"] == ((unquantised + tables) * 4, "device")
    assert items["LAMB moments"] == ((unquantised + tables) * 8, "device")
    assert items["teacher's head"] == (embeddings * 2, "device")
    assert items["teacher's hidden states"] == (1200 * 4096 * 4096 * 2, "host")


def test_choices_move_and_change_items() -> None:
    live = _items(Placement("live"))
    assert "teacher's hidden states" not in live
    assert live["teacher's blocks and embeddings"] == ((LLAMA_8B.quantised + LLAMA_8B.embedding) * 2, "device")
    assert _items(Placement("disk"))["teacher's hidden states"][1] == "disk"
    assert _items(Placement("live", True, True))["LAMB moments"][1] == "host"
    buffers = "straight-through buffers with moments"
    assert _items(Placement(), code_beta1=0.5)[buffers][0] == LLAMA_8B.quantised * 12
    assert _items(Placement(), beta1=0.0)["LAMB moments"][0] * 2 == _items(Placement())["LAMB moments"][0]
    transient = "activations and logits, or a step's workspace"
    checkpoints = 32 * 4096 * (4096 * 4 + 4096 * 2)  # inputs of blocks, results of attention
    head, block = 128256 * 4096 * 8, block_activations(LLAMA_8B, WINDOW, 2)
    logits = 10 * 128256 * (2 * 2 + 3 * 4)
    assert _items(Placement())[transient][0] == checkpoints + 2 * block + logits + head
    assert _items(Placement(), gradient_checkpointing=False)[transient][0] == 33 * block + logits + head


def test_short_sequences_share_a_forward_pass_and_its_memory() -> None:
    settings = make_settings(batch_size=32)
    assert [sequences_at_once(settings, window) for window in (4096, 512, 300, 128, 10)] == [1, 1, 1, 4, 32]
    name = "activations and logits, or a step's workspace"
    plans = [plan_for(LLAMA_8B, GEOMETRY, settings, 9, window, 2, Placement()) for window in (128, 512)]
    assert len({item.bytes for plan in plans for item in plan.items if item.name == name}) == 1


def test_llama_8b_fits_one_80_gb_gpu_by_offloading() -> None:
    plan = _plan(device=74, host=110)
    assert plan.placement == Placement("memory", True, False)
    assert plan.total("device") <= 74e9 and plan.total("host") <= 110e9


def test_several_gpus_share_buffers_and_moments() -> None:
    """Of 32 blocks and two tensors as large as the vocabulary each of two ranks gets half, of three about a third."""
    alone = _items(Placement())
    buffers, moments = "straight-through buffers with moments", "LAMB moments"
    state = alone[buffers][0] + alone[moments][0]
    for gpus, slack in ((2, 1.01), (4, 1.03), (8, 1.10)):
        ours = _items(Placement(), gpus=gpus, batch_size=8)
        assert state / gpus <= ours[buffers][0] + ours[moments][0] <= slack * state / gpus
        for name in alone.keys() - {buffers, moments}:
            assert ours[name] == alone[name], f"{name}: every rank has the whole student"
    offloaded = _items(Placement("live", True, False), gpus=8, batch_size=8)
    assert offloaded[buffers] == (alone[buffers][0] // 8, "host")
    assert offloaded[moments][0] >= 128256 * 4096 * 8, "the fullest device has a tensor as large as the vocabulary"


def test_several_gpus_keep_the_teachers_states_on_disk_and_say_what_each_holds() -> None:
    settings = make_settings(token_chunk=1024, gpus=4, batch_size=8)
    numbers = SEQUENCES, WINDOW, 2
    plan = memory_plan(LLAMA_8B, GEOMETRY, settings, *numbers, int(82e9), int(30e9), int(50e9))
    assert plan.placement == Placement("disk")
    assert "on each of 4 devices, the fullest one:" in plan.table()
    with pytest.raises(UserError, match=r"(?s)20\.0 GB of host memory are free for each of 4 devices.*more of them"):
        memory_plan(LLAMA_8B, GEOMETRY, settings, *numbers, int(24e9), int(20e9), 0)


def test_takes_the_fastest_placement_that_fits() -> None:
    assert _plan(device=140, host=110).placement == Placement("memory")
    assert _plan(device=140, host=36, disk=50).placement == Placement("disk")
    assert _plan(device=160, host=36).placement == Placement("live")
    assert _plan(device=74, host=70, disk=50).placement == Placement("disk", True, False)
    assert _plan(device=66, host=120).placement == Placement("memory", True, True)
    assert _plan(device=190, host=None).placement == Placement("memory")
    assert _plan(device=150, host=None, disk=50).placement == Placement("disk")


def test_what_never_fits_is_refused_with_the_bytes() -> None:
    with pytest.raises(UserError, match=r"24\.0 GB of device memory and 64\.0 GB of host memory(.|\n)*GB  device"):
        _plan(device=24, host=64)
    with pytest.raises(UserError, match=r"(?s)24\.0 GB of device memory are free"):
        _plan(device=24, host=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def test_items_are_the_bytes_of_the_real_tensors(model: Path) -> None:
    """Biases apart (this model has none) the plan counts every tensor that lives through a step, to the byte."""
    settings, tokens = make_settings(), make_tokens()
    student = Student(model, make_state(model), torch.bfloat16, torch.bfloat16, "cpu")
    optimizer = PVOptimizer(student, settings, 0)
    teacher = Teacher(model, tokens, torch.bfloat16, "cpu", "memory", Path("unused"))
    plan = plan_for(ModelShape.read(model), Geometry(2, 4, 4), settings, *tokens.shape, 2, Placement("memory"))
    planned = {item.name: item.bytes for item in plan.items}
    linears = student.linears.values()
    continuous = [*student.parameters.values()]
    continuous += [parameter for linear in linears for parameter in (linear.codebooks, linear.row_scales)]
    assert planned["dequantised weights"] == sum(linear.weight.nbytes for linear in linears)
    assert planned["gradients of dequantised weights"] == sum(linear.weight_gradient.nbytes for linear in linears)
    assert planned["codes"] == sum(linear.codes.nbytes for linear in linears)
    assert planned["codebooks, scales and unquantised parameters"] == sum(tensor.nbytes for tensor in continuous)
    assert planned["gradients of unquantised parameters"] == sum(p.nbytes for p in student.parameters.values())
    for name, states in (
        ("straight-through buffers with moments", optimizer.buffers),
        ("LAMB moments", optimizer.moments),
    ):
        assert planned[name] == sum(tensor.nbytes for state in states.values() for tensor in state.values())
    assert planned["teacher's head"] == teacher.head.nbytes
    assert teacher._cache is not None and planned["teacher's hidden states"] == teacher._cache.nbytes


def test_activations_of_a_block_are_what_autograd_keeps(model: Path) -> None:
    """Counted at autograd's own hands: the formula must cover it, and not by more than half."""
    student = Student(model, make_state(model), torch.bfloat16, torch.bfloat16, "cpu")
    parameters = {tensor.data_ptr() for tensor in student.model.state_dict().values()}
    parameters |= {linear.weight.data_ptr() for linear in student.linears.values()}
    block, calls = student.model.model.layers[1], []
    hook = block.register_forward_pre_hook(lambda _, inputs, named: calls.append((inputs, named)), with_kwargs=True)
    window = 60
    student.hidden(make_tokens(3).flatten()[None, :window])
    hook.remove()
    (inputs, named), *_ = calls
    parameters |= {table.data_ptr() for table in named["position_embeddings"]}  # shared by all blocks
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with student.autocast(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(*inputs, **named)
    planned = block_activations(ModelShape.read(model), window, 2)
    assert sum(kept.values()) <= planned <= 1.5 * sum(kept.values())


def test_the_machine_has_memory_and_the_toy_fits(model: Path, tmp_path: Path) -> None:
    assert 0 < automatic.free_memory() < 2**50
    settings, dtype = make_settings(), torch.bfloat16
    plan = automatic.automatic_plan(model, Geometry(2, 4, 4), settings, 11, 24, dtype, "cpu", tmp_path)
    assert plan.placement == Placement("memory")


def test_a_job_limit_is_tighter_than_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automatic, "_number", lambda file: {"memory.max": 3000, "memory.current": 1000}[file.name])
    monkeypatch.setattr(automatic, "_file_cache", lambda group: 500)
    assert automatic.free_memory() == 2500
