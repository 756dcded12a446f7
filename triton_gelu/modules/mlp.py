"""Linear maps and a GELU: a gated GELU behind one map, and an MLP of two with a GELU between them, gated or not."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.dropout import check_dropout_p
from ..functional import Activated, Approximate, check_activated, check_approximate
from ..ops.dropout import BIAS_GEGLU_DROPOUT, BIAS_GELU_DROPOUT
from .untouched import is_untouched, product_and_bias


def _geglu(
    layer: nn.Module,
    product: Tensor,
    bias: Tensor | None,
    activated: Activated,
    approximate: Approximate,
    seed: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """The gated GELU of what a layer gave; raises where that is a part, as of one that is sharded by its features.

    The halves of such a part are not those of the whole.
    """
    features = getattr(layer, "out_features", product.shape[-1])
    if product.shape[-1] != features:
        raise ValueError(
            f"a gated GELU needs all {features} features of {type(layer).__name__}, got {product.shape[-1]}:"
            " where it is sharded by them, let it return a DTensor, use_local_output=False"
        )
    return BIAS_GEGLU_DROPOUT.drop(seed, product, bias, -1, approximate, activated, dropout_p)


class GEGLU(nn.Module):
    """GELU of one half of a linear map times the other half: with `a, b = proj(x).chunk(2, -1)`, `a * gelu(b)`.

    With these defaults it is what diffusers calls GEGLU. `proj` is PyTorch's own nn.Linear, so that whatever looks for
    one finds it; its bias and the gated GELU are one pass while nobody has touched it, as in `MLP`.

    Args:
        in_features, out_features: the last dimensions of x and of the result; proj makes `2 * out_features`.
        bias: whether proj has one.
        activated: the half that goes through GELU, see `bias_geglu`.
        approximate: the formula, see `bias_gelu`. **The default is `"none"`, as in diffusers**, and not `"tanh"`.
        dropout: the probability of dropout of the result, in training, see `bias_gelu`.
        device, dtype: of the parameters.

    Raises:
        ValueError: activated or approximate is unknown, or dropout no probability; or, when it is called, proj returns
            a shard of its features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activated: Activated = "second",
        approximate: Approximate = "none",
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_activated(activated)
        check_approximate(approximate)
        super().__init__()
        self.activated: Activated = activated
        self.approximate: Approximate = approximate
        self.dropout = check_dropout_p(dropout, "dropout")
        self.proj = nn.Linear(in_features, 2 * out_features, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        product, bias = product_and_bias(self.proj, nn.Linear, x)
        dropout_p = self.dropout if self.training else 0.0
        seed = BIAS_GEGLU_DROPOUT.draw_seed(product) if dropout_p else None
        return _geglu(self.proj, product, bias, self.activated, self.approximate, seed, dropout_p)

    def extra_repr(self) -> str:
        return f"activated={self.activated!r}, approximate={self.approximate!r}{_dropout_repr(self.dropout)}"


class MLP(nn.Module):
    """Two linear maps with GELU between them: `fc2(gelu(fc1(x)))`.

    Gated, fc1 makes two halves, and GELU of one is multiplied by the other. Both maps are PyTorch's own nn.Linear.
    LoRA, quantisation, tensor parallelism and whatever else replaces, wraps or hooks them does to them what it always
    does: fc1's bias and GELU are one pass while nobody has touched fc1, and else fc1 is called, and GELU follows.

    Args:
        in_features: the last dimension of x.
        hidden_features: that of the activation; 4 in_features if None.
        out_features: that of the result; in_features if None.
        gated: the half of fc1's result that goes through GELU, `"first"` or `"second"`, see `bias_geglu`: fc1 then has
            `2 * hidden_features`. None: GELU is not gated.
        approximate: the formula, see `bias_gelu`.
        bias: whether both maps have one.
        recompute: save the pre-activation only, and compute the activation again when fc2's weight gradient needs it:
            a read and a write of it buy its memory. Gradients keep every bit.
        dropout: the probability of dropout of the activation, in training, see `bias_gelu`.
        device, dtype: of the parameters.

    Raises:
        ValueError: approximate or gated is unknown, or dropout no probability; or, when it is called, a gated fc1
            returns a shard of its features.
    """

    gated: Activated | None = None  # of the class, for layers that were pickled before there was such a thing
    dropout: float = 0.0

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        *,
        approximate: Approximate = "tanh",
        bias: bool = True,
        recompute: bool = False,
        gated: Activated | None = None,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_approximate(approximate)
        if gated is not None:
            check_activated(gated, "gated")
        super().__init__()
        hidden_features = 4 * in_features if hidden_features is None else hidden_features
        out_features = in_features if out_features is None else out_features
        self.approximate: Approximate = approximate
        self.recompute = recompute
        self.gated = gated
        self.dropout = check_dropout_p(dropout, "dropout")
        self.fc1 = nn.Linear(in_features, (2 if gated else 1) * hidden_features, bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden_features, out_features, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        product, bias = product_and_bias(self.fc1, nn.Linear, x)
        dropout_p = self.dropout if self.training else 0.0
        # Drawn here, not in the checkpoint, which would have to keep random states to draw the same again.
        seed = BIAS_GELU_DROPOUT.draw_seed(product) if dropout_p else None
        second = partial(self._second, bias=bias, dropout_p=dropout_p, seed=seed)
        if not (self.recompute and torch.is_grad_enabled()):
            return second(product)
        # Computed again with the parameters of this pass, whatever fc2 has then. A touched fc2 may draw random numbers.
        alone = is_untouched(self.fc2, nn.Linear)
        second = partial(second, parameters=(self.fc2.weight, self.fc2.bias) if alone else ())
        draws = not alone or bool(dropout_p and seed is None)
        y: Tensor = checkpoint(second, product, use_reentrant=False, preserve_rng_state=draws)
        return y

    def _second(
        self,
        product: Tensor,
        bias: Tensor | None,
        dropout_p: float,
        seed: Tensor | None,
        parameters: tuple[Any, ...] = (),
    ) -> Tensor:
        if self.gated is None:
            y = BIAS_GELU_DROPOUT.drop(seed, product, bias, -1, self.approximate, dropout_p)
        else:
            y = _geglu(self.fc1, product, bias, self.gated, self.approximate, seed, dropout_p)
        z: Tensor = nn.functional.linear(y, *parameters) if parameters else self.fc2(y)
        return z

    def extra_repr(self) -> str:
        gated = "" if self.gated is None else f", gated={self.gated!r}"
        return f"approximate={self.approximate!r}, recompute={self.recompute}{gated}{_dropout_repr(self.dropout)}"


def _dropout_repr(dropout: float) -> str:
    return f", dropout={dropout}" if dropout else ""
