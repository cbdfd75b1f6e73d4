"""For CUDA devices: Triton kernels, fused attention, compiled blocks."""
