"""The layers: GELU, BiasGELU, LinearGELU, Conv1dGELU, Conv2dGELU, GEGLU, MLP."""

from .layer_gelu import Conv1dGELU, Conv2dGELU, LinearGELU
from .mlp import GEGLU, MLP
from .pointwise import GELU, BiasGELU
from .untouched import is_untouched, product_and_bias

__all__ = [
    "GEGLU",
    "GELU",
    "MLP",
    "BiasGELU",
    "Conv1dGELU",
    "Conv2dGELU",
    "LinearGELU",
    "is_untouched",
    "product_and_bias",
]
