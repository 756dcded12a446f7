"""The control flow of machine code: basic blocks, branches, loops.

A block is a run of instructions that are issued together. Loops are natural ones: an edge back to a block that every
way to its start has passed (A. V. Aho et al., Compilers, 9.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from perf.static.machine.code import Code

Block = int  # its number, in the order of the code
Edges = Mapping[Block, tuple[Block, ...]]


@dataclass(frozen=True)
class Loop:
    """The blocks of a loop, that of its entry, and the loops inside it in the order of the code."""

    header: Block
    blocks: frozenset[Block]
    inner: tuple[Loop, ...] = ()


@dataclass(frozen=True)
class Flow:
    """The blocks of a kernel and what follows what; after the last instruction of a thread comes the block `end`."""

    code: Code

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The place of each block's first instruction, and at last that behind the code."""
        places = {0, len(self.code.instructions)}
        for place, instruction in enumerate(self.code.instructions):
            if instruction.target is not None:
                places |= {instruction.target, place + 1}
            elif place in self.code.ends:
                places.add(place + 1)
        return tuple(sorted(places))

    @property
    def end(self) -> Block:
        return len(self.starts) - 1

    def last(self, block: Block) -> int:
        """The place of a block's last instruction."""
        return self.starts[block + 1] - 1

    @cached_property
    def after(self) -> Edges:
        """The blocks that may follow each; where a branch decides, the one it goes to comes last."""
        number = {start: block for block, start in enumerate(self.starts)}
        after: dict[Block, tuple[Block, ...]] = {self.end: ()}
        for block in range(self.end):
            instruction = self.code.instructions[self.last(block)]
            if instruction.target is not None:
                target = number[instruction.target]
                after[block] = (block + 1, target) if instruction.guard else (target,)
            elif self.last(block) in self.code.ends:
                after[block] = (block + 1, self.end) if instruction.guard else (self.end,)
            else:
                after[block] = (block + 1,)
        return after

    @cached_property
    def before(self) -> Edges:
        """The blocks that each may follow."""
        return {to: tuple(block for block in self.after if to in self.after[block]) for to in self.after}

    @cached_property
    def dominators(self) -> Mapping[Block, frozenset[Block]]:
        """The blocks that every way from the start to a block passes, itself included."""
        return _on_every_way(self.after, self.before, 0)

    @cached_property
    def postdominators(self) -> Mapping[Block, frozenset[Block]]:
        """The blocks that every way from a block to the end passes, itself included."""
        return _on_every_way(self.before, self.after, self.end)

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """The outermost loops, in the order of the code."""
        bodies: dict[Block, set[Block]] = {}
        for block, following in self.after.items():
            for header in following:
                if header in self.dominators[block]:
                    bodies.setdefault(header, {header}).update(self._reaching(block, header))
        return _nested(Loop(header, frozenset(body)) for header, body in sorted(bodies.items()))

    def _reaching(self, block: Block, header: Block) -> set[Block]:
        """The blocks from which a block is reached without passing the header."""
        found, ahead = {header}, [block]
        while ahead:
            here = ahead.pop()
            if here not in found:
                found.add(here)
                ahead += self.before[here]
        return found

    def side(self, block: Block, way: Block) -> set[Block]:
        """The blocks that come after a branch if it goes this way, up to where both ways have met."""
        meeting = self.postdominators[block] - {block}
        found: set[Block] = set()
        ahead = [way]
        while ahead:
            here = ahead.pop()
            if here not in found and here not in meeting:
                found.add(here)
                ahead += self.after[here]
        return found

    @cached_property
    def parting(self) -> frozenset[Block]:
        """The blocks whose branch depends on a thread's number or on data, so that the threads of a warp may part."""
        isa, code = self.code.isa, self.code
        entering: dict[Block, frozenset[str]] = {block: frozenset() for block in self.after}
        found: set[Block] = set()
        ahead = list(range(self.end))
        while ahead:
            block = ahead.pop(0)
            varying = set(entering[block])
            for place in range(self.starts[block], self.starts[block + 1]):
                instruction, used = code.instructions[place], code.used[place]
                differs = isa.varies(instruction) or bool(used.reads & varying)
                if instruction.target is not None and instruction.guard and differs:
                    found.add(block)
                if differs:
                    varying |= {name for name in used.writes if isa.may_vary(name)}
                elif not instruction.guard:
                    varying -= used.writes
            for following in self.after[block]:
                if following != self.end and not varying <= entering[following]:
                    entering[following] |= varying
                    ahead.append(following)
        return frozenset(found)


def _on_every_way(after: Edges, before: Edges, start: Block) -> Mapping[Block, frozenset[Block]]:
    """For each block those that every way to it from the start has passed."""
    found = {block: frozenset(after) for block in after} | {start: frozenset([start])}
    changed = True
    while changed:
        changed = False
        for block in after:
            sets = [found[each] for each in before[block]]
            common = frozenset.intersection(*sets) | {block} if sets and block != start else found[block]
            changed |= common != found[block]
            found[block] = common
    return found


def _nested(loops: Iterable[Loop]) -> tuple[Loop, ...]:
    """The outermost of some loops, each with those inside it."""
    every = list(loops)
    outer = [each for each in every if not any(each.blocks < other.blocks for other in every)]
    return tuple(
        Loop(each.header, each.blocks, _nested(other for other in every if other.blocks < each.blocks))
        for each in outer
    )
