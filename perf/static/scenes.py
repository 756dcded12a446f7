"""GELUs in their surroundings, as a compiler meets them: in PyTorch's operations, and with this package.

A scene is a function of GELUs and layers that a `Style` makes, so that both sides differ in nothing else. The bytes of
a scene are told by an element of the activation, which `shape` has; products and convolutions are in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import triton_gelu
from perf.library import FORMULAS
from perf.rows import COMPILED, COMPILED_LIBRARY

META = torch.device("meta")
WIDTH, HIDDEN = 1024, 4096
ROWS, SEQUENCES = (8192,), (12, 1000)
HALF = torch.bfloat16
P = 0.1  # of dropout


@dataclass(frozen=True)
class Style:
    """How GELUs are written: of x + bias, and after a layer that has a bias."""

    gelu: Callable[..., Tensor]  # of x, bias or None, formula and the dimension of the bias
    linear: Callable[[nn.Linear, Tensor, str], Tensor]
    convolution: Callable[[Any, Tensor, str], Tensor]
    geglu: Callable[[nn.Linear, Tensor, str], Tensor]  # of the halves of what a layer gives
    stem: Callable[[Any, Tensor, Tensor, str], Tensor]  # a convolution, GELU, transposed, plus a position


def _torch_gelu(x: Tensor, bias: Tensor | None, approximate: str, dim: int = -1) -> Tensor:
    u = x if bias is None else x + bias.view(-1, *[1] * (x.ndim - dim % x.ndim - 1))
    return FORMULAS[approximate].standard(u).to(x.dtype)


def _our_gelu(x: Tensor, bias: Tensor | None, approximate: str, dim: int = -1) -> Tensor:
    if bias is None:
        return triton_gelu.gelu(x, approximate=approximate)  # type: ignore[arg-type]
    return triton_gelu.bias_gelu(x, bias, approximate=approximate, dim=dim)  # type: ignore[arg-type]


def _torch_geglu(layer: nn.Linear, x: Tensor, approximate: str) -> Tensor:
    opened, other = layer(x).chunk(2, -1)
    y: Tensor = _torch_gelu(opened, None, approximate) * other
    return y


def _our_geglu(layer: nn.Linear, x: Tensor, approximate: str) -> Tensor:
    return triton_gelu.bias_geglu(_product(layer, x), layer.bias, activated="first", approximate=approximate)  # type: ignore[arg-type]


def _product(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight)


def _convolved(layer: Any, x: Tensor) -> Tensor:
    return layer._conv_forward(x, layer.weight, None)  # type: ignore[no-any-return]


STYLES: Mapping[str, Style] = {
    COMPILED: Style(
        _torch_gelu,
        lambda layer, x, approximate: _torch_gelu(layer(x), None, approximate),
        lambda layer, x, approximate: _torch_gelu(layer(x), None, approximate),
        _torch_geglu,
        lambda layer, x, position, approximate: _torch_gelu(layer(x), None, approximate).permute(0, 2, 1) + position,
    ),
    COMPILED_LIBRARY: Style(
        _our_gelu,
        lambda layer, x, approximate: _our_gelu(_product(layer, x), layer.bias, approximate),
        lambda layer, x, approximate: _our_gelu(_convolved(layer, x), layer.bias, approximate, dim=1),
        _our_geglu,
        lambda layer, x, position, approximate: triton_gelu.bias_gelu_transpose(
            _convolved(layer, x),
            layer.bias,
            position,
            approximate=approximate,  # type: ignore[arg-type]
        ),
    ),
}


class Attention(nn.Module):
    """Self-attention of 64 channels a head."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, dtype=HALF) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 64)).transpose(1, 2) for each in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Layers(nn.Module):
    """The layers that scenes are made of, and a scene's function of them."""

    def __init__(self, run: Callable[..., Any], style: Style, approximate: str) -> None:
        super().__init__()
        self.style, self.approximate, self.run = style, approximate, run
        with META:
            self.fc1 = nn.Linear(WIDTH, HIDDEN, dtype=HALF)
            self.fc1_wide = nn.Linear(WIDTH, 2 * HIDDEN, dtype=HALF)
            self.fc2 = nn.Linear(HIDDEN, WIDTH, bias=False, dtype=HALF)
            self.head, self.norm_head = nn.Linear(WIDTH, WIDTH, dtype=HALF), nn.LayerNorm(WIDTH, dtype=HALF)
            self.bias = nn.Parameter(torch.empty(HIDDEN, dtype=HALF))
            self.bias_float32 = nn.Parameter(torch.empty(HIDDEN))
            self.norm = nn.LayerNorm(HIDDEN, dtype=HALF)
            self.attention = Attention()
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, dtype=HALF) for _ in range(2))
            self.conv1d = nn.Conv1d(80, 384, 3, padding=1, dtype=HALF)
            self.conv2d = nn.Conv2d(64, 256, 3, padding=1, dtype=HALF)

    def gelu(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.style.gelu(x, bias, self.approximate)

    def linear_gelu(self, x: Tensor) -> Tensor:
        return self.style.linear(self.fc1, x, self.approximate)

    def conv_gelu(self, layer: Any, x: Tensor) -> Tensor:
        return self.style.convolution(layer, x, self.approximate)

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.linear_gelu(x))  # type: ignore[no-any-return]

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


