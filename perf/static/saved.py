"""The command `saved`: bytes and launches that fusing saves whole models on GPUs that are not here. Nothing runs.

The model runs on the meta device, and says which GELUs it has. Of ours the kernels are compiled, and counted with the
sums that finish their bias gradients. PyTorch's eager operations are counted by what they read and write: GELU; the
bias, which a Linear's product adds by itself and a convolution's does not (cuDNN's takes none: ConvShared.cpp in
aten/src/ATen/native/cudnn); the position; and backward the gradient of GELU and the sum that is the bias's. Products,
attention and norms are the same in both, and left out. So is the gradient of a position, which is a buffer here.

  python -m perf saved
  python -m perf saved --gpu h100 --output rows.jsonl
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perf import argument_types, cases, models
from perf.cases import Case
from perf.library import call_by_kernels, replaced
from perf.providers import BASELINE
from perf.rows import Row, append_row, context, make_writable
from perf.show.table import as_text, grouped
from perf.static import analyse, count, offline
from perf.static.gpus import GPUS, SHOWN
from perf.static.metrics import LAUNCHES, LIBRARY
from perf.static.offline import META

TRAFFIC = "traffic"
BATCH = 8
WHOLE = tuple(
    replace(cases.whole(name, cases.TINY.tokens), shape=(BATCH, cases.TINY.tokens, cases.TINY.width), dtype="bfloat16")
    for name in ("encoder", "mlps")
)

NAMES = tuple(whole.name for whole in WHOLE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf saved`."""
    argument_types.add_gpus(parser, SHOWN)
    parser.add_argument("--output", type=Path, metavar="ROWS.jsonl", help="append the rows to this file")


def run(args: argparse.Namespace) -> int:
    """Count, print; append rows where asked."""
    if args.output:
        make_writable(args.output)
    found = [row for gpu in args.gpus for case in WHOLE for row in rows(case, gpu)]
    for row in found if args.output else ():
        append_row(args.output, row)
    print(render(found))
    return 0


def rows(whole: Case, gpu: str) -> Iterator[Row]:
    """Bytes and launches of all GELUs of a model on one GPU, by us and by PyTorch, forward and backward."""
    with META:
        model = models.MODELS[whole.model].ours(whole.shape, whole.approximate)  # type: ignore[arg-type]
        model = model.to(whole.torch_dtype)
        x = torch.empty(models.MODELS[whole.model].takes(whole.shape), dtype=whole.torch_dtype)
    found = sites(model, x)
    for direction in analyse.DIRECTIONS:
        question = functools.partial(analyse.Question, replace(whole, direction=direction), gpu=gpu)
        mine = [replace(site, direction=direction) for site in found]
        for provider, cost in ((LIBRARY, functools.partial(ours, gpu=gpu)), (BASELINE, eager)):
            costs = [cost(site) for site in mine]
            blank = replace(analyse.BLANK, **question(provider).fields(), **context())
            note = f"{len(mine)} GELUs, {sum(site.elements for site in mine)} elements"
            for place, (metric, unit) in enumerate({TRAFFIC: "bytes", LAUNCHES: "launches"}.items()):
                value = float(sum(each[place] for each in costs))
                yield replace(blank, metric=metric, unit=unit, value=value, note=note, status="ok")


def sites(model: nn.Module, *args: Any) -> list[Case]:
    """The GELUs that this package computes in one forward pass of a model, which is not computed."""
    found: list[Case] = []

    def note(x: Tensor, bias: Tensor | None, dim: int, approximate: str) -> None:
        dtype = str(x.dtype).removeprefix("torch.")
        found.append(Case("site", tuple(x.shape), None if bias is None else dim, dtype, approximate))

    def bias_gelu(x: Tensor, *rest: Any) -> Tensor:
        note(x, *rest)
        return torch.empty_like(x)

    def bias_gelu_transpose(x: Tensor, bias: Tensor | None, position: Tensor | None, approximate: str) -> Tensor:
        note(x, bias, 1, approximate)
        found[-1] = replace(found[-1], transposed=True)
        return torch.empty_like(x.mT)

    with torch.no_grad(), replaced(bias_gelu, bias_gelu_transpose):
        model(*args)
    return found


@functools.cache
def ours(site: Case, gpu: str) -> tuple[int, int]:
    """Bytes and launches of our kernels at a site."""
    launched = offline.launches(GPUS[gpu], call_by_kernels(site))
    return sum(sum(count.traffic(each)) for each in launched), len(launched)


def eager(site: Case) -> tuple[int, int]:
    """The same of PyTorch's operations: each reads and writes whole tensors."""
    if site.direction == "forward":
        tensors = [2]  # GELU
        if site.dim is not None and site.dim % len(site.shape) < len(site.shape) - 1:
            tensors.append(2)  # the bias, in place
        if site.transposed:
            tensors.append(2)  # the position
    else:
        tensors = [3] if site.dim is None else [3, 1]  # the gradient of GELU; its sum
    vectors = site.bias_length + (site.position_elements if site.direction == "forward" else 0)
    return (sum(tensors) * site.elements + vectors) * site.torch_dtype.itemsize, len(tensors)


def render(rows: Iterable[Row]) -> str:
    """A table, a line a model, direction and GPU."""
    body = []
    for (device, _, direction), mine in grouped(rows, lambda row: (row.device, row.case, row.direction)).items():
        found = {(row.provider, row.metric): row.value or 0.0 for row in mine}
        moved, launched = ([found[each, metric] for each in (BASELINE, LIBRARY)] for metric in (TRAFFIC, LAUNCHES))
        body.append(
            [
                GPUS[device].name, mine[0].case, direction, *(f"{each / 1e6:.1f}" for each in moved),
                f"{1 - moved[1] / moved[0]:.0%}", *(f"{each:.0f}" for each in launched),
            ]
        )  # fmt: skip
    head = ["GPU", "model", "direction", "MB", "fused", "saved", "launches", "fused"]
    return as_text("Static: of the GELUs of whole models, and of what is fused with them", head, body)
