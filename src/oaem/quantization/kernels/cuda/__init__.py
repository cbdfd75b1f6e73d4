"""For CUDA devices: Triton kernels, fused attention, reduced precision where it is as good."""
