"""Fusing gated GELUs: each form is found, and whatever else is done to the same tensors is right."""

from __future__ import annotations

import copy
import dis
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counting import Calls
from small_tensors import small_tensors_take_the_whole_mechanism
from test_fuse import Square, assert_same, doubles, results
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triton_gelu import fuse, unfuse
from triton_gelu.fuse import gelu, product
from triton_gelu.fuse.product import POPS

__all__ = ["small_tensors_take_the_whole_mechanism"]  # a fixture for every test here

Combine = Callable[..., Tensor]


class Joined(nn.Module):
    """One layer, whose output has both halves."""

    def __init__(self, combine: Combine, bias: bool = True) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32, bias=bias), nn.Linear(16, 8)
        self.act, self.combine = nn.GELU("tanh"), combine
        self.factor = nn.Parameter(torch.randn(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.combine(self, self.up(x)))
        return y


class Two(Joined):
    """Two layers."""

    def __init__(self, combine: Combine, bias: bool = True) -> None:
        super().__init__(combine)
        self.gate, self.up = nn.Linear(8, 16, bias=bias), nn.Linear(8, 16, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.combine(self, x))
        return y


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def gelu_of(gate: Tensor) -> Tensor:
    """A function between, as diffusers' GEGLU has it."""
    return F.gelu(gate)


def first(net: Any, h: Tensor) -> Tensor:
    a, b = h.chunk(2, -1)
    return F.gelu(a) * b


def second(net: Any, h: Tensor) -> Tensor:
    a, b = h.chunk(2, dim=-1)
    return a * F.gelu(b)


def module(net: Any, h: Tensor) -> Tensor:
    a, b = torch.chunk(h, 2, dim=-1)
    return b * net.act(a)


def ternary(net: Any, h: Tensor) -> Tensor:
    a, b = h.chunk(2, -1)
    return a * net.act(b) if net.training else net.act(a) * b


def by_index(net: Any, h: Tensor) -> Tensor:
    parts = h.split(16, -1)
    return gelu_of(parts[0]) * parts[1]


def by_sizes(net: Any, h: Tensor) -> Tensor:
    a, b = torch.split(h, [16, 16], dim=-1)
    g = net.act(b)
    y = a * g
    return y * 1.5


def by_tensor_split(net: Any, h: Tensor) -> Tensor:
    a, b = h.tensor_split(2, dim=-1)
    return net.act(a) * b


def slices(net: Any, h: Tensor) -> Tensor:
    return F.gelu(h[..., :16]) * h[..., 16:]


def narrows(net: Any, h: Tensor) -> Tensor:
    b = h.narrow(-1, 16, 16)
    return h.narrow(-1, 0, 16) * net.act(b)


def gemma(net: Any, x: Tensor) -> Tensor:
    return net.act(net.gate(x)) * net.up(x)


def t5(net: Any, x: Tensor) -> Tensor:
    hidden_gelu = net.act(net.gate(x))
    hidden_linear = net.up(x)
    hidden = hidden_gelu * hidden_linear
    return F.dropout(hidden, 0.1, False)


def griffin(net: Any, x: Tensor) -> Tensor:
    g = F.gelu(net.gate(x))
    return net.up(x) * g


def other_first(net: Any, x: Tensor) -> Tensor:
    return net.up(x) * F.gelu(net.gate(x), approximate="tanh")


FORMS: dict[str, tuple[type[Joined], Combine, str]] = {
    "the first of two chunks": (Joined, first, "none"),
    "the second of two chunks": (Joined, second, "none"),
    "a module": (Joined, module, "tanh"),
    "a choice": (Joined, ternary, "tanh"),
    "chunks in a tuple": (Joined, by_index, "none"),
    "split": (Joined, by_sizes, "tanh"),
    "tensor_split": (Joined, by_tensor_split, "tanh"),
    "slices": (Joined, slices, "none"),
    "narrow": (Joined, narrows, "tanh"),
    "two layers": (Two, gemma, "tanh"),
    "two layers, variables": (Two, t5, "tanh"),
    "two layers, a variable": (Two, griffin, "none"),
    "two layers, the other first": (Two, other_first, "tanh"),
}
TOGETHER = [name for name, (_, combine, _) in FORMS.items() if combine not in (slices, narrows)]


def biases(form: str, bias: bool) -> tuple[int, int]:
    """How many bias gradients are computed with the GELU's, and how many by a sum over rows."""
    if not bias:
        return 0, 0
    return (1 + (FORMS[form][0] is Two), 0) if form in TOGETHER else (0, 1)  # PyTorch joins the gradients of slices


def twins(form: str, bias: bool = True) -> tuple[Any, Any, Tensor]:
    """A fused model, the same model, and an input, in float64."""
    make, combine, _ = FORMS[form]
    plain, x = make(combine, bias).double(), doubles(4, 8)
    model = copy.deepcopy(plain)
    assert [site.outcome for site in fuse(model, x)] == ["yes, gated"]
    return model, plain, x


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("form", FORMS)
def test_a_gated_gelu_is_one_operator_with_its_gradients(
    form: str, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, combine, formula = FORMS[form]
    plain, x = make(combine, bias), torch.randn(4, 8, requires_grad=True)
    model = copy.deepcopy(plain)
    name = "gate" if make is Two else "up"
    (site,) = fuse(model, x)
    assert (site.name, site.formula, site.fused, site.reason, site.gated) == (name, formula, True, "", True)
    calls = Calls(monkeypatch)
    assert_same(results(model, x), results(plain, x), 1e-5)
    assert (calls.gated, calls.forward) == ([formula], [])
    assert (calls.fused_biases, calls.summed_biases) == biases(form, bias)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x))
    assert (calls.gated, calls.forward) == ([formula] * 3, [])


