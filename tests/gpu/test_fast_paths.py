"""The fast paths on a CUDA device against plain torch in float64; `make test-gpu` runs them."""

from __future__ import annotations

import pytest
import torch

from oaem.config.settings import KMeansSettings
from oaem.numerics.fast_paths import plain_paths
from oaem.quantization.beam_search import beam_search
from oaem.quantization.clusters import best_entries, cluster_sums
from oaem.quantization.kmeans import kmeans
from oaem.quantization.layer_loss import layer_loss
from oaem.quantization.m_step import statistics
from oaem.quantization.weight import dense_matrix
from tests.unit.quantization.toy_layers import Layer, clustered, order_of, row_errors, toy_layer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# out, in, M, bits, g, beam width
SHAPES = [
    (64, 512, 2, 8, 8, 8),
    (40, 384, 2, 8, 8, 16),
    (20, 512, 2, 8, 8, 32),
    (64, 512, 3, 8, 8, 4),
    (33, 240, 2, 6, 6, 5),
    (16, 256, 3, 4, 4, 32),
    (17, 512, 1, 8, 16, 4),
    (7, 576, 2, 6, 6, 8),
    (8, 256, 1, 12, 8, 8),
]


def in_double(layer: Layer) -> Layer:
    weight, hessian, codes, codebooks, row_scales = layer
    return weight.double(), hessian.double(), codes, codebooks.double(), row_scales.double()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_beam_search_equals_the_reference(shape: tuple[int, ...]) -> None:
    from oaem.quantization.kernels.cuda.beam_search import beam_search_triton

    *sizes, beam_width = shape
    layer = toy_layer(*sizes, device="cuda")
    order = order_of(layer)
    found = beam_search_triton(*layer, beam_width, order)
    expected = beam_search.oracle(*in_double(layer), beam_width, order)
    # Two candidates that float32 cannot tell apart may send a row another way, to an error about as small.
    assert float(row_errors(layer, found).sum() / row_errors(layer, expected).sum()) == pytest.approx(1, abs=1e-3)
    assert float((found == expected).flatten(1).all(1).double().mean()) >= 0.9
    assert torch.equal(beam_search_triton(*layer, beam_width, order), found)


def test_rows_of_a_large_layer_do_not_interact() -> None:
    from oaem.quantization.kernels.cuda.beam_search import beam_search_triton

    weight, hessian, codes, codebooks, row_scales = toy_layer(1024, 1024, 2, 8, 8, device="cuda")
    order = order_of((weight, hessian, codes, codebooks, row_scales))
    found = beam_search_triton(weight, hessian, codes, codebooks, row_scales, 8, order)
    part = beam_search_triton(weight[5:9], hessian, codes[5:9], codebooks, row_scales[5:9], 8, order)
    assert torch.equal(found[5:9], part)


@pytest.mark.parametrize(("group_size", "size"), [(8, 256), (6, 64), (16, 16), (4, 128)])
def test_assignment_and_sums(group_size: int, size: int) -> None:
    from oaem.quantization.kernels.cuda.clusters import best_entries_triton, best_entry_sums_triton, sums_by_code_triton
    from oaem.quantization.kernels.cuda.sorted_sums import SortedCodes

    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5000, group_size), (3, group_size, size), (3, size))
    vectors, maps, offsets = (torch.randn(shape, generator=generator).cuda() for shape in shapes)
    scores = offsets.double()[:, None] + vectors.double() @ maps.double()
    codes = best_entries_triton(vectors, maps, offsets)
    chosen = scores.gather(2, codes[..., None].long())[..., 0]
    assert float((chosen - scores.amin(2)).max()) < 1e-4
    assert float((codes == scores.argmin(2)).double().mean()) > 0.999
    sums, counts = best_entry_sums_triton(vectors[0], maps[0], offsets[0])
    assert torch.equal(counts, torch.bincount(codes[0], minlength=size))
    expected = torch.zeros(size, group_size, dtype=torch.float64, device="cuda")
    expected.index_add_(0, codes[0].long(), vectors[0].double())
    torch.testing.assert_close(sums, expected.float(), rtol=1e-5, atol=1e-4)
    ones = torch.ones(1, device="cuda")
    again = sums_by_code_triton(vectors[0].view(1, -1), ones, codes[0].view(1, -1, 1), size)[0]
    torch.testing.assert_close(again, expected.float(), rtol=1e-5, atol=1e-4)
    order = SortedCodes(codes[0].view(1, -1, 1), size)
    torch.testing.assert_close(order.sums(vectors[0].view(1, -1), ones)[0], expected.float(), rtol=1e-5, atol=1e-4)
    assert torch.equal(order.sums(vectors[0].view(1, -1), ones), order.sums(vectors[0].view(1, -1), ones))
    assert torch.equal(best_entry_sums_triton(vectors[0], maps[0], offsets[0])[0], sums)


