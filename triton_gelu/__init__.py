"""Triton kernels that fuse GELU with the bias-add before it, as PyTorch functions and layers."""

from .audio import AudioEncoder
from .functional import bias_geglu, bias_gelu, bias_gelu_mul, bias_gelu_transpose, gelu
from .fuse import FusionReport, fuse, unfuse
from .modules import GEGLU, GELU, MLP, BiasGELU, Conv1dGELU, Conv2dGELU, LinearGELU

__version__ = "0.2.0"
__all__ = [
    "GEGLU",
    "GELU",
    "MLP",
    "AudioEncoder",
    "BiasGELU",
    "Conv1dGELU",
    "Conv2dGELU",
    "FusionReport",
    "LinearGELU",
    "bias_geglu",
    "bias_gelu",
    "bias_gelu_mul",
    "bias_gelu_transpose",
    "fuse",
    "gelu",
    "unfuse",
]
