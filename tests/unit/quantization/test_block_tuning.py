from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from oaem.config.settings import BlockTuningSettings
from oaem.errors import UserError
from oaem.quantization.block_tuning import tune_block
from oaem.quantization.linear import QuantizedLinear
from oaem.quantization.weight import AdditiveWeight
from oaem.runtime.seeds import generator


class Block(nn.Module):
    """A norm, a quantised linear and one that is not yet quantised."""

    def __init__(self, as_tuple: bool = False):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 8, (8, 2, 2), generator=draw, dtype=torch.uint8)
        codebooks = torch.randn(2, 8, 4, generator=draw)
        self.norm = nn.LayerNorm(8)
        self.first = QuantizedLinear(AdditiveWeight(codes, codebooks, torch.ones(8)), torch.zeros(8))
        self.second = nn.Linear(8, 8)
        with torch.no_grad():
            for parameter in self.second.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) / 3)
        self.as_tuple = as_tuple

    def forward(self, hidden: Tensor, shift: Tensor, extra: tuple[Tensor, ...]) -> Tensor | tuple[Tensor]:
        output = hidden + self.second(torch.tanh(self.first(self.norm(hidden)) + shift + extra[0]))
        return (output,) if self.as_tuple else output


def data() -> tuple[Tensor, Tensor, dict[str, object]]:
    draw = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(6, 5, 8, generator=draw), torch.randn(6, 5, 8, generator=draw)
    return inputs, targets, {"shift": torch.randn(8, generator=draw), "extra": (torch.ones(8),)}


SETTINGS = BlockTuningSettings(epochs=3, lr=1e-3)


@pytest.mark.parametrize("as_tuple", [False, True])
def test_equals_a_plain_training_loop(as_tuple: bool) -> None:
    inputs, targets, arguments = data()
    ours, plain = Block(as_tuple), Block()
    losses = tune_block(ours, inputs, targets, arguments, SETTINGS, seed=9)
    optimizer, expected = torch.optim.Adam(plain.parameters(), lr=1e-3, betas=(0.9, 0.95)), []
    for epoch in range(3):
        total = 0.0
        for index in torch.randperm(6, generator=generator(9, "tune", epoch)).tolist():
            loss = ((plain(inputs[index], **arguments) - targets[index]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        expected.append(total / 6)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert losses == sorted(losses, reverse=True)
    for (name, tuned), parameter in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(tuned, parameter, rtol=1e-4, atol=1e-6, msg=name)


def test_every_floating_point_parameter_moves_and_codes_stay() -> None:
    block, before = Block(), {name: value.clone() for name, value in Block().state_dict().items()}
    tune_block(block, *data(), SETTINGS, seed=1)
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]) == (name == "first.codes"), name


def test_gives_dtypes_and_flags_back() -> None:
    block = Block().bfloat16()
    block.second.weight.requires_grad_(False)
    block.norm.weight.data = block.norm.weight.data.float()
    inputs, targets, arguments = data()
    arguments["shift"] = arguments["shift"].bfloat16()
    with torch.no_grad():
        losses = tune_block(block, inputs.bfloat16(), targets.bfloat16(), arguments, SETTINGS, seed=1)
    assert losses[-1] < losses[0]
    assert block.second.weight.dtype == torch.bfloat16 and block.norm.weight.dtype == torch.float32
    assert not block.second.weight.requires_grad and block.second.bias.requires_grad
    assert all(parameter.grad is None for parameter in block.parameters())
    assert torch.get_float32_matmul_precision() == "highest"


def test_no_epochs_leaves_the_block_alone() -> None:
    block = Block()
    assert tune_block(block, *data(), BlockTuningSettings(epochs=0), seed=1) == []
    assert all(torch.equal(*pair) for pair in zip(block.parameters(), Block().parameters(), strict=True))


def test_divergence_is_reported() -> None:
    inputs, targets, arguments = data()
    targets[2] = float("nan")
    with pytest.raises(UserError, match="block tuning diverged in epoch 1"):
        tune_block(Block(), inputs, targets, arguments, SETTINGS, seed=1)
