"""The loss of one layer with its codes fixed, which codebook steps minimise (section 3.2).

tr((W^-W) H (W^-W)^T) / out is quadratic in the codebooks and in the scales. One product (W^-W) H gives the loss and
both gradients.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from oaem.numerics.fast_paths import fast_path
from oaem.numerics.product import matrix_product
from oaem.quantization.clusters import ClusterSums, cluster_sums
from oaem.quantization.weight import sum_of_entries


class LayerLoss:
    """The loss of one layer as a function of codebooks and scales, for fixed codes; made by `layer_loss`.

    weight [out, in] and hessian [in, in] in float32 or float64, codes [out, in/g, M].
    """

    def __init__(self, weight: Tensor, hessian: Tensor, codes: Tensor, codebook_size: int):
        self.weight, self.hessian, self.codes = weight, hessian, codes
        self.codebook_size = codebook_size

    @cached_property
    def clusters(self) -> list[ClusterSums]:
        """Sums by code for each codebook."""
        return [cluster_sums(self.codes[..., m].flatten(), self.codebook_size) for m in range(self.codes.shape[-1])]

    def gather(self, gradient: Tensor) -> Tensor:
        """The gradient of the codebooks [M, K, g] from that of the unscaled matrix [out, in]."""
        vectors = gradient.reshape(self.codes.shape[0] * self.codes.shape[1], -1)
        return torch.stack([sums(vectors) for sums in self.clusters])

    def value(self, codebooks: Tensor, row_scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss and its gradients for codebooks [M, K, g] and row scales [out]; the trace is summed in float64."""
        entries = sum_of_entries(self.codes, codebooks)
        difference = entries * row_scales[:, None] - self.weight
        product = matrix_product(difference, self.hessian)
        loss = torch.sum(product * difference, dtype=torch.float64) / len(self.weight)
        gradient = product.mul_(2 / len(self.weight))
        return loss, self.gather(gradient * row_scales[:, None]), (gradient * entries).sum(1)


@fast_path(
    "cuda",
    "oaem.quantization.kernels.cuda.layer_loss:SplitLayerLoss",
    when=lambda weight, hessian, codes, codebook_size: weight.dtype == torch.float32,
)
@fast_path(
    "cpu",
    "oaem.quantization.kernels.cpu.layer_loss:CompiledLayerLoss",
    when=lambda weight, hessian, codes, codebook_size: weight.dtype == torch.float32,
)
def layer_loss(weight: Tensor, hessian: Tensor, codes: Tensor, codebook_size: int) -> LayerLoss:
    """The loss for these codes, with all that many evaluations share prepared once: see `LayerLoss`."""
    return LayerLoss(weight, hessian, codes, codebook_size)
