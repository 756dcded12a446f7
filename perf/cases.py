"""What is measured: shapes as frozen cases, and named sets of them taken from the activations of real models."""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from perf.argument_types import DTYPES as DTYPES
from perf.argument_types import dtype_name
from perf.library import FORMULAS, parse_dim, parse_shape
from perf.models import MODELS
from perf.rows import Row, UserError

DIRECTIONS = ("forward", "forward_backward")
SEED = 0
MOST_ELEMENTS = 2**60  # a size in bytes is a signed number of 64 bits, also in float64
FRESH = "fresh memory"  # how the names of such cases end
MOVED = {
    "forward": (2, 1, 1),
    "backward": (3, 2, 1),
    "forward_backward": (5, 3, 2),
    "double_backward": (5, 3, 0),
}
"""How often tensors, biases and positions are read or written."""

MOVED_GATED = {"forward": 3, "backward": 5, "forward_backward": 8, "double_backward": 8}
"""The same of tensors where GELU is gated: two halves, or two tensors, go in, and one comes out."""

TWO = "two tensors"
"""A gated GELU whose factor is a tensor of its own; else `Case.gated` says which half of x goes through GELU."""


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case: `x` of the case's shape (or what the Linear reads), its `weight`, `bias` and incoming `dy`."""

    x: torch.Tensor
    bias: torch.Tensor | None
    weight: torch.Tensor | None
    dy: torch.Tensor | None
    parameters: tuple[torch.Tensor, ...] = ()

    @property
    def leaves(self) -> tuple[torch.Tensor, ...]:
        """What a gradient is asked for, in the order x, weight, bias, parameters."""
        return tuple(each for each in (self.x, self.weight, self.bias, *self.parameters) if each is not None)


@dataclass(frozen=True)
class Case:
    """GELU of `shape` plus a bias along `dim` (None: no bias), in one dtype, formula and direction.

    With `in_features` the GELU follows a Linear of that many inputs, the pair `F.gelu(F.linear(x, w, b))` against
    `bias_gelu(F.linear(x, w), b)`; `shape` is then the shape of the Linear's output. With `transposed` it is that of x,
    [N, C, L], and the result is transposed, plus a position: `bias_gelu_transpose`. With `model` it is one of
    `models.MODELS`, and `shape` that of its output. With `fresh_memory` what a CPU call allocates was never touched
    before; otherwise it was, as in a training loop (see `perf.time.allocator`).

    With `gated`, `shape` is that of the result: of `bias_geglu`, whose x is twice as long along dim (the last dimension
    if there is no bias), where it names the half that goes through GELU; of `bias_gelu_mul` where it is `TWO`.
    """

    name: str
    shape: tuple[int, ...]
    dim: int | None = -1
    dtype: str = "float32"
    approximate: str = "tanh"
    direction: str = "forward"
    in_features: int | None = None
    transposed: bool = False
    model: str = ""
    fresh_memory: bool = False
    gated: str = ""

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.shape))
        bias = "no bias" if self.dim is None else f"bias along {self.dim}"
        direction = self.direction.replace("_", " + ")
        gated = f", gated: {self.gated}" if self.gated else ""
        return f"{self.name}, {sizes}, {bias}, {self.dtype}, {self.approximate}, {direction}{gated}"

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def joined(self) -> bool:
        """Whether x has two halves."""
        return self.gated not in ("", TWO)

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of x, of which `shape` is half where it is joined."""
        split = (-1 if self.dim is None else self.dim) % len(self.shape)
        return tuple([2 * n if self.joined and d == split else n for d, n in enumerate(self.shape)])

    @property
    def bias_length(self) -> int:
        """Elements of x's bias, of both halves if it has two."""
        return 0 if self.dim is None else self.x_shape[self.dim]

    @property
    def across(self) -> list[int]:
        """The shape in which a bias adds along dim."""
        assert self.dim is not None
        return [-1 if d == self.dim % len(self.shape) else 1 for d in range(len(self.shape))]

    @property
    def vector_elements(self) -> int:
        """Elements of all biases."""
        return 2 * self.bias_length if self.gated == TWO else self.bias_length

    @property
    def position_shape(self) -> tuple[int, ...]:
        """[L, C], or nothing where there is no position."""
        return self.shape[:0:-1] if self.transposed else ()

    @property
    def position_elements(self) -> int:
        return math.prod(self.position_shape) if self.transposed else 0

    @property
    def differentiates(self) -> bool:
        return self.direction != "forward"

    def compulsory_bytes(self) -> int:
        """Bytes that no implementation of the GELU can avoid moving, each tensor once; what GB/s is counted in.

        Forward: read x, bias and position, write y. Backward: read dy, x and bias, write all gradients.
        """
        passes, vectors, positions = MOVED[self.direction]
        if self.gated:
            passes = MOVED_GATED[self.direction]
        moved = passes * self.elements + vectors * self.vector_elements + positions * self.position_elements
        return moved * self.torch_dtype.itemsize

    def inputs(self, device: torch.device) -> Inputs:
        """The same random tensors on every call: x and dy normal, so that both tails of the GELU are visited."""
        generator = torch.Generator(device).manual_seed(SEED)

        def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
            made = torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).mul_(scale)
            return made.to(self.torch_dtype)

        weight = None
        parameters: tuple[torch.Tensor, ...] = ()
        if self.model:
            whole = MODELS[self.model]
            x = normal(*whole.takes(self.shape))
            made = whole.parameters(self.shape, self.approximate)  # type: ignore[arg-type]
            parameters = tuple(torch.nn.Parameter(each.to(device, self.torch_dtype)) for each in made)
        else:
            x = normal(*(self.x_shape if self.in_features is None else (*self.shape[:-1], self.in_features)), scale=2.0)
        if self.in_features is not None:
            weight = normal(self.shape[-1], self.in_features, scale=self.in_features**-0.5)
        if self.transposed:
            parameters = (normal(*self.position_shape),)
        bias = None if self.dim is None else normal(self.bias_length)
        if self.gated == TWO:
            parameters = (normal(*self.shape), *(() if bias is None else (normal(self.bias_length),)))
        dy = normal(*self.shape[:1], *(self.position_shape or self.shape[1:])) if self.differentiates else None
        inputs = Inputs(x, bias, weight, dy, parameters)
        for leaf in inputs.leaves:
            leaf.requires_grad_(self.differentiates)
        return inputs


