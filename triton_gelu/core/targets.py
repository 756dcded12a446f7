"""The table of GPUs: processors, bandwidth, clock and capabilities, with their sources; and `target_of` a device.

Launch plans and `perf` share it. It also serves GPUs that are not here: `python -m triton_gelu --gpu` plans for them,
and `python -m perf analyse --gpu` compiles for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DRIVER = "as the driver reports it: https://github.com/pytorch/ao/pull/4002"


@dataclass(frozen=True)
class Datum:
    """A number, where it comes from, and how sure it is.

    It is "published" by the vendor, "derived" from published numbers, or "assumed", and then on the side that makes a
    kernel look worse.
    """

    value: float
    source: str
    sure: str = "published"


@dataclass(frozen=True)
class Target:
    """One GPU, as far as launch plans and static analysis depend on it.

    `processors` is the number of multiprocessors (AMD: compute units, Intel: subslices), `warp` the number of threads
    in a warp (AMD: wave, Intel: sub-group), `bandwidth` the bytes a second that its memory moves, and `clock` hertz,
    both None if that is not known here. Capabilities:

        ptx       NVIDIA's instructions may be written out in inline assembly
        f32x2     an instruction computes two float32 numbers, or adds a 16-bit number to a float32
        bf16_cvt  rounding float32 to bfloat16 is an instruction

    `unroll` is how many parts a forward tile is taken in; `tile_scale` enlarges tiles where a program costs more than
    its elements. `key` is what a person calls it on a command line, and `reported` a pattern somewhere in the name that
    its driver reports; a GPU that the table does not have, `known` False, is planned from its properties.
    """

    name: str
    architecture: str
    processors: int
    bandwidth: Datum | None = None
    clock: Datum | None = None
    warp: int = 32
    ptx: bool = False
    f32x2: bool = False
    bf16_cvt: bool = False
    unroll: int = 4
    tile_scale: int = 1
    key: str = ""
    reported: str = ""

    @property
    def known(self) -> bool:
        """Whether the table has it."""
        return bool(self.key)

    @property
    def constants(self) -> tuple[tuple[str, bool], ...]:
        """The capabilities, as kernels name them."""
        return ("PTX", self.ptx), ("F32X2", self.f32x2), ("BF16_CVT", self.bf16_cvt)


INTERPRETER = Target(
    "Triton's interpreter",
    "interpreter",
    processors=2,
    unroll=1,
    tile_scale=32,
    bf16_cvt=False,  # its own rounding to bfloat16 truncates
)

BF16_CVT_ON_AMD = ("gfx950", "gfx1250")
"""AMD's architectures that round to bfloat16 in an instruction."""


def _capable(name: str, architecture: str, processors: int, **also: Any) -> Target:
    """A GPU with the capabilities that its architecture has: sm_90 and the like are NVIDIA's."""
    number = int(architecture.removeprefix("sm_")) if architecture.startswith("sm_") else 0
    return Target(
        name, architecture, processors,
        # PTX promises that later architectures have what earlier ones have.
        ptx=number > 0, f32x2=number >= 100,
        # An architecture of AMD that is not on the list rounds by hand, which is right on every GPU.
        bf16_cvt=number > 0 or architecture.startswith(BF16_CVT_ON_AMD), **also,
    )  # fmt: skip


def _known(
    key: str,
    name: str,
    architecture: str,
    processors: int,
    bandwidth: Datum | float,
    clock: Datum | float,
    reported: str,
) -> Target:
    """An entry of the table; a bandwidth in GB/s or a clock in GHz without a source is that of the data sheet."""
    sheet = f"{'NVIDIA' if architecture.startswith('sm_') else 'AMD'} {name}, data sheet"
    return _capable(
        name, architecture, processors, key=key, reported=reported,
        bandwidth=bandwidth if isinstance(bandwidth, Datum) else Datum(bandwidth * 1e9, sheet),
        clock=clock if isinstance(clock, Datum) else Datum(clock * 1e9, f"{sheet}, boost clock"),
        warp=64 if architecture.startswith("gfx9") else 32,
    )  # fmt: skip


_H100_CLOCK = Datum(1.755e9, "below the 1.98 GHz that the data sheet's 67 fp32 TFLOPS imply", "assumed")
_PCIE_CLOCK = Datum(1.755e9, "the data sheet's 51 fp32 TFLOPS imply it", "derived")
_B200_CLOCK = Datum(1.85e9, "below the 1.98 GHz that the data sheet's 75 fp32 TFLOPS imply", "assumed")
_B200_BANDWIDTH = Datum(7672e9, f"7680 bit at 3996 MHz, {DRIVER}; the data sheet says 8 TB/s", "derived")
_NVL72 = Datum(8000e9, "GB200 and GB300 NVL72 data sheets: 576 TB/s of 72 GPUs", "derived")

