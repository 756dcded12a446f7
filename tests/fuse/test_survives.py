"""What people do with models after fusing them, and to models before: each is right, or as it was."""

from __future__ import annotations

import abc
import copy
import gc
import inspect
import math
import pickle
import random
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from counting import Calls
from small_tensors import small_tensors_take_the_whole_mechanism
from test_fuse import Net, assert_same, fused, results
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triton_gelu import fuse, unfuse
from triton_gelu.fuse import gelu
from triton_gelu.fuse.written_out import formula_of

__all__ = ["small_tensors_take_the_whole_mechanism"]  # a fixture for every test here


def pair(gelu: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), gelu or nn.GELU())


def twins(make: Callable[[], nn.Module] = pair, *shape: int) -> tuple[Any, Any, Tensor]:
    """A fused model, the same model, and an input."""
    plain, x = make(), torch.randn(shape or (4, 8), requires_grad=True)
    model = copy.deepcopy(plain)
    fuse(model, x)
    return model, plain, x


class Clipped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (0.5 * x * (1 + torch.erf(x / 2**0.5))).clamp(-10, 10)


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(0.5 * x * (1 + torch.erf(x / 2**0.5)), 0.5, self.training)


class Counting(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return 0.5 * x * (1 + torch.erf(x / 2**0.5))


class Adjustable(nn.Module):
    k = 1.702

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.k * x)


class Writing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x *= torch.sigmoid(1.702 * x)
        return x