Sets = Mapping[str, Callable[[], tuple[Case, ...]]]


@dataclass(frozen=True)
class Model:
    """A Transformer: its MLP activates `tokens` x `MLP_RATIO * width`, after a Linear of `width` inputs."""

    name: str
    width: int
    tokens: int


MLP_RATIO = 4
MEL_FRAMES = 3000
AUDIO_FRAMES = MEL_FRAMES // 2  # the second convolution of Whisper's stem has stride 2
WHISPER = tuple(
    Model(f"whisper-{size}", width, AUDIO_FRAMES)
    for size, width in (("tiny", 384), ("base", 512), ("small", 768), ("medium", 1024), ("large-v3", 1280))
)
OTHERS = (
    Model("vit-b16", 768, tokens=197),
    Model("bert-base", 768, tokens=512),
    Model("gpt2", 768, tokens=1024),
)
T5 = (("base", 2048), ("large", 2816), ("xl", 5120), ("xxl", 10240))  # of version 1.1
TINY, *_, LARGE = WHISPER
FULL_BATCHES = (1, 8)
SMALLEST = Case("smallest", (32, 10, 64))


def conv_stem(model: Model, batch: int = 1) -> tuple[Case, Case]:
    """The two convolutions in front of a Whisper encoder, bias along the channels."""
    return (
        Case(f"{model.name} conv1", (batch, model.width, MEL_FRAMES), dim=1),
        Case(f"{model.name} conv2", (batch, model.width, AUDIO_FRAMES), dim=1),
    )


def stem(model: Model, batch: int = 1) -> Case:
    """The second of them with what follows: transposed, plus the position."""
    _, second = conv_stem(model, batch)
    return replace(second, name=f"{model.name} stem", transposed=True)


