"""The polynomials of triton_gelu/formulas, fitted: `python -m perf fit` prints them and their errors.

Each is a minimax fit: weighted least squares whose weights grow where the error is largest (C. L. Lawson, 1961), until
the largest error is as small as it can be. Then the coefficients are rounded to float32 one after another, from the
constant up, and those not yet rounded are fitted again each time, to make up for what rounding did.
"""

from __future__ import annotations

import argparse
import ast
import math
from dataclasses import dataclass

import mpmath
import numpy as np
import numpy.typing as npt

from perf import library

Array = npt.NDArray[np.float64]

formulas, FORMULAS_FILE = library.kernel_formulas()
POINTS = 500
ROUNDS = 120  # of reweighting
LARGE_SLOPE = 1 / 8  # gelu' is no larger where it is negative


@dataclass(frozen=True)
class Fit:
    """A polynomial that follows `target` at `x`, where `weight` says how much an error counts.

    `constant` pins the polynomial at 0. Unrounded coefficients are scaled by the code before they are used.
    """

    name: str
    degree: int
    x: Array
    target: Array
    weight: Array
    constant: float | None = None
    rounded: bool = True

    def error(self, coefficients: tuple[float, ...]) -> float:
        """The largest weighted error of coefficients, highest power first."""
        used = np.array(coefficients, np.float32 if self.rounded else np.float64).astype(np.float64)
        return float(np.max(self.weight * np.abs(np.polyval(used, self.x) - self.target)))

    def solve(self) -> tuple[float, ...]:
        """The best coefficients, highest power first."""
        scale = 2.0 ** math.ceil(math.log2(np.abs(self.x).max()))  # a power of two: rounding does not notice it
        powers = np.vander(self.x / scale, self.degree + 1, increasing=True)
        found = np.zeros(self.degree + 1)
        for known in range(self.degree + 1):
            rest = self.target - powers[:, :known] @ found[:known]
            found[known:] = minimax(powers[:, known:], rest, self.weight)
            if known == 0 and self.constant is not None:
                found[0] = self.constant
            elif self.rounded:
                found[known] = np.float32(found[known])
            elif known > 0:
                break
        return tuple(float(c) for c in (found / scale ** np.arange(self.degree + 1))[::-1])


def minimax(basis: Array, target: Array, weight: Array) -> Array:
    """The coefficients with the smallest largest |weight (basis @ coefficients - target)|."""
    share = np.full(len(target), 1 / len(target))
    best, least = np.zeros(basis.shape[1]), math.inf
    for _ in range(ROUNDS):
        root = np.sqrt(share) * weight
        coefficients = np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)[0]
        errors = weight * np.abs(basis @ coefficients - target)
        if errors.max() < least:
            best, least = coefficients, errors.max()
        share = share * errors
        share /= share.sum()
    return best


def dense(low: float, high: float) -> Array:
    """Points of an interval, closer together near its ends."""
    return low + (high - low) * (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS)) / 2


def phi(n: Array) -> Array:
    """The normal distribution."""
    return np.array([float(mpmath.ncdf(each)) for each in n])


def bell(n: Array) -> Array:
    """Its density, without the factor 1 / sqrt(2 pi)."""
    return np.exp(-n * n / 2)


def all_fits() -> list[Fit]:
    """In the order in which `in_the_files` finds them."""
    largest = math.log(2) / 2 * (1 + 2.0**-12)  # the nearest integer is found in float32
    x = dense(-largest, largest)
    fits = [Fit("exp(x), relative", 6, x, np.exp(x), np.exp(-x), constant=1.0, rounded=False)]

    pole = formulas.MILLS_POLE.value
    t = dense(1 / (pole + formulas.EXACT_REACH.value), 1 / pole)
    n = pole - 1 / t
    mills = formulas.DOWN.value * phi(n) / bell(n) ** (1 + formulas.STRETCH.value)
    middle = float(np.float32(formulas.MILLS_MIDDLE.value))
    fits.append(Fit("m of the exact gate, relative", 9, t - middle, mills, 1 / mills))

    # An error in a result counts relative to the result; among subnormals, to the least normal number.
    float16 = ("float16", float(np.finfo(np.float16).tiny), dense(-formulas.EXACT_REACH_FLOAT16.value, 0))
    bfloat16 = ("bfloat16", float(np.finfo(np.float32).tiny), dense(-formulas.EXACT_REACH.value, 0))
    for (name, tiny, n), degree in ((float16, 6), (bfloat16, 8)):
        c = phi(n)
        weight = math.log(2) * np.minimum(1, -n * c / tiny)
        fits.append(Fit(f"log2 C, {name}, relative in C", degree, n, np.log2(c), weight, constant=-1.0))

    # A bias gradient sums slopes before they are rounded, most of them near 0: there an absolute error counts.
    for (name, tiny, n), degree in ((float16, 7), (bfloat16, 8)):
        slope = phi(n) + n * bell(n) / math.sqrt(2 * math.pi)
        e = np.exp2(np.polyval(np.array(library.EXACT[name].log2_bell, np.float32).astype(np.float64), n))
        weight = e / np.clip(np.abs(slope), tiny, LARGE_SLOPE)
        what = f"gelu'(n) / e, {name}, relative, or eightfold where that is more"
        fits.append(Fit(what, degree, n, slope / e, weight, constant=formulas.DOWN.value / 2))
    return fits


def in_the_files() -> list[tuple[float, ...]]:
    """The coefficients that there are: the tuples of numbers in device.py, in order, then those of polynomials.py."""
    tuples = [node for node in ast.walk(ast.parse(FORMULAS_FILE.read_text())) if isinstance(node, ast.Tuple)]
    found = []
    for node in sorted(tuples, key=lambda node: node.lineno):
        try:
            numbers = ast.literal_eval(node)
        except ValueError:
            continue
        if len(numbers) > 4:
            found.append(numbers)
    exact = library.EXACT.values()
    return [*found, *(each.log2_gate for each in exact), *(each.slope for each in exact)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none: the fits are what they are."""


def run(args: argparse.Namespace) -> int:
    """Print each polynomial as it could stand in the package, its error, and the error of the one that does."""
    for fit, present in zip(all_fits(), in_the_files(), strict=True):
        found = fit.solve()
        print(f"{fit.name}: {fit.error(found):.3g} (in the package: {fit.error(present):.3g})")
        print("    " + ", ".join(str(np.float32(c)) if fit.rounded else f"{c:.12g}" for c in found))
    return 0