@pytest.mark.parametrize("shape", [(96, 512, 2, 8, 8), (30, 240, 2, 6, 6), (20, 256, 3, 4, 16)], ids=str)
def test_loss_dense_matrix_and_gradients(shape: tuple[int, ...]) -> None:
    from oaem.quantization.kernels.cuda import layer_loss as fast

    layer = toy_layer(*shape, device="cuda")
    weight, hessian, codes, codebooks, row_scales = in_double(layer)
    codebooks.requires_grad_()
    row_scales.requires_grad_()
    groups = torch.stack([book[codes[..., m].long()] for m, book in enumerate(codebooks)]).sum(0)
    matrix = groups.flatten(1) * row_scales[:, None]
    expected = (((matrix - weight) @ hessian) * (matrix - weight)).sum() / len(weight)
    gradients = torch.autograd.grad(expected, (codebooks, row_scales), retain_graph=True)
    loss, *found = fast.SplitLayerLoss(*layer[:3], 2 ** shape[3]).value(*layer[3:])
    assert float(loss) == pytest.approx(expected.item(), rel=1e-4)
    for ours, exact in zip(found, gradients, strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 1e-4
    torch.testing.assert_close(fast.dequantize_triton(*layer[2:]), matrix.detach().float())
    incoming = torch.randn(matrix.shape, device="cuda")
    exact_gradients = torch.autograd.grad(matrix, (codebooks, row_scales), incoming.double())
    for ours, exact in zip(fast.dequantize_gradients_triton(incoming, *layer[2:]), exact_gradients, strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize(("bits", "group_size"), [(3, 3), (12, 12)])
def test_loss_and_dense_matrix_at_any_size_of_codebook(bits: int, group_size: int) -> None:
    """To 1e-4 of the plain formula, which works in float32 too; the kernel's product has 16 bits of mantissa."""
    layer = toy_layer(192, 576, 2, bits, group_size, device="cuda")
    fast, plain = (each(*layer[:3], 2**bits) for each in (layer_loss, layer_loss.oracle))
    assert type(fast) is not type(plain)
    for found, expected in zip(fast.value(*layer[3:]), plain.value(*layer[3:]), strict=True):
        assert float((found - expected).norm() / expected.norm()) < 1e-4
    torch.testing.assert_close(dense_matrix(*layer[2:]), dense_matrix.oracle(*layer[2:]))


def test_the_m_step_kernel_takes_the_same_steps() -> None:
    from oaem.quantization.kernels.cuda.m_step import adam_m_step_triton

    roots = torch.randn(256, 8, 8, dtype=torch.float64, device="cuda")
    curvature, pull = roots @ roots.transpose(1, 2), torch.randn(256, 8, dtype=torch.float64, device="cuda")
    centroids, rates = torch.randn(256, 8, device="cuda"), [0.1 / (step + 1) for step in range(100)]
    values = centroids.double().requires_grad_()
    optimizer = torch.optim.Adam([values], betas=(0.9, 0.999), eps=1e-8)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        values.grad = 0.5 * (torch.einsum("kij,kj->ki", curvature, values.detach()) - pull)
        optimizer.step()
    found = adam_m_step_triton(curvature, pull, centroids, 0.5, rates, (0.9, 0.999), 1e-8)
    torch.testing.assert_close(found, values.detach().float())


def test_weighted_clustering_equals_the_reference() -> None:
    """Rows by their weights go by sorted sums: as the plain formula to float32's rounding, with the same bits again."""
    vectors, blocks, _, codes = (part.cuda() for part in clustered(groups=12, out=3000, size=256, dtype=torch.float32))
    codes, row_weights = codes.contiguous(), torch.rand(3000, device="cuda") ** 4
    found = statistics(vectors, blocks, codes, 256, row_weights)
    expected = statistics.oracle(vectors, blocks, codes, 256, row_weights)
    for ours, exact in zip(found, expected, strict=True):
        assert float((ours - exact).norm() / exact.norm()) < 1e-5
    again = statistics(vectors, blocks, codes, 256, row_weights)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    flat, weights = vectors.flatten(0, 1), row_weights.repeat(12)
    first, second = (
        kmeans(flat, 256, KMeansSettings(iterations=3), torch.Generator().manual_seed(0), weights) for _ in range(2)
    )
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    with plain_paths():
        plain, _ = kmeans(flat, 256, KMeansSettings(iterations=3), torch.Generator().manual_seed(0), weights)
    # A vector between two centroids may go to either and move both a little.
    assert float((first[0] - plain).norm() / plain.norm()) < 1e-3


def test_a_tensor_on_the_device_takes_the_kernels_that_fit() -> None:
    *layer, _ = toy_layer(16, 64, 2, 4, 8, device="cuda")
    assert layer_loss.choose(*layer[:3], 16).__name__ == "SplitLayerLoss"
    assert layer_loss.choose(*layer[:3], 4096).__name__ == "SplitLayerLoss"
    assert best_entries.choose(layer[0][None], torch.empty(1, 64, 4096), layer[0]) is best_entries.plain  # too many
    assert layer_loss.choose(layer[0].double(), *layer[1:3], 16) is layer_loss.plain
    assert type(cluster_sums(layer[2].flatten(), 16)).__name__ == "SortedSums"
    with plain_paths():
        assert layer_loss.choose(*layer[:3], 16) is layer_loss.plain


def test_sums_by_label_have_the_same_bits_on_every_run() -> None:
    labels, vectors = torch.randint(0, 300, (40_000,), device="cuda"), torch.randn(40_000, 8, device="cuda")
    sums = cluster_sums(labels, 300)
    torch.testing.assert_close(sums(vectors), cluster_sums.oracle(labels, 300)(vectors), rtol=1e-4, atol=1e-4)
    assert torch.equal(sums(vectors), cluster_sums(labels, 300)(vectors))
