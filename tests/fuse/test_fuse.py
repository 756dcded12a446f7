"""Fusing the GELUs of a model somebody else wrote."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from counting import Calls
from small_tensors import small_tensors_take_the_whole_mechanism
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triton_gelu import LinearGELU, fuse, unfuse
from triton_gelu.fuse import FusionReport, tagged

Activation = Callable[[Tensor], Tensor]

__all__ = ["small_tensors_take_the_whole_mechanism"]  # a fixture for every test here


class Net(nn.Module):
    """A layer, what comes after it, another layer."""

    def __init__(self, activation: Activation = F.gelu, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.first = layer or nn.Linear(8, 16)
        self.last = nn.Linear(16, 8)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.activation(self.first(x)))
        return y


class Square(torch.autograd.Function):
    """A function that PyTorch knows nothing of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * dy


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class NewGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))


class WrongGELU(nn.Module):
    """QuickGELU with a digit changed."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.703 * x)


class TwoWeights(nn.Module):
    """Layers without modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.randn(shape)) for shape in ((16, 8), (8, 16)))
        self.b1, self.b2 = (nn.Parameter(torch.randn(n)) for n in (16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.gelu(F.linear(x, self.w1, self.b1)), self.w2, self.b2)


class OwnLinear(nn.Linear):
    """A product and a sum."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class LoRA(nn.Module):
    """A wrapped layer."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(8, 16)
        self.delta = nn.Linear(8, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x) + self.delta(x)
        return y


def results(model: nn.Module, x: Tensor, *, call: Callable[..., Tensor] | None = None) -> list[Tensor | None]:
    """The output, and the gradients of `(output * fixed random weights).sum()`."""
    inputs = [x, *model.parameters()]
    for tensor in inputs:
        tensor.grad = None
    y = model(x) if call is None else call(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    (y * weights).sum().backward()
    return [y.detach(), *(tensor.grad for tensor in inputs)]


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None], tolerance: float) -> None:
    """Equal within `tolerance` of the largest value of each kind: outputs, gradients."""
    largest = max(float(t.abs().max()) for t in theirs[1:] if t is not None)
    for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert (our is None) == (their is None)
        if our is not None and their is not None:
            scale = largest if index else float(their.abs().max())
            torch.testing.assert_close(our, their, rtol=0, atol=tolerance * scale)


