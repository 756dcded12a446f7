"""What static analysis knows of GPUs beyond core/targets.py: pipes, clocks, latency, registers, each with its source.

Names, numbers of processors, threads in a warp and bandwidths are the library's own (triton_gelu/core/targets.py).
Each number says where it comes from and how sure it is: "published" by the vendor, "derived" from published numbers,
or "assumed", and then on the side that makes a kernel look worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from triton_gelu.core.targets import TARGETS, Target

GUIDE = "CUDA C++ Programming Guide, table of the throughput of native arithmetic instructions"
PIPES = "https://forums.developer.nvidia.com/t/separate-cuda-core-pipeline-for-fp16-and-fp32/302018"
NSIGHT = "Nsight Compute, Kernel Profiling Guide, Pipelines"
OCCUPANCY = "CUDA C++ Programming Guide, technical specifications per compute capability"
PACKING = {"pack": "fma", "half": "fma"}  # NSIGHT of the latter; of the former the pessimistic guess: FMA is full first
CDNA3 = "AMD CDNA 3 architecture white paper"


@dataclass(frozen=True)
class Datum:
    """A number, where it comes from, and how sure it is."""

    value: float
    source: str
    sure: str = "published"


@dataclass(frozen=True)
class GPU:
    """One GPU, as far as a memory-bound kernel is concerned; "processor" is an SM or a compute unit.

    `lanes` are thread-instructions a unit of one processor completes in a clock, and `does` names the unit that works
    for one that is not there; `latency` is that of memory under load, in seconds; `partitions` share the registers of a
    processor evenly, `granule` is what one warp's registers are rounded up to.
    """

    name: str
    target: str
    vendor: str
    major: int
    bandwidth: Datum  # bytes a second
    processors: int
    clock: Datum  # hertz
    latency: Datum
    lanes: Mapping[str, Datum]
    does: Mapping[str, str]
    warp: int
    warps: int
    blocks: int
    partitions: int
    registers: int  # 32-bit registers of a partition
    granule: int
    shared: int  # bytes, and what a block takes on top of its own
    shared_reserved: int

    def per_second(self, unit: str) -> float:
        """Thread-instructions a second of `unit`, all processors together."""
        return self.lanes[unit].value * self.clock.value * self.processors

    def resident_blocks(self, registers: int, shared: int, warps_per_block: int) -> int:
        """How many blocks of a kernel fit on one processor."""
        each = -(-registers * self.warp // self.granule) * self.granule or self.granule
        by_registers = self.registers // each * self.partitions // warps_per_block
        by_shared = self.shared // (shared + self.shared_reserved or 1)
        return min(by_registers, by_shared, self.warps // warps_per_block, self.blocks)

    def bytes_in_flight(self, loads: float) -> float:
        """Bytes one processor must have asked for to keep memory busy, `loads` the share of its traffic: Little's law.

        Nothing waits for what is stored.
        """
        return loads * self.bandwidth.value / self.processors * self.latency.value


def _nvidia(fma: int) -> Mapping[str, Datum]:
    part = "half of the FMA lanes do integers" if fma > 64 else "all FMA lanes do integers"
    return {
        "issue": Datum(128, "four schedulers, one warp-instruction a clock each"),
        "fma": Datum(fma, GUIDE),
        "imad": Datum(64, f"{GUIDE}; {part}: {PIPES}"),
        "alu": Datum(64, GUIDE),
        "xu": Datum(16, GUIDE),
        "half": Datum(64, f"0.5 instructions a clock and partition: {PIPES}"),
        "lsu": Datum(32, "32 load/store units per SM: architecture white papers; 128 bytes a clock", "derived"),
    }


def _gpu_of_nvidia(
    target: Target,
    *,
    bandwidth: str,
    clock: Datum,
    latency: float,
    fma: int,
    does: Mapping[str, str],
    shared: int,
) -> GPU:
    return GPU(
        target.name, target.architecture, "NVIDIA", int(target.architecture.removeprefix("sm_")) // 10,
        _bandwidth(target, bandwidth), target.processors, clock,
        Datum(latency, "roughly what pointer chasing shows, with room for load", "assumed"),
        {unit: lanes for unit, lanes in _nvidia(fma).items() if unit not in does}, does,
        warp=target.warp, warps=64, blocks=32, partitions=4, registers=16384, granule=256,
        shared=shared * 1024, shared_reserved=1024,
    )  # fmt: skip


def _bandwidth(target: Target, source: str) -> Datum:
    assert target.bandwidth is not None
    return Datum(target.bandwidth, source)


A100 = _gpu_of_nvidia(
    TARGETS["sm_80"],
    bandwidth="NVIDIA A100 data sheet",
    clock=Datum(1.41e9, "NVIDIA A100 white paper, boost clock"),
    latency=600e-9,
    fma=64,
    does={"pack": "alu"},  # so says NSIGHT, and that GA100 has a pipe of its own for fp16, which unpacks, too
    shared=164,
)
H100 = _gpu_of_nvidia(
    TARGETS["sm_90"],
    bandwidth="NVIDIA H100 data sheet",
    clock=Datum(1.755e9, "below the 1.98 GHz that the data sheet's 67 fp32 TFLOPS imply", "assumed"),
    latency=700e-9,
    fma=128,
    does=PACKING,
    shared=228,
)
B200 = _gpu_of_nvidia(
    TARGETS["sm_100"],
    bandwidth="NVIDIA HGX B200 data sheet",
    clock=Datum(1.85e9, "below the 1.98 GHz that the data sheet's 75 fp32 TFLOPS imply", "assumed"),
    latency=700e-9,
    fma=128,
    does=PACKING,
    shared=228,
)
MI300X = GPU(
    TARGETS["gfx942"].name, TARGETS["gfx942"].architecture, "AMD", 9,
    bandwidth=_bandwidth(TARGETS["gfx942"], "AMD Instinct MI300X data sheet"),
    processors=TARGETS["gfx942"].processors,
    clock=Datum(2.1e9, "AMD Instinct MI300X data sheet, peak engine clock"),
    latency=Datum(800e-9, "roughly what pointer chasing shows, with room for load", "assumed"),
    lanes={
        "valu": Datum(64, f"{CDNA3}: four SIMDs of 16 lanes; a packed fp32 instruction does two operations a lane"),
        "salu": Datum(64, "one scalar instruction per wave of 64 and clock", "assumed"),
        "vmem": Datum(16, f"{CDNA3}: 64 bytes a clock from the vector L1 cache, counted in words", "assumed"),
        "lds": Datum(32, f"{CDNA3}: 128 bytes a clock, counted in words"),
    },
    does={},
    warp=TARGETS["gfx942"].warp, warps=32, blocks=16, partitions=4, registers=512 * 64, granule=8 * 64,
    shared=64 * 1024, shared_reserved=0,
)  # fmt: skip

GPUS = {gpu.target: gpu for gpu in (A100, H100, B200, MI300X)}
