"""What a trace of a model notes: modules that run, layers, uses of their outputs, gates."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from .gated import Half
from .product import Link


@dataclass(eq=False)
class Frame:
    """A call of a module's forward; `formula` if the module is a GELU written out in Python.

    Of such a GELU, `links` are the calls to a product that is proven to be the only use of its result.
    """

    name: str
    module: nn.Module
    calls: int = 0
    formula: str = ""
    argument: Tensor | None = None
    result: Tensor | None = None
    links: frozenset[Link] | None = None


Stack = tuple[Frame, ...]


@dataclass(frozen=True)
class Use:
    """A call of a function on the output of a layer; `formula` if it is an activation."""

    function: str
    stack: Stack
    formula: str = ""


@dataclass(frozen=True)
class Factor:
    """A GELU of the output of a layer, or of a half of it, that is proven to be multiplied and nothing else."""

    use: Use
    layer: Layer
    half: Half | None
    links: frozenset[Link]


@dataclass(frozen=True)
class Gate:
    """That the GELU of a layer's output, or of half of it, is multiplied by another tensor, a layer's output or not."""

    gelu: Use
    other: Layer | None
    links: frozenset[Link]


@dataclass(eq=False)
class Layer:
    """A call of one of `PRODUCERS`: the how-manieth in its module's forward, and what stands against fusing it."""

    stack: Stack
    ordinal: int
    dim: int
    width: int
    numel: int
    obstacle: str
    uses: list[Use] = field(default_factory=list)
    divided: bool = False
    gate: Gate | None = None


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from: a function, perhaps of the output of a layer, or arithmetic on nothing else."""

    function: str
    module: str
    layer: Layer | None
    arithmetic: bool


@dataclass(frozen=True)
class UnfusedSite:
    """A GELU of something else than the output of a layer."""

    name: str
    formula: str
    reason: str
