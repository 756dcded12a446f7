"""The counts of one launch on one GPU, summed over its grid: instructions, units, registers, accesses, bytes."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from perf.static.gpus import GPU
from perf.static.in_flight import InFlight, followed, streams, whole
from perf.static.loop_counts import trips
from perf.static.machine import amdgcn, sass
from perf.static.machine.code import Code, Untraceable
from perf.static.machine.issue_order import Follower, Trips
from perf.static.offline import Launched, disassembly, elf

ALL = 8192  # programs that are looked at one by one: they may share out a sum unevenly
BETWEEN = 3  # programs that stand for all those between the ends of one axis of a grid


@dataclass(frozen=True)
class Counted:
    """One launch on one GPU; counts are sums over all threads of the grid.

    `headings` is what people read, `units` the lanes taken of each unit, `accesses` how often a thread reaches which
    space how wide; `parted` the number of branches at which threads of a warp may part; `loads` and `stores` the bytes
    that have to come from memory and go there, each tensor once; `in_flight` of a thread, where tiles are whole;
    `resident` the programs that fit on a processor.
    """

    launched: Launched
    code: Code
    headings: Counter[str]
    units: Mapping[str, float]
    accesses: Counter[tuple[str, int]]
    parted: int
    warp: int
    resident: int
    in_flight: InFlight
    loads: int
    stores: int

    @property
    def threads(self) -> int:
        """Of a program."""
        return self.launched.num_warps * self.warp

    @property
    def spills(self) -> int:
        """Instructions in the code that save registers to memory or fetch them back."""
        return sum(space == "spill" for space, _ in self.code.accesses)


def count(launched: Launched, gpu: GPU) -> Counted:
    """Follow the machine code of a launch over its grid."""
    code, threads = read(launched, gpu), launched.num_warps * gpu.warp
    follower = Follower(code, threads)
    times: Counter[int] = Counter()
    planned: Counter[Trips] = Counter()
    for program, weight in sample(launched.grid):
        planned[trips(launched, program)] += weight
    for each, weight in planned.items():
        for place, often in follower.follow(each).times().items():
            times[place] += often * weight * threads
    headings: Counter[str] = Counter()
    units: dict[str, float] = defaultdict(float)
    accesses: Counter[tuple[str, int]] = Counter()
    for place, often in times.items():
        instruction = code.instructions[place]
        headings[code.isa.heading(instruction)] += often
        for unit, lanes in code.isa.busy(instruction).items():
            units[gpu.chip.does.get(unit, unit)] += often * lanes
        if (access := code.accesses[place])[0]:
            accesses[access] += often
    loads, stores = traffic(launched)
    if (stored := sum(width * often for (space, width), often in accesses.items() if space == "store")) < stores:
        raise Untraceable(f"{launched.name}: {stores} bytes have to be stored, and {stored} were found in the code")
    blocks = gpu.resident_blocks(code.registers, launched.shared, launched.num_warps)
    middle, steps = whole(trips(launched, (launched.grid[0] // 2, launched.grid[1] // 2, launched.grid[2] // 2)))
    return Counted(
        launched=launched,
        code=code,
        headings=headings,
        units=units,
        accesses=accesses,
        parted=len(follower.parting),
        warp=gpu.warp,
        resident=blocks,
        in_flight=followed(code, follower.follow(middle), steps, streams(loaded(launched))),
        loads=loads,
        stores=stores,
    )


def read(launched: Launched, gpu: GPU) -> Code:
    """The machine code of a launch."""
    if gpu.chip.vendor == "AMD":
        return amdgcn.code(launched.asm["amdgcn"])
    return sass.code(disassembly(launched), elf(launched))


def sample(grid: tuple[int, int, int]) -> Iterator[tuple[tuple[int, int, int], int]]:
    """Places in a grid and the number of programs each stands for: of many the ends of an axis, and a few between."""
    axes = []
    for size in grid:
        if math.prod(grid) <= ALL:
            axes.append([(place, 1) for place in range(size)])
            continue
        inner = range(1, size - 1)
        few = min(BETWEEN, len(inner))
        shares = [inner[len(inner) * i // few : len(inner) * (i + 1) // few] for i in range(few)]
        axes.append([(end, 1) for end in {0, size - 1}] + [(share[len(share) // 2], len(share)) for share in shares])
    for (x, of_x), (y, of_y), (z, of_z) in product(*axes):
        yield (x, y, z), of_x * of_y * of_z


def traffic(launched: Launched) -> tuple[int, int]:
    """Bytes that come from memory and bytes that go there: each tensor a kernel loads or stores, once."""
    tensors = list(launched.arguments.values())
    loads, stores = (
        sum(tensors[place].numel() * tensors[place].itemsize for place in places)
        for places in accessed(launched.asm["ttir"])
    )
    return loads, stores


def loaded(launched: Launched) -> list[int | None]:
    """The bytes of each tensor among the arguments that a kernel loads; None for what it does not."""
    places, _ = accessed(launched.asm["ttir"])
    tensors = list(launched.arguments.values())
    return [each.numel() * each.itemsize if place in places else None for place, each in enumerate(tensors)]


def accessed(ttir: str) -> tuple[set[int], set[int]]:
    """The arguments a kernel loads from and those it stores to, followed through its pointer arithmetic."""
    loads: set[int] = set()
    stores: set[int] = set()
    header = next(line for line in ttir.splitlines() if "tt.func public" in line)
    origin = {name: place for place, name in enumerate(re.findall(r"%(\w+): [!\w]", header))}
    for line in ttir.splitlines():
        carried = re.findall(r"%(\w+) = %(\w+)", line.partition("iter_args(")[2])
        origin.update((name, origin[start]) for name, start in carried if start in origin)
        operation = re.match(r"\s*(?:%(\w+) = )?(tt\.(?:splat|addptr|broadcast|expand_dims|load|store)) %(\w+)", line)
        if operation is None or operation[3] not in origin:
            continue
        result, name, source = operation.groups()
        if name in ("tt.load", "tt.store"):
            (loads if name == "tt.load" else stores).add(origin[source])
        else:
            origin[result] = origin[source]
    return loads, stores
