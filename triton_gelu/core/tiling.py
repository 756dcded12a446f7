"""What a program computes at a time, and how many programs share a sum: pure functions of geometry and itemsize.

A size may be a compiler's symbol (see core/plan.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from . import in_flight
from .in_flight import InFlight
from .matrices import Matrices
from .plan import ALIGN, WARP, WARPS, cdiv, power_of_two

WARP_BYTES = 16 * WARP  # what one warp reads in one 128-bit access
ACCESSES = 4  # of each thread in a forward tile, or more: all are asked for at once, and stored one after another
SHARE, SHARE_OF_LARGE = 0.1, 0.025  # most of the traffic of a backward pass that partial sums may take
LARGE = 2**25  # bytes of a tensor: from here on a share is what the memory takes
FEW = 108  # terms: SHARE_OF_LARGE shares no sum of 16-bit numbers that has fewer
FULL = 0.9  # of the places that programs may have at once: a backward pass is one wave, and fills it so far
NARROWEST = 128  # bytes of a row that a tile has at least: whole lines of the cache


@dataclass(frozen=True)
class Tile:
    """What one program computes at a time: rows, columns, and the warps (of 32 threads) that share them."""

    rows: int
    cols: int
    warps: int = WARPS


@dataclass(frozen=True)
class PartialSums:
    """How a sum over `batch` and one more axis is shared out: `count` programs for each tile of the result.

    A program adds up `steps` steps along the axis, which is cut into `segments`, in each of `batches` batches.
    """

    count: int
    segments: int
    batches: int
    steps: int


def forward_tile(matrices: Matrices, itemsize: int, scale: int, chosen: InFlight) -> Tile:
    """The tile of a forward program, `ACCESSES` full accesses a thread or as many as it asks for at once.

    Where all warps fit into a row next to each other, each thread loads the bias of its own columns; in narrower tiles
    the bias has to pass through shared memory, two instructions an element.
    """
    warp = WARP_BYTES // itemsize
    accesses = max(chosen.unroll, ACCESSES) * chosen.warps * scale  # of a warp
    if matrices.bias == "cols":
        for warps in {chosen.warps: None, WARPS // 2: None}:
            if _fits(matrices.cols, warps * warp):
                return Tile(accesses // chosen.warps, warps * warp, warps)
    if matrices.bias == "rows":  # narrow, to waste little at the end of a row, unless accesses are narrow, too
        narrower = 2 if matrices.alignment(ALIGN) == ALIGN else 0.5
        return _tile(matrices, int(warp / narrower), int(narrower * accesses), chosen.warps)
    return _tile(matrices, warp, accesses, chosen.warps)


def backward_tile(matrices: Matrices, itemsize: int, scale: int, places: int) -> Tile:
    """The tile of a step of a backward program, one full access a thread of each tensor.

    Along rows, whose number is that of channels, it is as high as it has to be for equal shares of `places` programs
    to fill them: of few tiles more programs can share each.
    """
    tile = _tile(matrices, WARP_BYTES // itemsize, WARPS * scale)
    if matrices.bias != "rows" or not isinstance(matrices.rows, int) or scale > 1:
        return tile
    tiles = [tile]
    while tiles[-1].rows * 2 <= matrices.rows and tiles[-1].cols * itemsize >= 2 * NARROWEST:
        tiles.append(Tile(tiles[-1].rows * 2, tiles[-1].cols // 2))
    preferred = (*tiles[1:2], tile, *tiles[2:])
    return next((each for each in preferred if _filled(cdiv(matrices.rows, each.rows), places) >= FULL), tile)


def _filled(tiles: int, places: int) -> float:
    """How many places are taken on average while each of `tiles` is shared by as many programs as there is room for."""
    programs = tiles * max(places // tiles, 1)
    return programs / (cdiv(programs, places) * places)


def partial_share(matrices: Matrices, itemsize: int) -> float:
    """The most of its traffic that a backward pass may spend on partial sums.

    In a small call, most of whose traffic is that of caches, it is worth more to have all processors at work; but no
    second launch, if few terms have one sum.
    """
    asked: float | None = in_flight.overrides()["backward"].get("share")
    if asked is not None:
        return asked
    size = matrices.batch * matrices.rows * matrices.cols * itemsize
    terms = matrices.batch * (matrices.cols if matrices.bias == "rows" else matrices.rows)
    if not isinstance(size, int) or size >= LARGE or (size < LARGE // 2 and terms < FEW):
        return SHARE_OF_LARGE
    return SHARE


def partial_sums(batch: int, length: int, step: int, wanted: int, itemsize: int, share: float) -> PartialSums:
    """Share out a sum over `batch` batches of an axis of `length`, `step` elements a step.

    `wanted` programs share it, or fewer, where writing and reading their partial sums would take more than `share` of
    the traffic. With sizes that are symbols, the last programs may turn out to have nothing to add.
    """
    if isinstance(batch, int) and isinstance(length, int):
        # A partial sum is written and read once, in fp32; dy and x are read and dx is written.
        least = math.ceil(2 * 4 / (share * 3 * itemsize))
        wanted = max(min(batch * length // least, wanted), 1)
        return min(_shared_out(batch, length, step, wanted), key=lambda sums: (sums.batches * sums.steps, -sums.count))
    segments = min(wanted, cdiv(length, step)) if isinstance(length, int) else wanted
    batches = cdiv(batch, wanted // segments)
    steps = cdiv(cdiv(length, segments), step)
    return PartialSums(wanted // segments * segments, segments, batches, steps)


def _shared_out(batch: int, length: int, step: int, wanted: int) -> Iterable[PartialSums]:
    """The ways to share out a sum to `wanted` programs at most: the axis in segments, and batches among those."""
    most = min(wanted, cdiv(length, step))
    for segments in range(most if batch == 1 else 1, most + 1):
        batches = cdiv(batch, wanted // segments)
        steps = cdiv(cdiv(length, segments), step)
        segments = cdiv(length, steps * step)
        yield PartialSums(cdiv(batch, batches) * segments, segments, batches, steps)


def _tile(matrices: Matrices, warp: int, accesses: int, warps: int = WARPS) -> Tile:
    """A tile of so many `accesses` of one `warp` each, which covers a row: its sum stays inside."""
    if matrices.bias == "none" and matrices.rows == 1:
        return Tile(1, max(power_of_two(matrices.cols, accesses * warp), ALIGN), warps)
    cols = max(power_of_two(matrices.cols, warp), ALIGN)
    if matrices.bias == "rows":  # as many rows as there are channels; columns are a sequence, whatever its length
        rows = power_of_two(matrices.rows, accesses * warp // cols)
        wide = max(power_of_two(matrices.cols, accesses * warp // rows), ALIGN)
        return Tile(rows, wide if rows < 4 else cols, warps)
    cols = next((cols >> shift for shift in range(3) if _fits(matrices.cols, cols >> shift)), cols)
    return Tile(accesses * warp // cols, cols, warps)


def _fits(size: int, block: int) -> bool:
    """Whether blocks cover `size` with at most an eighth to spare."""
    return isinstance(size, int) and cdiv(size, block) * block * 8 <= size * 9
