"""GELU and its first two derivatives on the device: an input times a gate, gelu(u) = u C(u).

Every gate here has C(-u) = 1 - C(u), so the negative half-line, n = -|u|, tells everything:

    gelu(u)   = relu(u) + gelu(n)                           gelu(n)   = n C
    gelu'(u)  = gelu'(n) if u < 0 else 1 - gelu'(n)         gelu'(n)  = C + n C'
    gelu''(u) = gelu''(n)                                   gelu''(n) = 2 C' + n C''

There C and C' are one exponential times positive factors, C = e m and C' = e g, so the tail keeps its digits until it
underflows. n is clamped where e has become 0, so infinities need no special case. -0 gives +0: keeping its sign would
cost an instruction.

`u` is a float32 tensor [M, N] with N even. FORMULA is PyTorch's `approximate` ("none" is the exact, erf form), or
"sigmoid". DTYPE, the type a result is stored in, chooses the tier: in float32 an exponential reduces its range in exact
steps and a reciprocal takes a Newton step; in 16 bits the hardware's are good enough. ISA says what is an
instruction: 0, what is in every GPU; 1, rounding to bfloat16, too; 2, what is NVIDIA's, where some are written out;
3 (sm_100), those that two elements share, where instructions are issued too slowly for the memory. The polynomials are
minimax fits, made and measured by perf/fit.py.
"""

import math

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
LN2 = tl.constexpr(math.log(2))

# Logistic gates are C = 1 / (1 + exp(-z)), z = LINEAR u + CUBIC u^3. The exact gate has C' = BELL exp(z), z = -u^2 / 2.
TANH_LINEAR = tl.constexpr(2 * math.sqrt(2 / math.pi))
TANH_CUBIC = tl.constexpr(2 * math.sqrt(2 / math.pi) * 0.044715)
SIGMOID_LINEAR = tl.constexpr(1.702)
BELL = tl.constexpr(1 / math.sqrt(2 * math.pi))

# e carries a factor UP = 2^LIFT, m and g carry DOWN, so that no factor underflows before the result does.
LIFT = tl.constexpr(16.0)
UP = tl.constexpr(2.0**LIFT.value)
DOWN = tl.constexpr(2.0**-LIFT.value)
UP_BITS = tl.constexpr((127 + int(LIFT.value)) << 23)
SIGN = tl.constexpr(-(2**31))  # the sign bit of a float32
ONE_BITS = tl.constexpr(127 << 23)  # 1 as a float32


def _cubic_root(linear: float, cubic: float, value: float) -> float:
    """The x where linear x + cubic x^3 = value: Cardano's formula in hyperbolic functions."""
    half = math.sqrt(linear / (3 * cubic))
    return 2 * half * math.sinh(math.asinh(value / (2 * cubic * half**3)) / 3)


# The |u| where e has fallen to 2^-127, which is stored as 0. In float16 no result is left below 2^-34.
LONGEST = (127 + LIFT.value) * math.log(2)
TANH_REACH = tl.constexpr(_cubic_root(TANH_LINEAR.value, TANH_CUBIC.value, LONGEST))
SIGMOID_REACH = tl.constexpr(LONGEST / SIGMOID_LINEAR.value)
EXACT_REACH = tl.constexpr(math.sqrt(2 * LONGEST))
EXACT_REACH_FLOAT16 = tl.constexpr(math.sqrt(2 * 34 * math.log(2)))


def _split(value: float, bits: int) -> tuple[tl.constexpr, tl.constexpr]:
    """`value` as its leading `bits` binary digits and the rest."""
    mantissa, exponent = math.frexp(value)
    head = math.ldexp(round(math.ldexp(mantissa, bits)), exponent - bits)
    return tl.constexpr(head), tl.constexpr(value - head)


# Range reduction in float32: exp(z) = 2^-k exp(z + k ln 2), in a unit that makes z simple. STEP is ln 2 in that unit,
# short enough for k STEP to be exact. Adding ROUND puts the nearest integer into the low bits of a number.
ROUND = tl.constexpr(1.5 * 2**23)
SQUARE_STEP, SQUARE_REST = _split(2 * math.log(2), 17)
CUBE_STEP, CUBE_STEP_REST = _split(math.log(2) / TANH_CUBIC.value, 16)
CUBE_SHIFT, CUBE_SHIFT_REST = _split(1 / 0.044715, 21)
LINE_STEP, LINE_STEP_REST = _split(math.log(2) / SIGMOID_LINEAR.value, 16)
STRETCH = tl.constexpr(SQUARE_REST.value / SQUARE_STEP.value)