def doubles(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def fused(report: FusionReport) -> list[tuple[str, str]]:
    return [(site.name, site.formula) for site in report if site.fused]


def in_place(h: Tensor) -> Tensor:
    h.add_(1)
    return F.gelu(h)


def in_place_by_operator(h: Tensor) -> Tensor:
    h += 1
    return F.gelu(h)


def in_place_by_index(h: Tensor) -> Tensor:
    h[0] = 0
    return F.gelu(h)


def in_place_later(h: Tensor) -> Tensor:
    y = F.gelu(h.clone())
    h.mul_(2)
    return y + h


def looked_at_without_gradient(h: Tensor) -> Tensor:
    with torch.no_grad():
        mean = h.mean()
    return F.gelu(h) * mean + h


USES: dict[str, Activation] = {
    "GELU": F.gelu,
    "GELU by tanh": lambda h: F.gelu(h, approximate="tanh"),
    "GELU twice": lambda h: F.gelu(h) + F.gelu(h, approximate="tanh"),
    "the operator itself": lambda h: torch.ops.aten.gelu(h),
    "another activation": torch.sigmoid,
    "a second consumer": lambda h: F.gelu(h) + h,
    "a second consumer before": lambda h: h * F.gelu(h),
    "a slice": lambda h: F.gelu(h[:, :8]).repeat(1, 2),
    "a transposition": lambda h: F.gelu(h.T).T,
    "in place": in_place,
    "in place by an operator": in_place_by_operator,
    "in place by an index": in_place_by_index,
    "in place later": in_place_later,
    "a gate": lambda h: (h.chunk(2, -1)[0] * F.gelu(h.chunk(2, -1)[1])).repeat(1, 2),
    "a list of it": lambda h: torch.cat([h[:2], F.gelu(h)[2:]]),
    "an own function": Square.apply,
    "an own function, too": lambda h: F.gelu(h) + Square.apply(h),
    "an own function between": lambda h: F.gelu(Square.apply(h)),
    "a look without gradient": looked_at_without_gradient,
    "its data": lambda h: F.gelu(h) + h.data,
    "its metadata": lambda h: F.gelu(h).view(h.shape).to(h.dtype) if h.requires_grad else F.gelu(h),
    "numpy": lambda h: F.gelu(h) + torch.from_numpy(h.detach().numpy()),
    "vmap": lambda h: torch.func.vmap(F.gelu)(h),
    "lists within lists": lambda h: torch.block_diag(*[h, F.gelu(h)])[:4, :16] + torch.stack([h, F.gelu(h)])[1],
    "a checkpoint": lambda h: checkpoint(lambda h: F.gelu(h) * h.sigmoid(), h, use_reentrant=False),
    "an old checkpoint": lambda h: checkpoint(F.gelu, h, use_reentrant=True),
}


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize("use", USES)
def test_whatever_is_done_to_a_fused_layers_output_is_right(use: str, compiled: bool) -> None:
    torch._dynamo.reset()
    model, x = Net().double(), doubles(4, 8)
    plain = copy.deepcopy(model)
    fuse(model, x)
    model.activation = plain.activation = USES[use]
    call = torch.compile(model, backend="aot_eager") if compiled else model
    assert_same(results(model, x, call=call), results(plain, x), 1e-12)


def test_an_output_that_leaves_an_old_checkpoint_is_right() -> None:
    model, x = Net().double(), doubles(4, 8)
    plain = copy.deepcopy(model)
    fuse(model, x)

    def call(net: Net) -> Callable[[Tensor], Tensor]:
        return lambda x: net.last(F.gelu(checkpoint(net.first, x, use_reentrant=True)))

    assert_same(results(model, x, call=call(model)), results(plain, x, call=call(plain)), 1e-12)


def test_its_gradient_can_be_asked_for_in_every_way() -> None:
    model, x = Net().double(), doubles(4, 8)
    plain = copy.deepcopy(model)
    fuse(model, x)
    gradients: list[list[Tensor]] = []
    for net in (model, plain):
        h = net.first(x)
        seen: list[Tensor] = []
        h.register_hook(seen.append)
        y = (F.gelu(h) + h.square()).sum()
        h.retain_grad()
        seen += torch.autograd.grad(y, [h], retain_graph=True)
        seen += torch.autograd.grad(y, inputs=h, retain_graph=True)
        y.backward()
        gradients.append([*seen, h.grad])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_right() -> None:
    model, x = Net().double(), doubles(4, 8)
    plain = copy.deepcopy(model)
    fuse(model, x)
    for uses in (F.gelu, lambda h: F.gelu(h) * h):
        model.activation = plain.activation = uses
        seconds = []
        for net in (model, plain):
            (dx,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
            seconds.append(torch.autograd.grad(dx.square().sum(), list(net.first.parameters())))
        for ours, theirs in zip(*seconds, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


FOUND: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a function": (Net, "none"),
    "a function with its formula": (lambda: Net(lambda h: F.gelu(h, approximate="tanh")), "tanh"),
    "a module": (lambda: Net(nn.GELU("tanh")), "tanh"),
    "written out with sigmoid": (lambda: Net(QuickGELU()), "sigmoid"),
    "written out with tanh": (lambda: Net(NewGELU()), "tanh"),
    "layers without modules": (TwoWeights, "none"),
}


@pytest.mark.parametrize("what", FOUND)
def test_a_gelu_is_found_with_its_formula_and_fused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, formula = FOUND[what]
    model, x = make(), torch.randn(4, 8, requires_grad=True)
    plain = copy.deepcopy(model)
    report = fuse(model, x)
    assert [(site.fused, site.formula, site.reason) for site in report] == [(True, formula, "")]
    calls = Calls(monkeypatch)
    assert_same(results(model, x), results(plain, x), 1e-5)
    assert (calls.forward, calls.fused_biases, calls.summed_biases) == ([formula], 1, 0)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_convolutions_are_fused(kind: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(getattr(nn, f"{kind}{dim}d")(4, 6, 3), nn.GELU())
    x = torch.randn([2, 4, *[5] * dim], requires_grad=True)
    plain = copy.deepcopy(model)
    assert fused(fuse(model, x)) == [("0", "none")]
    assert_same(results(model, x), results(plain, x), 1e-5)
    if dim > 1:
        layout = torch.channels_last if dim == 2 else torch.channels_last_3d
        x = x.detach().to(memory_format=layout).requires_grad_()
        model.to(memory_format=layout), plain.to(memory_format=layout)
        calls = Calls(monkeypatch)
        assert_same(results(model, x), results(plain, x), 1e-5)
        assert (calls.fused_biases, calls.summed_biases) == (1, 0)


def quantized() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU())
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def twice(g: Tensor) -> Tensor:
    return g * g


REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "no bias": (lambda: Net(layer=nn.Linear(8, 16, bias=False)), "first", "none", "no bias"),
    "ReLU": (lambda: Net(F.relu), "first", "relu", "relu is not GELU"),
    "a gate that is used twice": (
        lambda: Net(lambda h: twice(F.gelu(h.chunk(2, -1)[1])).repeat(1, 2)), "first", "none",
        "gated: GELU of a part, by chunk",
    ),
    "LoRA": (lambda: Net(layer=LoRA()), "first.base_layer", "none", "add comes before the GELU"),
    "a sum": (lambda: Net(layer=OwnLinear(8, 16)), "first", "none", "GELU of what add returns"),
    "quantised": (quantized, "0", "none", "GELU of what linear_dynamic returns"),
    "a second consumer": (lambda: Net(USES["a second consumer"]), "first", "none", "its output also goes into add"),
    "a wrong formula": (lambda: Net(WrongGELU()), "first", "?", "a formula with sigmoid that is not recognised"),
    "dropout": (
        lambda: Net(nn.Sequential(nn.Dropout(), nn.GELU())), "first", "none", "dropout comes before the GELU",
    ),
    "LayerNorm": (
        lambda: Net(nn.Sequential(nn.Identity(), nn.LayerNorm(16), nn.GELU())), "first", "none",
        "layer_norm comes before the GELU",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_fused_is_reported_with_the_reason(what: str) -> None:
    make, *expected = REFUSED[what]
    model, x = make(), torch.randn(4, 8)
    before = [set(vars(module)) for module in model.modules()]
    report = fuse(model, x)
    assert [[site.name, site.formula, site.reason] for site in report] == [expected]
    assert not any(site.fused for site in report)
    assert before == [set(vars(module)) for module in model.modules()]


def test_the_path_of_the_transformer_encoder_in_cpp_is_reported() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, activation="gelu", batch_first=True)
    x = torch.randn(2, 3, 8)
    assert fused(fuse(model, x)) == [("linear1", "none")]
    (site,) = fuse(model.eval(), x)
    assert (site.fused, site.reason) == (False, "in eval, nn.TransformerEncoder takes a path in C++")


def test_the_report_prints_as_a_table() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU("tanh"), nn.Linear(8, 8, bias=False), nn.GELU())
    assert str(fuse(model, torch.randn(2, 8))).splitlines() == [
        "layer  formula  fused",
        "0      tanh     yes",
        "2      none     no: no bias",
        "On cpu, each GELU is one kernel; its gradient and the bias's come from one pass over memory.",
    ]


def test_our_own_layers_need_no_fusing() -> None:
    assert len(fuse(nn.Sequential(LinearGELU(8, 8), nn.Linear(8, 8)), torch.randn(2, 8))) == 0


def test_a_planted_wrong_formula_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(), torch.randn(4, 8, requires_grad=True)
    plain = copy.deepcopy(model)
    monkeypatch.setattr(tagged, "gelu_formula", lambda *args, **kwargs: "tanh")
    fuse(model, x)
    with pytest.raises(AssertionError):
        assert_same(results(model, x), results(plain, x), 1e-5)


def make_fused() -> tuple[Net, Net, Tensor]:
    plain, x = Net(nn.GELU()), torch.randn(4, 8, requires_grad=True)
    model = copy.deepcopy(plain)
    assert fused(fuse(model, x)) == [("first", "none")]
    return model, plain, x


def test_parameters_names_types_and_mode_stay() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 8))
    model[4].weight = model[0].weight
    before, x = copy.deepcopy(model.state_dict()), torch.randn(4, 8)
    identities = [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=False)]
    described, types, random = repr(model), [type(m) for m in model.modules()], torch.get_rng_state()
    fuse(model, x)
    assert identities == [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=False)]
    assert (described, types) == (repr(model), [type(m) for m in model.modules()])
    assert types == [m.__class__ for m in model.modules()]
    assert [type(m) is t for m, t in zip(model.modules(), types, strict=True)] == [True, False, False, True, True, True]
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert model.training


