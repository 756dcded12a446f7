"""Layers for Hugging Face's `kernels`, under the names by which transformers asks for them: `make hub` offers them.

`kernelize` gives a module of a model the `forward` of such a layer. So a layer has no constructor and no members of its
own: what `forward` reads of self is what the module has that it replaces. Each has gradients and can be compiled.
"""

from __future__ import annotations

from torch import Tensor, nn

from .functional import Approximate, bias_gelu_mul, gelu

__all__ = ["FastGELU", "GeGLUMLP", "GeLU", "GeluTanh", "NewGELU", "QuickGELU"]

FORMULAS: dict[str, Approximate] = {
    "GELUActivation": "none",
    "GELUTanh": "tanh",
    "NewGELUActivation": "tanh",
    "FastGELUActivation": "tanh",
    "QuickGELUActivation": "sigmoid",
}
"""The formulas of transformers' activations, by the names of their classes."""


class GeLU(nn.Module):
    """The exact formula: transformers' GELUActivation, as in BERT and Whisper."""

    can_torch_compile = True
    has_backward = True

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, approximate="none")


class GeluTanh(nn.Module):
    """The tanh formula: transformers' GELUTanh, as in SigLIP and Gemma."""

    can_torch_compile = True
    has_backward = True

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, approximate="tanh")


class NewGELU(nn.Module):
    """The tanh formula, written out: transformers' NewGELUActivation, as in GPT-2."""

    can_torch_compile = True
    has_backward = True

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, approximate="tanh")


class FastGELU(nn.Module):
    """The tanh formula, written out in another way: transformers' FastGELUActivation."""

    can_torch_compile = True
    has_backward = True

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, approximate="tanh")


class QuickGELU(nn.Module):
    """The sigmoid formula: transformers' QuickGELUActivation, as in CLIP."""

    can_torch_compile = True
    has_backward = True

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, approximate="sigmoid")


class GeGLUMLP(nn.Module):
    """A gated MLP, as in Gemma: `down_proj(act_fn(gate_proj(x)) * up_proj(x))`, GELU and product in one pass.

    An activation that is not one of transformers' GELUs, or that has hooks, is called, as before.
    """

    can_torch_compile = True
    has_backward = True

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        formula, gate, up = formula_of(self.act_fn), self.gate_proj(x), self.up_proj(x)
        y: Tensor = self.down_proj(
            self.act_fn(gate) * up if formula is None else bias_gelu_mul(gate, up, approximate=formula)
        )
        return y


def formula_of(activation: nn.Module) -> Approximate | None:
    """The formula of an activation, if it is a GELU of transformers or PyTorch that nobody watches."""
    if activation._forward_hooks or activation._forward_pre_hooks:
        return None
    if activation._backward_hooks or activation._backward_pre_hooks:
        return None
    if type(activation) is nn.GELU:
        return "tanh" if activation.approximate == "tanh" else "none"
    return FORMULAS.get(type(activation).__name__)
