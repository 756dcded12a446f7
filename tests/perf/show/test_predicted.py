"""Predicted and measured times stand next to each other, for the kernels that were both counted and timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from example_rows import ROW

from perf.rows import COPY_SHARE, KERNEL_BACKEND, Row
from perf.show import predicted
from perf.static.metrics import HEADROOM, IN_FLIGHT, LEAST_TIME

GPU = "NVIDIA H100 80GB HBM3"
SHAPE = (4096, 4096)
LEAST = {"triton_gelu": 1.2, "flat index": 2.4, "one pass": 1.8}  # ps an element


def rows(took: dict[str, float]) -> tuple[list[Row], list[Row]]:
    """Measured and static rows of kernels that take so many microseconds."""
    blank = replace(ROW, shape=SHAPE, dtype="bfloat16", low=None, high=None)
    counted = replace(blank, kind="static", backend="compiled offline", device="h100", shape=(16384, 4096))
    static = [
        replace(counted, provider=name, metric=metric, value=value)
        for name, least in LEAST.items()
        for metric, value in ((LEAST_TIME, least), (HEADROOM, 2.0), (IN_FLIGHT, 65536.0))
    ]
    timed = replace(blank, device=GPU, backend=KERNEL_BACKEND)
    measured = [replace(timed, provider=name, value=value) for name, value in took.items()]
    return [*measured, replace(measured[0], metric=COPY_SHARE, value=93.0)], static


def test_kernels_are_paired_with_their_counts_whatever_the_number_of_rows() -> None:
    measured, static = rows({"triton_gelu": 25.0, "flat index": 44.0, "one pass": 33.0, "eager": 60.0})
    text = predicted.render(measured, static)
    least = 1.2 * 4096 * 4096 / 1e6
    assert f"| 4096x4096 | {least:.3g} us | 25 us | {25 / least:.2f} | 2.00 | 64 | 93% |" in text
    assert "eager" not in text
    assert "measured time of an element 1.00 over 3 kernels" in text


def test_a_model_that_ranks_kernels_wrongly_is_told() -> None:
    measured, static = rows({"triton_gelu": 44.0, "flat index": 25.0, "one pass": 33.0})
    assert "measured time of an element -1.00 over 3 kernels" in predicted.render(measured, static)


@pytest.mark.parametrize("change", [{"device": "Some GPU"}, {"backend": "CPU"}, {"shape": (16, 4096)}], ids=str)
def test_what_was_not_counted_or_no_kernel_or_mere_launch_is_left_out(change: dict[str, object]) -> None:
    measured, static = rows({"triton_gelu": 25.0})
    assert predicted.render([replace(row, **change) for row in measured], static) == ""  # type: ignore[arg-type]


def test_ranks_are_compared_not_values() -> None:
    assert predicted.rank_correlation([1, 2, 3], [1, 10, 100]) == pytest.approx(1)
    assert predicted.rank_correlation([1, 2, 2], [3, 3, 3]) != predicted.rank_correlation([1, 2, 2], [3, 3, 3])  # NaN
    assert 0 < predicted.rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) < 1
