"""Triton kernels that fuse GELU with the bias-add before it, as PyTorch functions and layers."""

from triton_gelu.functional import bias_gelu, gelu
from triton_gelu.modules import GELU, BiasGELU

__version__ = "0.1.0"
__all__ = ["GELU", "BiasGELU", "bias_gelu", "gelu"]
