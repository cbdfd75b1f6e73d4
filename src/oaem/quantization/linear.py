"""A linear layer whose weight is additive: codes are fixed, codebooks, row scales and bias learn."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from oaem.quantization.weight import AdditiveWeight, dequantize


class QuantizedLinear(nn.Module):
    """Stands in for nn.Linear. Parameters codebooks [M, K, g], row_scales [out], bias [out]; buffer codes."""

    codes: Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: AdditiveWeight, bias: Tensor | None = None):
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.codebooks = nn.Parameter(weight.codebooks.detach().clone())
        self.row_scales = nn.Parameter(weight.row_scales.detach().clone())
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self.out_features = len(weight.row_scales)
        self.in_features = weight.codes.shape[1] * weight.codebooks.shape[2]

    @property
    def weight(self) -> Tensor:
        """The dense matrix [out, in]; differentiable."""
        return dequantize(self.codes, self.codebooks, self.row_scales)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [..., in] -> [..., out]."""
        return functional.linear(inputs, self.weight, self.bias)

    def additive_weight(self) -> AdditiveWeight:
        """The additive weight as it is now, detached."""
        return AdditiveWeight(self.codes, self.codebooks.detach(), self.row_scales.detach())

    def extra_repr(self) -> str:
        """Shown by print."""
        num_codebooks, codebook_size, group_size = self.codebooks.shape
        return f"{self.in_features}, {self.out_features}, codebooks={num_codebooks}x{codebook_size}, group={group_size}"
