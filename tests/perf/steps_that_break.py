"""Steps for tests of workers: one that is well, and one for each way to break."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from perf.cases import Case
from perf.rows import Row
from perf.time import measure
from perf.time.measure import Machine
from perf.time.steps import Step, asks

CASE = Case("small", (6, 32))


def rows(name: str, machine: Machine) -> Iterator[Row]:
    blank = measure.blank_row(CASE, machine)
    print("what a step prints is no answer")
    if name == "raises":
        raise RuntimeError("no such kernel\nand more")
    if name == "dies":
        os._exit(3)
    yield replace(blank, provider=name, status="ok", value=1.0, note=os.environ.get("SAID_TO_STEPS", ""))


def step(name: str, **fields: object) -> Step:
    return Step(name, 1.0, partial(rows, name), frozenset({asks(CASE, name)}), **fields)  # type: ignore[arg-type]


def all_steps() -> list[Step]:
    said = (("SAID_TO_STEPS", "plan 2"),)
    return [step("first"), step("raises"), step("dies"), step("last"), step("elsewhere", environment=said)]
