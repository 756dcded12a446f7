"""float32 arithmetic on the device: fused multiplication and addition, polynomials, reciprocals, maxima.

A function takes the capabilities of the GPU that it depends on, each True or False when a kernel is compiled
(targets.py says which GPU has which):

    PTX    NVIDIA's instructions: inline assembly, a maximum that keeps NaN, logic on three operands
    F32X2  one instruction computes two float32 numbers, or adds a 16-bit number to a float32 (sm_100); there
           instructions are issued too slowly for the memory

Results do not depend on them, except that approximate instructions differ between vendors.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def fma(x, y, z, F32X2: tl.constexpr):
    """x y + z, rounded once (in the interpreter, some of which has no tl.fma, by way of float64)."""
    if INTERPRETED:
        zero = tl.zeros_like(x)  # plus a constant: the constant as float32, as compiled code has it
        return (x.to(tl.float64) * (zero + y) + (zero + z)).to(tl.float32)
    elif F32X2:
        return tl.inline_asm_elementwise(
            "{.reg .b64 x, y, z; mov.b64 x, {$2, $3}; mov.b64 y, {$4, $5}; mov.b64 z, {$6, $7};"
            " fma.rn.f32x2 x, x, y, z; mov.b64 {$0, $1}, x;}",
            "=f,=f,f,f,f,f,f,f", [x, y, z], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return tl.fma(x, y, z)


@triton.jit
def mul(x, y, F32X2: tl.constexpr):
    """x y, as a fused multiplication and addition, so that F32X2 has one instruction for two."""
    return fma(x, y, -0.0, F32X2)


@triton.jit
def neg(x):
    """-x, a part of the next instruction; before Triton 3.9 the operator is 0 - x, which costs one."""
    return x * -1.0


@triton.jit
def horner(x, SCALE: tl.constexpr, coefficients, F32X2: tl.constexpr):
    """The polynomial in SCALE x, highest power first."""
    degree: tl.constexpr = len(coefficients) - 1
    p = fma(x, coefficients[0] * SCALE**degree, coefficients[1] * SCALE ** (degree - 1), F32X2)
    for i in tl.static_range(2, degree + 1):
        p = fma(p, x, coefficients[i] * SCALE ** (degree - i), F32X2)
    return p


@triton.jit
def at_least(x, LEAST: tl.constexpr, PTX: tl.constexpr):
    """The maximum; NaN where x is. Where that is no instruction, a choice is the shortest way."""
    return tl.maximum(x, LEAST, propagate_nan=tl.PropagateNan.ALL) if PTX else tl.where(x < LEAST, LEAST, x)


@triton.jit
def reciprocal(d, PTX: tl.constexpr):
    """The hardware's own: within 1 ulp or so, of d from 2^-126 to 2^126."""
    if INTERPRETED:
        return 1.0 / d
    elif PTX:  # a division would cost one instruction more
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [d], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return libdevice.fast_dividef(1.0, d)


FOURS = tl.constexpr(4 * 128)  # elements from which on each of 128 threads has four; programs of more have 1024


@triton.jit
def reciprocal_by_fours(d):
    """One reciprocal for four elements of a thread: with r = 1 / (d0 d1 d2 d3), 1/d0 = r (d1 d3) d2, and so on.

    `d` is [M, N] with N a multiple of 4. Only GPUs with F32X2 have these instructions; the interpreter does the same.
    """
    if INTERPRETED:
        M: tl.constexpr = d.shape[0]
        N: tl.constexpr = d.shape[1]
        even, odd = tl.split(tl.reshape(d, (M, N // 2, 2)))
        d0, d2 = tl.split(tl.reshape(even, (M, N // 4, 2)))
        d1, d3 = tl.split(tl.reshape(odd, (M, N // 4, 2)))
        r = 1.0 / ((d0 * d2) * (d1 * d3))
        r0 = r * (d1 * d3)
        r1 = r * (d0 * d2)
        even = tl.reshape(tl.join(r0 * d2, r0 * d0), (M, N // 2))
        odd = tl.reshape(tl.join(r1 * d3, r1 * d1), (M, N // 2))
        return tl.reshape(tl.join(even, odd), (M, N))
    else:
        return tl.inline_asm_elementwise(
            "{.reg .b32 p, q, r; .reg .b64 a, b, c; mov.b64 a, {$4, $5}; mov.b64 b, {$6, $7};"
            " mul.rn.f32x2 c, a, b; mov.b64 {p, q}, c; mul.rn.f32 r, p, q; rcp.approx.ftz.f32 r, r;"
            " mul.rn.f32 q, r, q; mul.rn.f32 p, r, p; mov.b64 c, {q, p};"
            " mul.rn.f32x2 b, b, c; mul.rn.f32x2 a, a, c; mov.b64 {$0, $1}, b; mov.b64 {$2, $3}, a;}",
            "=f,=f,=f,=f,f,f,f,f", [d], dtype=tl.float32, is_pure=True, pack=4,
        )  # fmt: skip


@triton.jit
def reciprocal_of_sum(
    x, Y: tl.constexpr, DTYPE: tl.constexpr, BY_FOURS: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr
):
    """1 / (x + Y) for a result of DTYPE: float32 takes a Newton step, which makes up for the rounding of the sum, too.

    BY_FOURS asks for one reciprocal instruction for four elements where a tile has as many for each thread.
    """
    if DTYPE == tl.float32:
        r = reciprocal(x + Y, PTX)
        return fma(fma(neg(x), r, fma(r, -Y, 1.0, F32X2), F32X2), r, r, F32X2)
    elif DTYPE == tl.float16 or DTYPE == tl.bfloat16:
        if BY_FOURS and x.shape[0] * x.shape[1] >= FOURS:
            return reciprocal_by_fours(fma(x, 1.0, Y, F32X2))
        else:
            return reciprocal(fma(x, 1.0, Y, F32X2), PTX)
    else:
        tl.static_assert(False, f"no reciprocal for results of type {DTYPE}")
