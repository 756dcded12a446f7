"""Two linear maps with a GELU between them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..functional import Approximate, bias_gelu, check_approximate
from .untouched import is_untouched, product_and_bias


class MLP(nn.Module):
    """Two linear maps with GELU between them: `fc2(gelu(fc1(x)))`.

    Both are PyTorch's own nn.Linear. LoRA, quantisation, tensor parallelism and whatever else replaces, wraps or hooks
    them does to them what it always does: fc1's bias and GELU are one pass while nobody has touched fc1, and else fc1
    is called, and GELU follows.

    Args:
        in_features: the last dimension of x.
        hidden_features: that of the activation; 4 in_features if None.
        out_features: that of the result; in_features if None.
        approximate: the formula, see `bias_gelu`.
        bias: whether both maps have one.
        recompute: save the pre-activation only, and compute the activation again when fc2's weight gradient needs it:
            a read and a write of it buy its memory. Gradients keep every bit.
        device, dtype: of the parameters.

    Raises:
        ValueError: approximate is unknown.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        *,
        approximate: Approximate = "tanh",
        bias: bool = True,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_approximate(approximate)
        super().__init__()
        hidden_features = 4 * in_features if hidden_features is None else hidden_features
        out_features = in_features if out_features is None else out_features
        self.approximate: Approximate = approximate
        self.recompute = recompute
        self.fc1 = nn.Linear(in_features, hidden_features, bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden_features, out_features, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        product, bias = product_and_bias(self.fc1, nn.Linear, x)
        if not (self.recompute and torch.is_grad_enabled()):
            return self._second(product, bias)
        # Computed again with the parameters of this pass, whatever fc2 has then. A touched fc2 may draw random numbers.
        alone = is_untouched(self.fc2, nn.Linear)
        second = partial(self._second, bias=bias, parameters=(self.fc2.weight, self.fc2.bias) if alone else ())
        y: Tensor = checkpoint(second, product, use_reentrant=False, preserve_rng_state=not alone)
        return y

    def _second(self, product: Tensor, bias: Tensor | None, parameters: tuple[Any, ...] = ()) -> Tensor:
        y = bias_gelu(product, bias, approximate=self.approximate)
        z: Tensor = nn.functional.linear(y, *parameters) if parameters else self.fc2(y)
        return z

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, recompute={self.recompute}"
