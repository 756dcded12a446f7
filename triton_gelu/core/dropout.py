"""Dropout of an operator's result, in the same pass: `DropoutOp` is the operator that has it.

With y = w f(x), where w is 0 or 1 / (1 - p), the backward pass is that of f, whose dy is multiplied by w; so nothing
of f is written again. w is not saved: it follows from a seed and from the place in the result, by Philox. A counter
gives the bits of 16 bytes of the result, 16 bits of an element of 2 bytes, else 32, so that p is rounded to a multiple
of 2^-16 or 2^-32. An element is kept if its bits, as a number, are below (1 - p) of them all.

The seed is drawn outside of the operator, as torch.nn.functional.dropout draws, for all that PyTorch does to random
numbers to apply: manual_seed, fork_rng, checkpoint, compilers, CUDA graphs, vmap. Where eager mode has no kernels,
PyTorch's own dropout follows the operator: on a CPU it draws its mask in less time than Philox takes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import compat_torch
from .declare import BACKWARD, DOUBLE_BACKWARD, FORWARD, SEED, Arg, Option, Tensors
from .dispatch import Backend, Kernels, kernels_support
from .matrices import Ints, Matrices, rows_in_memory, strides_of_padded_rows
from .op import Op
from .philox import philox, words_of
from .plan import Plan, cdiv
from .run import strides_of
from .targets import Target

COUNTER_BITS = 128


@dataclass(frozen=True)
class Rate:
    """How bits decide on an element: it is kept, and multiplied by `scale`, if they are less than `threshold`.

    `bits` is how many there are, `per_counter` how many elements share the bits of a counter.
    """

    bits: int
    per_counter: int
    threshold: int
    scale: float

    @property
    def last(self) -> int:
        """The largest word of 32 bits that begins with bits that are kept, as an int32; where all drop, scale is 0."""
        last = max((self.threshold << (32 - self.bits)) - 1, 0)
        return last - 2**32 if last >= 2**31 else last


def rate(dropout_p: float, itemsize: int) -> Rate:
    """The rate for results of elements of this size. `scale` goes with the rounded p: the mean of w is exactly 1."""
    bits = 16 if itemsize == 2 else 32
    threshold = round((1 - dropout_p) * 2**bits)
    return Rate(bits, COUNTER_BITS // bits, threshold, 2**bits / threshold if threshold else 0.0)


@dataclass(frozen=True)
class Drops:
    """What kernels are told of dropout: so many counters from one batch and one row to the next, and the rate."""

    counter_batch: int = 0
    counter_row: int = 0
    rate: Rate | None = None
    wide: bool = False

    @property
    def integers(self) -> Ints:
        """At run time, so that another probability compiles no kernel."""
        if self.rate is None:
            return ()
        (scale,) = struct.unpack("i", struct.pack("f", self.rate.scale))
        return self.counter_batch, self.counter_row, self.rate.last, scale

    @property
    def constants(self) -> tuple[tuple[str, object], ...]:
        """The others, in the order of the kernels' arguments."""
        absent = ("counter_batch", "counter_row", "last", "scale") if self.rate is None else ()
        return *((name, None) for name in absent), ("INT64_COUNTER", self.wide)


NOTHING_DROPPED = Drops()


def numbered(shape: Sequence[int], dim: int, strides: Sequence[int], dropout_p: float, itemsize: int) -> list[Ints]:
    """The strides by which elements are numbered of a dense result that lies as `strides` say; none without dropout."""
    if not dropout_p:
        return []
    return [strides_of_padded_rows(shape, dim, strides, rate(dropout_p, itemsize).per_counter)]


