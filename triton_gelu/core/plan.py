"""What a launch plan is made of: launches, their tensors and partial sums; and what plans of all operators share.

A plan is data: `run` launches it in eager mode, `graph` records it for torch.compile. There is no autotuning. Tiles are
the same for every batch size and sequence length, so a new one compiles nothing but, at most, the kernel of its
divisibility class (ALIGN). A compiler may know a size only as a symbol: plans then take it for a large one, so that one
plan serves all sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

from .targets import Target

WARP = 32  # threads; where a warp has more, a program has fewer warps
WARPS = 4  # of most programs
ALIGN = 8  # elements of a 128-bit access in 16 bit
REDUCE_BLOCK = 32  # rows and columns of partial sums that a program adds up at a time
PARTIALS = "partials"
"""How a step names the partial sums among its tensors."""


@dataclass(frozen=True)
class Launch:
    """One kernel launch but for its tensors: the kernel's name, then its grid, run-time integers and constants.

    `registers` is the most that a thread may take, None: as many as the compiler likes.
    """

    kernel: str
    grid: tuple[int, int, int]
    integers: tuple[int, ...]
    constants: tuple[tuple[str, object], ...]
    num_warps: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What Triton is asked for in an eager call; PyTorch's compilers know no limit on registers."""
        return {"num_warps": self.num_warps} | ({"maxnreg": self.registers} if self.registers else {})


@dataclass(frozen=True)
class Step:
    """A launch and its tensors: names of arguments and results of the operator, in the order that the kernel wants.

    None stands for a tensor that the kernel does without.
    """

    launch: Launch
    tensors: tuple[str | None, ...]

    def without(self, name: str) -> Step:
        """The same, but for a tensor that the kernel is to do without."""
        return Step(self.launch, tuple([None if each == name else each for each in self.tensors]))


@dataclass(frozen=True)
class Partials:
    """Sums in fp32 that a step leaves behind, [rows, size]; their sum over the rows is a result of the operator.

    `reduce` is the launch that adds them up; None where there is one row, which the step then writes to the result.
    Where the sums are those of two results, one after the other, `second` names the other one.
    """

    result: str
    rows: int
    size: int
    reduce: Launch | None
    second: str | None = None

    @property
    def results(self) -> tuple[str, ...]:
        return (self.result,) if self.second is None else (self.result, self.second)


@dataclass(frozen=True)
class Plan:
    """The launches of a call, none if there is nothing to compute.

    `dense` names the arguments that have to be copied first, where they do not lie as a result of their kind does;
    `sums` has pairs of a result and the argument that PyTorch adds up to it, over the dimensions that it has not.
    """

    steps: tuple[Step, ...] = ()
    partials: Partials | None = None
    dense: tuple[str, ...] = ()
    sums: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Backward:
    """A backward pass: the main launch, which leaves `partials` rows of partial sums, and the launch that adds them up.

    `reduce` is None where there is nothing to add up: no sum is wanted, or the main launch stores the sum itself.
    """

    main: Launch
    partials: int
    reduce: Launch | None


def reduce(partials: int, size: int, target: Target) -> Launch:
    """Plan the sum of `partials` rows of partial sums, `size` columns each."""
    constants = ("BF16_CVT", target.bf16_cvt), ("BLOCK_ROWS", REDUCE_BLOCK), ("BLOCK_COLS", REDUCE_BLOCK)
    return Launch(
        "reduce_partials", (cdiv(size, REDUCE_BLOCK), 1, 1), (partials, size), constants, num_warps(WARPS, target)
    )


def num_warps(warps: int, target: Target) -> int:
    """As many threads as `warps` of `WARP` have."""
    return warps * WARP // target.warp


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int, most: int) -> int:
    """The smallest power of two from n on, but no more than `most`."""
    return min(1 << (n - 1).bit_length(), most) if isinstance(n, int) else most
