"""What to paste in a bug report: versions, devices, the road each takes and why, and the launch plans of a shape.

Plans are pure functions: they can be read for GPUs that are not here.

examples:
  python -m triton_gelu
  python -m triton_gelu --shape 8,1500,5120 --dtype bf16 --approximate none
  python -m triton_gelu --shape 8,1280,3000 --dim 1 --target sm_90
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch

import triton_gelu

from .core import compat_torch as _seam
from .core import operators as _operators
from .core import run as _fused
from .core.launch import Launch
from .core.matrices import matrices
from .core.targets import TARGETS, Target
from .functional import FORMULAS
from .ops import bias_gelu_cpu as _reference
from .ops import bias_gelu_plan as _plan

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
ROADS: dict[ModuleType | None, str] = {
    _fused: "Triton kernels",
    _reference: "PyTorch, in blocks that stay in the CPU's caches",
    None: "plain PyTorch",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(
        "python -m triton_gelu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape", type=parse_shape, metavar="8,1500,5120", help="of x: print how its kernels are launched"
    )
    parser.add_argument("--dim", type=parse_dim, default=-1, metavar="1", help="that the bias runs along, or 'none'")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="of x (default: %(default)s)")
    parser.add_argument("--approximate", choices=FORMULAS, default="tanh", help="formula (default: %(default)s)")
    parser.add_argument(
        "--target", nargs="+", choices=TARGETS, help="GPUs to plan for (default: the one here, or all of these)"
    )
    args = parser.parse_args(argv)
    if args.shape and args.dim is not None and not -len(args.shape) <= args.dim < len(args.shape):
        parser.error(f"argument --dim: expected one of the {len(args.shape)} dimensions of --shape, got {args.dim}")
    print(*versions(), "", *map(device_line, devices()), sep="\n")
    if args.shape:
        dim = None if args.dim is None else args.dim % len(args.shape)
        print("", *plans(args.shape, dim, DTYPES[args.dtype], args.approximate, targets(args.target)), sep="\n")
    return 0


def versions() -> Iterator[str]:
    """What is installed, a line each."""
    yield f"triton_gelu  {triton_gelu.__version__}"
    yield f"torch        {torch.__version__} (CUDA {torch.version.cuda}, HIP {torch.version.hip})"
    yield f"triton       {importlib.metadata.version('triton') if _seam.kernels else 'not installed'}"
    yield f"Python       {platform.python_version()} on {platform.system()} {platform.machine()}"


def devices() -> list[torch.device]:
    """The CPU, and every accelerator that PyTorch sees."""
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        found += [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
    return found


def device_line(device: torch.device) -> str:
    """A device, what it is, the road its tensors take, and why."""
    if device.type == "cpu":
        name = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    else:
        module = torch.get_device_module(device)
        name = module.get_device_name(device) if hasattr(module, "get_device_name") else device.type
    single, double = (_operators.road(torch.empty(0, device=device, dtype=t)) for t in (torch.float32, torch.float64))
    also = "" if single is double else f"; float64: {ROADS[double]}, since kernels compute in float32"
    return f"{device!s:12} {name}\n{'':12} -> {ROADS[single]}: {why(device.type)}{also}"


def why(device_type: str) -> str:
    """Why tensors of this type take the road they take."""
    if _seam.kernels is None:
        return "Triton is not installed"
    if _seam.INTERPRETED:
        return f"TRITON_INTERPRET is set: kernels run in Python{'' if device_type == 'cpu' else ', on the CPU alone'}"
    return f"Triton {'drives' if _seam.triton_drives(device_type) else 'has no driver for'} this device"


def targets(names: Sequence[str] | None) -> dict[str, Target]:
    """What to plan for, by title: the GPUs named, else the first one here, else all that have a name."""
    here = next((device for device in devices() if device.type != "cpu" and _seam.triton_drives(device.type)), None)
    if names is None and here is not None:
        return {str(here): _fused.target(here)}
    return {f"{TARGETS[name].name} ({name})": TARGETS[name] for name in names or TARGETS}


def plans(
    shape: Sequence[int], dim: int | None, dtype: torch.dtype, approximate: str, gpus: dict[str, Target]
) -> Iterator[str]:
    """How contiguous tensors of a shape are walked, and every launch of a call, on each GPU."""
    strides = torch.empty(shape, device="meta").stride()
    forward, backward = (matrices(shape, dim, *(strides,) * count) for count in (2, 4))
    assert forward is not None
    assert backward is not None
    bias = "no bias" if dim is None else f"bias of {shape[dim]} along dim {dim}"
    yield f"x of {'x'.join(map(str, shape))}, contiguous, {str(dtype).removeprefix('torch.')}, {approximate!r}, {bias}"
    walked = f"{forward.batch} x [{forward.rows} rows, {forward.cols} columns]"
    yield f"walked as {walked}, bias along its {forward.bias}" if dim is not None else f"walked as {walked}"
    for title, target in gpus.items():
        yield f"\n{title}, {target.processors} processors"
        yield launch_line(_plan.forward(forward, dtype.itemsize, approximate, target))
        needs = {"needs_dy": False, "needs_x": True, "needs_bias": dim is not None}
        both = _plan.backward(backward, dtype.itemsize, approximate, target, **needs)
        yield f"{launch_line(both.main)}, {both.partials} partial sums" if both.reduce else launch_line(both.main)
        if both.reduce:
            yield launch_line(both.reduce)


def launch_line(launch: Launch) -> str:
    """A launch in a line: grid, warps, tile, then the other constants, the false ones left out."""
    constants = dict(launch.constants)
    grid, tile = "x".join(map(str, launch.grid)), f"{constants.pop('BLOCK_ROWS')}x{constants.pop('BLOCK_COLS')}"
    flags = [
        name if value is True else f"{name}={value}"
        for name, value in constants.items()
        if value is not False and name not in ("FORMULA", "BIAS")
    ]
    return ", ".join([f"  {launch.kernel:18} grid {grid}", f"{launch.num_warps} warps", f"tile {tile}", *flags])


def parse_shape(text: str) -> tuple[int, ...]:
    """A shape from the command line."""
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected positive sizes such as 8,1500,5120, got {text!r}")
    return shape


def parse_dim(text: str) -> int | None:
    """A dimension from the command line, or None."""
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, or 'none' for no bias, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