def mlp(model: Model, batch: int = 1) -> Case:
    """The activation inside the MLP, alone."""
    return Case(f"{model.name} mlp", (batch, model.tokens, MLP_RATIO * model.width))


def linear_gelu(model: Model, batch: int = 1) -> Case:
    """The first half of the MLP: the Linear and its activation."""
    return replace(mlp(model, batch), name=f"{model.name} linear + gelu", in_features=model.width)


def geglu(name: str, tokens: int, width: int, activated: str, dim: int | None = None, *, batch: int = 1) -> Case:
    """A gated GELU of one projection: `width` is that of the result, and half of the projection's."""
    return Case(name, (batch, tokens, width), dim=dim, approximate="none", gated=activated)


def gelu_mul(name: str, tokens: int, width: int, *, batch: int = 1) -> Case:
    """A gated GELU of two projections without biases."""
    return Case(name, (batch, tokens, width), dim=None, gated=TWO)


GATED = (
    geglu("sdxl 640 geglu", 4096, 4 * 640, "second", -1, batch=2),  # 64 x 64 and 32 x 32 places, with guidance
    geglu("sdxl 1280 geglu", 1024, 4 * 1280, "second", -1, batch=2),
    geglu("modernbert-base geglu", 1024, 1152, "first"),
    geglu("modernbert-large geglu", 1024, 2624, "first"),
    gelu_mul("gemma-2b mlp", 1024, 16384),
    gelu_mul("gemma-7b mlp", 1024, 24576),
    *(gelu_mul(f"t5-{size} mlp", 512, d_ff) for size, d_ff in T5),
)
"""Gated GELUs of models, each with its model's formula: exact of the joined ones, tanh of two tensors."""


def whole(name: str, frames: int = 150) -> Case:
    """A model of the smallest Whisper's sizes, on a few seconds of sound."""
    return Case(f"{TINY.name} {name}", (1, frames, TINY.width), dim=None, approximate="none", model=name)


def product(
    cases: Iterable[Case],
    *,
    dtypes: Iterable[str] = ("float32",),
    approximates: Iterable[str] = ("tanh",),
    directions: Iterable[str] = ("forward",),
) -> tuple[Case, ...]:
    """Every case in every direction, formula and dtype."""
    choices = itertools.product(tuple(dtypes), tuple(approximates), tuple(directions), tuple(cases))
    return tuple(
        replace(case, dtype=dtype, approximate=approximate, direction=direction)
        for dtype, approximate, direction, case in choices
    )


def but(*few: str) -> list[str]:
    """All formulas except these, which have more cases."""
    return [name for name in FORMULAS if name not in few]


def quick() -> tuple[Case, ...]:
    """Under four minutes on two cores: fp32 and tanh at every size, the rest at two sizes, batch 1."""
    two = (mlp(TINY), mlp(LARGE))
    first, second = conv_stem(TINY)[0], conv_stem(LARGE)[1]
    return (
        *product((SMALLEST, *map(mlp, WHISPER + OTHERS), first, second, linear_gelu(TINY))),
        *product((SMALLEST, *two, first), directions=("forward_backward",)),
        *product(two, approximates=but("tanh")),
        *product(two, dtypes=("bfloat16",)),
        *product((whole("encoder"), whole("mlps", frames=500)), approximates=("none",), directions=DIRECTIONS),
        *product((whole("mlps, recompute", frames=500),), approximates=("none",), directions=DIRECTIONS[1:]),
    )


def full() -> tuple[Case, ...]:
    """Every size at two batches, in every dtype, formula and direction; hours on a CPU."""
    sizes = [SMALLEST]
    for batch in FULL_BATCHES:
        sizes += [mlp(model, batch) for model in WHISPER + OTHERS]
        sizes += [case for model in WHISPER for case in conv_stem(model, batch)]
        sizes += [make(model, batch) for make in (linear_gelu, stem) for model in (TINY, LARGE)]
    sizes += [replace(mlp(TINY), name=f"{TINY.name} mlp, no bias", dim=None), *GATED]
    return product(sizes, dtypes=DTYPES.values(), approximates=FORMULAS, directions=DIRECTIONS)


