"""How tensors may lie in memory: every class of layout that kernels treat in a way of its own, and a bias's dimension.

Sizes are small, so that Triton's interpreter gets through them; the last two classes are for a GPU, whose programs they
keep busy for more than one round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Randn = Callable[..., Tensor]
Layout = Callable[[Randn], tuple[Tensor, int]]

LAYOUTS: Mapping[str, Layout] = {
    "a Linear's output": lambda randn: (randn(3, 7, 1000), 2),
    "a convolution's output": lambda randn: (randn(3, 7, 1501), 1),
    "a bias along the first dimension": lambda randn: (randn(7, 1000), 0),
    "a transposed matrix": lambda randn: (randn(1000, 7).t(), 0),
    "an image": lambda randn: (randn(2, 5, 29, 13), 1),
    "a channels-last image": lambda randn: (randn(2, 5, 9, 13).contiguous(memory_format=torch.channels_last), 1),
    "a chunk of the features": lambda randn: (randn(3, 7, 2000).chunk(2, -1)[1], -1),
    "a slice of the sequence": lambda randn: (randn(3, 9, 1000)[:, 1:8], -1),
    "a chunk of the channels": lambda randn: (randn(3, 14, 300)[:, :7, 1:], 1),
    "columns with gaps": lambda randn: (randn(3, 7, 1000)[..., ::2], -1),
    "an expanded tensor": lambda randn: (randn(7, 1000).expand(3, 7, 1000), -1),
    "a permuted tensor": lambda randn: (randn(4, 5, 8, 17).permute(2, 0, 3, 1), 1),
    "a convolution's output of an even number of channels": lambda randn: (randn(3, 8, 1501), 1),
    "a bias of one element": lambda randn: (randn(4, 1, 700), 1),
    "one element": lambda randn: (randn(1), 0),
    "many rows": lambda randn: (randn(4000, 7), -1),
    "many batches of a few positions": lambda randn: (randn(12, 30, 2), 1),
    "one channel": lambda randn: (randn(2, 1, 70000), 1),
}
LARGE: Mapping[str, Layout] = {
    "a large Linear's output": lambda randn: (randn(8, 1500, 1536), -1),
    "a large convolution's output": lambda randn: (randn(8, 384, 3000), 1),
}


def laid_out(name: str, device: torch.device | str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, int]:
    """Random numbers in a class of layout, and the dimension of their bias.

    They are made where they are needed: `to` would leave out gaps between rows and columns.
    """
    return {**LAYOUTS, **LARGE}[name](functools.partial(torch.randn, device=device, dtype=dtype))


def incoming(kind: str, like: Tensor) -> Tensor:
    """A gradient that autograd might hand over for a result like this one."""
    if kind == "expanded":
        return torch.randn((), device=like.device).to(like.dtype).expand(like.shape)
    if kind == "transposed":
        made = torch.randn(like.shape[::-1], device=like.device).to(like.dtype)
        return made.permute(*reversed(range(like.ndim)))
    if kind != "dense":
        raise ValueError(f"kind: expected one of {', '.join(GRADIENTS)}; got {kind!r}")
    return torch.randn(like.shape, device=like.device).to(like.dtype)


GRADIENTS = ("dense", "expanded", "transposed")
