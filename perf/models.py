"""Whole models, written in PyTorch and with this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from triton_gelu import GELU, MLP, AudioEncoder
from triton_gelu.functional import Approximate

MELS, HEAD, DEPTH = 80, 64, 4  # Whisper tiny: channels of its input, features of a head, layers
SEED = 0
Make = Callable[[tuple[int, ...], Approximate], nn.Module]


@dataclass(frozen=True)
class Whole:
    """A model with outputs of a given shape; `plain` is made of PyTorch's layers, with the same parameters."""

    ours: Make
    takes: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple

    def plain(self, shape: tuple[int, ...], approximate: Approximate) -> nn.Module:
        return in_torch(self.ours(shape, approximate), approximate)

    def parameters(self, shape: tuple[int, ...], approximate: Approximate) -> tuple[nn.Parameter, ...]:
        """Those of a new model, the same on every call."""
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            return tuple(self.ours(shape, approximate).parameters())


def encoder(shape: tuple[int, ...], approximate: Approximate) -> nn.Module:
    """Whisper's."""
    _, frames, width = shape
    return AudioEncoder(MELS, frames, width, width // HEAD, DEPTH, approximate=approximate)


def mlps(shape: tuple[int, ...], approximate: Approximate, *, recompute: bool = False) -> nn.Module:
    """The MLPs of a Transformer, one after another."""
    return nn.Sequential(*(MLP(shape[-1], approximate=approximate, recompute=recompute) for _ in range(DEPTH)))


class TorchEncoder(AudioEncoder):
    """The encoder without a fused GELU."""

    def _stem(self, mel: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2):
            mel = nn.functional.gelu(conv(mel), approximate=self.approximate)
        return mel.transpose(1, 2) + self.get_buffer("positional_embedding")


def in_torch(model: nn.Module, approximate: str) -> nn.Module:
    """The model with PyTorch's GELU for each of ours."""
    if isinstance(model, AudioEncoder):
        model.__class__ = TorchEncoder
    for name, part in model.named_children():
        if isinstance(part, MLP):
            setattr(model, name, nn.Sequential(part.fc1, nn.GELU(approximate), part.fc2))
        elif isinstance(part, GELU):
            setattr(model, name, nn.GELU(approximate))
        else:
            in_torch(part, approximate)
    return model


def call(model: nn.Module) -> Callable[..., Tensor]:
    """The model as a function of its input and its parameters."""
    places = [(part, name) for part in model.modules() for name, _ in part.named_parameters(recurse=False)]

    def forward(x: Tensor, *parameters: nn.Parameter) -> Tensor:
        if next(model.parameters()) is not parameters[0]:
            for (part, name), parameter in zip(places, parameters, strict=True):
                setattr(part, name, parameter)
        y: Tensor = model.to(x.device)(x)
        return y

    return forward


MODELS: Mapping[str, Whole] = {
    "encoder": Whole(encoder, takes=lambda shape: (shape[0], MELS, 2 * shape[1])),
    "mlps": Whole(mlps),
    "mlps, recompute": Whole(partial(mlps, recompute=True)),
}
