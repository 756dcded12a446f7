"""What people do to the layers of `MLP` and `AudioEncoder`: it has the effect that it has on PyTorch's own models."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import triton_gelu.audio
from perf.models import in_torch
from triton_gelu import GELU, MLP, AudioEncoder, Conv1dGELU, Conv2dGELU, LinearGELU
from triton_gelu.modules import is_untouched


class Plain(nn.Module):
    """`MLP` in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


class LoRA(nn.Module):
    """A layer plus a second one, which sees the input through dropout: what adapters come down to."""

    def __init__(self, layer: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer, self.dropout = layer, nn.Dropout(dropout)
        self.adapter = copy.deepcopy(layer)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.adapter(self.dropout(x))
        return y


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Shifted(Tensor):
    """A weight whose layer gives one more than its own result, as long as PyTorch calls that with the bias."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = super().__torch_function__(func, types, args, kwargs or {})
        if func in (F.linear, F.conv1d) and args[2] is not None:
            return y.as_subclass(Tensor) + 1
        return y


def put(change: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module, str], None]:
    """Another module in the layer's place."""

    def touch(owner: nn.Module, name: str) -> None:
        owner._modules[name] = change(owner._modules[name])  # type: ignore[arg-type]

    return touch


def to(change: Callable[[Any], object]) -> Callable[[nn.Module, str], None]:
    """A change of the layer itself."""

    def touch(owner: nn.Module, name: str) -> None:
        change(owner._modules[name])

    return touch


def forward_of_the_instance(layer: nn.Module) -> None:
    inner = layer.forward
    layer.forward = lambda x: 2 * inner(x)  # type: ignore[method-assign]


def another_class(layer: nn.Module) -> None:
    kind = type(layer)
    layer.__class__ = type("Other", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})  # type: ignore[assignment]


def weight_of_another_type(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Shifted))


def weight_normed_by_a_hook(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


def pruned(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.l1_unstructured(layer, "bias", 2)


def pruned_for_good(layer: nn.Module) -> None:
    pruned(layer)
    prune.remove(layer, "weight")
    prune.remove(layer, "bias")


def as_an_attribute(layer: nn.Module, name: str) -> None:
    layer.origin = getattr(layer, name)
    delattr(layer, name)
    setattr(layer, name, layer.origin.as_subclass(Shifted))


def weight_as_a_buffer(layer: nn.Module) -> None:
    weight = layer.weight.detach().as_subclass(Shifted)
    del layer.weight
    layer.register_buffer("weight", weight)


def convolution_of_the_instance(layer: nn.Conv1d) -> None:
    """As is done to make images that tile."""
    layer._conv_forward = lambda x, weight, bias: F.conv1d(x, weight, 2 * bias, layer.stride, layer.padding)  # type: ignore[method-assign]


TOUCHES: dict[str, Callable[[nn.Module, str], None]] = {
    "a hook": to(lambda layer: layer.register_forward_hook(lambda layer, args, y: 2 * y)),
    "a hook before": to(lambda layer: layer.register_forward_pre_hook(lambda layer, args: (2 * args[0],))),
    "a hook on gradients": to(lambda layer: layer.register_full_backward_hook(lambda layer, dx, dy: (2 * dx[0],))),
    "a hook before gradients": to(lambda layer: layer.register_full_backward_pre_hook(lambda layer, dy: (2 * dy[0],))),
    "a forward of the instance": to(forward_of_the_instance),
    "another class": to(another_class),
    "LoRA": put(LoRA),
    "LoRA with dropout": put(lambda layer: LoRA(layer, dropout=0.5)),
    "a container": put(lambda layer: nn.Sequential(layer, nn.Tanh())),
    "no layer": put(lambda layer: nn.Identity()),
    "a parametrisation": to(lambda layer: parametrize.register_parametrization(layer, "weight", Doubled())),
    "a parametrised bias": to(lambda layer: parametrize.register_parametrization(layer, "bias", Doubled())),
    "weight norm": to(parametrizations.weight_norm),
    "weight norm by a hook": to(weight_normed_by_a_hook),
    "pruning": to(pruned),
    "pruning made permanent": to(pruned_for_good),
    "a weight of another type": to(weight_of_another_type),
    "a weight that is no parameter": to(lambda layer: as_an_attribute(layer, "weight")),
    "a bias that is no parameter": to(lambda layer: as_an_attribute(layer, "bias")),
    "a weight that is a buffer": to(weight_as_a_buffer),
    "a compiled layer": to(lambda layer: layer.compile(backend="eager")),
    "no bias": to(lambda layer: layer.register_parameter("bias", None)),
    "nothing": to(lambda layer: None),
}
UNTOUCHED = {"nothing", "no bias", "pruning made permanent"}


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)  # of dropout
    y = model(x)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *trained], allow_unused=True)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def dtype(touch: str) -> torch.dtype:
    """Kernels, which are slow where they are interpreted, join some of the tests; there are none for float64."""
    return torch.float32 if touch in ("nothing", "a hook") else torch.float64