@dataclass(frozen=True)
class Scene:
    """Surroundings of a GELU: what is computed, of which inputs, and the shape of the activation."""

    name: str
    run: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype = HALF  # of the first input
    training: bool = True
    dynamic: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def model(self, provider: str, approximate: str) -> Layers:
        """The scene as a module on the meta device."""
        return Layers(self.run, STYLES[provider], approximate)

    def tensors(self) -> list[Tensor]:
        """Its inputs on the meta device."""
        types = [self.dtype, *[HALF] * len(self.inputs)]
        return [
            torch.empty(shape, dtype=dtype, device=META, requires_grad=self.training)
            for shape, dtype in zip(self.inputs, types, strict=False)
        ]


def _dropout(x: Tensor) -> Tensor:
    return F.dropout(x, P, training=True)


def _wide_bias(m: Layers, x: Tensor) -> Any:
    return m.fc2(m.gelu(_product(m.fc1, x), m.bias_float32))


def _two_consumers(m: Layers, x: Tensor, factor: Tensor) -> Any:
    y = m.gelu(x, m.bias)
    return y * factor, m.fc2(y)


def _gated_mlp(m: Layers, x: Tensor) -> Any:
    return m.fc2(m.style.geglu(m.fc1_wide, x, m.approximate))


def _used_before(m: Layers, x: Tensor) -> Any:
    h = _product(m.fc1, x)
    return m.fc2(m.gelu(h, m.bias) + h)


def _checkpointed(m: Layers, x: Tensor) -> Any:
    return checkpoint(m.mlp, x, use_reentrant=False)


def _to_float8(m: Layers, x: Tensor) -> Any:
    return (m.gelu(x, m.bias) * 8.0).to(torch.float8_e4m3fn)


def _selected(m: Layers, x: Tensor) -> Any:
    return m.fc2(m.gelu(x[x.sum(-1) > 0], m.bias))


def _head(m: Layers, x: Tensor) -> Any:
    return m.head(m.norm_head(m.style.linear(m.head, x, m.approximate)))


def _whisper_layer(m: Layers, x: Tensor) -> Any:
    x = x + m.attention(m.norms[0](x))
    return x + m.mlp(m.norms[1](x))


def _bert_layer(m: Layers, x: Tensor) -> Any:
    x = m.norms[0](x + _dropout(m.attention(x)))
    return m.norms[1](x + _dropout(m.mlp(x)))


def _stem(m: Layers, x: Tensor, position: Tensor) -> Any:
    return m.style.stem(m.conv1d, x, position, m.approximate)


def _cast_before(m: Layers, x: Tensor) -> Any:
    return m.gelu(x.to(HALF), m.bias)


