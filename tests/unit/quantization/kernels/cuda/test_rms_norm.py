"""The RMS norm in Triton, through Triton's interpreter, against torch's own and its autograd."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

pytest.importorskip("tests.unit.interpreter")

from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from oaem.quantization.kernels.cuda import rms_norm as kernels
from oaem.quantization.kernels.cuda.rms_norm import norm_numbers, rms_norm
from tests.unit.interpreter import randn


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 11, 48), (2, 3, 4, 16)], ids=str)  # of a block, and of heads
def test_norm_and_its_gradients(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...], offset: int
) -> None:
    """Rounded once: to 2^-8 in bfloat16 and 1e-5 in float32."""
    monkeypatch.setattr(kernels, "PROGRAMS", 4)  # several rows a program
    inputs = (3 * randn(*shape, seed=0)).to(dtype).requires_grad_()
    weight = (1 - offset + randn(shape[-1], seed=1) / 3).requires_grad_()
    incoming = randn(*shape, seed=2).bfloat16()
    found = rms_norm(inputs, weight, 0.1, offset)
    exact = [part.detach().double().requires_grad_() for part in (inputs, weight)]
    expected = functional.rms_norm(exact[0], (shape[-1],), offset + exact[1], 0.1)
    for_inputs, for_weight = torch.autograd.grad(found, (inputs, weight), incoming)
    exact_for_inputs, exact_for_weight = torch.autograd.grad(expected, exact, incoming.double())
    assert (found.dtype, for_inputs.dtype, for_weight.dtype) == (torch.bfloat16, dtype, torch.float32)
    rounded = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(for_inputs.double(), exact_for_inputs, rtol=rounded, atol=1e-5)
    torch.testing.assert_close(for_weight.double(), exact_for_weight, rtol=1e-5, atol=1e-5)


def test_inputs_without_a_gradient_change_nothing_for_the_weight() -> None:
    inputs, weight, incoming = randn(1, 7, 48), randn(48, seed=1).requires_grad_(), randn(1, 7, 48, seed=2).bfloat16()
    kept = inputs.clone()
    (alone,) = torch.autograd.grad(rms_norm(inputs, weight, 0.1), (weight,), incoming)
    _, together = torch.autograd.grad(rms_norm(kept.requires_grad_(), weight, 0.1), (kept, weight), incoming)
    assert torch.equal(alone, together) and torch.equal(inputs, kept)


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_that_are_a_view_of_a_product_are_taken_as_they_lie(heads: int) -> None:
    """So does Gemma call the norms of queries and keys: results and gradients keep the product's order in memory."""
    product, weight, incoming = randn(2, 5, 16 * heads), randn(16, seed=1), randn(2, heads, 5, 16, seed=2).bfloat16()
    found, gradients = [], []
    for arrange in (torch.Tensor.contiguous, torch.Tensor.clone):  # in the order of the shape, and as they are
        leaves = [product.clone().requires_grad_(), weight.clone().requires_grad_()]
        states = leaves[0].view(2, 5, heads, 16).transpose(1, 2)
        found.append(rms_norm(arrange(states), leaves[1], 0.1, 1))
        gradients.append(torch.autograd.grad(found[-1], leaves, incoming))
    assert torch.equal(*found)
    assert torch.equal(gradients[0][0], gradients[1][0])
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-5, atol=1e-5)  # summed in another order
    assert found[1].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(
    ("kind", "offset"),
    [
        *((kind, 0) for kind in (LlamaRMSNorm, MistralRMSNorm, Olmo2RMSNorm, Phi3RMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)),
        (Gemma3RMSNorm, 1),
    ],
)
@pytest.mark.parametrize("epsilon", [1e-5, 1e-6])
def test_the_norms_of_the_families_are_known(kind: type[nn.Module], offset: int, epsilon: float) -> None:
    """And agree but for their rounding to bfloat16."""
    module: Any = kind(24, eps=epsilon)
    nn.init.normal_(module.weight)
    module.register_forward_hook(lambda *_: pytest.fail("the module itself was called"))
    before, kept = dict(vars(module)), module.weight.detach().clone()
    assert norm_numbers(module) == (epsilon, offset)
    assert vars(module) == before and torch.equal(module.weight, kept)
    inputs = randn(2, 5, 24)
    own = type(module).forward(module, inputs)
    torch.testing.assert_close(rms_norm(inputs, module.weight, epsilon, offset).float(), own, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_the_weight_lives_does_not_matter(dtype: torch.dtype) -> None:
    """A device without any numbers stands in for a GPU."""
    assert norm_numbers(Gemma3RMSNorm(24, eps=1e-6).to("meta", dtype)) == (1e-6, 1)
    assert norm_numbers(LlamaRMSNorm(24, eps=1e-6).to("meta", dtype)) == (1e-6, 0)


def test_gemmas_norm_rounds_as_its_own_forward() -> None:
    """Of bfloat16, as products are, it gives bfloat16; of float32 what a linear then rounds: the same numbers.

    All but those few that lie so close to the middle of two bfloat16 numbers that float32's last bit decides.
    """
    module = Gemma3RMSNorm(48, eps=1e-6)
    nn.init.normal_(module.weight)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = (3 * randn(200, 48)).to(dtype)
        own = module(inputs)
        assert own.dtype == dtype
        found = rms_norm(inputs, module.weight, 1e-6, 1)
        assert float((found != own.bfloat16()).float().mean()) < 1e-3


Formula = Callable[[Any, Tensor], Any]


class OtherRMSNorm(nn.Module):
    """Called an RMS norm, with a formula of its own."""

    def __init__(self, formula: Formula, width: int = 24) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.calls = nn.Parameter(torch.ones(width)), 1e-6, []
        self.formula = formula.__name__
        self.child = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Any:
        return FORMULAS[self.formula](self, inputs)


def plain(module: Any, inputs: Tensor) -> Tensor:
    return module.weight * functional.rms_norm(inputs, (inputs.shape[-1],), eps=module.variance_epsilon)


def centred(module: Any, inputs: Tensor) -> Tensor:
    return module.weight * functional.layer_norm(inputs, (inputs.shape[-1],), eps=module.variance_epsilon)


def without_weight(module: Any, inputs: Tensor) -> Tensor:
    return functional.rms_norm(inputs, (inputs.shape[-1],), eps=module.variance_epsilon)


def another_offset(module: Any, inputs: Tensor) -> Tensor:
    return plain(module, inputs) + 0.5 * without_weight(module, inputs)


def epsilon_outside(module: Any, inputs: Tensor) -> Tensor:
    return module.weight * inputs / (inputs.square().mean(-1, keepdim=True).sqrt() + module.variance_epsilon)


def without_epsilon(module: Any, inputs: Tensor) -> Tensor:
    return module.weight * inputs / inputs.square().mean(-1, keepdim=True).sqrt()


def of_all_rows(module: Any, inputs: Tensor) -> Tensor:
    return module.weight * functional.rms_norm(inputs, inputs.shape, eps=module.variance_epsilon)


def of_groups(module: Any, inputs: Tensor) -> Tensor:
    groups = inputs.unflatten(-1, (-1, 8))
    return module.weight * functional.rms_norm(groups, (8,), eps=module.variance_epsilon).flatten(-2)


def with_a_child(module: Any, inputs: Tensor) -> Tensor:
    return plain(module, inputs) + 0 * module.child.weight.sum()


def counting(module: Any, inputs: Tensor) -> Tensor:
    module.calls.append(1)
    return plain(module, inputs)


def two_results(module: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
    return plain(module, inputs), inputs


def in_double(module: Any, inputs: Tensor) -> Tensor:
    return plain(module, inputs).double()


OTHERS: tuple[Formula, ...] = (
    centred, without_weight, another_offset, epsilon_outside, without_epsilon, of_all_rows, of_groups, with_a_child,
    counting, two_results, in_double,
)  # fmt: skip
FORMULAS: dict[str, Formula] = {formula.__name__: formula for formula in (plain, *OTHERS)}


@pytest.mark.parametrize("formula", OTHERS, ids=lambda formula: formula.__name__)
def test_other_formulas_are_left_alone(formula: Formula) -> None:
    module = OtherRMSNorm(formula)
    assert norm_numbers(module) is None
    assert module.calls == []


def test_what_is_known_of_a_norm_must_be_all_there_is() -> None:
    module: Any = OtherRMSNorm(plain)
    assert norm_numbers(module) == (1e-6, 0)
    assert norm_numbers(OtherRMSNorm(plain, width=1)) is None  # a factor for rows of any width
    module.forward = MethodType(lambda self, inputs: 2 * plain(self, inputs), module)
    assert norm_numbers(module) is None
    del module.forward
    module.variance_epsilon = None
    assert norm_numbers(module) is None
    module.variance_epsilon, module.weight = 1e-6, None
    assert norm_numbers(module) is None
    assert norm_numbers(nn.LayerNorm(24)) is None and norm_numbers(nn.Linear(24, 24)) is None
