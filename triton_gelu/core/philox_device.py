"""The bits of dropout on the device: what philox.py and dropout.py say in PyTorch, for the elements of a tile."""

import triton
import triton.language as tl

from . import philox as plain
from .arithmetic import mul
from .tiles import integer

ROUNDS = tl.constexpr(plain.ROUNDS)
FIRST_MULTIPLIER, SECOND_MULTIPLIER = (tl.constexpr(each) for each in plain.MULTIPLIERS)
FIRST_STEP, SECOND_STEP = (tl.constexpr(each) for each in plain.KEY_STEPS)

DROPOUT_INTEGERS = "counter_batch", "counter_row", "last", "scale"
"""The run-time arguments of a kernel that drops elements; None where it does not."""


@triton.jit
def philox(seed, number):
    """The four words of the counters (number, 0, 0): a product of 64 bits is one instruction for both its words."""
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    c0 = number.to(tl.uint32)
    c1 = (number >> 32).to(tl.uint32) if number.dtype.primitive_bitwidth == 64 else c0 * 0
    c2 = c0 * 0
    c3 = c2
    for _ in tl.static_range(ROUNDS):
        first = c0.to(tl.uint64) * FIRST_MULTIPLIER
        second = c2.to(tl.uint64) * SECOND_MULTIPLIER
        c0 = (second >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (first >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = second.to(tl.uint32)
        c3 = first.to(tl.uint32)
        k0 = tl.add(k0, FIRST_STEP, sanitize_overflow=False)
        k1 = tl.add(k1, SECOND_STEP, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def side_by_side(a, b, c, d):
    """[M, N] each, to [M, 4 N], their elements in turn."""
    x = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(x, (a.shape[0], 4 * a.shape[1]))


@triton.jit
def load_seed(seed_ptr):
    """The seed, or None where nothing is dropped."""
    if seed_ptr is None:
        return
    else:
        return tl.load(seed_ptr)


@triton.jit
def counter_at(seed, batch, top, left, counter_batch, counter_row, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """The counter of the elements from (batch, top, left) on, of a result of DTYPE; in 64 bits where it is WIDE."""
    if seed is None:
        return
    else:
        PER_COUNTER: tl.constexpr = 8 if DTYPE.primitive_bitwidth == 16 else 4
        number: tl.constexpr = tl.int64 if WIDE else tl.int32
        above = tl.cast(batch, number) * counter_batch + tl.cast(top, number) * counter_row
        return above + (left // PER_COUNTER).to(number)


@triton.jit
def weight_of_part(
    seed, counter, row, right, counter_row, last, scale, DTYPE: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """w of the elements in these rows, and in COLS columns, `right` of that whose counter is given; None without seed.

    `scale` comes as the bits of a float32.
    """
    if seed is None:
        return
    else:
        BITS: tl.constexpr = 16 if DTYPE.primitive_bitwidth == 16 else 32
        PER_COUNTER: tl.constexpr = 128 // BITS
        group = tl.arange(0, COLS // PER_COUNTER) + right // PER_COUNTER
        number = (counter + row.to(counter.dtype) * counter_row)[:, None] + group[None, :]
        scale = (integer(scale)).to(tl.float32, bitcast=True)
        return dropout_weight(seed, number, integer(last).to(tl.uint32), scale, BITS)


@triton.jit
def dropped(x, w, F32X2: tl.constexpr):
    """x w, or x where w is None."""
    if w is None:
        return x
    else:
        return mul(x, w, F32X2)


@triton.jit
def dropout_weight(seed, number, last, scale, BITS: tl.constexpr):
    """w of a tile: `scale` where an element's BITS of 32, followed by ones, are at most `last`, else 0.

    `number` has the counter of each element that begins one, so that w is as many times as wide.
    """
    a, b, c, d = philox(seed, number)
    if BITS == 16:
        # A word has the bits of two elements; those of the first come to the front.
        even = side_by_side((a << 16) <= last, (b << 16) <= last, (c << 16) <= last, (d << 16) <= last)
        odd = side_by_side(a <= last, b <= last, c <= last, d <= last)
        kept = tl.reshape(tl.join(even, odd), (number.shape[0], 8 * number.shape[1]))
    elif BITS == 32:
        kept = side_by_side(a <= last, b <= last, c <= last, d <= last)
    else:
        tl.static_assert(False, f"an element has 16 or 32 bits, not {BITS}")
    return tl.where(kept, scale, 0.0)
