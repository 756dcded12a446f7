"""The table of GPUs: processors, bandwidth and capabilities that plans depend on; and `target_of` the current device.

The table also serves GPUs that are not here: `python -m triton_gelu --target` plans for them, and `python -m perf
analyse` compiles for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """One GPU, as far as launch plans depend on it.

    `processors` is the number of multiprocessors (AMD: compute units, Intel: subslices), `warp` the number of threads
    in a warp (AMD: wave, Intel: sub-group), and `bandwidth` the bytes a second that its memory moves by the data sheet,
    None if that is not known here. Capabilities:

        ptx       NVIDIA's instructions may be written out in inline assembly
        f32x2     an instruction computes two float32 numbers, or adds a 16-bit number to a float32
        bf16_cvt  rounding float32 to bfloat16 is an instruction

    `unroll` is how many parts a forward tile is taken in; `tile_scale` enlarges tiles where a program costs more than
    its elements. `known` is False where the table has no such GPU: it is then planned from its properties.
    """

    name: str
    architecture: str
    processors: int
    bandwidth: float | None = None
    warp: int = 32
    ptx: bool = False
    f32x2: bool = False
    bf16_cvt: bool = False
    unroll: int = 4
    tile_scale: int = 1
    known: bool = True

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

TARGETS: Mapping[str, Target] = {
    target.architecture: target
    for target in (
        Target("A100 SXM 80 GB", "sm_80", 108, 2039e9, ptx=True, bf16_cvt=True),
        Target("H100 SXM", "sm_90", 132, 3350e9, ptx=True, bf16_cvt=True),
        Target("B200", "sm_100", 148, 8000e9, ptx=True, f32x2=True, bf16_cvt=True),
        Target("MI300X", "gfx942", 304, 5300e9, warp=64),
    )
}
"""GPUs by architecture."""

REPORTED = {
    "sm_80": r"\bA100.SXM.*80 ?GB",  # others have slower memory
    "sm_90": r"\bH100 (80GB HBM3|SXM)",  # an H200 has as many processors, and faster memory
    "sm_100": r"\bB200\b",
    "gfx942": r"\bMI300X\b",
}
"""What the driver calls the GPUs of `TARGETS`, and we do: a pattern somewhere in the name."""

BF16_CVT_ON_AMD = ("gfx950", "gfx1250")
"""AMD's architectures that round to bfloat16 in an instruction."""


def target_of(properties: Any, triton_target: Any) -> Target:
    """The GPU with these `torch.<device>.get_device_properties`, for which Triton compiles as `triton_target` says.

    That is the entry of `TARGETS` if driver's name, architecture and number of processors agree with it, otherwise a
    Target with what its properties tell, `known` False.
    """
    target = _from_properties(properties, triton_target)
    entry = TARGETS.get(target.architecture)
    if (
        entry is not None
        and entry.processors == target.processors
        and re.search(REPORTED[entry.architecture], target.name)
    ):
        return entry
    return target


def _from_properties(properties: Any, triton_target: Any) -> Target:
    """A Target by what the driver and Triton tell of it."""
    backend, warp = triton_target.backend, int(triton_target.warp_size)
    name = getattr(properties, "name", "a GPU without a name")
    if backend == "cuda":
        number = int(triton_target.arch)
        return Target(
            name, f"sm_{number}", properties.multi_processor_count, warp=warp, known=False,
            # PTX promises that later architectures have what earlier ones have.
            ptx=True, f32x2=number >= 100, bf16_cvt=True,
        )  # fmt: skip
    if backend == "hip":
        architecture = str(triton_target.arch)
        return Target(
            name, architecture, properties.multi_processor_count, warp=warp, known=False,
            # An architecture that is not on the list rounds by hand, which is right on every GPU.
            bf16_cvt=architecture.startswith(BF16_CVT_ON_AMD),
        )  # fmt: skip
    if backend == "xpu":
        return Target(
            name, "xpu", properties.gpu_subslice_count, warp=warp, known=False,
            # Where PyTorch does not say, Triton rounds as the GPU can: that is right on every GPU, too.
            bf16_cvt=bool(getattr(properties, "has_bfloat16_conversions", True)),
        )  # fmt: skip
    # A backend that this library has never met gets none of the capabilities: kernels without them are made of what
    # every backend of Triton has to support. Its number of processors is asked for by PyTorch's usual name.
    return Target(name, str(backend), int(getattr(properties, "multi_processor_count", 1)), warp=warp, known=False)
