"""GELU and its first two derivatives on the device: an input times a gate, gelu(u) = u C(u).

Every gate here has C(-u) = 1 - C(u), so the negative half-line, n = -|u|, tells everything:

    gelu(u)   = relu(u) + gelu(n)                           gelu(n)   = n C
    gelu'(u)  = gelu'(n) if u < 0 else 1 - gelu'(n)         gelu'(n)  = C + n C'
    gelu''(u) = gelu''(n)                                   gelu''(n) = 2 C' + n C''

There C and C' are one exponential times positive factors, C = e m and C' = e g, so the tail keeps its digits until it
underflows. n is clamped where e has become 0, so infinities need no special case. -0 gives +0: keeping its sign would
cost an instruction.

`u` is a float32 tensor [M, N] with N even. FORMULA is a name in `FORMULAS`. DTYPE, the type a result is stored in,
chooses the accuracy: in float32 an exponential reduces its range in exact steps and a reciprocal takes a Newton step;
in 16 bits the hardware's are good enough. PTX and F32X2 are capabilities of the GPU (core/arithmetic.py). The
polynomials are minimax fits, which `python -m perf fit` makes and measures; polynomials.py has those that PyTorch
code computes with, too.

Another formula needs a branch wherever FORMULA is compared. One that has none fails when a kernel is compiled: branches
end in a static_assert, or, of what all logistic gates share, in a function that does.
"""

import math

import triton
import triton.language as tl

from ..core.arithmetic import INTERPRETED, at_least, fma, horner, mul, neg, reciprocal, reciprocal_of_sum
from . import SIGMOID, TANH
from .polynomials import EXACT
from .polynomials import LIFT as LIFTED

LN2 = tl.constexpr(math.log(2))

# Logistic gates are C = 1 / (1 + exp(-z)), z = LINEAR u + CUBIC u^3. The exact gate has C' = BELL exp(z), z = -u^2 / 2.
TANH_LINEAR = tl.constexpr(TANH.linear)
TANH_CUBIC = tl.constexpr(TANH.cubic)
SIGMOID_LINEAR = tl.constexpr(SIGMOID.linear)
BELL = tl.constexpr(1 / math.sqrt(2 * math.pi))

# e carries a factor UP = 2^LIFT, m and g carry DOWN, so that no factor underflows before the result does.
LIFT = tl.constexpr(float(LIFTED))
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
EXACT_REACH = tl.constexpr(EXACT["bfloat16"].reach)
EXACT_REACH_FLOAT16 = tl.constexpr(EXACT["float16"].reach)


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
CUBE_SHIFT, CUBE_SHIFT_REST = _split(1 / TANH.bend, 21)
SIGMOID_STEP, SIGMOID_STEP_REST = _split(math.log(2) / SIGMOID_LINEAR.value, 16)
STRETCH = tl.constexpr(SQUARE_REST.value / SQUARE_STEP.value)

# Mills' ratio C / C' is a polynomial in 1 / (|u| + POLE) - MIDDLE.
MILLS_POLE = tl.constexpr(3.0)
MILLS_MIDDLE = tl.constexpr(0.112)


def _constants(coefficients: tuple[float, ...]) -> tl.constexpr | tuple[float, ...]:
    """Coefficients as kernels take them; the interpreter wants the tuple itself."""
    return coefficients if INTERPRETED.value else tl.constexpr(coefficients)


# The exact gate in 16 bits, and the two factors of its slope.
GATE_FLOAT16, GATE_BFLOAT16 = (_constants(EXACT[name].log2_gate) for name in ("float16", "bfloat16"))
FALL_FLOAT16, FALL_BFLOAT16 = (_constants(EXACT[name].log2_bell) for name in ("float16", "bfloat16"))
SLOPE_FLOAT16, SLOPE_BFLOAT16 = (_constants(EXACT[name].slope) for name in ("float16", "bfloat16"))


@triton.jit
def cubic_over_n(n, FORMULA: tl.constexpr, LINEAR: tl.constexpr, CUBIC: tl.constexpr, F32X2: tl.constexpr):
    """LINEAR p + CUBIC q n^2, where a logistic gate has z = p n + q n^3.

    With (1, 1) that is z / n, with (1, 3) z', with (2, 12) 2 z' + n z''.
    """
    if FORMULA == "tanh":
        return fma(mul(n, n, F32X2), TANH_CUBIC * CUBIC, TANH_LINEAR * LINEAR, F32X2)
    elif FORMULA == "sigmoid":
        return SIGMOID_LINEAR * LINEAR
    else:
        tl.static_assert(False, f"no logistic gate is known for formula '{FORMULA}'")


@triton.jit
def reduce_line(n, STEP: tl.constexpr, STEP_REST: tl.constexpr, F32X2: tl.constexpr):
    """n = k (STEP + STEP_REST) + f, in the unit of a gate without a cubic; r has k in its low bits. Returns r and f."""
    r = fma(n, 1 / STEP, ROUND, F32X2)
    return r, fma(neg(r - ROUND), STEP_REST, fma(neg(r - ROUND), STEP, n, F32X2), F32X2)


