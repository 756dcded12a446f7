"""The metrics of one call, all its launches added up: headroom, instructions, bytes, registers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perf.cases import MOVED, Case
from perf.static.count import Counted
from perf.static.goals import FILLED, LEAST_PROGRAMS, goal, published
from perf.static.gpus import GPU
from perf.static.offline import Launched

LIBRARY = "triton_gelu"  # the provider; the others are comparison kernels

HEADROOM = "headroom"
INSTRUCTIONS = "instructions"
BYTES = "bytes"
WIDTH = "access width"
REGISTERS = "registers"
SPILLS = "spills"
STACK = "stack"
SHARED = "shared memory"
WARPS = "resident warps"
PARTED = "divergent branches"
IN_FLIGHT = "bytes in flight"
AVERAGE_IN_FLIGHT = "bytes in flight, average"
PEAK_IN_FLIGHT = "bytes in flight, peak"
ROUNDS = "rounds"
PROGRAMS = "programs"
SMALL_PROGRAMS = "programs at 16 MB"
SMALL_IN_FLIGHT = "bytes in flight at 16 MB"
LAUNCHES = "launches"
LEAST_TIME = "least time"
VECTOR = "vector arithmetic"  # what AMD calls VALU: all that computes a number for each thread
VECTOR_HEADINGS = ("fma", "alu", "integer", "mufu", "conversion")
HEADINGS = (*VECTOR_HEADINGS, "memory", "uniform", "control")
BUSY = "busy {}"

PICO = 1e-12
STREAM = 0.95  # of the bytes of a launch; the rest may be a bias, which may be read one by one


@dataclass(frozen=True)
class Metric:
    """One number: what it is, its unit, and what else a reader should know."""

    metric: str
    unit: str
    value: float
    note: str = ""


def call_metrics(case: Case, counted: Sequence[Counted], gpu: GPU, small: Sequence[Launched]) -> Iterator[Metric]:
    """What the launches of one call come to on one GPU. Counts are per element of the case's shape.

    `small` are the launches of the same call where x has `SMALL_BYTES`.
    """
    headings: Counter[str] = Counter()
    for each in counted:
        headings.update(each.headings)
    moved = sum(each.loads + each.stores for each in counted)
    memory = moved / gpu.bandwidth
    seconds = {unit: sum(each.units.get(unit, 0) for each in counted) / gpu.per_second(unit) for unit in gpu.chip.lanes}
    binding = max(seconds, key=lambda unit: seconds[unit])
    main = max(counted, key=lambda each: each.loads + each.stores)

    yield Metric(
        HEADROOM, "time at memory bandwidth / next resource", memory / seconds[binding], f"{binding} on {gpu.name}"
    )
    least = max(memory, seconds[binding]) / case.elements
    yield Metric(
        LEAST_TIME, "ps per element", least / PICO, "a bound, not a time: memory or the next resource, never waiting"
    )
    for unit, time in seconds.items():
        yield Metric(BUSY.format(unit), "share of the time at memory bandwidth", time / memory)
    yield Metric(INSTRUCTIONS, "per element", sum(headings.values()) / case.elements)
    yield Metric(VECTOR, "per element", sum(headings[each] for each in VECTOR_HEADINGS) / case.elements)
    for heading in HEADINGS:
        yield Metric(heading, "per element", headings[heading] / case.elements)
    yield Metric(BYTES, "per element", moved / case.elements, f"{compulsory(case) / case.elements:.3f} are compulsory")
    yield Metric(WIDTH, "bit", 8 * width(main))
    yield Metric(REGISTERS, "per thread", main.code.registers)
    yield Metric(SPILLS, "instructions", sum(each.spills for each in counted))
    yield Metric(STACK, "bytes per thread", max(each.code.stack for each in counted))
    yield Metric(SHARED, "bytes per block", main.launched.shared)
    yield Metric(WARPS, "per processor", main.resident * main.launched.num_warps)
    yield Metric(PARTED, "branches", sum(each.parted for each in counted))
    programs = next(each.programs for each in small if each.name == main.launched.name)
    yield from in_flight(case, main, gpu, programs / gpu.processors)
    grids = ", ".join(f"{each.launched.name} {'x'.join(map(str, each.launched.grid))}" for each in counted)
    yield Metric(LAUNCHES, "launches", len(counted), grids)


def in_flight(case: Case, main: Counted, gpu: GPU, small: float) -> Iterator[Metric]:
    """How much of what streams is out at a time: on a processor that is full, on average, at the peak, and at 16 MB."""
    flight, unit, programs = main.in_flight, "bytes per processor", main.launched.programs / gpu.processors
    each = flight.held * main.threads
    least, found = goal(gpu, case).in_flight, published(gpu)
    needed = f"{least:.0f} are the goal; {found.value:.0f} {found.sure}: {found.source}"
    yield Metric(IN_FLIGHT, unit, each * main.resident, needed)
    yield Metric(AVERAGE_IN_FLIGHT, unit, each * min(main.resident, programs), f"{FILLED * least:.0f} are the goal")
    yield Metric(PEAK_IN_FLIGHT, unit, flight.peak * main.threads * main.resident)
    yield Metric(ROUNDS, "per step", flight.rounds_a_step, f"{flight.streamed} bytes a thread in {flight.steps} steps")
    yield Metric(PROGRAMS, "per processor", programs, f"{main.resident} are resident")
    yield Metric(SMALL_PROGRAMS, "per processor", small, f"{LEAST_PROGRAMS:g} are the goal")
    yield Metric(SMALL_IN_FLIGHT, unit, each * min(main.resident, small))


def compulsory(case: Case) -> int:
    """Bytes that have to move: x, bias and position in, y out; or dy, x and bias in, dx and dbias out.

    In a double backward pass the gradients of dx and of dbias come in, too, and that of dy goes out.
    """
    if case.direction == "forward" or case.gated:
        return case.compulsory_bytes()
    tensors, vectors, _ = MOVED[case.direction]
    return (tensors * case.elements + vectors * case.bias_length) * case.torch_dtype.itemsize


def width(counted: Counted) -> int:
    """Bytes of the narrowest access that the tensors are moved by, if the widest carry as much of them as they can."""
    found = []
    for space, needed in (("load", counted.loads), ("store", counted.stores)):
        carried = 0.0
        for (where, each), often in sorted(counted.accesses.items(), reverse=True):
            if where == space and carried < STREAM * needed:
                carried += each * often
                found.append(each)
    return min(found)