def test_fusing_twice_is_fusing_once_and_unfusing_restores() -> None:
    model, x = Net(QuickGELU()), torch.randn(4, 8)
    before = [(id(type(module)), set(vars(module))) for module in model.modules()]
    assert fuse(model, x) == fuse(model, x)
    unfuse(model)
    assert before == [(id(type(module)), set(vars(module))) for module in model.modules()]
    unfuse(model)


def test_a_failing_example_leaves_the_model_as_it_was() -> None:
    model = Net()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fuse(model, torch.randn(4, 9))
    assert type(model.first) is nn.Linear
    assert fused(fuse(model, torch.randn(4, 8))) == [("first", "none")]


def test_a_copy_and_a_pickle_are_models_of_their_own() -> None:
    model, _, x = make_fused()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), model(x))
        nn.init.zeros_(twin.first.weight)
        assert not torch.equal(twin(x), model(x))
        assert fused(fuse(twin, x)) == [("first", "none")]


def test_a_shallow_copy_runs_its_own_weights() -> None:
    model, plain, x = make_fused()
    for net in (model, plain):
        twin = copy.copy(net)
        twin._modules = {name: copy.copy(module) for name, module in net._modules.items()}
        for module in twin.children():
            module._parameters = {name: nn.Parameter(2 * p.detach()) for name, p in module._parameters.items()}
        net.twin = twin
    torch.testing.assert_close(model.twin(x), plain.twin(x))
    compiled = torch.compile(model.twin, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), plain.twin(x))
    assert not torch.allclose(model.twin(x), model(x))
    assert type(model.twin.first) is type(model.first) is not nn.Linear