ACTIVATION = (*ROWS, HIDDEN)
OF_SEQUENCES = (*SEQUENCES, HIDDEN)
ROWS_IN, SEQUENCES_IN, WAVES_IN = (*ROWS, WIDTH), (*SEQUENCES, WIDTH), (8, 80, 3000)
IMAGE = (8, 256, 56, 56)
FRAMES = (8, 384, 3000)
SCENES = (
    Scene("Linear, GELU, Linear", Layers.mlp, (ROWS_IN,), ACTIVATION),
    Scene("the same, of sequences", Layers.mlp, (SEQUENCES_IN,), OF_SEQUENCES),
    Scene("the same, of sequences, sizes not known", Layers.mlp, (SEQUENCES_IN,), OF_SEQUENCES, dynamic=True),
    Scene("the same, bias in float32", _wide_bias, (ROWS_IN,), ACTIVATION),
    Scene("x + bias, GELU", lambda m, x: m.gelu(x, m.bias), (ACTIVATION,), ACTIVATION),
    Scene("GELU, no bias", lambda m, x: m.gelu(x, None), (ACTIVATION,), ACTIVATION),
    Scene("GELU, dropout", lambda m, x: _dropout(m.gelu(x, m.bias)), (ACTIVATION,), ACTIVATION),
    Scene("Linear, GELU, dropout, Linear", lambda m, x: m.fc2(_dropout(m.linear_gelu(x))), (ROWS_IN,), ACTIVATION),
    Scene("GELU times a gate", lambda m, x, g: m.gelu(x, m.bias) * g, (ACTIVATION,) * 2, ACTIVATION),
    Scene("gated MLP (GEGLU)", _gated_mlp, (ROWS_IN,), ACTIVATION),
    Scene("GELU, a residual added", lambda m, x, r: m.gelu(x, m.bias) + r, (ACTIVATION,) * 2, ACTIVATION),
    Scene("Linear, GELU, its input added", _used_before, (ROWS_IN,), ACTIVATION),
    Scene("GELU, scaled, to float8, inference", _to_float8, (ACTIVATION,), ACTIVATION, training=False),
    Scene("GELU with two consumers", _two_consumers, (ACTIVATION,) * 2, ACTIVATION),
    Scene("x cast from float32, GELU", _cast_before, (ACTIVATION,), ACTIVATION, torch.float32),
    Scene("Linear, GELU, Linear, checkpointed", _checkpointed, (ROWS_IN,), ACTIVATION),
    Scene("LayerNorm, GELU", lambda m, x: m.fc2(m.gelu(m.norm(x), m.bias)), (OF_SEQUENCES,), OF_SEQUENCES),
    Scene("Linear, GELU, LayerNorm", lambda m, x: m.fc2(m.norm(m.linear_gelu(x))), (SEQUENCES_IN,), OF_SEQUENCES),
    Scene("Linear, GELU, LayerNorm of 1024 (BERT's head)", _head, (SEQUENCES_IN,), SEQUENCES_IN),
    Scene("Conv1d, GELU", lambda m, x: m.conv_gelu(m.conv1d, x), (WAVES_IN,), FRAMES),
    Scene("Conv2d, GELU", lambda m, x: m.conv_gelu(m.conv2d, x), ((8, 64, 56, 56),), IMAGE),
    Scene("Conv1d, GELU, dropout", lambda m, x: _dropout(m.conv_gelu(m.conv1d, x)), (WAVES_IN,), FRAMES),
    Scene("Conv1d, GELU times a gate", lambda m, x, g: m.conv_gelu(m.conv1d, x) * g, (WAVES_IN, FRAMES), FRAMES),
    Scene("Conv1d, GELU, transposed, a position (Whisper's stem)", _stem, (WAVES_IN, (3000, 384)), FRAMES),
    Scene("encoder layer of Whisper, whole", _whisper_layer, (SEQUENCES_IN,), OF_SEQUENCES),
    Scene("layer of BERT, whole, with dropout", _bert_layer, (SEQUENCES_IN,), OF_SEQUENCES),
)  # fmt: skip
"""Those that are counted; the documents' table has a line for each."""
