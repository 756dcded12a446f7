"""The audio encoder of Whisper (Radford et al., arXiv:2212.04356), fused wherever GELU follows a bias."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .functional import Approximate, bias_gelu, bias_gelu_transpose, check_approximate
from .modules import GELU, is_untouched, product_and_bias

LONGEST_PERIOD = 10_000
"""Of the positional embedding, over 2 pi (Vaswani et al., arXiv:1706.03762, section 3.5)."""


class AudioEncoder(nn.Module):
    """Log-mel spectrograms to features: two convolutions, the second of stride 2, then transformer blocks.

    Parameters and results are those of `whisper.model.AudioEncoder` in openai-whisper, so that its checkpoints load by
    `load_state_dict`. Its layers are PyTorch's own. A bias and the GELU after it are one pass while nobody has touched
    the layer: one that was replaced, wrapped, hooked, quantised or sharded is called, and GELU follows.

    Args:
        n_mels: channels of the spectrogram.
        n_ctx: frames that the transformer sees, half those of the spectrogram.
        n_state: features of a frame, even.
        n_head: attention heads, a divisor of n_state.
        n_layer: blocks.
        approximate: the formula of GELU, see `bias_gelu`. Whisper's is the exact one.

    Raises:
        ValueError: a size or approximate does not fit.
    """

    def __init__(
        self, n_mels: int, n_ctx: int, n_state: int, n_head: int, n_layer: int, *, approximate: Approximate = "none"
    ) -> None:
        if n_state % 2 or n_state % n_head:
            raise ValueError(f"n_state must be even and a multiple of n_head = {n_head}, got {n_state}")
        check_approximate(approximate)
        super().__init__()
        self.approximate: Approximate = approximate
        self.conv1 = nn.Conv1d(n_mels, n_state, 3, padding=1)
        self.conv2 = nn.Conv1d(n_state, n_state, 3, stride=2, padding=1)
        self.register_buffer("positional_embedding", sinusoids(n_ctx, n_state))
        self.blocks = nn.ModuleList(_Block(n_state, n_head, approximate) for _ in range(n_layer))
        self.ln_post = nn.LayerNorm(n_state)

    def forward(self, mel: Tensor) -> Tensor:
        """`[N, n_mels, 2 n_ctx]` to `[N, n_ctx, n_state]`, in mel's dtype. Raises ValueError for another length."""
        x = self._stem(mel)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.ln_post(x)
        return features

    def _stem(self, mel: Tensor) -> Tensor:
        """Both convolutions and GELUs, channels last, plus the position: after the second product, in one pass."""
        position = self.get_buffer("positional_embedding")
        x = bias_gelu(*product_and_bias(self.conv1, nn.Conv1d, mel), dim=-2, approximate=self.approximate)
        product, bias = product_and_bias(self.conv2, nn.Conv1d, x)
        if product.shape[-1] != len(position):
            raise ValueError(f"mel must have {2 * len(position)} frames, got {mel.shape[-1]}")
        return bias_gelu_transpose(product, bias, position, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class _Block(nn.Module):
    """x plus attention of x, plus an MLP of that, each after a LayerNorm."""

    def __init__(self, n_state: int, n_head: int, approximate: Approximate) -> None:
        super().__init__()
        self.attn = _Attention(n_state, n_head)
        self.attn_ln = nn.LayerNorm(n_state)
        self.mlp = _Sequential(nn.Linear(n_state, 4 * n_state), GELU(approximate), nn.Linear(4 * n_state, n_state))
        self.mlp_ln = nn.LayerNorm(n_state)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x))
        y: Tensor = x + self.mlp(self.mlp_ln(x))
        return y


class _Sequential(nn.Sequential):
    """A Linear, GELU and another Linear, under the numbers that they have in checkpoints.

    What nn.Sequential computes, but the first bias and GELU in one pass while neither layer is touched.
    """

    def forward(self, x: Tensor) -> Tensor:
        layers: list[Any] = list(self)
        if len(layers) > 1 and is_untouched(layers[1], GELU):
            x = bias_gelu(*product_and_bias(layers[0], nn.Linear, x), approximate=layers[1].approximate)
            layers = layers[2:]
        for layer in layers:
            x = layer(x)
        return x


class _Attention(nn.Module):
    """Every frame attends to every frame."""

    def __init__(self, n_state: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(n_state, n_state)
        self.key = nn.Linear(n_state, n_state, bias=False)
        self.value = nn.Linear(n_state, n_state)
        self.out = nn.Linear(n_state, n_state)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.n_head, -1)).transpose(-2, -3) for layer in (self.query, self.key, self.value)
        )
        mixed: Tensor = self.out(scaled_dot_product_attention(query, key, value).transpose(-2, -3).flatten(-2))
        return mixed


def sinusoids(length: int, channels: int) -> Tensor:
    """The positional embedding `[length, channels]`: sines, then cosines, of periods in geometric progression."""
    count = channels // 2
    rates = torch.exp(-math.log(LONGEST_PERIOD) / max(count - 1, 1) * torch.arange(count))
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