def test_hooks_see_what_they_saw_before() -> None:
    model, plain, x = make_fused()
    seen: dict[nn.Module, list[Tensor]] = {model: [], plain: []}
    for net, tensors in seen.items():
        net.first.register_forward_hook(lambda module, args, output, tensors=tensors: tensors.append(output))
        net.first.register_full_backward_hook(lambda module, dx, dy, tensors=tensors: tensors.append(dy[0]))
    assert_same(results(model, x), results(plain, x), 1e-5)
    for ours, theirs in zip(*seen.values(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [site.reason for site in fuse(model, x)] == ["forward hooks on first"]


def test_autocast_gives_the_same_types() -> None:
    model, plain, x = make_fused()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = results(model, x), results(plain, x)
    assert [t.dtype for t in ours if t is not None] == [t.dtype for t in theirs if t is not None]
    assert_same(ours, theirs, 2**-6)


def test_inference_frozen_parameters_and_transforms_work() -> None:
    model, plain, x = make_fused()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), plain(x))
    for net in (model, plain):
        net.first.bias.requires_grad_(False)
    assert_same(results(model, x), results(plain, x), 1e-5)
    ours, theirs = (torch.func.vmap(torch.func.jacrev(net))(x) for net in (model, plain))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_recompute_a_fused_model(reentrant: bool) -> None:
    model, plain, x = make_fused()
    ours = results(model, x, call=lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert_same(ours, results(plain, x), 1e-5)


def test_the_example_may_be_on_the_meta_device(device: str) -> None:
    with torch.device("meta"):
        model, x = Net(nn.GELU()), torch.empty(4, 8)
    assert fused(fuse(model, x)) == [("first", "none")]
    model.to_empty(device=device)
    assert model(torch.randn(4, 8, device=device)).shape == (4, 8)


def test_compiling_keeps_one_graph_with_the_operator_in_it() -> None:
    torch._dynamo.reset()
    model, plain, x = make_fused()
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(model, backend=lambda graph, example: graphs.append(graph) or graph, fullgraph=True)
    assert_same(results(model, x, call=compiled), results(plain, x), 1e-5)
    (graph,) = graphs
    targets = [str(node.target) for node in graph.graph.nodes]
    assert [sum(name in target for target in targets) for name in ("layer_in_graph", "gelu_in_graph")] == [1, 1]
    assert not any("_nn.gelu" in target or target == "gelu" for target in targets)


@pytest.mark.filterwarnings("ignore:Using `torch.compile:UserWarning")
def test_a_compiled_model_can_be_fused() -> None:
    torch._dynamo.reset()
    plain, x = Net(nn.GELU()), torch.randn(4, 8, requires_grad=True)
    model = torch.compile(copy.deepcopy(plain), backend="aot_eager")
    assert [site.fused for site in fuse(model, x)] == [True]
    assert_same(results(model, x), results(plain, x), 1e-5)


@pytest.mark.xfail(
    torch.__version__ < (2, 11), raises=AssertionError, reason="Dynamo stumbles over the tensor whose bias waits"
)
def test_a_compiled_part_of_a_fused_model_is_right() -> None:
    torch._dynamo.reset()
    parts, plain, x = make_fused()
    parts.activation = torch.compile(parts.activation, backend="aot_eager")
    assert_same(results(parts, x), results(plain, x), 1e-5)


STRICT = pytest.mark.xfail(torch.__version__ < (2, 10), reason="Dynamo can't rebuild a module that a hook passes on")


@pytest.mark.parametrize("strict", [pytest.param(True, marks=STRICT), False])
def test_a_fused_model_can_be_exported(strict: bool) -> None:
    model, plain, x = make_fused()
    program = torch.export.export(model, (x.detach(),), strict=strict)
    torch.testing.assert_close(program.module()(x), plain(x))
    assert set(program.state_dict) == set(plain.state_dict())


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_it_works_under_ddp() -> None:
    model, plain, x = make_fused()
    ddp = nn.parallel.DistributedDataParallel(model)
    assert_same(results(model, x, call=ddp), results(plain, x), 1e-5)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_it_works_under_fsdp2(layerwise: bool, compiled: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model, plain, x = make_fused()
    expected = results(plain, x)
    for part in (model.first, model.last, model) if layerwise else (model,):
        fully_shard(part, mesh=mesh)
    torch._dynamo.reset()
    ours = results(model, x, call=torch.compile(model, backend="aot_eager") if compiled else None)
    assert_same([t.full_tensor() if hasattr(t, "full_tensor") else t for t in ours], expected, 1e-5)


@pytest.mark.usefixtures("one_process")
def test_sharded_layers_are_reported() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_module, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    mesh = init_device_mesh("cpu", (1,))
    parallel = parallelize_module(Net(), mesh, {"first": ColwiseParallel()})
    assert [(site.name, site.reason) for site in fuse(parallel, torch.randn(2, 8))] == [
        ("first", "forward hooks on first")
    ]
    sharded = distribute_module(Net(), mesh)
    assert [(site.name, site.reason) for site in fuse(sharded, distribute_tensor(torch.randn(2, 8), mesh))] == [
        ("first", "DTensor operands")
    ]


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_tensor_parallel_finds_fused_layers(compiled: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch._dynamo.reset()
    model, plain, x = make_fused()
    expected = results(plain, x)
    parallelize_module(model, init_device_mesh("cpu", (1,)), {"first": ColwiseParallel(), "last": RowwiseParallel()})
    call = torch.compile(model, backend="aot_eager") if compiled else None
    ours = results(model, x, call=call)
    assert_same([t.full_tensor() if hasattr(t, "full_tensor") else t for t in ours], expected, 1e-5)
