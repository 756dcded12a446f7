"""How an operator's tensors are declared, and what follows: schemas, shapes of results, DTensor's sharding rules.

An operator has one tensor x that decides about shapes, and further tensors made of some of x's dimensions. From that
follow its schema, the shapes of its results and of its gradients, the arguments of its backward and double backward,
and how DTensor shards all of them. A gradient is what it is the gradient of, so nothing is declared twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor | None, ...]
FORWARD, BACKWARD, DOUBLE_BACKWARD = range(3)  # the levels of an operator
Dimensions = tuple[int, ...]

PACKAGE = __name__.partition(".")[0]
"""The namespace of the operators: that of the package, so that two copies of it in a process keep to their own."""


@dataclass(frozen=True)
class Kind:
    """What a tensor is, told from x: the dimensions of x that it has, in its own order; one of them perhaps halved.

    `dimensions` takes the number of x's dimensions and `dim`, the one that vectors lie along. A tensor that has all of
    them is `full`: kernels take it with any strides, where they want the small ones contiguous.
    """

    name: str
    dimensions: Callable[[int, int], Dimensions]
    full: bool
    halved: bool = False

    def shape(self, x: Sequence[int], dim: int) -> tuple[int, ...]:
        """The shape of such a tensor where x has this one."""
        half = dim if self.halved else None
        return tuple([x[d] // 2 if d == half else x[d] for d in self.dimensions(len(x), dim)])


def _all(ndim: int, dim: int) -> Dimensions:
    return tuple(range(ndim))


def _exchanged(ndim: int, dim: int) -> Dimensions:
    return (*range(ndim - 2), ndim - 1, ndim - 2)


WHOLE = Kind("x's shape", _all, full=True)
HALF = Kind("x's shape, half of it along dim", _all, full=True, halved=True)
EXCHANGED = Kind("x's shape with the last two dimensions exchanged", _exchanged, full=True)
VECTOR = Kind("a vector along dim", lambda ndim, dim: (dim,), full=False)
PLANE = Kind("x's last two dimensions, exchanged", lambda ndim, dim: (ndim - 1, ndim - 2), full=False)
SEED = Kind("a single number", lambda ndim, dim: (), full=False)


@dataclass(frozen=True)
class Arg:
    """A tensor of an operator: its name, what it is, whether it may be None, and whether it has a gradient.

    Of one whose numbers no gradient reads, autograd keeps the shape and the type only.
    """

    name: str
    kind: Kind
    optional: bool = False
    differentiable: bool = True
    read: bool = True

    @property
    def schema(self) -> str:
        return f"Tensor{'?' * self.optional} {self.name}"


@dataclass(frozen=True)
class Option:
    """An argument that is no tensor: its name and its type, as a schema calls it."""

    name: str
    type: str

    @property
    def schema(self) -> str:
        return f"{self.type} {self.name}"


@dataclass(frozen=True)
class Level:
    """An operator, its backward, or the backward of that: what goes in and what comes out.

    `lead` is the position of x. A level with `needs` takes a list of bools last, and returns None for each result that
    is not needed. `sources` names, for each result, the argument that it has the dtype of.
    """

    name: str
    args: tuple[Arg, ...]
    results: tuple[Arg, ...]
    sources: tuple[str, ...]
    lead: int
    needs: bool

    def schema(self, options: Sequence[Option]) -> str:
        """The schema that torch.library registers."""
        args = [arg.schema for arg in self.args] + [option.schema for option in options]
        args += ["bool[] needs"] * self.needs
        results = ", ".join(["Tensor"] * len(self.results))
        return f"({', '.join(args)}) -> {f'({results})' if self.needs else results}"

    def needed(self, given: Sequence[Any]) -> tuple[bool, ...]:
        """Which results a call with these arguments asks for; none of an argument that it is not given."""
        if not self.needs:
            return (True,) * len(self.results)
        tensors = self.by_name(given)
        return tuple([bool(n) and tensors[s] is not None for n, s in zip(given[-1], self.sources, strict=True)])

    def shape(self, place: int, given: Sequence[Any], dim: int) -> tuple[int, ...]:
        """The shape of a result: that of the argument it is a gradient of, or, told from x, that of its kind."""
        source, lead = self.sources[place], self.args[self.lead].name
        if source != lead:
            return tuple(self.by_name(given)[source].shape)
        return self.results[place].kind.shape(given[self.lead].shape, dim)

    def by_name(self, given: Sequence[Any]) -> dict[str, Any]:
        """The tensors among the arguments of a call."""
        return {arg.name: tensor for arg, tensor in zip(self.args, given, strict=False)}


def levels(name: str, inputs: tuple[Arg, ...], result: Kind) -> tuple[Level, Level, Level]:
    """The operator of this name, its backward and its double backward."""
    with_gradient = [arg for arg in inputs if arg.differentiable]
    y, dy = Arg("y", result), Arg("dy", result)
    gradients = tuple([Arg(f"d{arg.name}", arg.kind) for arg in with_gradient])
    incoming = tuple([Arg(f"dd{arg.name}", arg.kind, optional=True) for arg in with_gradient])
    second = (Arg("ddy", result), *(Arg(f"d2{arg.name}", arg.kind) for arg in with_gradient))
    sources = tuple([arg.name for arg in with_gradient])
    x = inputs[0].name
    return (
        Level(name, inputs, (y,), (x,), 0, needs=False),
        Level(f"{name}_backward", (dy, *inputs), gradients, sources, 1, needs=True),
        Level(
            f"{name}_double_backward", (*incoming, dy, *inputs), second, (x, *sources), len(incoming) + 1, needs=True
        ),
    )


def empty_results(level: Level, given: Sequence[Any], dim: int) -> Tensors:
    """The results that a call asks for, allocated, not computed. One of x's shape lies as x does, or as half of it."""
    x, tensors = given[level.lead], level.by_name(given)
    own = level.args[level.lead].kind
    results: list[Tensor | None] = []
    for place, (result, needed) in enumerate(zip(level.results, level.needed(given), strict=True)):
        like = tensors[level.sources[place]]
        if not needed:
            results.append(None)
        elif result.kind is own:
            results.append(torch.empty_like(x, dtype=like.dtype))
        elif result.kind.halved:
            results.append(torch.empty_like(half(x, dim), dtype=like.dtype))
        else:
            results.append(x.new_empty(level.shape(place, given, dim), dtype=like.dtype))
    return tuple(results)