@pytest.mark.parametrize("form", FORMS)
def test_a_gated_gelu_compiles_to_one_operator(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    model, plain, x = twins(form)
    calls = Calls(monkeypatch)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(results(model, x, call=compiled), results(plain, x), 1e-12)
    formula = FORMS[form][2]
    assert set(calls.gated) == {formula}
    assert (calls.forward, calls.fused_biases, calls.summed_biases) == ([], *biases(form, bias=True))


def test_a_gelu_written_out_may_be_gated(monkeypatch: pytest.MonkeyPatch) -> None:
    for make, combine, _ in (FORMS["a module"], FORMS["two layers, variables"]):
        plain, x = make(combine), torch.randn(4, 8, requires_grad=True)
        plain.act = QuickGELU()
        model = copy.deepcopy(plain)
        assert [(site.formula, site.gated) for site in fuse(model, x)] == [("sigmoid", True)]
        calls = Calls(monkeypatch)
        assert_same(results(model, x), results(plain, x), 1e-5)
        assert (calls.gated, calls.forward) == (["sigmoid"], [])


class Weights(nn.Module):
    """Gates without modules: one projection, then two."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(32, 8)), nn.Parameter(torch.randn(8, 16))
        self.b = nn.Parameter(torch.randn(32)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        value, gate = F.linear(x, self.w, self.b).chunk(2, -1)
        x = F.linear(value * F.gelu(gate), self.v)
        b = self.b if self.b is None else self.b[:16]
        gate = F.gelu(F.linear(x, self.w[:16], b), approximate="tanh")
        return gate * F.linear(x, self.w[16:], b)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gates_without_modules_are_fused(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = Weights(bias), torch.randn(4, 8, requires_grad=True)
    model = copy.deepcopy(plain)
    assert [(site.formula, site.gated) for site in fuse(model, x)] == [("none", True), ("tanh", True)]
    calls = Calls(monkeypatch)
    assert_same(results(model, x), results(plain, x), 1e-5)
    assert (calls.gated, calls.forward) == (["none", "tanh"], [])
    assert (calls.fused_biases, calls.summed_biases) == (3 * bias, 0)


def summed(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    return a * sum(map(F.gelu, [b]))


class Gelu(torch.autograd.Function):
    """One that computes a GELU inside."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        return F.gelu(h)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(dy, h)


@pytest.mark.parametrize("call", [lambda h: sum(map(F.gelu, [h])), Gelu.apply, lambda h: next(map(F.gelu, [h]))])
def test_a_call_that_was_not_seen_to_reach_a_product_is_not_taken_to(call: Any) -> None:
    model, plain, x = twins("a module")
    for net in (model, plain):
        net.act.forward = call
    assert_same(results(model, x), results(plain, x), 1e-12)
    for net in (model, plain):
        del net.act.forward
        del net.act
        net.act = call
    assert_same(results(model, x), results(plain, x), 1e-12)


def test_a_pickled_model_keeps_its_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, x = Joined(second), torch.randn(4, 8, requires_grad=True)
    model = copy.deepcopy(plain)
    fuse(model, x)
    kept = pickle.dumps(model)
    monkeypatch.setattr(product, "_trusted", set())
    monkeypatch.setattr(product, "_kept", {})
    twin = pickle.loads(kept)
    calls = Calls(monkeypatch)
    assert_same(results(twin, x), results(plain, x), 1e-5)
    assert calls.gated == ["none"]


def test_a_second_derivative_of_a_gate_is_right() -> None:
    for form in FORMS:
        model, plain, x = twins(form)
        seconds = []
        for net in (model, plain):
            (dx,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
            seconds.append(torch.autograd.grad(dx.square().sum(), [net.up.weight, net.down.weight]))
        for ours, theirs in zip(*seconds, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def halves(h: Tensor) -> tuple[Tensor, Tensor]:
    a, b = h.chunk(2, -1)
    return a, b


def product_twice(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    y = a * F.gelu(b)
    return y * y + y


def gelu_twice(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    g = F.gelu(b)
    return a * g + g


def two_products(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    return F.gelu(a) * b + a * F.gelu(b)


def read_between(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    g = F.gelu(b)
    mean = b.mean()
    y = a * g
    return y * mean


def read_by_data(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    g = F.gelu(b)
    kept = h.data.sum()
    y = a * g
    return y * kept


def under_no_grad(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    with torch.no_grad():
        g = F.gelu(b)
    return a * g


def switched_off_between(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    g = F.gelu(b)
    torch.set_grad_enabled(False)
    y = a * g
    torch.set_grad_enabled(True)
    return y + h[:, :16]


def in_a_loop(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    g = F.gelu(b)
    for _ in range(3):
        a = a * g
    return a


def in_a_closure(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    g = F.gelu(b)

    def times() -> Tensor:
        return a * g

    return times() + times()


def kept_by_data(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    kept = torch.zeros_like(a)
    kept.data = F.gelu(b)
    return a * kept


def kept_as_attribute(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    net.kept = F.gelu(b)
    return a * net.kept


def in_place(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    return torch.mul(a, F.gelu(b), out=torch.empty(0, dtype=a.dtype)) if not torch.is_grad_enabled() else a * F.gelu(b)


def rows(net: Any, h: Tensor) -> Tensor:
    a, b = h.chunk(2, 0)
    return (a * F.gelu(b))[:, :16].repeat(2, 1)


def overlapping(net: Any, h: Tensor) -> Tensor:
    return h[:, :16] * F.gelu(h[:, 8:24])


def every_second(net: Any, h: Tensor) -> Tensor:
    return h[:, ::2] * F.gelu(h[:, 1::2])


def reordered(net: Any, h: Tensor) -> Tensor:
    a, b = h.view(4, 2, 16).unbind(1)
    return a * F.gelu(b)


def numpy(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    g = F.gelu(b)
    return a * torch.from_numpy(g.detach().numpy()) if not torch.compiler.is_compiling() else a * g.detach()


def reused(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    return a * F.gelu(b) + b + a + h[:, :16]


def wrong_shape(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    return a[:, :1] * F.gelu(b)


def of_a_view(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    return (a.T * F.gelu(b.T)).T


def nested(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    c, d = b.chunk(2, -1)
    return a * torch.cat([F.gelu(c), F.gelu(d)], -1) + (F.gelu(c) * d).repeat(1, 2)


class Alias(torch.autograd.Function):
    """Its output is its input."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy


def written_without_gradient(net: Any, h: Tensor) -> Tensor:
    a, b = halves(h)
    with torch.no_grad():
        b.mul_(2)
    return a * F.gelu(b)


USES: dict[str, Combine] = {
    **{f"{name} itself": combine for name, (make, combine, _) in FORMS.items() if make is Joined},
    "a product that is used twice": product_twice,
    "a GELU that is used twice": gelu_twice,
    "both halves in both roles": two_products,
    "a half that is read between": read_between,
    "data that are read between": read_by_data,
    "a GELU without gradient": under_no_grad,
    "a product without gradient": switched_off_between,
    "a loop": in_a_loop,
    "a closure": in_a_closure,
    "a GELU that is kept by its data": kept_by_data,
    "a GELU that is kept": kept_as_attribute,
    "an output that is given": in_place,
    "rows": rows,
    "overlapping parts": overlapping,
    "every second": every_second,
    "views": reordered,
    "a sum of one": summed,
    "an own function that is GELU": lambda net, h: h[:, :16] * Gelu.apply(h[:, 16:]),
    "numpy": numpy,
    "halves that are read after": reused,
    "another shape": wrong_shape,
    "transposed halves": of_a_view,
    "halves of halves": nested,
    "a number": lambda net, h: h.chunk(2, -1)[0] + 2.0 * F.gelu(h.chunk(2, -1)[1]) * 3,
    "itself": lambda net, h: h.chunk(2, -1)[1] * F.gelu(h.chunk(2, -1)[1]),
    "GELU by GELU": lambda net, h: F.gelu(h.chunk(2, -1)[0]) * F.gelu(h.chunk(2, -1)[1]),
    "another factor": lambda net, h: net.up.bias[:16].sigmoid().expand(4, 16) * F.gelu(h[:, 16:]),
    "a sum before": lambda net, h: (h.chunk(2, -1)[0] + 1) * F.gelu(h.chunk(2, -1)[1]),
    "an own function": lambda net, h: h[:, :16] * Square.apply(F.gelu(h[:, 16:])),
    "an own function of the halves": lambda net, h: (
        Square.apply(h[:, :16]) * F.gelu(h[:, 16:]) + Square.apply(h)[:, :16]
    ),
    "a list": lambda net, h: torch.stack([F.gelu(h[:, 16:]), h[:, :16]]).prod(0),
    "a method": lambda net, h: h[:, :16].mul(F.gelu(h[:, 16:])),
    "a function": lambda net, h: torch.mul(F.gelu(h[:, 16:]), h[:, :16]),
    "a half without gradient": lambda net, h: h[:, :16].detach() * F.gelu(h[:, 16:]),
    "a gate without gradient": lambda net, h: h[:, :16] * F.gelu(h[:, 16:].detach()),
    "vmap": lambda net, h: torch.func.vmap(lambda h: h[:16] * F.gelu(h[16:]))(h),
    "a checkpoint": lambda net, h: checkpoint(lambda h: second(net, h), h, use_reentrant=False),
    "an old checkpoint": lambda net, h: checkpoint(lambda h: second(net, h), h, use_reentrant=True),
    "a part of rows": lambda net, h: torch.cat([second(net, h[:2]), second(net, h)[2:]]),
}


class Everything(set[product.Link]):
    """Has all there is."""

    def __contains__(self, link: object) -> bool:
        return True


def trust_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let GELUs wait wherever the code alone promises a product, though no example has shown it."""
    monkeypatch.setattr(product, "_trusted", Everything())
    monkeypatch.setattr(product, "_kept", {})


THROUGH_C = ("a sum of one", "an own function that is GELU")


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize("start", ["the second of two chunks", "a module"])
@pytest.mark.parametrize("use", USES)
def test_whatever_is_done_to_halves_is_right(
    use: str, start: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    model, plain, x = twins(start)
    model.combine = plain.combine = USES[use]
    twin = copy.deepcopy(plain)
    fuse(twin, x)
    assert_same(results(twin, x), results(plain, x), 1e-12)
    if use not in THROUGH_C:
        trust_all(monkeypatch)
    call = torch.compile(model, backend="aot_eager") if compiled else model
    assert_same(results(model, x, call=call), results(plain, x), 1e-12)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)


def write_half(net: Any, x: Tensor) -> None:
    net.seen[-1].mul_(2)


def write_part(net: Any, x: Tensor) -> None:
    net.seen[-1][0] = 0


def write_data(net: Any, x: Tensor) -> None:
    net.seen[-1].data.mul_(2)


def write_view(net: Any, x: Tensor) -> None:
    net.seen[-1].view(-1).zero_()


def write_out(net: Any, x: Tensor) -> None:
    torch.zeros(4, 16, dtype=torch.float64, out=net.seen[-1])


@pytest.mark.parametrize("write", [write_half, write_part, write_data, write_view, write_out])
@pytest.mark.parametrize("form", ["two layers", "two layers, variables", "two layers, a variable"])
def test_a_gate_may_be_written_to_before_its_product(form: str, write: Callable[..., None]) -> None:
    model, plain, x = twins(form)
    for net in (model, plain):
        net.seen = []
        net.gate.register_forward_hook(lambda module, args, output, net=net: net.seen.append(output))
        net.up.register_forward_pre_hook(lambda module, args, net=net: write(net, x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)


def test_a_joined_half_may_be_written_to_before_its_product() -> None:
    def combine(net: Any, h: Tensor) -> Tensor:
        b = h[:, 16:]
        g = F.gelu(b)
        net.write(net, h, b)
        return h[:, :16] * g

    model, plain, x = twins("slices")
    writes: list[Callable[..., Any]] = [
        lambda net, h, b: h.mul_(2),
        lambda net, h, b: b.mul_(2),
        lambda net, h, b: h[:, :16].add_(1),
        lambda net, h, b: h.data.mul_(2),
        lambda net, h, b: torch.add(h, 1, out=h),
    ]
    model.combine = plain.combine = combine
    model.write = lambda net, h, b: None
    assert [site.gated for site in fuse(model, x)] == [True]
    for write in writes:
        model.write = plain.write = write
        with torch.no_grad():
            torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)


def test_a_write_that_cannot_be_seen_is_refused() -> None:
    def combine(net: Any, x: Tensor) -> Tensor:
        h = net.gate(x)
        net.alias = torch.Tensor._make_subclass(Tensor, h)  # calls no function of PyTorch's
        g = F.gelu(h)
        return g * net.up(x)

    def write(module: nn.Module, args: Any) -> None:
        model.alias.zero_()

    model, x = Two(combine).double(), doubles(4, 8)
    assert [site.gated for site in fuse(model, x)] == [True]
    model.up.register_forward_pre_hook(write)
    with torch.no_grad(), pytest.raises(RuntimeError, match="unfuse"):
        model(x)


@pytest.mark.parametrize("form", TOGETHER)
def test_hooks_and_gradients_of_halves_are_those_of_the_unfused_model(form: str) -> None:
    model, plain, x = twins(form)
    seen = []
    for net in (model, plain):
        tensors: list[Tensor] = []
        gradients: list[Tensor] = []

        def look(module: Any, args: Any, output: Tensor, tensors: Any = tensors) -> None:
            tensors.append(output)

        for layer in {net.up, getattr(net, "gate", net.up)}:
            layer.register_forward_hook(look)
        loss = net(x).square().sum()
        gradients += torch.autograd.grad(loss, tensors, retain_graph=True)
        for h in tensors:
            h.register_hook(lambda gradient: 2 * gradient)
            h.retain_grad()
        used = [*tensors, *net.up.parameters(), *net.down.parameters()]
        loss.backward(inputs=used)
        gradients += [tensor.grad for tensor in used]
        seen.append(sorted(gradients, key=lambda g: (g.shape, float(g.sum()))))
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def scale(gradient: Tensor) -> Tensor:
    return 2 * gradient


def write_gradient(gradient: Tensor) -> None:
    gradient.data.mul_(2)


@pytest.mark.parametrize("hook", [scale, write_gradient])
@pytest.mark.parametrize("place", [0, 1])
def test_a_hook_may_change_the_gradient_of_a_half(place: int, hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_all(monkeypatch)
    for after in (False, True):

        def combine(net: Any, h: Tensor, after: bool = after) -> Tensor:
            parts = h.chunk(2, -1)
            if not after:
                parts[place].register_hook(hook)
            y = parts[0] * F.gelu(parts[1])
            if after:
                parts[place].register_hook(hook)
            return y

        model, plain, x = twins("the second of two chunks")
        model.combine = plain.combine = combine
        assert_same(results(model, x), results(plain, x), 1e-12)


def test_a_gradient_of_halves_is_taken_only_where_it_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain, x = twins("the second of two chunks")
    calls = Calls(monkeypatch)
    trust_all(monkeypatch)
    for use, expected in ((second, (1, 0)), (reused, (1, 1)), (first, (1, 0))):
        model.combine = plain.combine = use
        calls.fused_biases = calls.summed_biases = 0
        assert_same(results(model, x), results(plain, x), 1e-12)
        assert (calls.fused_biases, calls.summed_biases) == expected


def test_hooks_on_the_gelu_get_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("a module", "two layers"):
        model, plain, x = twins(form)
        seen: list[Tensor] = []
        for net in (model, plain):
            net.act.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        calls = Calls(monkeypatch)
        assert_same(results(model, x), results(plain, x), 1e-12)
        assert (calls.forward, calls.gated) == (["tanh"], [])
        torch.testing.assert_close(*seen)
        assert not any(site.gated and site.fused for site in fuse(model, x))


def test_autocast_casts_as_without_fuse() -> None:
    for form in FORMS:
        plain = FORMS[form][0](FORMS[form][1])
        model, x = copy.deepcopy(plain), torch.randn(4, 8, requires_grad=True)
        fuse(model, x)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = results(model, x), results(plain, x)
        assert [t.dtype for t in ours if t is not None] == [t.dtype for t in theirs if t is not None]
        assert_same(ours, theirs, 2**-5)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_recompute_gates(reentrant: bool) -> None:
    for form in FORMS:
        model, plain, x = twins(form)
        ours = results(model, x, call=lambda x, model=model: checkpoint(model, x, use_reentrant=reentrant))
        assert_same(ours, results(plain, x), 1e-12)


def test_small_gates_leave_the_bias_gradient_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("the second of two chunks", "two layers"):
        model, plain, x = twins(form)
        calls = Calls(monkeypatch)
        monkeypatch.setattr(gelu, "SMALL", 1000)
        assert_same(results(model, x), results(plain, x), 1e-12)
        assert (len(calls.gated), calls.fused_biases, calls.summed_biases) == (1, 0, 0)
        monkeypatch.setattr(gelu, "SMALL", 0)


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_gates_are_pytorchs_own() -> None:
    for form in FORMS:
        model, plain, x = twins(form)
        assert_same(results(model, x), results(plain, x), 0)


def test_transforms_and_copies_of_gated_models() -> None:
    for form in FORMS:
        model, plain, x = twins(form)
        ours, theirs = (torch.func.vmap(torch.func.jacrev(net))(x.detach()) for net in (model, plain))
        torch.testing.assert_close(ours, theirs)
        twin = copy.deepcopy(model)
        assert_same(results(twin, x), results(plain, x), 1e-12)
        program = torch.export.export(model, (x.detach(),)).module()
        torch.testing.assert_close(program(x), plain(x))
        unfuse(model)
        assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


def test_a_gate_frees_its_tensors_at_once() -> None:
    import gc
    import weakref

    model, _, x = twins("the second of two chunks")
    kept: list[Any] = []
    model.up.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output.untyped_storage())))
    gc.collect()
    gc.disable()
    try:
        y = model(x)
        y.sum().backward()
        del y
        assert kept[0]() is None or kept[0]().nbytes() == 0
    finally:
        gc.enable()


def test_what_is_not_gated_is_reported() -> None:
    reasons = {
        "another shape": "gated: nothing of its shape multiplies the GELU of a part",
        "a GELU that is used twice": "gated: GELU of a part, by chunk",
        "halves that are read after": "its output also goes into add",
        "overlapping parts": "gated: GELU of a part, by getitem",
        "a function": "gated: GELU of a part, by getitem",
    }
    for use, reason in reasons.items():
        (site,) = fuse(Joined(USES[use]), torch.randn(4, 8))
        assert (site.fused, site.reason) == (False, reason)


def test_the_instructions_of_this_python_are_known() -> None:
    def two(act: Any, gate: Any, up: Any, x: Any) -> Any:
        g = act(gate(x))
        return g * up(x[..., :2])

    unknown = {each.opname for each in dis.get_instructions(two)} - {
        *POPS,
        "RESUME",
        "RETURN_VALUE",
        "CACHE",
        "PRECALL",
    }
    assert not unknown
