"""Geometry: which tensors are matrices without a copy."""

import math

import pytest
import torch

from triton_gelu.core.matrices import Matrices, matrices


def with_result(x: torch.Tensor, dim: int | None) -> Matrices | None:
    return matrices(x.shape, dim, x.stride(), torch.empty_like(x).stride())


def offsets(m: Matrices, tensor: int) -> torch.Tensor:
    """The offset of every element, as a kernel computes them: [batch, rows, cols]."""
    batch_stride, row_stride = m.strides[tensor]
    b, r, c = torch.meshgrid(*map(torch.arange, (m.batch, m.rows, m.cols)), indexing="ij")
    return b * batch_stride + r * row_stride + c


LAYOUTS = {
    "a Linear's output": (torch.empty(4, 10, 6), 2),
    "a convolution's output": (torch.empty(4, 6, 10), 1),
    "an image": (torch.empty(2, 3, 4, 5), 1),
    "a channels-last image": (torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), 1),
    "a chunk of the features": (torch.empty(4, 10, 12).chunk(2, -1)[1], 2),
    "a slice of the sequence": (torch.empty(4, 10, 6)[:, 1:8], 2),
    "a chunk of the channels and a slice of the sequence": (torch.empty(4, 6, 10)[:, :3, 2:], 1),
    "a transposed matrix": (torch.empty(5, 6).t(), 0),
    "a transposed matrix, bias on the other side": (torch.empty(5, 6).t(), 1),
    "a bias along the first dimension": (torch.empty(3, 4, 5), 0),
    "a bias of one element": (torch.empty(4, 1, 7), 1),
    "a bias of one element at the end": (torch.empty(4, 7, 1), 2),
    "one element": (torch.empty(1), 0),
    "no bias": (torch.empty(2, 3, 4), None),
    "no bias, rows with gaps": (torch.empty(3, 4, 8)[..., :5], None),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_element_is_in_the_matrices_once_with_its_bias(name: str) -> None:
    x, dim = LAYOUTS[name]
    m = with_result(x, dim)
    assert m is not None
    for tensor, strides in enumerate((x.stride(), torch.empty_like(x).stride())):
        want = sum(
            torch.arange(size).view(-1, *[1] * (x.ndim - d - 1)) * stride
            for d, (size, stride) in enumerate(zip(x.shape, strides, strict=True))
        )
        want = torch.as_tensor(want).expand(x.shape)
        got = offsets(m, tensor)
        assert torch.equal(want.flatten().sort().values, got.flatten().sort().values)
        if dim is not None:
            which = torch.arange(x.shape[dim]).view(-1, *[1] * (x.ndim - dim - 1)).expand(x.shape)
            axis = {"rows": 1, "cols": 2}[m.bias]
            found = torch.arange(m.bias_size).view(-1, *[1] * (2 - axis)).expand(got.shape)
            bias_at = dict(zip(want.flatten().tolist(), which.flatten().tolist(), strict=True))
            assert [bias_at[o] for o in got.flatten().tolist()] == found.flatten().tolist()


def test_a_linear_is_one_matrix_with_the_bias_along_its_columns() -> None:
    assert with_result(torch.empty(32, 10, 64), 2) == Matrices(1, 320, 64, "cols", ((0, 64), (0, 64)))


def test_a_convolution_is_a_stack_with_the_bias_along_the_rows() -> None:
    assert with_result(torch.empty(8, 80, 3000), 1) == Matrices(8, 80, 3000, "rows", ((240000, 3000), (240000, 3000)))


def test_without_a_bias_a_dense_tensor_is_one_row() -> None:
    assert with_result(torch.empty(32, 10, 64), None) == Matrices(1, 1, 20480, "none", ((0, 0), (0, 0)))


@pytest.mark.parametrize(
    ("x", "dim"),
    [
        (torch.empty(4, 6, 10)[..., ::2], 1),
        (torch.empty(4, 6, 1).expand(4, 6, 10), 1),
        (torch.empty(6).expand(4, 6), 1),
        (torch.empty(4, 5, 6, 7, 8)[:, :4, :5, :6, :7], 4),
    ],
    ids=["gaps between columns", "expanded columns", "expanded rows of one tensor", "too many gaps"],
)
def test_what_is_no_stack_of_matrices_has_to_be_copied(x: torch.Tensor, dim: int) -> None:
    assert with_result(x, dim) is None


def test_tensors_in_different_memory_formats_are_no_matrices_together() -> None:
    x = torch.empty(2, 3, 4, 5)
    assert matrices(x.shape, 1, x.stride(), x.contiguous(memory_format=torch.channels_last).stride()) is None


@pytest.mark.parametrize(("width", "alignment"), [(1501, 1), (1502, 2), (1500, 4), (3000, 8), (4096, 8)])
def test_alignment_is_what_divides_the_width_and_every_stride(width: int, alignment: int) -> None:
    m = with_result(torch.empty(2, 6, width), 1)
    assert m is not None
    assert m.alignment(8) == alignment == math.gcd(8, width)
