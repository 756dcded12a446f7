"""What to paste in a bug report: versions, devices, the backend of each and why, and the launch plans of a shape.

Plans are pure functions: they can be read for GPUs that are not here.

examples:
  python -m triton_gelu
  python -m triton_gelu --shape 8,1500,5120 --dtype bf16 --approximate none
  python -m triton_gelu --shape 8,1280,3000 --dim 1 --gpu h100
  TRITON_GELU_BACKEND=torch python -m triton_gelu      how plain PyTorch is made to compute everything, for debugging
  TRITON_GELU_BACKEND=kernels python -m triton_gelu    how what kernels do not compute is made to raise
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Sequence

import torch

from . import __version__
from .core import compat_triton, dispatch, run
from .core.matrices import matrices
from .core.plan import Launch
from .core.targets import TARGETS, Target, key_of
from .formulas import FORMULAS
from .ops.bias_gelu import BIAS_GELU
from .ops.bias_gelu_plan import backward_launches, forward_launch

DEMANDED = {
    None: f"the fastest that runs ({dispatch.SWITCH} is not set)",
    dispatch.TORCH: f"plain PyTorch ({dispatch.SWITCH} is {dispatch.TORCH})",
    dispatch.KERNELS: f"kernels, or an error ({dispatch.SWITCH} is {dispatch.KERNELS})",
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


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
        "--gpu", "--target", nargs="+", type=parse_gpu, metavar="GPU",
        help=f"to plan for: {', '.join(TARGETS)}, or an architecture such as sm_90 (default: the one here, or all)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.shape and args.dim is not None and not -len(args.shape) <= args.dim < len(args.shape):
        parser.error(f"argument --dim: expected one of the {len(args.shape)} dimensions of --shape, got {args.dim}")
    print(*versions(), "", *map(device_line, devices()), sep="\n")
    if args.shape:
        dim = None if args.dim is None else args.dim % len(args.shape)
        print("", *plans(args.shape, dim, DTYPES[args.dtype], args.approximate, targets(args.gpu)), sep="\n")
    return 0


def versions() -> Iterator[str]:
    """What is installed, a line each, and what the environment demands."""
    yield f"triton_gelu  {__version__}"
    yield f"torch        {torch.__version__} (CUDA {torch.version.cuda}, HIP {torch.version.hip})"
    yield f"triton       {importlib.metadata.version('triton') if compat_triton.triton else 'not installed'}"
    yield f"Python       {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield f"backend      {DEMANDED[dispatch.demanded]}"


def devices() -> list[torch.device]:
    """The CPU, and every accelerator that PyTorch sees."""
    found = [torch.device("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        found += [torch.device(accelerator.type, index) for index in range(torch.accelerator.device_count())]
    return found


def device_line(device: torch.device) -> str:
    """A device, what it is, the backend that computes on it, and the reason of that choice."""
    if device.type == "cpu":
        name = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    else:
        module = torch.get_device_module(device)
        name = module.get_device_name(device) if hasattr(module, "get_device_name") else device.type
    (single, why), (double, also) = (
        chosen(torch.empty(0, device=device, dtype=t)) for t in (torch.float32, torch.float64)
    )
    rest = "" if single == double else f"; float64: {double}, since {also}"
    return f"{device!s:12} {name}\n{'':12} -> {single}: {why}{rest}"


def chosen(x: torch.Tensor) -> tuple[str, str]:
    """The name of the backend that computes on tensors like x, and the reason of that choice."""
    try:
        choice = BIAS_GELU.choose(x)
    except RuntimeError as error:
        return "an error", str(error)
    return choice.backend.name, choice.reason


def targets(keys: Sequence[str] | None) -> dict[str, Target]:
    """What to plan for, by title: the GPUs named, else the first one here, else all of the table."""
    here = next((d for d in devices() if d.type != "cpu" and compat_triton.drives(d.type)[0]), None)
    if keys is None and here is not None:
        target = run.device_target(here)
        unknown = "" if target.known else ", which is not in the table of GPUs: planned from its properties"
        return {f"{here}, {target.name} ({target.architecture}){unknown}": target}
    return {f"{TARGETS[key].name} ({TARGETS[key].architecture})": TARGETS[key] for key in keys or TARGETS}


def plans(
    shape: Sequence[int], dim: int | None, dtype: torch.dtype, approximate: str, gpus: dict[str, Target]
) -> Iterator[str]:
    """As which matrices contiguous tensors of a shape are computed, and every launch of a call, on each GPU."""
    strides = torch.empty(shape, device="meta").stride()
    forward, backward = (matrices(shape, dim, *(strides,) * count) for count in (2, 4))
    assert forward is not None
    assert backward is not None
    bias = "no bias" if dim is None else f"bias of {shape[dim]} along dim {dim}"
    yield f"x of {'x'.join(map(str, shape))}, contiguous, {str(dtype).removeprefix('torch.')}, {approximate!r}, {bias}"
    seen = f"computed as {forward.batch} x [{forward.rows} rows, {forward.cols} columns]"
    yield f"{seen}, bias along its {forward.bias}" if dim is not None else seen
    for title, target in gpus.items():
        yield f"\n{title}, {target.processors} processors"
        yield launch_line(forward_launch(forward, dtype.itemsize, approximate, target))
        both = backward_launches(
            backward, dtype.itemsize, approximate, target, needs_dy=False, needs_x=True, needs_bias=dim is not None
        )
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


def parse_gpu(text: str) -> str:
    """A GPU of the table from the command line, as its key."""
    try:
        return key_of(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def parse_dim(text: str) -> int | None:
    """A dimension from the command line, or None."""
    try:
        return None if text == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, or 'none' for no bias, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