@triton.jit
def exponential(n, FORMULA: tl.constexpr, DTYPE: tl.constexpr, F32X2: tl.constexpr):
    """e = 2^LIFT exp(z). The exact gate in float32 has (1 + STRETCH) z for z: that saves the REST."""
    if DTYPE == tl.float16 or DTYPE == tl.bfloat16:
        if FORMULA == "none":
            return tl.exp2(tl.fma(n * n, -0.5 / LN2, LIFT))
        else:  # logistic
            return tl.exp2(fma(n, cubic_over_n(n, FORMULA, 1 / LN2, 1 / LN2, F32X2), LIFT, F32X2))
    elif DTYPE == tl.float32:
        if FORMULA == "none":
            unit: tl.constexpr = -LN2 / SQUARE_STEP
            r = fma(n * n, -1 / SQUARE_STEP, ROUND, F32X2)
            f = fma(n, n, fma(r, SQUARE_STEP, -ROUND * SQUARE_STEP, F32X2), F32X2)
        elif FORMULA == "tanh":  # z = CUBIC n (n^2 + 1 / bend) = CUBIC n (s + t), with t what s was rounded by
            unit: tl.constexpr = TANH_CUBIC
            s = fma(n, n, CUBE_SHIFT, F32X2)
            t = fma(n, n, neg(s - CUBE_SHIFT), F32X2) + CUBE_SHIFT_REST
            r = fma(s, n * (1 / CUBE_STEP), ROUND, F32X2)
            f = fma(n, s, (r - ROUND) * -CUBE_STEP, F32X2)
            f = fma(n, t, fma(neg(r - ROUND), CUBE_STEP_REST, f, F32X2), F32X2)
        elif FORMULA == "sigmoid":
            unit: tl.constexpr = SIGMOID_LINEAR
            r, f = reduce_line(n, SIGMOID_STEP, SIGMOID_STEP_REST, F32X2)
        else:
            tl.static_assert(False, f"no range reduction is known for formula '{FORMULA}'")
        exp = (0.00138436301589, 0.0083741751055, 0.0416680033646, 0.166664310352, 0.499999942004, 1.00000003221, 1.0)
        power = (r.to(tl.int32, bitcast=True) << 23) + UP_BITS
        return horner(f, unit, exp, F32X2) * power.to(tl.float32, bitcast=True)
    else:
        tl.static_assert(False, f"no exponential is known for results of type {DTYPE}")


@triton.jit
def mills(n, PTX: tl.constexpr, F32X2: tl.constexpr):
    """m of the exact gate in float32: DOWN BELL exp(-STRETCH z) times Mills' ratio."""
    t = reciprocal(neg(n - MILLS_POLE), PTX)
    error = fma(n, t, fma(t, -MILLS_POLE, 1.0, F32X2), F32X2)
    return horner(fma(t, error, t - MILLS_MIDDLE, F32X2), 1.0, (
        -0.009161829, 0.0077540902, -0.0009679646, -0.00085517764, -6.420818e-05, 0.00017847735, 0.00011810311,
        4.5345776e-05, 1.2768688e-05, 9.998048e-07,
    ), F32X2)  # fmt: skip


@triton.jit
def gate(n, FORMULA: tl.constexpr, DTYPE: tl.constexpr, BY_FOURS: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr):
    """e, m, g with C = e m and C' = e g."""
    e = exponential(n, FORMULA, DTYPE, F32X2)
    if FORMULA == "none":
        stretch: tl.constexpr = STRETCH if DTYPE == tl.float32 else 0.0
        return e, mills(n, PTX, F32X2), fma(n * n, DOWN * BELL * stretch / 2, DOWN * BELL, F32X2)
    else:  # logistic: C' = z' C (1 - C)
        m = reciprocal_of_sum(e, UP, DTYPE, BY_FOURS, PTX, F32X2)
        return e, m, m * m * cubic_over_n(n, FORMULA, UP, 3 * UP, F32X2)


@triton.jit
def exact_gate(n, DTYPE: tl.constexpr, F32X2: tl.constexpr):
    """C in 16 bits, the exponential of its logarithm. Where this underflows, gelu(n) is below 2^-120."""
    if DTYPE == tl.float16:
        return tl.exp2(horner(n, 1.0, GATE_FLOAT16, F32X2))
    elif DTYPE == tl.bfloat16:
        return tl.exp2(horner(n, 1.0, GATE_BFLOAT16, F32X2))
    else:
        tl.static_assert(False, f"no polynomial of the exact gate is known for results of type {DTYPE}")