def half(x: Tensor, dim: int) -> Tensor:
    """The first half of x along dim, a view: what is `halved` lies as a result like it does."""
    return x.narrow(dim, 0, x.shape[dim] // 2)


def or_empty(results: Tensors, x: Tensor) -> list[Tensor]:
    """The same as an operator of torch.library returns them, which knows no None: an empty tensor stands for it."""
    return [x.new_empty(0) if result is None else result for result in results]


def sharding_rules(level: Level, given: Sequence[Any], dim: int) -> list[tuple[list[Any], list[Any]]]:
    """DTensor's rules: x may be cut along any dimension, with the tensors that have it; what has not is a sum."""
    from torch.distributed.tensor import Partial, Replicate, Shard

    ndim, tensors = given[level.lead].ndim, given[: len(level.args)]
    rest = [None] * (len(given) - len(tensors))
    everywhere = Replicate()
    rules: list[tuple[list[Any], list[Any]]] = [
        ([everywhere] * len(level.results), [None if t is None else everywhere for t in tensors] + rest)
    ]
    halved = any(arg.kind.halved for arg in (*level.args, *level.results))
    for d in range(ndim):
        if halved and d == dim:
            continue  # the halves would be on different ranks
        place = {kind: _place(kind, ndim, dim, d) for kind in {arg.kind for arg in (*level.args, *level.results)}}
        cut = {kind: everywhere if where is None else Shard(where) for kind, where in place.items()}
        total = {kind: Partial() if where is None else Shard(where) for kind, where in place.items()}
        outs = [
            total[result.kind] if needed else everywhere
            for result, needed in zip(level.results, level.needed(given), strict=True)
        ]
        ins = [None if t is None else cut[arg.kind] for arg, t in zip(level.args, tensors, strict=True)]
        rules.append((outs, ins + rest))
    return rules


def _place(kind: Kind, ndim: int, dim: int, d: int) -> int | None:
    """Which dimension of such a tensor is x's dimension d, if it has it."""
    dimensions = kind.dimensions(ndim, dim)
    return dimensions.index(d) if d in dimensions else None


def shape_of(tensor: Tensor | None) -> Tensor | None:
    """A tensor of the same shape, type and device that takes no memory, to be kept instead of one that nobody reads."""
    return None if tensor is None else tensor.new_empty(()).expand(tensor.shape)


def keep_needed(gradients: Sequence[Tensor | None], needs: Sequence[bool]) -> Iterator[Tensor | None]:
    """The gradients that are needed, None for the others."""
    return (gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True))
