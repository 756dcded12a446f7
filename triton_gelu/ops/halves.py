"""The two halves of a tensor along a dimension, one of which goes through GELU."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

Activated = Literal["first", "second"]
"""Which half goes through GELU; the other is the factor."""


def check_activated(activated: Any, name: str = "activated") -> None:
    """Raise ValueError, which calls the argument by its name, unless it says which half."""
    names = get_args(Activated)
    if not isinstance(activated, str) or activated not in names:
        raise ValueError(f"{name} must be {' or '.join(map(repr, names))}, got {activated!r}")


def halves(x: Tensor, dim: int, activated: str) -> tuple[Tensor, Tensor]:
    """Views of the half of x that goes through GELU, and of the other."""
    first, second = x.chunk(2, dim)
    return (first, second) if activated == "first" else (second, first)


def joined(activated_half: Tensor, other_half: Tensor, dim: int, activated: str) -> Tensor:
    """A tensor that has these `halves`."""
    first_and_second = (activated_half, other_half) if activated == "first" else (other_half, activated_half)
    return torch.cat(first_and_second, dim)