def targets() -> tuple[Case, ...]:
    """The cases the CPU backend's goals are stated for."""
    large = mlp(TINY, batch=4)
    sizes = large, SMALLEST, replace(large, name=f"{large.name}, {FRESH}", fresh_memory=True)
    return product(sizes, approximates=("tanh", "none"), directions=DIRECTIONS)


def gated() -> tuple[Case, ...]:
    """Gated GELUs of models, as these have them."""
    return tuple(
        replace(case, dtype=dtype, direction=direction)
        for dtype, direction, case in itertools.product(("float32", "bfloat16"), DIRECTIONS, GATED)
    )


def gpu() -> tuple[Case, ...]:
    """What a GPU's owner sends back: large shapes, where a kernel and not its launch is timed, and the smallest."""
    largest = mlp(LARGE, batch=8)
    stems = conv_stem(LARGE, batch=8)[0], stem(LARGE, batch=8)
    sizes = (largest, mlp(TINY, batch=8), *stems, SMALLEST, linear_gelu(TINY, batch=8))
    return (
        *product(sizes, dtypes=("bfloat16",), approximates=("tanh", "none"), directions=DIRECTIONS),
        *product((largest,), dtypes=("float32", "float16"), approximates=("tanh", "none"), directions=DIRECTIONS),
        *product((largest,), dtypes=("bfloat16",), approximates=but("tanh", "none"), directions=DIRECTIONS),
    )


SETS: Sets = {"quick": quick, "full": full, "targets": targets, "gated": gated, "gpu": gpu}


def add_arguments(parser: argparse.ArgumentParser, sets: Sets = SETS, directions: Sequence[str] = DIRECTIONS) -> None:
    """The words that choose cases, from these sets (the first is the default); `select` reads them."""
    group = parser.add_argument_group("cases (with --shape your own; otherwise the options narrow the set)")
    group.add_argument(
        "--set", choices=sets, default=next(iter(sets)), help="named set of cases (default: %(default)s)"
    )
    group.add_argument("--shape", type=parse_shape, action="append", metavar="8,1500,5120", help="your own shape")
    group.add_argument("--dim", type=parse_dim, default=-1, metavar="1", help="bias dimension of --shape, or 'none'")
    add_filters(group, directions)


def add_filters(parser: argparse._ActionsContainer, directions: Sequence[str] = DIRECTIONS) -> None:
    """The words that cases and rows have in common; each may be repeated."""
    parser.add_argument("--dtype", type=dtype_name, action="append", metavar="bf16", help="fp32, bf16 or fp16")
    parser.add_argument("--approximate", choices=FORMULAS, action="append", help="formula")
    parser.add_argument("--direction", choices=directions, action="append", help="forward, or with the backward")


def wanted(about: Case | Row, args: argparse.Namespace) -> bool:
    """Whether a case, or the case of a row, is among those that the options of `add_filters` leave."""
    return (
        (not args.dtype or about.dtype in args.dtype)
        and (not args.approximate or about.approximate in args.approximate)
        and (not args.direction or about.direction in args.direction)
    )


def select(args: argparse.Namespace, sets: Sets = SETS) -> tuple[Case, ...]:
    """The cases asked for. Raises `UserError` where nothing fits."""
    if args.shape:
        own = tuple(Case("own", _addressable(shape), _checked(args.dim, shape)) for shape in args.shape)
        return product(
            own,
            dtypes=args.dtype or ("float32",),
            approximates=args.approximate or ("tanh",),
            directions=args.direction or ("forward",),
        )
    chosen = tuple(case for case in sets[args.set]() if wanted(case, args))
    if not chosen:
        raise UserError(f"--set {args.set} has no such case; the sets are {', '.join(sets)}")
    return chosen


def _checked(dim: int | None, shape: Sequence[int]) -> int | None:
    if dim is not None and not -len(shape) <= dim < len(shape):
        raise UserError(
            f"--dim {dim} is outside --shape {','.join(map(str, shape))}, which has {len(shape)} dimensions"
        )
    return dim


def _addressable(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) >= MOST_ELEMENTS:
        raise UserError(f"--shape {','.join(map(str, shape))} has more elements than PyTorch can address")
    return shape
