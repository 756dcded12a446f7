"""Rows as a sweep would have written them, for tests of what reads them."""

from __future__ import annotations

from dataclasses import replace

import torch

from perf import cases, providers
from perf.cases import Case
from perf.rows import COPY, THROUGHPUT, Row
from perf.time import measure

CPU = torch.device("cpu")
HERE = measure.Machine(CPU, threads=1, seconds=0.0)
SMALL = Case("small", (6, 32))
ROW = Row(
    "measured", "small", (6, 32), -1, "float32", "tanh", "forward", "eager", "time", "us", 10.0, 9.0, 11.0, device="d"
)


def measured_rows() -> list[Row]:
    """Two sizes by all providers, as a sweep would have written them."""
    rows = []
    for case in cases.product((SMALL, Case("channels", (2, 8, 4096), dim=1)), approximates=("tanh", "none")):
        for number, provider in enumerate((*providers.PROVIDERS, COPY), start=1):
            row = replace(
                measure.blank_row(case, HERE), provider=provider, status="ok", value=10.0 * number, low=9.0 * number
            )
            rows += [row, replace(row, metric=THROUGHPUT, unit="GB/s", low=8.0 * number, high=11.0 * number)]
    return rows
