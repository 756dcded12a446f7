"""The formulas of GELU: `FORMULAS` is the only list of them, and what is known of each stands there.

A formula is a gate, gelu(u) = u C(u). Kernels compute it in device.py, PyTorch in plain.py; both read their constants
here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Approximate = Literal["tanh", "none", "sigmoid"]
"""The names of all formulas; a test holds them against `FORMULAS`."""


@dataclass(frozen=True)
class Normal:
    """The gate that is the normal distribution function."""


@dataclass(frozen=True)
class Logistic:
    """A gate that is a logistic curve of an odd cubic: C(u) = 1 / (1 + exp(-z)), z = linear (u + bend u^3)."""

    linear: float
    bend: float = 0.0

    @property
    def cubic(self) -> float:
        """The factor of u^3 in z."""
        return self.linear * self.bend


@dataclass(frozen=True)
class Formula:
    """One formula of GELU.

    `name` is PyTorch's `approximate`, or a name of our own; `title` is for tables; `definition` is what people read,
    as a function of u, and `source` the paper that has it. `gate` is what PyTorch code needs to compute it (plain.py,
    and float64 in tests). From u = `opened` on the first derivative is exactly 1 in float32 and float64, while exp(z)
    is still finite in float32. `standard` is the formula in PyTorch's standard operators: what an exported graph holds,
    and what a user of PyTorch would write; `spelling` is its text, where {u} stands for the argument. `exact` is the
    gate C(u) in functions of mpmath, as the definition says, with no rounded constant.
    """

    name: str
    title: str
    definition: str
    used_by: str
    gate: Normal | Logistic
    opened: float
    standard: Callable[[Tensor], Tensor]
    spelling: str
    exact: Callable[[Any, Any], Any]
    source: str = "Hendrycks and Gimpel, Gaussian Error Linear Units, arXiv:1606.08415"


TANH = Logistic(linear=2 * math.sqrt(2 / math.pi), bend=0.044715)  # (1 + tanh(z / 2)) / 2, without its cancellation
SIGMOID = Logistic(linear=1.702)

FORMULAS: Mapping[str, Formula] = {
    formula.name: formula
    for formula in (
        Formula(
            name="tanh",
            title="tanh",
            definition="0.5 u (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3)))",
            used_by="GPT-2",
            gate=TANH,
            opened=8.0,
            standard=lambda u: F.gelu(u, approximate="tanh"),
            spelling="F.gelu({u}, approximate='tanh')",
            exact=lambda u, mp: 1 / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (u + mp.mpf("0.044715") * u**3))),
        ),
        Formula(
            name="none",
            title="exact",
            definition="u Phi(u)",
            used_by="BERT and Whisper",
            gate=Normal(),
            opened=32.0,
            standard=lambda u: F.gelu(u, approximate="none"),
            spelling="F.gelu({u}, approximate='none')",
            exact=lambda u, mp: mp.erfc(-u / mp.sqrt(2)) / 2,
        ),
        Formula(
            name="sigmoid",
            title="sigmoid",
            definition="u sigmoid(1.702 u)",
            used_by="CLIP",
            gate=SIGMOID,
            opened=32.0,
            standard=lambda u: u * torch.sigmoid(SIGMOID.linear * u),
            spelling="{u} * torch.sigmoid(1.702 * {u})",
            exact=lambda u, mp: 1 / (1 + mp.exp(mp.mpf("-1.702") * u)),
        ),
    )
}


def check_approximate(approximate: str) -> None:
    """Raise ValueError unless `approximate` is a formula we have."""
    if not isinstance(approximate, str) or approximate not in FORMULAS:  # what cannot be hashed is no formula
        raise ValueError(f"approximate must be one of {', '.join(map(repr, FORMULAS))}, got {approximate!r}")
