"""Random bits: Philox against its published answers and against another one, and the weights of dropout made of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_gelu.core.dropout import by_element, rate, weight
from triton_gelu.core.matrices import Ints, rows_in_memory
from triton_gelu.core.philox import ROUNDS, philox, words_of
from triton_gelu.core.philox_device import dropout_weight

PI = 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344
ANSWERS = {  # of Random123, the library of the paper: rounds, key, counter, words
    "7 rounds of zeros": (7, (0, 0), (0,) * 4, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    "7 rounds of ones": (7, (2**32 - 1,) * 2, (2**32 - 1,) * 4, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    "7 rounds of pi": (7, (0xA4093822, 0x299F31D0), PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    "10 rounds of zeros": (10, (0, 0), (0,) * 4, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "10 rounds of ones": (10, (2**32 - 1,) * 2, (2**32 - 1,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "10 rounds of pi": (10, (0xA4093822, 0x299F31D0), PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
}
SEEDS = 0, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF


def numpy_philox(seed: int, number: int) -> list[int]:
    """The words of the counter (number, 0, 0), one at a time, in unsigned arithmetic."""
    key = [np.uint32(seed % 2**32), np.uint32((seed >> 32) % 2**32)]
    c = [np.uint32(number % 2**32), np.uint32(number >> 32), np.uint32(0), np.uint32(0)]
    for _ in range(ROUNDS):
        a, b = np.uint64(c[0]) * np.uint64(0xD2511F53), np.uint64(c[2]) * np.uint64(0xCD9E8D57)
        high = [np.uint32(product >> np.uint64(32)) for product in (b, a)]
        low = [np.uint32(product & np.uint64(0xFFFFFFFF)) for product in (b, a)]
        c = [high[0] ^ c[1] ^ key[0], low[0], high[1] ^ c[3] ^ key[1], low[1]]
        key = [np.uint32((int(k) + step) % 2**32) for k, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
    return [int(word) for word in c]


def expected_weight(seed: int, shape: tuple[int, ...], dim: int, strides: Ints, p: float, itemsize: int) -> Tensor:
    """w element by element, as the definition says."""
    bits = 16 if itemsize == 2 else 32
    per_counter = 128 // bits
    threshold = round((1 - p) * 2**bits)
    outer, row = rows_in_memory(shape, dim, strides)
    order = [*outer, *row]
    columns = math.prod(shape[d] for d in row)
    w = torch.zeros(shape, dtype=torch.float64)
    for place in np.ndindex(*shape):
        offset = 0
        for d in order:
            offset = offset * shape[d] + place[d]
        number = offset // columns * -(-columns // per_counter) + offset % columns // per_counter
        field = offset % columns % per_counter
        word = numpy_philox(seed, number)[field * bits // 32]
        value = word >> (field * bits % 32) & 2**bits - 1
        w[place] = 2**bits / threshold if value < threshold else 0
    return w


@pytest.mark.parametrize("what", ANSWERS)
def test_it_gives_the_published_answers(what: str) -> None:
    rounds, key, counter, words = ANSWERS[what]
    assert " ".join(f"{word:08x}" for word in philox(key, counter, rounds)) == words
    tensors = philox(tuple(torch.tensor(k) for k in key), tuple(torch.tensor([c, 0]) for c in counter), rounds)
    assert " ".join(f"{int(word[0]):08x}" for word in tensors) == words


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_is_a_key_with_all_its_bits_and_a_number_a_counter(seed: int) -> None:
    numbers = [0, 1, 2**32 - 1, 2**32, 2**40 + 7]
    words = philox(words_of(torch.tensor(seed)), (*words_of(torch.tensor(numbers)), 0, 0))
    assert torch.stack(words, -1).tolist() == [numpy_philox(seed, number) for number in numbers]


LAYOUTS = {  # shape, dim, strides
    "rows of whole counters": ((3, 16), 1, (16, 1)),
    "rows of odd size": ((3, 2, 13), 2, (26, 13, 1)),
    "channels of images": ((2, 3, 3, 5), 1, (45, 15, 5, 1)),
    "channels last": ((2, 12, 3, 5), 1, (180, 1, 60, 12)),
    "columns first": ((7, 9), 1, (1, 7)),
    "a dimension of one element": ((4, 1, 11), 1, (11, 11, 1)),
    "one dimension": ((19,), 0, (1,)),
    "a number": ((), 0, ()),
}


@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_element_is_kept_or_dropped_by_its_place_in_memory(layout: str, itemsize: int) -> None:
    shape, dim, strides = LAYOUTS[layout]
    for p in (0.1, 0.5):
        asked = torch.tensor(SEEDS[-1]), shape, dim, strides, rate(p, itemsize), torch.float64
        w = weight(*asked)
        assert torch.equal(w, weight(*asked, by_element))
        assert torch.equal(w, expected_weight(SEEDS[-1], shape, dim, strides, p, itemsize))


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("p", [2.0**-16, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_were_asked_for_and_neighbours_are_uncorrelated(p: float, itemsize: int) -> None:
    n = 2**21
    w = weight(torch.tensor(12345), (2048, 1024), 1, (1024, 1), rate(p, itemsize), torch.float64)
    kept = (w != 0).double()
    sigma = math.sqrt(n * p * (1 - p))
    assert abs(kept.sum().item() - n * (1 - p)) < 5 * sigma
    scaled = (kept - (1 - p)) / math.sqrt(p * (1 - p))
    for other in (scaled.roll(1, 1), scaled.roll(1, 0), scaled.roll(8, 1), scaled.roll(32, 0)):
        assert abs((scaled * other).mean().item()) * math.sqrt(n) < 5
    another = weight(torch.tensor(12346), (2048, 1024), 1, (1024, 1), rate(p, itemsize), torch.float64)
    assert abs((scaled * (((another != 0).double() - (1 - p)) / math.sqrt(p * (1 - p)))).mean().item()) * n**0.5 < 5


def test_bits_are_uniform() -> None:
    words = torch.stack(philox(words_of(torch.tensor(7)), (*words_of(torch.arange(2**17)), 0, 0)))
    for shift in (0, 8, 16, 24):
        count = torch.bincount((words >> shift & 0xFF).flatten(), minlength=256).double()
        chi2 = ((count - words.numel() / 256) ** 2 / (words.numel() / 256)).sum().item()
        assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_the_scale_goes_with_the_rounded_probability_so_that_the_mean_is_one(itemsize: int) -> None:
    for p in (0.0, 2.0**-40, 1e-3, 0.1, 0.5, 0.99999, 1.0):
        found = rate(p, itemsize)
        assert abs(found.threshold / 2**found.bits - (1 - p)) <= 2.0 ** -(found.bits + 1)
        assert found.scale * found.threshold == pytest.approx(2**found.bits if found.threshold else 0, rel=2.0**-51)


@triton.jit
def weight_kernel(seed_ptr, w_ptr, rows, counters, first, last, scale, BITS: tl.constexpr, WIDE: tl.constexpr):
    PER: tl.constexpr = 128 // BITS
    row = tl.program_id(0) * 4 + tl.arange(0, 4)
    group = tl.program_id(1) * 8 + tl.arange(0, 8)
    number = row[:, None] * counters + group[None, :] + first.to(tl.int64 if WIDE else tl.int32)
    w = dropout_weight(tl.load(seed_ptr), number, last.to(tl.uint32), scale, BITS)
    col = tl.program_id(1) * 8 * PER + tl.arange(0, 8 * PER)
    inside = (row < rows)[:, None] & (col < counters * PER)[None, :]
    tl.store(w_ptr + row[:, None] * (counters * PER) + col[None, :], w, mask=inside)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_kernels_drop_what_pytorch_code_drops(seed: int, p: float, itemsize: int, device: str) -> None:
    how, rows, counters = rate(p, itemsize), 10, 13
    key, w = torch.tensor(seed, device=device), torch.empty(rows, counters * how.per_counter, device=device)
    weight_kernel[(3, 2)](key, w, rows, counters, 0, how.last, how.scale, BITS=how.bits, WIDE=itemsize == 2)
    assert torch.equal(w, weight(key, w.shape, 1, w.stride(), how, torch.float32))


def test_kernels_count_past_a_word(device: str) -> None:
    how, first = rate(0.5, 4), 2**32 - 6
    key, w = torch.tensor(3, device=device), torch.empty(1, 8 * 4, device=device)
    weight_kernel[(1, 1)](key, w, 1, 8, first, how.last, how.scale, BITS=32, WIDE=True)
    words = philox(words_of(key), (*words_of(first + torch.arange(8, device=device)), 0, 0))
    assert torch.equal(w, (torch.stack(words, -1).view(1, -1) < how.threshold) * how.scale)