TARGETS: Mapping[str, Target] = {
    target.key: target
    for target in (
        _known("a100", "A100 SXM 80 GB", "sm_80", 108, 2039, 1.41, r"\bA100.SXM.*80 ?GB"),
        _known("a100-40gb", "A100 40 GB", "sm_80", 108, 1555, 1.41, r"\bA100.*40 ?GB"),
        _known("h100", "H100 SXM", "sm_90", 132, 3350, _H100_CLOCK, r"\bH100 (80GB HBM3|SXM)"),
        _known("h100-pcie", "H100 PCIe", "sm_90", 114, 2000, _PCIE_CLOCK, r"\bH100 PCIe"),
        _known("h200", "H200", "sm_90", 132, 4800, _H100_CLOCK, r"\bH200\b"),
        _known("b200", "B200", "sm_100", 148, _B200_BANDWIDTH, _B200_CLOCK, r"\bB200\b"),
        _known("gb200", "GB200", "sm_100", 152, _NVL72, _B200_CLOCK, r"\bGB200\b"),
        _known("b300", "B300", "sm_103", 148, 8000, _B200_CLOCK, r"\bB300\b"),
        _known("gb300", "GB300", "sm_103", 152, _NVL72, _B200_CLOCK, r"\bGB300\b"),
        _known("l40s", "L40S", "sm_89", 142, 864, 2.52, r"\bL40S\b"),
        _known("rtx4090", "RTX 4090", "sm_89", 128, 1008, 2.52, r"\bRTX 4090\b"),
        _known("rtx5090", "RTX 5090", "sm_120", 170, 1792, 2.407, r"\bRTX 5090\b"),
        _known("mi300x", "MI300X", "gfx942", 304, 5300, 2.1, r"\bMI300X\b"),
        _known("mi355x", "MI355X", "gfx950", 256, 8000, 2.4, r"\bMI355X\b"),
    )
}
"""GPUs by key: a new one is a line, where its architecture is known to static analysis (perf/static/gpus.py).

Where one architecture has several, the first stands for it.
"""


def key_of(words: str) -> str:
    """The key of the GPU that somebody means: by key or name, in whatever case, or by its architecture.

    Raises `ValueError`, which names all keys.
    """
    plain = re.sub(r"[\s_-]", "", words).lower()
    for key, target in TARGETS.items():
        if plain in (re.sub(r"[\s_-]", "", each).lower() for each in (key, target.name, target.architecture)):
            return key
    raise ValueError(f"expected one of {', '.join(TARGETS)}, or an architecture such as sm_90, got {words!r}")


def target_of(properties: Any, triton_target: Any) -> Target:
    """The GPU with these `torch.<device>.get_device_properties`, for which Triton compiles as `triton_target` says.

    That is the entry of `TARGETS` if driver's name, architecture and number of processors agree with it, otherwise a
    Target with what its properties tell, `known` False.
    """
    target = _from_properties(properties, triton_target)
    for entry in TARGETS.values():
        if (entry.architecture, entry.processors) == (target.architecture, target.processors) and re.search(
            entry.reported, target.name
        ):
            return entry
    return target


def _from_properties(properties: Any, triton_target: Any) -> Target:
    """A Target by what the driver and Triton tell of it."""
    backend, warp = triton_target.backend, int(triton_target.warp_size)
    name = getattr(properties, "name", "a GPU without a name")
    if backend == "cuda":
        return _capable(name, f"sm_{int(triton_target.arch)}", properties.multi_processor_count, warp=warp)
    if backend == "hip":
        return _capable(name, str(triton_target.arch), properties.multi_processor_count, warp=warp)
    if backend == "xpu":
        # Where PyTorch does not say, Triton rounds as the GPU can: that is right on every GPU, too.
        converts = bool(getattr(properties, "has_bfloat16_conversions", True))
        return Target(name, "xpu", properties.gpu_subslice_count, warp=warp, bf16_cvt=converts)
    # A backend that this library has never met gets none of the capabilities: kernels without them are made of what
    # every backend of Triton has to support. Its number of processors is asked for by PyTorch's usual name.
    return Target(name, str(backend), int(getattr(properties, "multi_processor_count", 1)), warp=warp)
