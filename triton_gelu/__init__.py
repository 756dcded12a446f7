"""Triton kernels that fuse GELU with the bias-add before it, as PyTorch functions and layers."""

from triton_gelu.audio import AudioEncoder
from triton_gelu.functional import bias_gelu, bias_gelu_transpose, gelu
from triton_gelu.fuse import FusionReport, fuse, unfuse
from triton_gelu.modules import GELU, MLP, BiasGELU, Conv1dGELU, Conv2dGELU, LinearGELU

__version__ = "0.1.0"
__all__ = [
    "GELU",
    "MLP",
    "AudioEncoder",
    "BiasGELU",
    "Conv1dGELU",
    "Conv2dGELU",
    "FusionReport",
    "LinearGELU",
    "bias_gelu",
    "bias_gelu_transpose",
    "fuse",
    "gelu",
    "unfuse",
]