class Out(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.mul(x, torch.sigmoid(1.702 * x), out=x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x) if x.ndim else x


class Part(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x[0:9999])


class Late(nn.Module):
    """GELU nearly everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x) + 1e-9 * x * x


@pytest.mark.parametrize("make", [Clipped, Dropping, Counting, Adjustable, Writing, Out, Branching, Part, Late])
def test_code_that_is_not_proven_to_be_a_gelu_is_left_alone(make: type[nn.Module]) -> None:
    with torch.no_grad():
        model, plain, x = twins(lambda: pair(make()))
        assert [site.fused for site in fuse(model, x)] in ([False], [])
        assert type(model[1]) is make
        for mode in (True, False):
            ours, theirs = (torch.manual_seed(0) and net.train(mode)(100 * x) for net in (model, plain))
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


LIBRARY = {"NewGELUActivation": "tanh", "FastGELUActivation": "tanh", "QuickGELUActivation": "sigmoid"}


@pytest.mark.parametrize("name", ["NewGELUActivation", "FastGELUActivation", "QuickGELUActivation", "MishActivation"])
def test_what_a_library_writes_out_is_known_by_its_code(name: str) -> None:
    activations = pytest.importorskip("transformers.activations")
    found = formula_of(getattr(activations, name)())
    assert (found and found.formula) == LIBRARY.get(name)


def test_a_gelu_after_a_layer_in_its_parents_code_is_known() -> None:
    class Intermediate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.dense(x)
            return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))

    class Residual(Intermediate):
        def forward(self, x: Tensor) -> Tensor:
            y = self.dense(x)
            return y * torch.sigmoid(1.702 * x)

    model, plain, x = twins(Intermediate)
    assert fused(fuse(model, x)) == [("dense", "none")]
    assert_same(results(model, x), results(plain, x), 1e-5)
    assert formula_of(Residual()) is None


def taken_away(model: nn.Sequential) -> None:
    bias = model[0].bias.data.clone()
    model[0].register_forward_pre_hook(lambda module, args: setattr(module.bias, "data", bias.clone()))
    model[0].register_forward_hook(lambda module, args, output: setattr(module.bias, "data", torch.zeros(16)))


def written(model: nn.Sequential) -> None:
    def hook(module: nn.Linear, args: Any, output: Tensor) -> None:
        module.bias.data.copy_(torch.ones(16))

    model[0].register_forward_hook(hook)


def written_in_place(model: nn.Sequential) -> None:
    def hook(module: nn.Linear, args: Any, output: Tensor) -> None:
        with torch.no_grad():
            module.bias.zero_()

    model[0].register_forward_hook(hook)


def stored_in_float8(model: nn.Sequential) -> None:
    """As layerwise casting does, with a frozen base."""
    model.requires_grad_(False)

    def cast(dtype: torch.dtype) -> Callable[..., None]:
        def hook(module: nn.Module, *args: Any) -> None:
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype)

        return hook

    cast(torch.float8_e4m3fn)(model[0])
    model[0].register_forward_pre_hook(cast(torch.float32))
    model[0].register_forward_hook(cast(torch.float8_e4m3fn))


@pytest.mark.parametrize("change", [taken_away, written, written_in_place, stored_in_float8])
@pytest.mark.parametrize("recorded", [True, False], ids=["grad", "no_grad"])
def test_a_bias_may_change_between_a_layer_and_its_gelu(change: Callable[..., None], recorded: bool) -> None:
    model, plain, x = twins()
    change(model), change(plain)
    with torch.set_grad_enabled(recorded):
        ours, theirs = model(x), plain(x)
    torch.testing.assert_close(ours, theirs)
    if recorded:
        dy = torch.randn_like(ours)
        for y in (ours, theirs):
            x.grad = None
            y.backward(dy)
            theirs.dx, ours.dx = getattr(ours, "dx", None), x.grad.clone()
        torch.testing.assert_close(ours.dx, theirs.dx)


def scale(gradient: Tensor) -> Tensor:
    return 2 * gradient


def write(gradient: Tensor) -> None:
    gradient.mul_(2)


def write_data(gradient: Tensor) -> None:
    gradient.data.mul_(2)


def turn(gradient: Tensor) -> Tensor:
    return gradient.mT


@pytest.mark.parametrize("hook", [scale, write, write_data, turn])
@pytest.mark.parametrize("layout", [lambda h: h, lambda h: h.transpose(0, 1)], ids=["as it is", "transposed"])
def test_a_hook_may_change_the_gradient_of_a_layers_output(hook: Any, layout: Any) -> None:
    model, plain, x = twins(pair, 16, 8)
    seen = []
    for net in (model, plain):
        net.zero_grad()
        h = net[0](x)
        h.register_hook(hook)
        (net[1](layout(h)) * torch.arange(16.0)).sum().backward()
        seen.append(net[0].bias.grad)
    torch.testing.assert_close(*seen)


def test_a_gradient_is_taken_only_where_it_was_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain, x = twins(Net)
    calls = Calls(monkeypatch)
    for uses, expected in ((F.gelu, (1, 0)), (lambda h: F.gelu(h) + h, (1, 1)), (lambda h: F.gelu(h.clone()), (0, 1))):
        model.activation = plain.activation = uses
        calls.fused_biases = calls.summed_biases = 0
        assert_same(results(model, x), results(plain, x), 1e-5)
        assert (calls.fused_biases, calls.summed_biases) == expected


def test_small_tensors_leave_the_bias_gradient_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain, x = twins()
    calls = Calls(monkeypatch)
    monkeypatch.setattr(gelu, "SMALL", 65)
    assert_same(results(model, x), results(plain, x), 1e-5)
    assert (calls.fused_biases, calls.summed_biases) == (0, 0)
    monkeypatch.setattr(gelu, "SMALL", 64)
    assert_same(results(model, x), results(plain, x), 1e-5)
    assert (calls.fused_biases, calls.summed_biases) == (1, 0)


def test_without_kernels_pytorchs_own_operators_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gelu, "has_kernels", lambda device_type: False)
    for make in (pair, Net, lambda: pair(nn.GELU("tanh"))):
        model, plain, x = twins(make)
        assert all(site.fused for site in fuse(model, x))
        assert_same(results(model, x), results(plain, x), 0)
        assert type(next(model.children())(x)) is Tensor


def test_nothing_can_be_seen_of_it_but_the_type() -> None:
    model, plain, x = twins()
    before, after = plain[0], model[0]
    assert (type(after) is nn.Linear, after.__class__ is nn.Linear) == (False, True)
    assert (nn.Linear in [type(after)], hash(type(after)), isinstance(after, nn.Linear)) == (
        True,
        hash(nn.Linear),
        True,
    )
    assert {nn.Linear: 1}[type(after)] == 1
    assert (vars(after).keys(), dir(after), repr(after)) == (vars(before).keys(), dir(before), repr(before))
    assert inspect.signature(after.forward) == inspect.signature(before.forward)
    torch.testing.assert_close(after(input=x), before(input=x))
    assert not after._forward_pre_hooks
    with pytest.raises(TypeError):
        after(x, called=after)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_dynamic_quantization_finds_fused_layers() -> None:
    model, plain, x = twins()
    ours, theirs = (torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear}) for net in (model, plain))
    assert type(ours[0]) is type(theirs[0]) is not nn.Linear
    torch.testing.assert_close(ours(x), theirs(x))


def wrap(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def unwrap(module: nn.Module) -> None:
    del module.forward


ORDERS = {
    "wrapped before": [wrap, fuse],
    "wrapped after": [fuse, wrap],
    "unwrapped": [wrap, fuse, unwrap],
    "unfused below": [fuse, wrap, unfuse],
    "unfused, unwrapped": [fuse, wrap, unfuse, unwrap],
    "wrapped twice": [wrap, fuse, wrap, unfuse, fuse],
}


@pytest.mark.parametrize("order", ORDERS)
def test_forward_is_wrapped_in_any_order(order: str) -> None:
    model, plain, x = twins()
    unfuse(model)
    for step in ORDERS[order]:
        if step is fuse:
            fuse(model, x)
        elif step is unfuse:
            unfuse(model)
        else:
            step(model[0]), step(model[1])
    assert_same(results(model, x), results(plain, x), 1e-5)
    unfuse(model)
    assert [type(module) for module in model.modules()] == [nn.Sequential, nn.Linear, nn.GELU]
    assert type(model(x).grad_fn).__name__ == "GeluBackward0"


def test_a_forward_of_the_instances_own_wins() -> None:
    model, _, x = twins(Net)
    model.forward = types.MethodType(lambda self, x: self.first(x).relu(), model)
    assert torch.equal(model(x), model.first(x).relu())
    model.first.forward = lambda x: x
    assert model.first(x) is x


def test_a_class_that_is_patched_later_is_patched_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, x = twins()
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert model[0](x) is x


def test_calibration_inputs_can_be_replayed() -> None:
    model, plain, x = twins()
    kept: list[Any] = []
    hook = model[0].register_forward_pre_hook(lambda *call: kept.append(call[1:]), with_kwargs=True)
    expected = model(x)
    hook.remove()
    ((args, kwargs),) = kept
    torch.testing.assert_close(plain[1](plain[0](*args, **kwargs)), expected)


def test_scripting_and_tracing_give_pytorchs_operators() -> None:
    model, plain, x = twins()
    scripted, traced = torch.jit.script(model), torch.jit.trace(model, x)
    other = torch.randn(7, 8)
    torch.testing.assert_close(scripted(other), plain(other))
    torch.testing.assert_close(traced(other), plain(other))
    assert "aten::gelu" in str(traced.inlined_graph)


def test_a_deleted_model_is_freed_at_once() -> None:
    model, _, x = twins(Net)
    model(x).sum().backward()
    gc.collect()
    gc.disable()
    try:
        layer = weakref.ref(model.first)
        del model
        assert layer() is None
    finally:
        gc.enable()


def test_parametrizations_before_and_after() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    register = nn.utils.parametrize.register_parametrization
    model, plain, x = twins()
    for net in (model, plain):
        register(net[0], "weight", Double())
    torch.testing.assert_close(model(x), plain(x))
    assert [site.reason for site in fuse(model, x)] == ["a parametrized layer"]
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    unfuse(model)
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), plain(x))


class Keeps(nn.Module):
    keep = ""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if self.keep == "data":
            self.kept = torch.zeros(4, 16)
            self.kept.data = h
        elif self.keep == "parameter":
            self.kept = nn.Parameter(h.detach())
        elif self.keep == "numpy":
            self.kept = torch.from_numpy(h.detach().numpy())
        elif self.keep == "dlpack":
            self.kept = torch.from_dlpack(h.detach())
        elif self.keep == "itself":
            self.kept = h
        return F.gelu(h)


@pytest.mark.parametrize("keep", ["data", "parameter", "numpy", "dlpack", "itself"])
def test_a_layers_output_has_memory_and_its_full_value(keep: str) -> None:
    model, plain, x = twins(Keeps)
    model.keep = plain.keep = keep
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(model.kept.detach() + 0, plain.kept.detach() + 0)
    model.fc.bias.data.zero_()
    torch.testing.assert_close(model.kept.detach() + 0, plain.kept.detach() + 0)


def test_biases_of_other_shapes_are_reported_and_right() -> None:
    class Functional(nn.Module):
        def __init__(self, bias: Tensor) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(16, 8)), nn.Parameter(bias)

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(input=F.linear(x, self.w, self.b))

    for shape in ((), (1,), (4, 16), (16,)):
        bias = torch.randn(shape)
        model, plain, x = twins(lambda bias=bias: Functional(bias))
        reason = "" if shape == (16,) else f"a bias of shape {shape}"
        assert [site.reason for site in fuse(model, x)] == [reason]
        assert_same(results(model, x), results(plain, x), 1e-5)


def test_a_layers_bias_may_be_given_another_shape_later() -> None:
    model, plain, x = twins()
    for net in (model, plain):
        net[0].bias = nn.Parameter(torch.tensor(0.5))
    assert_same(results(model, x), results(plain, x), 1e-5)


def test_out_and_wrong_calls_are_pytorchs_own() -> None:
    class WithOut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.empty(4, 16)
            torch.addmm(torch.zeros(16), x, torch.ones(8, 16), out=out)
            return F.gelu(out)

    model, plain, x = twins(WithOut)
    torch.testing.assert_close(model(x.detach()), plain(x.detach()))
    net, _, x = twins(Net)
    for wrong in (lambda h: F.gelu(h, "none"), lambda h: F.gelu(h, approximate="erf"), lambda h: F.gelu(h, h=1)):
        net.activation = wrong
        with pytest.raises((TypeError, RuntimeError)):
            net(x)


class Stateful(nn.Module):
    """Changes a buffer in a given way when it runs."""

    def __init__(self, change: Callable[[nn.Module], None], buffer: Tensor | None) -> None:
        super().__init__()
        self.net = pair()
        self.register_buffer("b", buffer)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.change(self)
        y: Tensor = self.net(x)
        return y


def rebind(module: Any) -> None:
    module.b = torch.ones(3) if module.b is None else module.b + 1


BUFFERS: dict[str, tuple[Callable[[Any], None], Callable[[], Tensor | None]]] = {
    "written": (lambda m: m.b.add_(1), lambda: torch.arange(3.0)),
    "its data written": (lambda m: m.b.data.add_(1), lambda: torch.arange(3.0)),
    "its data replaced": (lambda m: setattr(m.b, "data", torch.ones(5)), lambda: torch.arange(3.0)),
    "rebound": (rebind, lambda: torch.arange(3.0)),
    "none": (rebind, lambda: None),
    "expanded": (lambda m: m.b.zero_(), lambda: torch.ones(2, 1).expand(2, 3)),
    "not a number": (lambda m: None, lambda: torch.full((3,), math.nan)),
}


@pytest.mark.parametrize("what", BUFFERS)
def test_buffers_are_what_they_were(what: str) -> None:
    change, make = BUFFERS[what]
    model, before = Stateful(change, make()), make()
    buffer, version = model.b, None if model.b is None else model.b._version
    fuse(model, torch.randn(4, 8))
    assert model.b is buffer
    if before is not None:
        torch.testing.assert_close(model.b, before, rtol=0, atol=0, equal_nan=True)
        assert what != "not a number" or model.b._version == version


def test_buffers_that_must_not_be_written_are_not(tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    np.save(tmp_path / "b.npy", np.ones(8, np.float32))
    with pytest.warns(UserWarning, match="not writable"):
        read_only = torch.from_numpy(np.load(tmp_path / "b.npy", mmap_mode="r"))
    fuse(Stateful(lambda m: None, read_only), x)
    with torch.inference_mode():
        inferred = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.BatchNorm1d(16)).eval()
        inferred(x)
    assert len(fuse(inferred, x)) == 1
    lazy = nn.Sequential(nn.LazyLinear(16), nn.GELU(), nn.LazyBatchNorm1d())
    assert len(fuse(lazy, x)) == 1
    pending = Stateful(lambda m: None, torch.ones(16))
    y = pending(x) * pending.b
    fuse(pending, x)
    y.sum().backward()


def test_random_numbers_are_what_they_were() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = pair()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.net(x + torch.rand(()) + random.random() + np.random.rand())
            return y

    model, x = Random(), torch.randn(4, 8)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    fuse(model, x)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_model_that_asks_for_gradients_can_be_fused() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(*pair(), nn.Linear(16, 1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]

    model, plain, x = twins(Force)
    assert fused(fuse(model, x)) == [("net.0", "none")]
    torch.testing.assert_close(model(x), plain(x))


def test_other_threads_run_other_models_meanwhile() -> None:
    def deep() -> nn.Sequential:
        return nn.Sequential(*[nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4)])

    served, model, x = deep(), deep(), torch.randn(4, 8)
    stop, errors = threading.Event(), []

    def serve() -> None:
        expected = served(x)
        while not stop.is_set():
            try:
                assert torch.equal(served(x), expected)
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    for _ in range(20):
        assert len(fused(fuse(model, x))) == 4
    stop.set()
    thread.join()
    assert not errors


class Transposed(nn.Module):
    """SegFormer's."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.act = nn.Conv2d(4, 6, 3), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.c(x).flatten(2).transpose(1, 2))
        return y


class TransposedFunction(Transposed):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.c(x).permute(0, 2, 3, 1).contiguous())


