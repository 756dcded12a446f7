"""The table of measured rows says what ran, and what is missing."""

from __future__ import annotations

from dataclasses import replace

from example_rows import measured_rows

from perf.show import table


def test_the_table_says_that_no_kernel_ran_and_what_is_missing() -> None:
    failed = replace(measured_rows()[0], status="failed", value=None, note="y is wrong")
    text = table.render([*measured_rows()[1:], failed])
    assert "CPU backend: no Triton kernel ran." in text
    assert "failed: small, eager: y is wrong" in text
    assert "exact (none), float32, forward" in text
    markdown = table.render(measured_rows(), markdown=True)
    assert "| small | 6x32 | 10 us |" in markdown
