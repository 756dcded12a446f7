"""A third operator, declared in a few lines: everything that PyTorch has to know of it is derived."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from triton_gelu.core.checks import check_dim
from triton_gelu.core.declare import VECTOR, WHOLE, Arg, Option, Tensors, sharding_rules
from triton_gelu.core.dispatch import Backend
from triton_gelu.core.op import Op


def across(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    return vector.view(-1, *[1] * (x.ndim - dim - 1))


def total(terms: Tensor, dim: int) -> Tensor:
    return terms.sum([d for d in range(terms.ndim) if d != dim])


def forward(x: Tensor, bias: Tensor, scale: Tensor, dim: int) -> Tensor:
    return torch.nn.functional.gelu(x + across(bias, x, dim)) * across(scale, x, dim)


def backward(dy: Tensor, x: Tensor, bias: Tensor, scale: Tensor, dim: int, needs: list[bool]) -> Tensors:
    u = x + across(bias, x, dim)
    bell = torch.exp(-u * u / 2) / (2 * torch.pi) ** 0.5
    gate = torch.special.erfc(-u / 2**0.5) / 2
    dx = dy * across(scale, x, dim) * (gate + u * bell)
    gradients = dx, total(dx, dim), total(dy * u * gate, dim)
    return tuple(gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True))


SCALED = Op(
    "scaled_gelu",
    [Arg("x", WHOLE), Arg("bias", VECTOR), Arg("scale", VECTOR)],
    WHOLE,
    [Option("dim", "int")],
    dim=lambda dim: dim,
    check=lambda x, dim: (check_dim(dim, x),),
    plain=Backend("plain PyTorch", forward, backward),
)


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x, bias, scale = (torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((3, 4, 5), (4,), (4,)))
    return x, bias, scale


def scaled_gelu(x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return SCALED.call(x, bias, scale, 1)


def same_by_pytorch(x: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    return forward(x, bias, scale, 1)


def gradients(function, *tensors: Tensor) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
    return torch.autograd.grad(function(*tensors).square().sum(), tensors)


def test_its_schemas_say_what_goes_in_and_what_comes_out() -> None:
    assert [str(operator._opoverload._schema).split("::")[1] for operator in SCALED.operators] == [
        "scaled_gelu(Tensor x, Tensor bias, Tensor scale, int dim) -> Tensor",
        "scaled_gelu_backward(Tensor dy, Tensor x, Tensor bias, Tensor scale, int dim, bool[] needs)"
        " -> (Tensor, Tensor, Tensor)",
    ]


def test_it_passes_opcheck() -> None:
    torch.library.opcheck(torch.ops.triton_gelu.scaled_gelu, (*inputs(), 1))
    x, bias, scale = (t.detach() for t in inputs())
    torch.library.opcheck(torch.ops.triton_gelu.scaled_gelu_backward, (x.cos(), x, bias, scale, 1, [True, False, True]))


def test_it_passes_gradcheck_and_gradgradcheck() -> None:
    assert torch.autograd.gradcheck(scaled_gelu, inputs())
    assert torch.autograd.gradgradcheck(scaled_gelu, inputs())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_in_one_graph(backend: str) -> None:
    tensors = inputs()
    compiled = torch.compile(scaled_gelu, fullgraph=True, backend=backend)
    torch.testing.assert_close(gradients(compiled, *tensors), gradients(same_by_pytorch, *tensors))


def test_torch_func_looks_into_it() -> None:
    x, bias, scale = inputs()
    batched = torch.vmap(scaled_gelu, (0, None, None))(torch.stack([x, -x]), bias, scale)
    torch.testing.assert_close(
        batched, torch.stack([same_by_pytorch(x, bias, scale), same_by_pytorch(-x, bias, scale)])
    )
    for each in (scaled_gelu, same_by_pytorch):
        found = torch.func.grad(lambda *t, each=each: each(*t).square().sum(), (0, 1, 2))(x, bias, scale)
        torch.testing.assert_close(found, gradients(same_by_pytorch, x, bias, scale))
    value, tangent = torch.func.jvp(scaled_gelu, (x, bias, scale), (x, bias, scale))
    torch.testing.assert_close((value, tangent), torch.func.jvp(same_by_pytorch, (x, bias, scale), (x, bias, scale)))


def test_dtensor_may_cut_x_anywhere_and_sums_what_is_missing() -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard

    whole, rows, channels, last = sharding_rules(SCALED.levels[0], (*inputs(), 1), 1)
    assert whole == ([Replicate()], [Replicate()] * 3 + [None])
    assert rows == ([Shard(0)], [Shard(0), Replicate(), Replicate(), None])
    assert channels == ([Shard(1)], [Shard(1), Shard(0), Shard(0), None])
    assert last == ([Shard(2)], [Shard(2), Replicate(), Replicate(), None])
    x, bias, scale = inputs()
    _, rows, channels, _ = sharding_rules(SCALED.levels[1], (x, x, bias, scale, 1, [True, False, True]), 1)
    assert rows[0] == [Shard(0), Replicate(), Partial()]
    assert channels[0] == [Shard(1), Replicate(), Shard(0)]


def test_a_dtensor_goes_through_it_and_back() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        mesh = init_device_mesh("cpu", (1,))
        tensors = inputs()
        placements = [Shard(0)], [Replicate()], [Replicate()]
        cut = [
            distribute_tensor(t.detach(), mesh, p).requires_grad_() for t, p in zip(tensors, placements, strict=True)
        ]
        y = scaled_gelu(*cut)
        assert y.placements == (Shard(0),)  # type: ignore[attr-defined]
        found = torch.autograd.grad(y.sum(), cut)
        assert [each.placements for each in found[1:]] == [(Partial(),)] * 2  # type: ignore[attr-defined]
        expected = torch.autograd.grad(same_by_pytorch(*tensors).sum(), tensors)
        torch.testing.assert_close([each.full_tensor() for each in found], list(expected))  # type: ignore[attr-defined]
    finally:
        torch.distributed.destroy_process_group()


def test_only_what_needs_a_gradient_gets_one() -> None:
    x, bias, scale = inputs()
    (dscale,) = torch.autograd.grad(scaled_gelu(x.detach(), bias.detach(), scale).sum(), scale)
    torch.testing.assert_close(dscale, torch.autograd.grad(same_by_pytorch(x, bias, scale).sum(), scale)[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {1: torch.zeros(5, dtype=torch.float64)},
            ValueError,
            r"bias must have shape \(4,\) for x of shape \(3, 4, 5\)",
        ),
        ({2: None}, TypeError, "scale must be a torch.Tensor, got NoneType"),
        ({2: torch.zeros(4, dtype=torch.int64)}, TypeError, "scale must have one of the dtypes .* got torch.int64"),
        ({0: torch.zeros(()), 1: torch.zeros(1)}, ValueError, "dim must be in"),
    ],
)
def test_errors_name_the_argument(change: dict[int, Tensor], error: type[Exception], message: str) -> None:
    given = [change.get(place, tensor) for place, tensor in enumerate(inputs())]
    with pytest.raises(error, match=message):
        SCALED.call(*given, 1)


def test_its_source_is_there_to_read() -> None:
    assert "def call(x, bias, scale, dim):" in SCALED.source
    with pytest.raises(ValueError, match="must have shape") as raised:
        SCALED.call(torch.zeros(3, 4), torch.zeros(4), torch.zeros(3), 1)
    assert any("call_for(key" in str(entry.statement) for entry in raised.traceback)
