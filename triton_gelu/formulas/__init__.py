"""GELU's formulas: an input times a gate, written once for kernels and once in PyTorch."""