def mlps(recompute: bool, device: str, dtype: torch.dtype = torch.float64) -> tuple[MLP, Plain, Tensor]:
    theirs, ours = Plain().to(device, dtype), MLP(8, 8, recompute=recompute, device=device, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, torch.randn(3, 4, 8, device=device, dtype=dtype, requires_grad=True)


def encoders(device: str, dtype: torch.dtype) -> tuple[AudioEncoder, nn.Module, Tensor]:
    ours = AudioEncoder(4, 5, 8, 2, 1).to(device, dtype)
    x = torch.randn(2, 4, 10, device=device, dtype=dtype, requires_grad=True)
    return ours, in_torch(copy.deepcopy(ours), "none"), x


@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
@pytest.mark.parametrize("name", ["fc1", "fc2"])
@pytest.mark.parametrize("touch", TOUCHES)
def test_an_mlp_does_what_pytorchs_layers_do(touch: str, name: str, recompute: bool, device: str) -> None:
    ours, theirs, x = mlps(recompute, device, dtype(touch))
    for model in (ours, theirs):
        torch.manual_seed(2)
        TOUCHES[touch](model, name)
    assert is_untouched(ours._modules[name], nn.Linear) == (touch in UNTOUCHED)  # type: ignore[arg-type]
    assert_same(results(ours, x), results(theirs, x))


HOOKS: dict[str, Callable[..., Any]] = {
    "forward_pre": lambda layer, args: (2 * args[0],) if type(layer) is nn.Linear else None,
    "forward": lambda layer, args, y: 2 * y if type(layer) is nn.Linear else None,
    "full_backward_pre": lambda layer, dy: (2 * dy[0],) if type(layer) is nn.Linear else None,
    "full_backward": lambda layer, dx, dy: (2 * dx[0],) if type(layer) is nn.Linear else None,
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_on_all_modules_sees_both_layers(kind: str, device: str) -> None:
    ours, theirs, x = mlps(False, device)
    hook = getattr(nn.modules.module, f"register_module_{kind}_hook")(HOOKS[kind])
    try:
        assert not is_untouched(ours.fc1, nn.Linear)
        assert_same(results(ours, x), results(theirs, x))
    finally:
        hook.remove()
    assert is_untouched(ours.fc1, nn.Linear)


@pytest.mark.parametrize("method", ["forward", "__call__"])
def test_a_method_put_into_pytorchs_class_is_called(method: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, x = mlps(False, device)
    original = getattr(nn.Linear, method)
    monkeypatch.setattr(nn.Linear, method, lambda layer, x: 2 * original(layer, x))
    assert not is_untouched(ours.fc1, nn.Linear)
    assert_same(results(ours, x), results(theirs, x))


def test_a_layer_of_another_kind_is_called(device: str) -> None:
    ours, theirs, x = mlps(False, device)
    ours.fc1 = theirs.fc1 = nn.Conv1d(4, 4, 1).to(x)  # type: ignore[assignment]
    assert_same(results(ours, x), results(theirs, x))


@pytest.mark.parametrize("touch", ["a hook", "LoRA", "a parametrisation", "nothing"])
@pytest.mark.parametrize("recompute", [False, True], ids=["saved", "recomputed"])
def test_a_touched_mlp_compiles_as_one_graph(touch: str, recompute: bool, device: str) -> None:
    torch.compiler.reset()
    ours, theirs, x = mlps(recompute, device)
    for model in (ours, theirs):
        TOUCHES[touch](model, "fc1")
    assert_same(results(torch.compile(ours, fullgraph=True, backend="aot_eager"), x), results(theirs, x))


@pytest.mark.parametrize("strict", [True, False])
def test_an_mlp_is_exported_under_its_own_names(strict: bool) -> None:
    ours, theirs, x = mlps(False, "cpu", torch.float32)
    exported = torch.export.export(ours, (x.detach(),), strict=strict)
    assert list(exported.state_dict) == list(ours.state_dict())
    torch.testing.assert_close(exported.module()(x), theirs(x))


def test_both_layers_of_an_mlp_are_quantised(device: str) -> None:
    ours, theirs, x = mlps(False, "cpu", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = (torch.ao.quantization.quantize_dynamic(model, {nn.Linear}) for model in (ours, theirs))
    assert type(ours.fc1) is type(ours.fc2) is type(theirs.fc1) is not nn.Linear
    torch.testing.assert_close(ours(x), theirs(x))


SOME = "nothing", "no bias", "a hook", "a hook before gradients", "a forward of the instance", "another class", "LoRA"
SOME += "a parametrisation", "pruning", "a weight of another type"
CASES = [(site, touch) for site in ("conv2", "blocks.0.mlp.0") for touch in SOME]
CASES += [(site, touch) for site in ("conv1", "blocks.0.mlp.2") for touch in ("a hook", "LoRA with dropout", "pruning")]
CASES += [("blocks.0.mlp.1", touch) for touch in ("a hook", "a forward of the instance", "a container", "no layer")]
CASES += [("blocks.0.mlp", touch) for touch in ("a hook", "a hook before", "a forward of the instance", "no layer")]


@pytest.fixture
def conv_biases(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """What `bias_gelu_transpose` was given."""
    seen: list[Tensor | None] = []
    function = triton_gelu.audio.bias_gelu_transpose
    monkeypatch.setattr(
        triton_gelu.audio,
        "bias_gelu_transpose",
        lambda x, bias, position, **formula: seen.append(bias) or function(x, bias, position, **formula),
    )
    return seen


@pytest.mark.parametrize(("site", "touch"), CASES)
def test_an_audio_encoder_does_what_pytorchs_layers_do(
    site: str, touch: str, device: str, conv_biases: list[Tensor | None]
) -> None:
    ours, theirs, x = encoders(device, dtype(touch))
    for model in (ours, theirs):
        torch.manual_seed(2)
        owner, _, name = site.rpartition(".")
        TOUCHES[touch](model.get_submodule(owner), name)
    assert_same(results(ours, x), results(theirs, x))
    taken_apart = site != "conv2" or touch in UNTOUCHED - {"no bias"}
    assert [bias is not None for bias in conv_biases] == [taken_apart]


@pytest.mark.parametrize("name", ["conv1", "conv2"])
def test_a_convolution_that_an_instance_computes_in_its_own_way_is_called(name: str, device: str) -> None:
    ours, theirs, x = encoders(device, torch.float64)
    for model in (ours, theirs):
        convolution_of_the_instance(model.get_submodule(name))  # type: ignore[arg-type]
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("layer", [LinearGELU(8, 8), Conv1dGELU(8, 8, 1), Conv2dGELU(8, 8, 1)], ids=repr)
def test_what_looks_for_pytorchs_layers_finds_none_that_applies_a_gelu(layer: nn.Module) -> None:
    model = nn.Sequential(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert type(quantised[0]) is type(layer)
    pytorchs = tuple(kind for kind in vars(nn).values() if isinstance(kind, type) and kind is not nn.Module)
    for kind in (*pytorchs, nn.modules.conv._ConvNd):
        assert not isinstance(layer, kind)


@pytest.mark.parametrize("touch", ["a hook", "LoRA", "a parametrisation", "a parametrised bias", "pruning"])
@pytest.mark.parametrize("layer", [LinearGELU(8, 8), Conv1dGELU(4, 4, 1)], ids=["linear", "conv1d"])
def test_what_is_done_to_a_layer_with_a_gelu_is_done_before_or_after_both(layer: nn.Module, touch: str) -> None:
    x = torch.randn(2, 4, 8, requires_grad=True)
    ours, parent = copy.deepcopy(layer), nn.Linear(8, 8) if isinstance(layer, LinearGELU) else nn.Conv1d(4, 4, 1)
    parent.load_state_dict(layer.state_dict())
    whole = touch in ("a hook", "LoRA")  # of the layer's result, not of its parameters
    model, twin = nn.Sequential(ours), nn.Sequential(nn.Sequential(parent, GELU()))
    TOUCHES[touch](model, "0")
    TOUCHES[touch](*((twin, "0") if whole else (twin[0], "0")))
    assert_same(results(model, x), results(twin, x))
