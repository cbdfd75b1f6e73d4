"""Beam search over the codes of one layer (section 3.2).

Every path walks the same `SearchOrder` and breaks ties alike (first hypothesis, then lowest code), so that
their codes can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oaem.numerics.fast_paths import fast_path
from oaem.quantization.search_order import SearchOrder
from oaem.quantization.weight import dequantize


@fast_path("cuda", "oaem.quantization.kernels.cuda.beam_search:beam_search_triton")
@fast_path("cpu", "oaem.quantization.kernels.cpu.beam_search:beam_search_numba")
@torch.no_grad()
def beam_search(
    weight: Tensor,
    hessian: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    row_scales: Tensor,
    beam_width: int,
    order: SearchOrder,
) -> Tensor:
    """The codes after one pass; new ones, of the dtype and shape of `codes`.

    weight [out, in], hessian [in, in], codebooks [M, K, g] and row_scales [out] are float32, codes [out, in/g, M] any
    integers. `beam_search.oracle` is the search spelt out below, in any floating-point dtype and slow: a hypothesis is
    a whole code row with its tracked product R = (W - W^) H and its objective up to a constant of the row. Replacing an
    entry adds `change` to one group of W^, so the objective moves by change H_jj change - 2 change R.
    """
    codebook_size, group_size = codebooks.shape[1:]
    beam = codes.long().unsqueeze(1)  # [out, hypotheses, in/g, M]
    scales = row_scales[:, None, None]
    residual = ((weight - dequantize(codes, codebooks, row_scales)) @ hessian).unsqueeze(1)  # [out, hypotheses, in]
    objective = torch.zeros_like(residual[..., 0])  # [out, hypotheses]
    rows = torch.arange(len(codes), device=codes.device)[:, None]

    for position, group in enumerate(order.groups.tolist()):
        columns = slice(group * group_size, (group + 1) * group_size)
        hessian_block = hessian[columns, columns]
        for m in order.codebooks[position].tolist():
            current = codebooks[m][beam[:, :, group, m]]  # [out, hypotheses, g]
            change = scales[..., None] * (codebooks[m] - current[:, :, None])  # [out, hypotheses, K, g]
            curvature = (change @ hessian_block * change).sum(-1)
            slope = (change @ residual[:, :, columns, None]).squeeze(-1)
            candidates = (objective[..., None] + curvature - 2 * slope).flatten(1)  # [out, hypotheses * K]
            # A stable sort fixes ties: the better hypothesis first, then the lower code.
            candidates, chosen = candidates.sort(dim=1, stable=True)
            objective, chosen = candidates[:, :beam_width], chosen[:, :beam_width]
            parent, code = chosen // codebook_size, chosen % codebook_size
            beam = beam[rows, parent]
            beam[:, :, group, m] = code
            residual = residual[rows, parent] - change[rows, parent, code] @ hessian[columns]
    return beam[:, 0].to(codes.dtype)