@triton.jit
def exact_slope(n, DTYPE: tl.constexpr):
    """gelu'(n) in 16 bits, as an exponential and what it is multiplied by. The exponential is not that of `gate`."""
    if DTYPE == tl.float16:
        return tl.exp2(horner(n, 1.0, FALL_FLOAT16, False)), horner(n, 1.0, SLOPE_FLOAT16, False)
    elif DTYPE == tl.bfloat16:
        return tl.exp2(horner(n, 1.0, FALL_BFLOAT16, False)), horner(n, 1.0, SLOPE_BFLOAT16, False)
    else:
        tl.static_assert(False, f"no polynomial of the exact slope is known for results of type {DTYPE}")


@triton.jit
def negative(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, KEEP_NAN: tl.constexpr, PTX: tl.constexpr):
    """n = -|u|, no further than where e vanishes."""
    if FORMULA == "tanh":
        reach: tl.constexpr = TANH_REACH if DTYPE == tl.float32 else TANH_REACH + 1  # some exp2 keep subnormals
    elif FORMULA == "sigmoid":
        reach: tl.constexpr = SIGMOID_REACH
    elif FORMULA == "none":
        reach: tl.constexpr = EXACT_REACH_FLOAT16 if DTYPE == tl.float16 else EXACT_REACH
    else:
        tl.static_assert(False, f"formula '{FORMULA}' is not known to the kernels")
    if KEEP_NAN:
        return at_least(neg(tl.abs(u)), -reach, PTX)
    else:
        if INTERPRETED:  # before Triton 3.9 its maximum lets a NaN through
            u = tl.where(u == u, u, reach)
        return tl.maximum(neg(tl.abs(u)), -reach)


@triton.jit
def gelu(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr):
    """gelu(u), the value."""
    relu = at_least(u, 0.0, PTX)
    n = negative(u, FORMULA, DTYPE, False, PTX)  # a NaN in here would spoil the neighbour's reciprocal
    if FORMULA == "none" and DTYPE != tl.float32:
        return fma(n, exact_gate(n, DTYPE, F32X2), relu, F32X2)
    else:
        e, m, _ = gate(n, FORMULA, DTYPE, F32X2, PTX, F32X2)
        return fma(mul(n, e, F32X2), m, relu, F32X2)


@triton.jit
def mirrored(u, e, m, PTX: tl.constexpr):
    """gelu'(u), where e m is gelu'(n): that if u < 0, else 1 - e m, without a choice: (u >= 0) -+ e m."""
    bits = u.to(tl.int32, bitcast=True)
    if PTX:
        e = (e.to(tl.int32, bitcast=True) ^ (~bits & SIGN)).to(tl.float32, bitcast=True)
        return fma(e, m, (u >= 0).to(tl.float32), False)  # u must not be -0: no sum with +0 is
    else:  # where instructions do no logic on three operands, but arithmetic on pairs
        side = (bits & SIGN | ONE_BITS).to(tl.float32, bitcast=True)
        return fma(e * neg(side), m, fma(side, 0.5, 0.5, False), False)


@triton.jit
def dgelu(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr):
    """gelu'(u), the first derivative."""
    n = negative(u, FORMULA, DTYPE, True, PTX)
    if FORMULA == "none" and DTYPE != tl.float32:
        e, m = exact_slope(n, DTYPE)
        return mirrored(u, e, m, PTX)
    else:
        e, m, g = gate(n, FORMULA, DTYPE, False, PTX, F32X2)
        return mirrored(u, e, fma(n, g, m, False), PTX)


@triton.jit
def gelu_and_dgelu(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr):
    """gelu(u) and gelu'(u), of one gate where they have one."""
    n = negative(u, FORMULA, DTYPE, True, PTX)
    relu = at_least(u, 0.0, PTX)
    if FORMULA == "none" and DTYPE != tl.float32:
        y = fma(n, exact_gate(n, DTYPE, F32X2), relu, F32X2)
        e, m = exact_slope(n, DTYPE)
        return y, mirrored(u, e, m, PTX)
    else:
        e, m, g = gate(n, FORMULA, DTYPE, False, PTX, F32X2)
        y = fma(mul(n, e, F32X2), m, relu, F32X2)
        return y, mirrored(u, e, fma(n, g, m, False), PTX)


@triton.jit
def d2gelu(u, FORMULA: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr, F32X2: tl.constexpr):
    """gelu''(u), the second derivative."""
    n = negative(u, FORMULA, DTYPE, True, PTX)
    e, m, g = gate(n, FORMULA, DTYPE, False, PTX, F32X2)
    if FORMULA == "none":  # C'' = -n C'
        return e * g * fma(neg(n), n, 2.0, False)
    else:  # logistic: C'' = C' (z'' / z' + z' (1 - 2 C))
        slope = cubic_over_n(n, FORMULA, 1, 3, False)
        bend = fma(n * slope * slope, neg(e - UP) * m, cubic_over_n(n, FORMULA, 2, 12, False), False)
        return e * (m * (m * UP) * bend)