def split_numbered(matrices: Matrices, dropout_p: float, itemsize: int) -> tuple[Matrices, Drops]:
    """Matrices without the last of their strides, which are `numbered`, and what follows from those."""
    if not dropout_p:
        return matrices, NOTHING_DROPPED
    *strides, (batch, row) = matrices.strides
    how = rate(dropout_p, itemsize)
    wide = batch * matrices.batch + row * matrices.rows + matrices.cols >= 2**31 * how.per_counter
    return replace(matrices, strides=tuple(strides)), Drops(batch // how.per_counter, row // how.per_counter, how, wide)


def by_counter(seed: Tensor, rows: int, columns: int, rate: Rate) -> Tensor:
    """The bits of each element, as numbers."""
    counters = cdiv(columns, rate.per_counter)
    number = torch.arange(rows * counters, device=seed.device)
    words = philox(words_of(seed), (*words_of(number), 0, 0))
    if rate.bits == 16:
        words = tuple([half for word in words for half in (word & 0xFFFF, word >> 16)])
    return torch.stack(words, -1).reshape(rows, counters * rate.per_counter)[:, :columns]


def by_element(seed: Tensor, rows: int, columns: int, rate: Rate) -> Tensor:
    """The same, in operations on single elements: compilers for GPUs make one kernel of them and of what is beside."""
    row, column = torch.arange(rows, device=seed.device)[:, None], torch.arange(columns, device=seed.device)
    number = row * cdiv(columns, rate.per_counter) + column // rate.per_counter
    a, b, c, d = philox(words_of(seed), (*words_of(number), 0, 0))
    place = column % rate.per_counter
    of_word = place * rate.bits // 32
    word = torch.where(of_word < 2, torch.where(of_word < 1, a, b), torch.where(of_word < 3, c, d))
    return word if rate.bits == 32 else (word >> place % 2 * 16) & 0xFFFF


Bits = Callable[[Tensor, int, int, Rate], Tensor]


def weight(
    seed: Tensor,
    shape: Sequence[int],
    dim: int,
    strides: Sequence[int],
    rate: Rate,
    dtype: torch.dtype,
    bits: Bits = by_counter,
) -> Tensor:
    """w, for a dense result of this shape whose memory lies as `strides` say. Each of its rows begins a counter."""
    outer, row = rows_in_memory(shape, dim, strides)
    sizes = [shape[d] for d in (*outer, *row)]
    rows, columns = math.prod(sizes[: len(outer)]), math.prod(sizes[len(outer) :])
    kept = bits(seed, rows, columns, rate) < rate.threshold
    in_memory = (kept.to(dtype) * rate.scale).reshape(sizes)
    place = {d: i for i, d in enumerate((*outer, *row))}
    return in_memory.permute([place[d] for d in sorted(place)]).reshape(shape)


class DropoutOp(Op):
    """An operator followed by dropout: with a further tensor `seed`, last, and a further option `dropout_p`, last."""

    def __init__(self, op: Op) -> None:
        self.alone = op
        super().__init__(
            f"{op.name}_dropout",
            [*op.inputs, Arg("seed", SEED, differentiable=False)],
            op.levels[FORWARD].results[0].kind,
            [*op.options, Option("dropout_p", "float")],
            dim=lambda *options: op.dim(*options[:-1]),
            check=lambda x, *options: (*op.check_options(x, *options[:-1]), check_dropout_p(options[-1])),
            plain=followed(op, op.plain),
            kernels=dropping(op),
            graph=followed(op, op.graph or op.plain, compiled=True),
        )

    def draw_seed(self, x: Any) -> Tensor | None:
        """A seed for tensors like x, or None where PyTorch's own dropout is to follow: it is faster without kernels."""
        if not isinstance(x, Tensor) or compat_torch.is_exporting():
            return None
        if not (torch.compiler.is_compiling() or kernels_support(x).possible):
            return None
        return torch.randint(-(2**63), 2**63 - 1, (), device=x.device)

    def drop(self, seed: Tensor | None, *given: Any) -> Tensor:
        """The result of a call whose `seed`, from `draw_seed`, comes first."""
        *others, dropout_p = given
        if dropout_p == 0.0:
            return self.alone.call(*others)
        dropout_p = check_dropout_p(dropout_p)
        if isinstance(given[0], Tensor) and compat_torch.is_sharded(given[0]):
            raise NotImplementedError(
                "dropout_p must be 0 for a DTensor, whose shards would share a mask: call torch.nn.functional.dropout"
            )
        if seed is None:
            return F.dropout(self.alone.call(*others), dropout_p)
        count = len(self.alone.inputs)
        return self.call(*others[:count], seed, *others[count:], dropout_p)


def followed(op: Op, of: Backend, *, compiled: bool = False) -> Backend:
    """A backend of the operator, followed by dropout: its result times w, and its gradients of dy times w.

    For a compiler its result is rounded before: compilers leave that out, and formulas for fewer digits are shorter.
    """
    count, result = len(op.inputs), op.levels[FORWARD].results[0].kind

    def parts(given: Sequence[Any]) -> tuple[tuple[Any, ...], Tensor]:
        """The arguments of the operator alone, and w."""
        (x, *others), seed, options, dropout_p = given[:count], given[count], given[count + 1 : -1], given[-1]
        dim, wide = op.dim(*options), torch.promote_types(x.dtype, torch.float32)
        shape, strides = result.shape(x.shape, dim), strides_of(result, op.inputs[0].kind, x, dim)
        bits = by_element if compiled else by_counter
        return (x, *others, *options), weight(seed, shape, dim, strides, rate(dropout_p, x.itemsize), wide, bits)

    def forward(*given: Any) -> Tensor:
        (x, *others), w = parts(given)
        return (of.forward(x if compiled else x.to(w.dtype), *others) * w).to(x.dtype)

    def backward(dy: Tensor, *given: Any) -> Tensors:
        inner, w = parts(given[:-1])
        return of.backward(dy * w, *inner, given[-1])

    def double_backward(*given: Any) -> Tensors:
        *incoming, dy = given[: len(op.levels[BACKWARD].results) + 1]
        inner, w = parts(given[len(incoming) + 1 : -1])
        assert of.double_backward is not None
        ddy, *gradients = of.double_backward(*incoming, dy * w, *inner, given[-1])
        return None if ddy is None else (ddy * w).to(dy.dtype), *gradients

    return Backend(of.name, forward, backward, double_backward if of.double_backward else None, of.supports)


def dropping(op: Op) -> Kernels | None:
    """The kernels of the operator, if there are any, with dropout: its planners take a `dropout_p`."""
    kernels = op.kernels
    if kernels is None:
        return None

    def planner(number: int) -> Callable[..., Plan]:
        plan, place = kernels.planners[number], op.levels[number].lead + len(op.inputs)
        assert plan is not None

        def planned(target: Target, layout: Ints, *given: Any) -> Plan:
            tensors, (_, *options) = given[:place], given[place:]
            dropout_p = options.pop(len(op.options))
            return plan(target, layout, *tensors, *options, dropout_p=dropout_p)

        return planned

    first, second, third = (planner(number) for number in (FORWARD, BACKWARD, DOUBLE_BACKWARD))
    return replace(kernels, forward=first, backward=second, double_backward=third)


def check_dropout_p(dropout_p: Any, name: str = "dropout_p") -> float:
    """The probability as a float; raise, and call the argument by its name, unless it is one."""
    if not isinstance(dropout_p, (int, float)) or isinstance(dropout_p, bool):  # True is no wish to drop everything
        raise TypeError(f"{name} must be a float, got {type(dropout_p).__name__}")
    if not 0 <= dropout_p <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {dropout_p}")
    return float(dropout_p)
