"""Sees a tensor with a bias along one dimension as a stack of matrices, without a copy where possible.

The bias runs along the columns (the output of a Linear, or a channels-last image) or along the rows (the channels of a
convolution). Strides decide which; nothing is copied as long as the columns of every tensor are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BiasAxis = Literal["rows", "cols", "none"]
Ints = tuple[int, ...]


@dataclass(frozen=True)
class Matrices:
    """Tensors of one shape, each seen as `[batch, rows, cols]` with contiguous columns.

    `strides` holds a pair (batch stride, row stride), in elements, for each tensor.
    """

    batch: int
    rows: int
    cols: int
    bias: BiasAxis
    strides: tuple[tuple[int, int], ...]

    @property
    def bias_size(self) -> int:
        return {"rows": self.rows, "cols": self.cols, "none": 0}[self.bias]

    def alignment(self, widest: int) -> int:
        """The largest power of two, at most `widest`, that divides the width and every stride, whatever symbols are."""
        sizes = [self.cols, *(stride for pair in self.strides for stride in pair)]
        if all(isinstance(size, int) for size in sizes):
            return math.gcd(widest, *sizes)
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        while not all(statically_known_true(size % widest == 0) for size in sizes):
            widest //= 2
        return widest


def matrices(shape: Sequence[int], dim: int | None, *strides: Sequence[int]) -> Matrices | None:
    """See tensors of one `shape` as matrices: an entry of `strides` each, a bias along `dim` (None: no bias).

    Dimensions go by descending stride of the first tensor and are merged where all tensors allow it. Returns None where
    that does not end in a stack of matrices with contiguous columns: then somebody has to copy.
    """
    dims = sorted((d for d, size in enumerate(shape) if size != 1), key=lambda d: -strides[0][d])
    if dim is not None and shape[dim] == 1:
        dims.insert(len(dims) - 1, dim)  # a bias of one element may stand anywhere: next to the columns is free
    axes: list[tuple[int, Ints]] = []  # (size, stride of each tensor), innermost first
    bias_axis = None
    for d in reversed(dims):
        size, steps = shape[d], tuple(stride[d] for stride in strides)
        if size == 1:
            steps = tuple(axes[0][0] * step for step in axes[0][1]) if axes else (1,) * len(strides)
        mergeable = axes and d != dim and bias_axis != len(axes) - 1
        if mergeable and steps == tuple(axes[-1][0] * step for step in axes[-1][1]):
            axes[-1] = (axes[-1][0] * size, axes[-1][1])
        else:
            axes.append((size, steps))
        if d == dim:
            bias_axis = len(axes) - 1
    if len(axes) > 3 or (axes and any(step != 1 for step in axes[0][1])) or bias_axis == 2:
        return None
    while len(axes) < 3:
        axes.append((1, (0,) * len(strides)))
    (cols, _), (rows, row_strides), (batch, batch_strides) = axes
    bias: BiasAxis = "none" if bias_axis is None else "cols" if bias_axis == 0 else "rows"
    return Matrices(batch, rows, cols, bias, tuple(zip(batch_strides, row_strides, strict=True)))


def matrices_with_result(
    result: Sequence[int],
    shape: Sequence[int],
    dim: int | None,
    *strides: Sequence[int],
    numbered: Sequence[Sequence[int]] = (),
) -> tuple[Matrices, bool]:
    """The matrices that tensors and a dense `result` are, the result last; and whether to copy the tensors first.

    They must be where their strides and the result's do not go together; copies then have the strides of the result.
    `numbered` are strides of places that are numbered in another way, and the very last of the matrices'.
    """
    together = matrices(shape, dim, *strides, result, *numbered)
    if together is not None:
        return together, False
    together = matrices(shape, dim, *[result] * (len(strides) + 1), *numbered)
    assert together is not None
    return together, True


def rows_in_memory(shape: Sequence[int], dim: int, strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """The dimensions of a dense tensor by descending stride: those that count its rows, and those that make up a row.

    A row has the dimensions inside of `dim`, or `dim` alone where that is the innermost: no bias along `dim` cuts one.
    Dimensions of one element are left out.
    """
    order = sorted((d for d, size in enumerate(shape) if size != 1), key=lambda d: -strides[d])
    first = min(order.index(dim) + 1 if dim in order else len(order), len(order) - 1)
    return order[:first], order[first:]


def strides_of_padded_rows(shape: Sequence[int], dim: int, strides: Sequence[int], multiple: int) -> Ints:
    """The strides of a dense tensor whose rows (`rows_in_memory`) are padded to a multiple of elements."""
    outer, row = rows_in_memory(shape, dim, strides)
    columns = math.prod([shape[d] for d in row])
    padded = -(-columns // multiple) * multiple
    return tuple([stride // columns * padded if d in outer else stride for d, stride in enumerate(strides)])
