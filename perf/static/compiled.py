"""The command `compiled`: what torch.compile makes of GELUs in their surroundings on GPUs that are not here, counted.

Each scene is compiled twice, in PyTorch's operations and with this package, forward and backward. What is counted are
the kernels, and the bytes that each loads and stores; where all of them are pointwise, Inductor's kernels are compiled
to machine code, and their instructions counted, too. Products, convolutions and attention are the same in both, and
left out. It needs a CUDA build of torch, without a GPU.

examples:
  python -m perf compiled --gpu h100 --scene dropout
  python -m perf compiled --gpu a100 h100 b200 --scene "x .* bias" --instructions --output rows.jsonl
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from perf.compat_tqdm import progress
from perf.library import FORMULAS
from perf.rows import COMPILED, COMPILED_LIBRARY, Row, UserError, append_row, context, make_writable
from perf.show.table import as_text, grouped
from perf.static import inductor, scenes
from perf.static.analyse import BLANK, DIRECTIONS
from perf.static.count import Counted, count
from perf.static.gpus import GPU, GPUS
from perf.static.machine.code import Untraceable
from perf.static.metrics import BYTES, HEADROOM, INSTRUCTIONS, LAUNCHES

PROVIDERS = (COMPILED, COMPILED_LIBRARY)
SMALL = 0.005  # of the bytes of a pass: kernels that move less are not asked for their instructions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m perf compiled`."""
    parser.add_argument("--gpu", nargs="+", choices=GPUS, default=["h100"], help="GPUs to compile for (default: h100)")
    parser.add_argument("--scene", default="", metavar="PATTERN", help="only scenes whose names have this in them")
    parser.add_argument("--approximate", nargs="+", choices=FORMULAS, default=["tanh", "none"], help="formulas")
    parser.add_argument("--instructions", action="store_true", help="compile pointwise kernels, and count instructions")
    parser.add_argument("--output", type=Path, metavar="ROWS.jsonl", help="append the rows to this file")


def run(args: argparse.Namespace) -> int:
    """Compile, count, print; append rows where asked."""
    asked = [scene for scene in scenes.SCENES if re.search(args.scene, scene.name)]
    if not asked:
        raise UserError(f"no such scene; there are: {'; '.join(scene.name for scene in scenes.SCENES)}")
    if args.output:
        make_writable(args.output)
    questions = [
        (scene, provider, approximate, gpu)
        for gpu in args.gpu for scene in asked for approximate in args.approximate for provider in PROVIDERS
    ]  # fmt: skip
    found: list[Row] = []
    for question in progress(questions, lambda each: f"{each[3]}, {each[0].name}, {each[2]}, {each[1]}"):
        for row in rows(*question, instructions=args.instructions):
            found.append(row)
            if args.output:
                append_row(args.output, row)
    print(render(found))
    return 0


def rows(scene: scenes.Scene, provider: str, approximate: str, gpu: str, *, instructions: bool) -> Iterator[Row]:
    """What was counted of one scene on one GPU."""
    made = inductor.compiled(
        scene.model(provider, approximate), scene.tensors(), GPUS[gpu], training=scene.training, dynamic=scene.dynamic
    )
    elements = math.prod(scene.shape)
    for direction in DIRECTIONS[: 1 + scene.training]:
        kernels = made.of(direction)
        blank = replace(
            BLANK, case=scene.name, shape=scene.shape, dim=-1, dtype="bfloat16", approximate=approximate,
            direction=direction, provider=provider, device=gpu, **context(),
        )  # fmt: skip
        moved = sum(kernel.bytes for kernel in kernels)
        note = "; ".join(f"{kernel.kind} {kernel.bytes / elements:.2f}" for kernel in kernels)
        yield replace(blank, metric=BYTES, unit="per element", value=moved / elements, note=note, status="ok")
        yield replace(blank, metric=LAUNCHES, unit="launches", value=float(len(kernels)), status="ok")
        large = [kernel for kernel in kernels if kernel.bytes > SMALL * moved]
        if instructions and all(kernel.kind == inductor.POINTWISE for kernel in large):
            try:
                counted = [count(inductor.machine_code(kernel, GPUS[gpu]), GPUS[gpu]) for kernel in large]
            except Untraceable as problem:
                yield replace(blank, metric=INSTRUCTIONS, unit="per element", status="failed", note=str(problem))
                continue
            yield from of_instructions(blank, counted, elements, moved, GPUS[gpu])


def of_instructions(blank: Row, counted: Sequence[Counted], elements: int, moved: int, gpu: GPU) -> Iterator[Row]:
    """Instructions an element, and how far they are from being what a pass waits for."""
    units: Counter[str] = Counter()
    for each in counted:
        units.update({unit: int(lanes) for unit, lanes in each.units.items()})
    seconds = {unit: units[unit] / gpu.per_second(unit) for unit in gpu.chip.lanes}
    binding = max(seconds, key=lambda unit: seconds[unit])
    issued = sum(sum(each.headings.values()) for each in counted)
    yield replace(blank, metric=INSTRUCTIONS, unit="per element", value=issued / elements, status="ok")
    yield replace(
        blank,
        metric=HEADROOM,
        unit="time at memory bandwidth / next resource",
        value=moved / gpu.bandwidth / seconds[binding],
        note=f"{binding} on {gpu.name}",
        status="ok",
    )


def render(found: Iterable[Row]) -> str:
    """A table, a line a scene, formula and GPU: PyTorch alone, then with this package."""
    body = []
    lines = grouped(found, lambda row: (row.device, row.case, row.approximate))
    for (device, name, approximate), mine in lines.items():
        line = [GPUS[device].name, name, FORMULAS[approximate].title]
        for metric, form in ((BYTES, "{:.2f}"), (LAUNCHES, "{:.0f}"), (INSTRUCTIONS, "{:.1f}"), (HEADROOM, "{:.2f}")):
            for provider in PROVIDERS:
                values = {row.direction: row.value for row in mine if (row.provider, row.metric) == (provider, metric)}
                line.append(" / ".join(form.format(v) for each in DIRECTIONS if (v := values.get(each)) is not None))
        body.append(line)
    columns = ("B", "kernels", "instructions", "headroom")
    head = ["GPU", "scene", "formula", *(f"{what}{ours}" for what in columns for ours in ("", ", ours"))]
    return as_text("Static: forward / backward, an element of the activation; compiled, never run", head, body)