FOUND: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, int]]] = {
    "flatten and transpose": (Transposed, (2, 4, 7, 5), (1, 0)),
    "permute and copy": (TransposedFunction, (2, 4, 7, 5), (0, 1)),
    "Dropout in eval": (lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.GELU()).eval(), (4, 8), (1, 0)),
    "Dropout in eval, a function": (
        lambda: Net(lambda h: F.gelu(F.dropout(h, 0.5, False).contiguous())), (4, 8), (1, 0),
    ),
    "view, a function": (lambda: Net(lambda h: F.gelu(h.view(2, 2, 16)).view(4, 16)), (4, 8), (1, 0)),
    "unsqueeze, a function": (lambda: Net(lambda h: F.gelu(h.T.unsqueeze(0))[0].T), (4, 8), (1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("what", FOUND)
def test_layouts_and_identities_between_a_layer_and_its_gelu(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape, biases = FOUND[what]
    model, plain, x = twins(make, *shape)
    if what != "permute and copy":
        assert [site.fused for site in fuse(model, x)] == [True]
    calls = Calls(monkeypatch)
    assert_same(results(model, x), results(plain, x), 1e-5)
    if what != "permute and copy":
        assert (len(calls.forward), calls.fused_biases, calls.summed_biases) == (1, *biases)


def test_hooks_on_an_ancestor_are_no_obstacle() -> None:
    model = nn.Sequential(pair(), nn.Linear(16, 8))
    for module in (model, model[0]):
        module.register_forward_hook(lambda module, args, output: None)
    assert fused(fuse(model, torch.randn(4, 8))) == [("0.0", "none")]


def test_reasons_are_true() -> None:
    class Gated(nn.Module):
        def __init__(self, bias: bool, dim: int = -1) -> None:
            super().__init__()
            self.up, self.dim = nn.Linear(8, 16, bias=bias), dim

        def forward(self, x: Tensor) -> Tensor:
            gate, value = self.up(x).chunk(2, self.dim)
            return torch.mul(F.gelu(gate), value)

    x = torch.randn(4, 8)
    assert [site.reason for site in fuse(Gated(True), x)] == ["gated: GELU of a part, by chunk"]
    assert [site.reason for site in fuse(Gated(False), x)] == ["gated: GELU of a part, by chunk; no bias"]
    assert [site.reason for site in fuse(Gated(True, 0), x)] == ["chunk comes before the GELU"]
    assert [site.reason for site in fuse(Net(lambda h: F.gelu(h.view(8, 8)).view(4, 16)), x)] == [
        "view comes before the GELU"
    ]


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return 2 * dy * ctx.saved_tensors[0]


class Checkpointed(Net):
    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(checkpoint(lambda x: self.activation(self.first(x)), x, use_reentrant=self.reentrant))
        return y


class OldCheckpointed(Checkpointed):
    reentrant = True


class Conditional(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.cond(x.sum() > 0, lambda h: h + 1, lambda h: h - 1, (super().forward(x),))
        return y


COMPILED: dict[str, Callable[[], nn.Module]] = {
    "a checkpoint": lambda: Checkpointed(nn.GELU()),
    "an old checkpoint": lambda: OldCheckpointed(nn.GELU()),
    "a function, a checkpoint": Checkpointed,
    "a Function after": lambda: Net(lambda h: Function.apply(F.gelu(h))),
    "a Function before": lambda: Net(lambda h: F.gelu(Function.apply(h))),
    "a condition": Conditional,
    "a layout": lambda: Net(lambda h: F.gelu(h.view(2, 2, 16)).view(4, 16)),
    "vmap": lambda: Net(lambda h: F.gelu(h) + torch.vmap(torch.sin)(h)),
}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("what", COMPILED)
def test_a_fused_model_compiles_as_the_unfused_one_does(what: str, backend: str) -> None:
    torch._dynamo.reset()
    plain, x = COMPILED[what](), torch.randn(4, 8, requires_grad=True)
    model = copy.deepcopy(plain)
    fuse(model, x)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_same(results(model, x, call=compiled), results(plain, x), 1e-5)


def test_modules_that_dynamo_does_not_look_into_compile() -> None:
    torch._dynamo.reset()

    class Opaque(nn.Sequential):
        pass

    torch.compiler.allow_in_graph(Opaque)
    plain, x = nn.Sequential(Opaque(*pair())), torch.randn(4, 8)
    model = copy.deepcopy(plain)
    assert len(fused(fuse(model, x))) == 1
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), plain(x))


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels_a_graph_is_the_unfused_ones() -> None:
    torch._dynamo.reset()
    graphs: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    for net in twins(Net)[:2]:
        torch.compile(net, backend=backend, fullgraph=True)(torch.randn(4, 8))
    assert graphs[0] == graphs[1]
    assert len(graphs[0]) == 3


def test_the_encoder_of_pytorch_keeps_its_path_in_cpp() -> None:
    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, activation="gelu", batch_first=True)
        return nn.TransformerEncoder(layer, 2)

    model, plain, x = twins(make, 2, 3, 8)
    assert len(fused(fuse(model.train(), x))) == 2
    assert_same(results(model, x), results(plain, x), 1e-5)
    model.eval(), plain.eval()
    with torch.no_grad(), torch.profiler.profile() as profile:
        ours = model(x)
    assert "aten::_transformer_encoder_layer_fwd" in [event.name for event in profile.events()]
    torch.testing.assert_close(ours, plain(x))


def test_layers_in_one_module_and_modules_within_are_both_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(16, 8)), nn.Parameter(torch.randn(16))
            self.inner = Net(nn.GELU(), nn.Linear(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(F.gelu(F.linear(x, self.w, self.b)))
            return y

    model, plain, x = twins(Both)
    assert [name for name, _ in fused(fuse(model, x))] == ["", "inner.first"]
    calls = Calls(monkeypatch)
    assert_same(results(model, x), results(plain, x), 1e-5)
    assert (len(calls.forward), calls.fused_biases, calls.summed_biases) == (2, 2, 0)


def test_threads_learn_at_once() -> None:
    model, plain, x = twins(Net)
    expected = results(plain, x)[2]
    found: list[Tensor] = []

    def learn() -> None:
        net = copy.deepcopy(model)
        for _ in range(5):
            found.append(results(net, x.detach().requires_grad_())[2])

    threads = [threading.Thread(target=learn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    for gradient in found:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


def test_a_graph_that_is_walked_twice_is_right_twice() -> None:
    model, plain, x = twins(Net)
    seen = []
    for net in (model, plain):
        loss = net(x).square().sum()
        loss.backward(retain_graph=True)
        first = net.first.bias.grad.clone()
        (dx,) = torch.autograd.grad(loss, x, retain_graph=True)
        loss.backward()
        seen.append([first, dx, net.first.bias.grad])
    for ours, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_default_device_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    model, plain, x = twins(Net)
    calls = Calls(monkeypatch)
    with torch.device(device):
        assert_same(results(model, x), results(plain, x), 1e-5)
    assert calls.forward == ["none"]


@pytest.mark.parametrize("make", [pair, Net])
def test_no_rows_are_right(make: Callable[[], nn.Module]) -> None:
    model, plain, _ = twins(make)
    x = torch.randn(0, 8, requires_grad=True)
    for net in (model, plain):
        net(x).sum().backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])


class Abstract(nn.Linear, abc.ABC):
    """A layer with a metaclass of its own."""


def test_a_class_with_a_metaclass_is_changed_and_copied() -> None:
    model, plain, x = twins(lambda: Net(nn.GELU(), Abstract(8, 16)))
    assert_same(results(model, x), results(plain, x), 1e-5)
    twin = pickle.loads(pickle.dumps(model))
    assert type(twin.first) is type(model.first) is not Abstract
    unfuse(twin)
    assert type(twin.first) is Abstract