# Mills' ratio C / C' is a polynomial in 1 / (|u| + POLE) - MIDDLE.
MILLS_POLE = tl.constexpr(3.0)
MILLS_MIDDLE = tl.constexpr(0.112)


@triton.jit
def fma(x, y, z, ISA: tl.constexpr):
    """x y + z, rounded once (in the interpreter, some of which has no tl.fma, by way of float64)."""
    if INTERPRETED:
        zero = tl.zeros_like(x)  # plus a constant: the constant as float32, as compiled code has it
        return (x.to(tl.float64) * (zero + y) + (zero + z)).to(tl.float32)
    elif ISA == 3:
        return tl.inline_asm_elementwise(
            "{.reg .b64 x, y, z; mov.b64 x, {$2, $3}; mov.b64 y, {$4, $5}; mov.b64 z, {$6, $7};"
            " fma.rn.f32x2 x, x, y, z; mov.b64 {$0, $1}, x;}",
            "=f,=f,f,f,f,f,f,f", [x, y, z], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return tl.fma(x, y, z)


@triton.jit
def mul(x, y, ISA: tl.constexpr):
    return fma(x, y, -0.0, ISA)


@triton.jit
def neg(x):
    """-x, a part of the next instruction; before Triton 3.9 the operator is 0 - x, which costs one."""
    return x * -1.0


@triton.jit
def horner(x, SCALE: tl.constexpr, coefficients, ISA: tl.constexpr):
    """The polynomial in SCALE x, highest power first."""
    degree: tl.constexpr = len(coefficients) - 1
    p = fma(x, coefficients[0] * SCALE**degree, coefficients[1] * SCALE ** (degree - 1), ISA)
    for i in tl.static_range(2, degree + 1):
        p = fma(p, x, coefficients[i] * SCALE ** (degree - i), ISA)
    return p


@triton.jit
def reciprocal(d, ISA: tl.constexpr):
    """The hardware's own: within 1 ulp or so, of d from 2^-126 to 2^126."""
    if INTERPRETED:
        return 1.0 / d
    elif ISA > 1:  # a division would cost one instruction more
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [d], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return libdevice.fast_dividef(1.0, d)


FOURS = tl.constexpr(4 * 128)  # elements from which on each of 128 threads has four; programs of more have 1024


@triton.jit
def reciprocal_by_fours(d, ISA: tl.constexpr):
    """One reciprocal for four elements of a thread: with r = 1 / (d0 d1 d2 d3), 1/d0 = r (d1 d3) d2, and so on."""
    if INTERPRETED:
        M: tl.constexpr = d.shape[0]
        N: tl.constexpr = d.shape[1]
        even, odd = tl.split(tl.reshape(d, (M, N // 2, 2)))
        d0, d2 = tl.split(tl.reshape(even, (M, N // 4, 2)))
        d1, d3 = tl.split(tl.reshape(odd, (M, N // 4, 2)))
        r = reciprocal((d0 * d2) * (d1 * d3), ISA)
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
def reciprocal_of_sum(x, Y: tl.constexpr, DTYPE: tl.constexpr, SHARED: tl.constexpr, ISA: tl.constexpr):
    """1 / (x + Y); the Newton step of float32 makes up for the rounding of the sum, too."""
    if DTYPE == tl.float32:
        r = reciprocal(x + Y, ISA)
        return fma(fma(neg(x), r, fma(r, -Y, 1.0, ISA), ISA), r, r, ISA)
    elif SHARED and x.shape[0] * x.shape[1] >= FOURS:
        return reciprocal_by_fours(fma(x, 1.0, Y, ISA), ISA)
    else:
        return reciprocal(fma(x, 1.0, Y, ISA), ISA)


@triton.jit
def cubic_over_n(n, FORMULA: tl.constexpr, LINEAR: tl.constexpr, CUBIC: tl.constexpr, ISA: tl.constexpr):
    """LINEAR p + CUBIC q n^2, of z = p n + q n^3: with (1, 1) z / n, with (1, 3) z', with (2, 12) 2 z' + n z''."""
    if FORMULA == "tanh":
        return fma(mul(n, n, ISA), TANH_CUBIC * CUBIC, TANH_LINEAR * LINEAR, ISA)
    else:
        return SIGMOID_LINEAR * LINEAR


@triton.jit
def exponential(n, FORMULA: tl.constexpr, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """e = 2^LIFT exp(z). The exact gate in float32 has (1 + STRETCH) z for z: that saves the REST."""
    if DTYPE != tl.float32:
        if FORMULA == "none":
            return tl.exp2(tl.fma(n * n, -0.5 / LN2, LIFT))
        else:
            return tl.exp2(fma(n, cubic_over_n(n, FORMULA, 1 / LN2, 1 / LN2, ISA), LIFT, ISA))
    else:
        if FORMULA == "none":
            unit: tl.constexpr = -LN2 / SQUARE_STEP
            r = fma(n * n, -1 / SQUARE_STEP, ROUND, ISA)
            f = fma(n, n, fma(r, SQUARE_STEP, -ROUND * SQUARE_STEP, ISA), ISA)
        elif FORMULA == "tanh":  # z = CUBIC n (n^2 + 1 / 0.044715) = CUBIC n (s + t), with t what s was rounded by
            unit: tl.constexpr = TANH_CUBIC
            s = fma(n, n, CUBE_SHIFT, ISA)
            t = fma(n, n, neg(s - CUBE_SHIFT), ISA) + CUBE_SHIFT_REST
            r = fma(s, n * (1 / CUBE_STEP), ROUND, ISA)
            f = fma(n, s, (r - ROUND) * -CUBE_STEP, ISA)
            f = fma(n, t, fma(neg(r - ROUND), CUBE_STEP_REST, f, ISA), ISA)
        else:
            unit: tl.constexpr = SIGMOID_LINEAR
            r = fma(n, 1 / LINE_STEP, ROUND, ISA)
            f = fma(neg(r - ROUND), LINE_STEP_REST, fma(neg(r - ROUND), LINE_STEP, n, ISA), ISA)
        exp = (0.00138436301589, 0.0083741751055, 0.0416680033646, 0.166664310352, 0.499999942004, 1.00000003221, 1.0)
        power = (r.to(tl.int32, bitcast=True) << 23) + UP_BITS
        return horner(f, unit, exp, ISA) * power.to(tl.float32, bitcast=True)


@triton.jit
def mills(n, ISA: tl.constexpr):
    """m of the exact gate in float32: DOWN BELL exp(-STRETCH z) times Mills' ratio."""
    t = reciprocal(neg(n - MILLS_POLE), ISA)
    error = fma(n, t, fma(t, -MILLS_POLE, 1.0, ISA), ISA)
    return horner(fma(t, error, t - MILLS_MIDDLE, ISA), 1.0, (
        -0.009161829, 0.0077540902, -0.0009679646, -0.00085517764, -6.420818e-05, 0.00017847735, 0.00011810311,
        4.5345776e-05, 1.2768688e-05, 9.998048e-07,
    ), ISA)  # fmt: skip


@triton.jit
def gate(n, FORMULA: tl.constexpr, DTYPE: tl.constexpr, SHARED: tl.constexpr, ISA: tl.constexpr):
    """e, m, g with C = e m and C' = e g."""
    e = exponential(n, FORMULA, DTYPE, ISA)
    if FORMULA == "none":
        stretch: tl.constexpr = STRETCH if DTYPE == tl.float32 else 0.0
        return e, mills(n, ISA), fma(n * n, DOWN * BELL * stretch / 2, DOWN * BELL, ISA)
    else:  # C' = z' C (1 - C)
        m = reciprocal_of_sum(e, UP, DTYPE, SHARED, ISA)
        return e, m, m * m * cubic_over_n(n, FORMULA, UP, 3 * UP, ISA)


@triton.jit
def exact_gate(n, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """C in 16 bits, the exponential of its logarithm. Where this underflows, gelu(n) is below 2^-120."""
    if DTYPE == tl.float16:
        return tl.exp2(horner(n, 1.0, (
            3.2607313e-05, 0.00075087446, 0.0079566585, 0.05309295, -0.4591118, 1.1510742, -1.0,
        ), ISA))  # fmt: skip
    else:
        return tl.exp2(horner(n, 1.0, (
            2.841764e-08, 1.7981863e-06, 4.901669e-05, 0.00076050113, 0.007528375, 0.051212553, -0.46196744,
            1.1497605, -1.0,
        ), ISA))  # fmt: skip


@triton.jit
def exact_slope(n, DTYPE: tl.constexpr):
    """gelu'(n) / e in 16 bits."""
    if DTYPE == tl.float16:
        return horner(n, 1.0, (
            3.5338676e-11, 8.873581e-10, 9.762219e-09, 6.271309e-08, 2.6684245e-07, 8.1901607e-07, 1.9485321e-06,
            3.78823e-06, 1.21709945e-05, 7.6292918e-06,
        ), 0)  # fmt: skip
    else:
        return horner(n, 1.0, (
            5.5767518e-14, 3.7462403e-12, 1.0809762e-10, 1.7579391e-09, 1.7813747e-08, 1.1795507e-07, 5.251306e-07,
            1.6174673e-06, 3.5941998e-06, 1.2122045e-05, 7.6266797e-06,
        ), 0)  # fmt: skip


@triton.jit
def at_least(x, LEAST: tl.constexpr, ISA: tl.constexpr):
    """The maximum; NaN where x is. Where that is no instruction, a choice is the shortest way."""
    return tl.maximum(x, LEAST, propagate_nan=tl.PropagateNan.ALL) if ISA > 1 else tl.where(x < LEAST, LEAST, x)


@triton.jit
def negative(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, KEEP_NAN: tl.constexpr, ISA: tl.constexpr):
    """n = -|u|, no further than where e vanishes."""
    if FORMULA == "tanh":
        reach: tl.constexpr = TANH_REACH if DTYPE == tl.float32 else TANH_REACH + 1  # some exp2 keep subnormals
    elif FORMULA == "sigmoid":
        reach: tl.constexpr = SIGMOID_REACH
    else:
        reach: tl.constexpr = EXACT_REACH_FLOAT16 if DTYPE == tl.float16 else EXACT_REACH
    if KEEP_NAN:
        return at_least(neg(tl.abs(u)), -reach, ISA)
    else:
        if INTERPRETED:  # before Triton 3.9 its maximum lets a NaN through
            u = tl.where(u == u, u, reach)
        return tl.maximum(neg(tl.abs(u)), -reach)


@triton.jit
def gelu(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, ISA: tl.constexpr):
    relu = at_least(u, 0.0, ISA)
    n = negative(u, FORMULA, DTYPE, False, ISA)  # a NaN in here would spoil the neighbour's reciprocal
    if FORMULA == "none" and DTYPE != tl.float32:
        return fma(n, exact_gate(n, DTYPE, ISA), relu, ISA)
    else:
        e, m, _ = gate(n, FORMULA, DTYPE, ISA == 3, ISA)
        return fma(mul(n, e, ISA), m, relu, ISA)


@triton.jit
def dgelu(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, ISA: tl.constexpr):
    """gelu'(n) if u < 0 else 1 - gelu'(n), without a choice: (u >= 0) -+ e m."""
    n = negative(u, FORMULA, DTYPE, True, ISA)
    if FORMULA == "none" and DTYPE != tl.float32:
        e, m = exponential(n, FORMULA, DTYPE, 0), exact_slope(n, DTYPE)
    else:
        e, m, g = gate(n, FORMULA, DTYPE, False, ISA)
        m = fma(n, g, m, 0)
    bits = u.to(tl.int32, bitcast=True)
    if ISA > 1:
        e = (e.to(tl.int32, bitcast=True) ^ (~bits & SIGN)).to(tl.float32, bitcast=True)
        return fma(e, m, (u >= 0).to(tl.float32), 0)  # u must not be -0: no sum with +0 is
    else:  # where instructions do no logic on three operands, but arithmetic on pairs
        side = (bits & SIGN | ONE_BITS).to(tl.float32, bitcast=True)
        return fma(e * neg(side), m, fma(side, 0.5, 0.5, 0), 0)


@triton.jit
def d2gelu(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, ISA: tl.constexpr):
    n = negative(u, FORMULA, DTYPE, True, ISA)
    e, m, g = gate(n, FORMULA, DTYPE, False, ISA)
    if FORMULA == "none":  # C'' = -n C'
        return e * g * fma(neg(n), n, 2.0, 0)
    else:  # C'' = C' (z'' / z' + z' (1 - 2 C))
        slope = cubic_over_n(n, FORMULA, 1, 3, 0)
        bend = fma(n * slope * slope, neg(e - UP) * m, cubic_over_n(n, FORMULA, 2, 12, 0), 0)
        return e * (m * (m * UP) * bend)
