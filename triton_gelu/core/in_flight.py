"""How a launch keeps enough bytes in flight: how many loads a thread asks for at once, in which order, and registers.

A memory-bound kernel is as fast as the bytes it waits for at a time allow. NVIDIA's compiler puts loads off until just
before they are used, behind the arithmetic on what came before, however many the source has in a row and however many
registers are free. What holds it back, `loads` here and LOADS in the kernels:

    free      nothing: loads come when the compiler likes
    tied      the first of the tiles is computed from all of them, by way of a zero that no compiler knows (`tie` in
              core/tiles.py): an eighth of an instruction an element or two, and the same bits
    volatile  no instruction more, but past the L1 cache; how fast that is has to be measured

All of it was chosen by counting compiled code (`python -m perf analyse --set goals`), and changes no value, but for the
order in which a bias gradient is added up. To measure other choices, set TRITON_GELU_PLAN before the first call:

    TRITON_GELU_PLAN=forward.unroll=4,forward.warps=4,backward.loads=volatile,backward.registers=72,backward.share=0.02

`unroll`, `warps`, `loads` and `registers` (0: no limit) are the fields of `InFlight`; `share` is the most of the
traffic of a backward pass that partial sums may take. The variable is read once: what a process has planned stays.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .plan import ALIGN, WARPS
from .targets import Target

VARIABLE = "TRITON_GELU_PLAN"
LOADS = ("free", "tied", "volatile")
FIELDS = {
    "forward": ("unroll", "warps", "loads", "registers"),
    "backward": ("unroll", "loads", "registers", "share"),
}
VALUES: Mapping[str, Mapping[str, Any]] = {
    "unroll": {str(n): n for n in (1, 2, 4, 8)},
    "warps": {str(n): n for n in (1, 2, 4, 8)},
    "loads": {name: name for name in LOADS},
    "registers": {str(n): n for n in (0, *range(32, 256, 8))},
    "share": {str(n / 1000): n / 1000 for n in (10, 20, 25, 50, 100, 200)},
}
REGISTER_FILE = 65536  # 32-bit registers of a processor of NVIDIA's
PROGRAMS_PER_PROCESSOR = 8  # resident at once with four warps of 64 registers


@dataclass(frozen=True)
class InFlight:
    """How a launch asks for memory, and why so.

    A thread asks for `unroll` accesses of each tensor before it uses the first; a program has `warps` of 32 threads,
    and a thread takes at most so many `registers`, None: as many as the compiler likes.
    """

    unroll: int
    reason: str
    loads: str = "free"
    warps: int = WARPS
    registers: int | None = None

    @property
    def programs(self) -> int:
        """How many programs are resident on a processor at once, by the limit on registers."""
        return REGISTER_FILE // (32 * self.warps * self.registers) if self.registers else PROGRAMS_PER_PROCESSOR


def forward(target: Target, align: int) -> InFlight:
    """For y = gelu(x + bias)."""
    if not target.ptx:
        chosen = InFlight(target.unroll, "the compiler of this GPU asks for all that it may")
    elif align == 1:
        chosen = InFlight(target.unroll, "narrow accesses are many already, and their pairs would be tied one by one")
    else:
        chosen = InFlight(
            8, "8 accesses of 64 threads, tied: 96 KiB a processor and more on every NVIDIA GPU", "tied", warps=2
        )
    return _overridden(chosen, "forward", target)


def backward(target: Target, align: int, axis: str, formula: str, *, double: bool) -> InFlight:
    """For dx and the sum of it, whose bias lies along `axis`; `double`: for the second backward pass."""
    if not target.ptx:
        return _overridden(InFlight(1, "the compiler of this GPU asks for all that it may"), "backward", target)
    if double:
        return InFlight(1, "four tensors are asked for at once")
    generation = int(target.architecture.removeprefix("sm_"))
    if align == 1:
        chosen = InFlight(2, "a second step's narrow accesses come before the first step is stored")
    elif generation < 90 and align < ALIGN:
        chosen = InFlight(2, "a second step's accesses come before the first step is stored: 16 KiB a processor")
    elif generation < 90:
        chosen = InFlight(1, "room for x and dy at once, in 8 programs a processor: 16 KiB", registers=64)
    elif generation < 100:
        chosen = InFlight(2, "two steps at once, tied, in 6 programs a processor: 48 KiB", "tied", registers=80)
    elif axis == "rows" and align < ALIGN and formula == "tanh":
        chosen = InFlight(2, "as below; 64 registers would be spilled: 56 KiB", "tied", registers=72)
    else:
        chosen = InFlight(2, "two steps at once, tied, in 8 programs a processor: 64 KiB", "tied", registers=64)
    return _overridden(chosen, "backward", target)


def _overridden(chosen: InFlight, kind: str, target: Target) -> InFlight:
    """What was chosen, but for what TRITON_GELU_PLAN asks for."""
    asked = {name: value for name, value in overrides()[kind].items() if name != "share"}
    if not asked:
        return chosen
    if asked.get("loads") == "tied" and not target.ptx:
        raise ValueError(f"{VARIABLE}: got {kind}.loads=tied, expected free or volatile for {target.name}")
    asked["registers"] = asked.get("registers", chosen.registers) or None
    return replace(chosen, **asked, reason=f"asked for by {VARIABLE}")


@functools.cache
def overrides() -> Mapping[str, Mapping[str, Any]]:
    """What TRITON_GELU_PLAN asks for, by kind of launch and field; read once."""
    return parse(os.environ.get(VARIABLE, ""))


def parse(text: str) -> Mapping[str, Mapping[str, Any]]:
    """The value of TRITON_GELU_PLAN; raises ValueError that names what came and what is expected."""
    found: dict[str, dict[str, Any]] = {kind: {} for kind in FIELDS}
    for item in filter(None, (each.strip() for each in text.split(","))):
        name, _, value = item.partition("=")
        kind, _, field = name.partition(".")
        if field not in FIELDS.get(kind, ()):
            names = ", ".join(f"{kind}.{field}" for kind, fields in FIELDS.items() for field in fields)
            raise ValueError(f"{VARIABLE}: got {item!r}, expected NAME=VALUE with a name out of {names}")
        allowed = VALUES[field]
        if value not in allowed:
            raise ValueError(f"{VARIABLE}: got {item!r}, expected for {name} one of {', '.join(allowed)}")
        found[kind][field] = allowed[value]
    return found
