"""What static analysis knows of GPUs beyond core/targets.py, by architecture: pipes, registers, places for programs.

Names, numbers of processors, threads in a warp, bandwidths and clocks are the library's own
(triton_gelu/core/targets.py). So a GPU of an architecture that is here needs one line there, and none here. Each number
says where it comes from and how sure it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perf.library import TARGETS, Datum, Target

GUIDE = "CUDA C++ Programming Guide, table of the throughput of native arithmetic instructions"
PIPES = "https://forums.developer.nvidia.com/t/separate-cuda-core-pipeline-for-fp16-and-fp32/302018"
NSIGHT = "Nsight Compute, Kernel Profiling Guide, Pipelines"
OCCUPANCY = "CUDA C++ Programming Guide, technical specifications per compute capability"
PACKING = {"pack": "fma", "half": "fma"}  # NSIGHT of the latter; of the former the pessimistic guess: FMA is full first
CDNA3 = "AMD CDNA 3 architecture white paper"


@dataclass(frozen=True)
class Architecture:
    """What all GPUs of an architecture share; "processor" is an SM or a compute unit.

    `lanes` are thread-instructions a unit of one processor completes in a clock, and `does` names the unit that works
    for one that is not there; `partitions` share the registers of a processor evenly, `granule` is what one warp's
    registers are rounded up to.
    """

    vendor: str
    major: int  # of the compute capability
    lanes: Mapping[str, Datum]
    does: Mapping[str, str]
    warps: int  # resident on a processor, at most
    blocks: int
    registers: int  # 32-bit registers of a partition
    granule: int
    shared: int  # bytes, and what a block takes on top of its own
    shared_reserved: int
    partitions: int = 4


@dataclass(frozen=True)
class GPU:
    """One GPU, as far as a memory-bound kernel is concerned."""

    target: Target
    chip: Architecture

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def processors(self) -> int:
        return self.target.processors

    @property
    def warp(self) -> int:
        return self.target.warp

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return _given(self.target.bandwidth)

    def per_second(self, unit: str) -> float:
        """Thread-instructions a second of `unit`, all processors together."""
        return self.chip.lanes[unit].value * _given(self.target.clock) * self.processors

    def resident_blocks(self, registers: int, shared: int, warps_per_block: int) -> int:
        """How many blocks of a kernel fit on one processor."""
        chip = self.chip
        each = -(-registers * self.warp // chip.granule) * chip.granule or chip.granule
        by_registers = chip.registers // each * chip.partitions // warps_per_block
        by_shared = chip.shared // (shared + chip.shared_reserved or 1)
        return min(by_registers, by_shared, chip.warps // warps_per_block, chip.blocks)


def _given(datum: Datum | None) -> float:
    assert datum is not None, "every GPU of the table has a bandwidth and a clock"
    return datum.value


def _of_nvidia(number: int, *, shared: int, warps: int = 64, blocks: int = 32) -> Architecture:
    """An architecture since sm_80; `shared` in KiB, with `warps` and `blocks` by OCCUPANCY."""
    fma = 64 if number == 80 else 128
    does = {"pack": "alu"} if number == 80 else PACKING  # GA100 has a pipe of its own for fp16, which unpacks: NSIGHT
    part = "half of the FMA lanes do integers" if fma > 64 else "all FMA lanes do integers"
    lanes = {
        "issue": Datum(128, "four schedulers, one warp-instruction a clock each"),
        "fma": Datum(fma, GUIDE),
        "imad": Datum(64, f"{GUIDE}; {part}: {PIPES}"),
        "alu": Datum(64, GUIDE),
        "xu": Datum(16, GUIDE),
        "half": Datum(64, f"0.5 instructions a clock and partition: {PIPES}"),
        "lsu": Datum(32, "32 load/store units per SM: architecture white papers; 128 bytes a clock", "derived"),
    }
    if number == 103:
        lanes["xu"] = Datum(16, "as sm_100 has; NVIDIA says that exp2 is twice as fast", "assumed")
    if number == 120:
        lanes["imad"], lanes["alu"] = (Datum(64, "as before, though all lanes do integers", "assumed"),) * 2
    return Architecture(
        "NVIDIA", number // 10, {unit: lane for unit, lane in lanes.items() if unit not in does}, does,
        warps=warps, blocks=blocks, registers=16384, granule=256, shared=shared * 1024, shared_reserved=1024,
    )  # fmt: skip


def _of_amd(shared: int, lanes: Mapping[str, Datum]) -> Architecture:
    """CDNA 3 and what follows; `shared` in KiB."""
    return Architecture(
        "AMD", 9, lanes, {},
        warps=32, blocks=16, registers=512 * 64, granule=8 * 64, shared=shared * 1024, shared_reserved=0,
    )  # fmt: skip


CDNA3_LANES: Mapping[str, Datum] = {
    "valu": Datum(64, f"{CDNA3}: four SIMDs of 16 lanes; a packed fp32 instruction does two operations a lane"),
    "salu": Datum(64, "one scalar instruction per wave of 64 and clock", "assumed"),
    "vmem": Datum(16, f"{CDNA3}: 64 bytes a clock from the vector L1 cache, counted in words", "assumed"),
    "lds": Datum(32, f"{CDNA3}: 128 bytes a clock, counted in words"),
}
CDNA4_LANES: Mapping[str, Datum] = {
    unit: Datum(lane.value, "as CDNA 3 has, though AMD doubled some", "assumed") for unit, lane in CDNA3_LANES.items()
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "sm_80": _of_nvidia(80, shared=164),
    "sm_89": _of_nvidia(89, shared=100, warps=48, blocks=24),
    "sm_90": _of_nvidia(90, shared=228),
    "sm_100": _of_nvidia(100, shared=228),
    "sm_103": _of_nvidia(103, shared=228),
    "sm_120": _of_nvidia(120, shared=100, warps=48, blocks=24),
    "gfx942": _of_amd(64, CDNA3_LANES),
    "gfx950": _of_amd(160, CDNA4_LANES),
}

GPUS: Mapping[str, GPU] = {
    key: GPU(target, ARCHITECTURES[target.architecture])
    for key, target in TARGETS.items()
    if target.architecture in ARCHITECTURES
}
"""GPUs by the key of `TARGETS`."""

SHOWN = ("a100", "h100", "h200", "b200", "mi300x")
"""The GPUs that documents and pictures show, which commands compile for unless others are named."""
