"""A plan: what to launch for one kind of call, in words and numbers. `run` launches it, `graph` records it."""

from __future__ import annotations

from dataclasses import dataclass

from .launch import Launch

PARTIALS = "partials"
"""How a step names the partial sums among its tensors."""


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
    """

    result: str
    rows: int
    size: int
    reduce: Launch | None


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
