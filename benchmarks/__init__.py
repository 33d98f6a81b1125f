"""torchcalc beside eager PyTorch, torch.compile and the bare copy or GEMM: python -m benchmarks."""
