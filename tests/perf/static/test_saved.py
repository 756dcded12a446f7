"""Bytes and launches that fusing saves whole models: counted, never run."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perf import models
from perf.cases import Case
from perf.rows import read_rows
from perf.show import report
from perf.static import saved
from perf.static.metrics import LIBRARY
from perf.static.offline import META
from triton_gelu import fuse

ROOT = Path(__file__).parents[3]


def test_the_sites_of_a_model_are_its_gelus() -> None:
    with META:
        encoder, mel = models.encoder((1, 30, 128), "none"), torch.empty(1, models.MELS, 60)
    found = saved.sites(encoder, mel)
    assert found == [
        Case("site", (1, 128, 60), -2, approximate="none"),
        Case("site", (1, 128, 30), 1, approximate="none", transposed=True),
        *[Case("site", (1, 30, 512), -1, approximate="none")] * models.DEPTH,
    ]


def test_a_model_of_pytorchs_layers_has_sites_once_it_is_fused() -> None:
    with META:
        plain = models.in_torch(models.encoder((1, 30, 128), "none"), "none")
        mel = torch.empty(1, models.MELS, 60)
    assert saved.sites(plain, mel) == []
    fuse(plain, mel)
    found = saved.sites(plain, mel)
    assert [site.shape for site in found] == [(1, 128, 60), (1, 128, 30), *[(1, 30, 512)] * models.DEPTH]


def test_pytorchs_operations_are_counted_by_what_they_read_and_write() -> None:
    sites = {
        Case("after a Linear", (10, 64), dim=-1): ((2, 1), (4, 2)),
        Case("after a convolution", (2, 64, 10), dim=1): ((4, 2), (4, 2)),
        Case("the same, by a negative dim", (2, 64, 10), dim=-2): ((4, 2), (4, 2)),
        Case("after a convolution, transposed", (2, 64, 10), dim=1, transposed=True): ((6, 3), (4, 2)),
        Case("no bias", (10, 64), dim=None): ((2, 1), (3, 1)),
    }
    for site, ways in sites.items():
        for direction, (tensors, launches) in zip(("forward", "backward"), ways, strict=True):
            moved, launched = saved.eager(replace(site, direction=direction))
            position = 640 * 4 if site.transposed and direction == "forward" else 0
            bias = 0 if site.dim is None else 64 * 4
            assert (moved, launched) == (4 * tensors * site.elements + bias + position, launches), site


@pytest.mark.slow
def test_the_rows_of_whole_models_say_what_is_saved_and_that_nothing_ran(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "perf", "saved", "--gpu", "h100", "--output", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=inherited, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "Static" in done.stdout
    rows = read_rows(path)
    assert {(row.kind, row.backend, row.status) for row in rows} == {("static", "compiled offline", "ok")}
    values = {(row.case, row.direction, row.metric, row.provider): row.value or 0.0 for row in rows}
    for (case, direction, metric, provider), value in values.items():
        if provider == LIBRARY:
            assert value <= 1.001 * values[case, direction, metric, "eager"]
    assert report.write(rows, tmp_path / "report.md") == []  # no picture
    assert all(name in (tmp_path / "report.md").read_text() for name in saved.NAMES)
