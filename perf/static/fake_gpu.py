"""A pretended NVIDIA GPU for torch.compile: what PyTorch and Triton ask of a device while they compile, and no more.

Tensors are fakes on "cuda:0". Queries of the device are answered from `GPUS` and the data sheets. So is one question of
autograd's C++ engine, whether there is a CUDA context, which throws where there is no driver: its place in the table of
virtual functions is read from the header that PyTorch ships. Everything here is private to PyTorch, and made for one
version of its CUDA build; nothing can run.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from perf.rows import UserError
from perf.static.gpus import GPU
from perf.static.offline import Driver

WORDS_BEFORE_A_TABLE = 2  # of virtual functions, in the Itanium ABI
WORDS_OF_A_TABLE = 128  # more than the class has
BLOCK_SHARED = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448}  # bytes a block may ask for
L2 = {"sm_80": 40 << 20, "sm_90": 50 << 20, "sm_100": 126 << 20}


@contextlib.contextmanager
def pretended(gpu: GPU) -> Iterator[None]:
    """Compilers find this GPU. Tests of what is compiled are the caller's; the process keeps Triton's driver."""
    if torch.version.cuda is None:
        raise UserError(f"this needs a CUDA build of torch (without a GPU it will do), not {torch.__version__}")
    import torch._dynamo.device_interface as device_interface
    import torch._subclasses.fake_tensor as fake_tensor
    import triton
    from torch._dynamo.variables.ctx_manager import CUDADeviceVariable
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
    from torch._inductor.runtime import triton_helpers

    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        if not torch.cuda.is_available():
            torch._C._ensureCUDADeviceGuardSet()
            stack.enter_context(_context_is_there())
        for name, answer in _answers(gpu).items():
            answer.__module__, answer.__name__, answer.__qualname__ = "torch.cuda", name, name  # graphs may name them
            patch(torch.cuda, name, answer)
            for owner, bound in (
                (device_interface.CudaInterface, name.lstrip("_")),
                (CUDADeviceVariable, name.replace("_device", "_fn")),
            ):
                if bound in vars(owner):
                    patch(owner, bound, staticmethod(answer))
        patch(fake_tensor.FakeTensorMode, "avoid_device_init", True)
        patch(fake_tensor, "init_gpu_context", lambda device: None)
        patch(triton_helpers, "set_driver_to_gpu", lambda: None)
        for name in ("_add_peephole_patterns", "run"):
            patch(UniformValueConstantFolder, name, _on_cpu(getattr(UniformValueConstantFolder, name)))
        patch(triton.runtime.driver, "_active", _driver(gpu))
        stack.callback(_forget_devices)
        _forget_devices()
        yield


def _answers(gpu: GPU) -> dict[str, Callable[..., Any]]:
    """What the functions of torch.cuda answer."""
    chip, architecture = gpu.chip, gpu.target.architecture
    if architecture not in BLOCK_SHARED:
        raise UserError(f"{gpu.name} can't be pretended; there are GPUs of {', '.join(BLOCK_SHARED)}")
    properties = SimpleNamespace(
        name=gpu.name, major=chip.major, minor=0, multi_processor_count=gpu.processors,
        regs_per_multiprocessor=chip.partitions * chip.registers,
        max_threads_per_multi_processor=chip.warps * gpu.warp, max_threads_per_block=1024, warp_size=gpu.warp,
        total_memory=80 << 30, shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=BLOCK_SHARED[architecture], shared_memory_per_multiprocessor=chip.shared,
        L2_cache_size=L2[architecture], gcnArchName="", is_integrated=False, clock_rate=1755000,
        memory_clock_rate=2619000,
    )  # fmt: skip
    nothing = ("init", "_lazy_init", "set_device", "synchronize", "set_rng_state")
    return {
        **{name: lambda *args: None for name in nothing},
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (chip.major, 0),
        "get_device_name": lambda device=None: gpu.name,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_exchange_device": lambda index: 0,
        "_maybe_exchange_device": lambda index: 0,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *args, **options: True,
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
    }


def _driver(gpu: GPU) -> Any:
    """What compilers ask Triton's driver."""
    return SimpleNamespace(
        get_current_target=Driver(gpu).get_current_target,
        get_current_device=lambda: 0,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        is_active=lambda: True,
        binary_ext="cubin",
    )


@contextlib.contextmanager
def _context_is_there() -> Iterator[None]:
    """CUDAHooks::hasPrimaryContext answers yes."""
    root = Path(torch.__file__).parent
    header = (root / "include/ATen/detail/AcceleratorHooksInterface.h").read_text()
    names = re.findall(r"^ *virtual [\w:<>& ]*?(~?\w+)\(", header, re.MULTILINE)
    if names[:1] != ["~AcceleratorHooksInterface"] or "hasPrimaryContext" not in names:
        raise UserError(f"the virtual functions of torch {torch.__version__} are not where they are expected")
    place = WORDS_BEFORE_A_TABLE + names.index("hasPrimaryContext") + 1  # a destructor has two places
    hooks = ctypes.CDLL(str(root / "lib/libtorch_cpu.so"))["_ZN2at6detail12getCUDAHooksEv"]
    hooks.restype = ctypes.c_void_p
    pointer = ctypes.c_void_p.from_address(hooks())
    ahead, old = WORDS_BEFORE_A_TABLE * ctypes.sizeof(ctypes.c_void_p), pointer.value
    assert old is not None
    words = ctypes.c_void_p * WORDS_OF_A_TABLE
    table = words(*words.from_address(old - ahead))
    answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda hooks, index: True)
    table[place] = ctypes.cast(answer, ctypes.c_void_p).value
    pointer.value = ctypes.addressof(table) + ahead
    try:
        yield
    finally:
        pointer.value = old


class _OnCpu(TorchDispatchMode):
    """Makes on the CPU what is asked for on the GPU: Inductor folds constants by computing with real tensors."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def moved(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

        args, kwargs = tree_map(moved, (args, kwargs or {}))
        return function(*args, **kwargs)


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def on_cpu(*args: Any) -> Any:
        with _OnCpu():
            return function(*args)

    return on_cpu


def _forget_devices() -> None:
    """What PyTorch keeps of a device's properties is another's from now on."""
    import torch._dynamo.device_interface as device_interface
    from torch._inductor.runtime import hints

    device_interface.caching_worker_device_properties.clear()
    hints.DeviceProperties.create.cache_clear()
    for name in ("torch._inductor.utils", "torch.utils._triton", "torch._inductor.codegen.triton"):
        for value in vars(sys.modules[name]).values():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()
