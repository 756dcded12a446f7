"""Compiling kernels as a call would, for a GPU that is not here.

Nothing is copied from the library: its own code runs on tensors of the meta device, asks a pretended device for its
properties, plans its launches and calls `kernel[grid](...)`; there Triton's own binder chooses the specialisation and
its compiler makes the machine code. Only the launch itself is left out.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from perf.rows import UserError
from perf.static.gpus import GPU

META = torch.device("meta")
Call = Callable[[], object]


@dataclass(frozen=True)
class Launched:
    """One launch: the kernel's arguments by name, its grid, and what the compiler made of it.

    `arguments` are those of run time, and `constants` those that the compiler knew, tensors left out (None) included.

    `fp_fusion` tells whether the compiler was free to make one instruction of a multiplication and an addition.
    """

    name: str
    grid: tuple[int, int, int]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int
    shared: int
    fp_fusion: bool
    asm: Mapping[str, Any]

    @property
    def programs(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]


def launches(gpu: GPU, call: Call) -> list[Launched]:
    """What `call`, whose tensors are on the meta device, launches, compiled for `gpu`."""
    if triton.knobs.runtime.interpret:
        raise UserError("TRITON_INTERPRET is set: kernels are interpreted, there is nothing to compile. Unset it.")
    seen: list[Launched] = []
    run = JITFunction.run

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        compiled = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in kwargs}
        bound = kernel.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        size = grid(bound.arguments) if callable(grid) else grid
        at_run_time = {name for name, kind in compiled.src.signature.items() if kind != "constexpr"}
        seen.append(
            Launched(
                name=compiled.metadata.name,
                grid=tuple((*size, 1, 1)[:3]),
                arguments={name: each for name, each in bound.arguments.items() if name in at_run_time},
                constants={name: each for name, each in bound.arguments.items() if name not in at_run_time},
                num_warps=options.get("num_warps", compiled.metadata.num_warps),
                shared=compiled.metadata.shared,
                fp_fusion=compiled.metadata.enable_fp_fusion,
                asm=compiled.asm,
            )
        )
        return compiled

    triton.runtime.driver.set_active(Driver(gpu))
    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(torch, "get_device_module", return_value=DeviceModule(gpu)),
    ):
        call()
    return seen


class Driver:
    """What Triton asks a driver while it compiles. There is none to return to: the process keeps it."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu

    def get_current_target(self) -> GPUTarget:
        target = self.gpu.target
        if self.gpu.chip.vendor == "AMD":
            return GPUTarget("hip", target.architecture, target.warp)
        return GPUTarget("cuda", int(target.architecture.removeprefix("sm_")), target.warp)

    def get_current_device(self) -> str:
        return self.gpu.target.architecture  # what Triton keeps its compiled kernels by

    def get_current_stream(self, device: object) -> int:
        return 0


class DeviceModule:
    """`torch.cuda`, as far as the library asks it."""

    def __init__(self, gpu: GPU) -> None:
        self.gpu = gpu

    def get_device_properties(self, device: object) -> SimpleNamespace:
        return SimpleNamespace(name=self.gpu.name, multi_processor_count=self.gpu.processors, major=self.gpu.chip.major)

    def is_available(self) -> bool:
        return False  # so that torch's timer waits for nothing

    def current_device(self) -> None:
        return None  # the index of the meta device

    def device(self, device: object) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


def disassembly(launched: Launched) -> str:
    """SASS as nvdisasm prints it, or AMD's assembly, which the compiler keeps."""
    if "amdgcn" in launched.asm:
        return str(launched.asm["amdgcn"])
    with _as_file(launched.asm["cubin"]) as path:
        return _run(triton.knobs.nvidia.nvdisasm.path, "-c", "-ndf", "-hex", str(path))


def elf(launched: Launched) -> str:
    """What cuobjdump says of a cubin's sections: registers, stack, where parameters lie."""
    with _as_file(launched.asm["cubin"]) as path:
        return _run(triton.knobs.nvidia.cuobjdump.path, "-elf", str(path))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(content)
        yield path
