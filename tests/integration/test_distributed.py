"""Two processes: sharded tensors and MLPs, tensor-parallel, fully sharded or data-parallel, against one plain model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from ways import RANKS, ways

from triton_gelu import MLP as FusedMLP
from triton_gelu import AudioEncoder, BiasGELU, LinearGELU, bias_gelu, bias_gelu_transpose

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


class MLP(nn.Module):
    """The model to be sharded."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.up = nn.Linear(8, 16, bias=not fused)
        self.act: nn.Module = BiasGELU(16) if fused else nn.GELU(approximate="tanh")
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.up(x)))
        return y


def models() -> tuple[MLP, MLP, Tensor]:
    """The same model twice, fused and plain, and a batch for it."""
    torch.manual_seed(0)
    plain, fused = MLP(fused=False), MLP(fused=True)
    state = plain.state_dict()
    state["act.bias"] = state.pop("up.bias")
    fused.load_state_dict(state)
    return fused, plain, torch.randn(4, 6, 8)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    value: Tensor = model(x).square().mean()
    value.backward()
    return value


def full(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.float()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    names = {"act.bias": "up.bias", "fc1.weight": "up.weight", "fc1.bias": "up.bias"}
    names |= {"fc2.weight": "down.weight", "fc2.bias": "down.bias"}
    return {names.get(k, k): full(p.grad) for k, p in model.named_parameters()}


def check_gradients(model: nn.Module, plain: nn.Module, **tolerance: float) -> None:
    ours, theirs = gradients(model), gradients(plain)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (RANKS,))


@ways("distributed")
def test_sharded_tensors(way: str) -> None:
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    on = mesh()
    torch.manual_seed(0)
    x, dy, v = torch.randn(3, 4, 6, 8).unbind()
    for dim in (1, 2):
        bias, vbias = torch.randn(2, x.shape[dim]).unbind()
        for d in range(3):
            along = Shard(0) if d == dim else Replicate()
            xs, bs, dys = (
                distribute_tensor(t, on, [p]) for t, p in ((x, Shard(d)), (bias, along), (dy, Shard(d)))
            )  # fmt: skip
            for t in (x, bias, dy, xs, bs, dys):
                t.requires_grad_()
                t.grad = None
            y, ys = F.gelu(x + bias.view(-1, *[1] * (2 - dim)), approximate="tanh"), bias_gelu(xs, bs, dim=dim)
            assert ys.placements == (Shard(d),)
            dx, dbias = torch.autograd.grad(y, (x, bias), dy, create_graph=True)
            dxs, dbiass = torch.autograd.grad(ys, (xs, bs), dys, create_graph=True)
            assert dxs.placements == (Shard(d),)
            assert dbiass.placements == ((Shard(0),) if d == dim else (Partial(),))
            seconds = torch.autograd.grad((dx, dbias), (x, bias, dy), (v, vbias))
            vs, vbiass = distribute_tensor(v, on, [Shard(d)]), distribute_tensor(vbias, on, [along])
            secondss = torch.autograd.grad((dxs, dbiass), (xs, bs, dys), (vs, vbiass))
            for ours, theirs in zip((ys, dxs, dbiass, *secondss), (y, dx, dbias, *seconds), strict=True):
                torch.testing.assert_close(full(ours), theirs, rtol=1e-4, atol=1e-5)


@ways("distributed")
def test_partial_sums(way: str) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    on = mesh()
    torch.manual_seed(0)
    x, bias = torch.randn(4, 8), torch.randn(8)
    part = DTensor.from_local(x * (0.25 if torch.distributed.get_rank() else 0.75), on, [Partial()])
    y = bias_gelu(part, DTensor.from_local(bias, on, [Replicate()]))
    torch.testing.assert_close(full(y), F.gelu(x + bias, approximate="tanh"))


@ways("distributed")
def test_tensor_parallel_MLP(way: str) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    on = mesh()
    fused, plain, x = models()
    expected = loss(plain, x)
    plan = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    fused.act.bias = nn.Parameter(distribute_tensor(fused.act.bias.detach(), on, [Shard(0)]))
    parallelize_module(fused, on, plan)
    torch.testing.assert_close(loss(fused, x), expected)
    assert fused.act.bias.grad.placements == (Shard(0),)
    check_gradients(fused, plain)


def mlp_layers() -> tuple[FusedMLP, MLP, Tensor]:
    """`triton_gelu.MLP` and the plain model with its parameters, and a batch for them."""
    _, plain, x = models()
    layers = FusedMLP(8, 16)
    layers.load_state_dict(
        {name.replace("up", "fc1").replace("down", "fc2"): p for name, p in plain.state_dict().items()}
    )
    return layers, plain, x


@ways("distributed")
def test_tensor_parallel_layers(way: str) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    on = mesh()
    for recompute in (False, True):
        for local in (False, True):
            layers, plain, x = mlp_layers()
            layers.recompute = recompute
            plan = {"fc1": ColwiseParallel(use_local_output=local), "fc2": RowwiseParallel()}
            parallelize_module(layers, on, plan)
            torch.testing.assert_close(loss(layers, x), loss(plain, x))
            check_gradients(layers, plain)
    plain, encoder = AudioEncoder(4, 6, 8, 2, 1), AudioEncoder(4, 6, 8, 2, 1)
    encoder.load_state_dict(plain.state_dict())
    parallelize_module(encoder, on, {"blocks.0.mlp.0": ColwiseParallel(), "blocks.0.mlp.2": RowwiseParallel()})
    spectrogram = torch.randn(2, 4, 12)
    torch.testing.assert_close(loss(encoder, spectrogram), loss(plain, spectrogram))
    check_gradients(encoder, plain, rtol=1e-4, atol=1e-5)
    for style in (ColwiseParallel, RowwiseParallel):  # GELU of half a sum, or of a sum without the other half, is none
        with pytest.raises(NotImplementedError, match=r"only support nn\.Linear"):
            parallelize_module(nn.Sequential(LinearGELU(8, 16)), on, {"0": style()})


@ways("distributed")
def test_fully_sharded_layers(way: str) -> None:
    from torch.distributed.fsdp import fully_shard

    for recompute in (False, True):
        for parts in ((), ("fc1",), ("fc2",), ("fc1", "fc2")):
            layers, plain, x = mlp_layers()
            layers.recompute = recompute
            for name in parts:
                fully_shard(layers.get_submodule(name), mesh=mesh())
            fully_shard(layers, mesh=mesh(), reshard_after_forward=True)
            root = fully_shard(nn.Sequential(layers), mesh=mesh())
            torch.testing.assert_close(loss(root, x), loss(plain, x))
            check_gradients(layers, plain)
    plain, spectrogram = AudioEncoder(4, 6, 8, 2, 1), torch.randn(2, 4, 12)
    expected = loss(plain, spectrogram)
    for parts in ((), ("conv1", "conv2", "blocks.0"), ("conv2", "blocks.0.mlp.0")):
        encoder = AudioEncoder(4, 6, 8, 2, 1)
        encoder.load_state_dict(plain.state_dict())
        for name in parts:
            fully_shard(encoder.get_submodule(name), mesh=mesh())
        fully_shard(encoder, mesh=mesh())
        torch.testing.assert_close(loss(encoder, spectrogram), expected)
        check_gradients(encoder, plain, rtol=1e-4, atol=1e-5)


@ways("compiled, distributed")
def test_compiled_sharded_tensors(way: str) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    on = mesh()
    torch.manual_seed(0)
    x, bias = torch.randn(4, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    F.gelu(x + bias, approximate="tanh").square().sum().backward()
    xs, bs = (distribute_tensor(t.detach(), on, [Shard(t.ndim - 1)]).requires_grad_() for t in (x, bias))
    torch.compile(bias_gelu, fullgraph=True)(xs, bs).square().sum().backward()
    torch.testing.assert_close(full(xs.grad), x.grad)
    torch.testing.assert_close(full(bs.grad), bias.grad)


@ways("distributed")
def test_fully_sharded_MLP(way: str) -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        fused, plain, x = models()
        expected = loss(plain, x)
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        fully_shard(fused, mesh=mesh(), mp_policy=policy)
        ours = loss(fused, x)
        torch.testing.assert_close(ours.float(), expected, rtol=tolerance, atol=tolerance)
        check_gradients(fused, plain, rtol=tolerance, atol=tolerance)


@ways("distributed")
def test_data_parallel_MLP(way: str) -> None:
    fused, plain, x = models()
    expected = loss(plain, x)
    parallel = nn.parallel.DistributedDataParallel(fused)
    mean = loss(parallel, x.chunk(RANKS)[torch.distributed.get_rank()]).detach()
    torch.distributed.all_reduce(mean)
    torch.testing.assert_close(mean / RANKS, expected)
    check_gradients(fused, plain)


EVERY_MLP = """
import pathlib, sys, test_distributed as tests, torch
torch.distributed.init_process_group("gloo")
for test in (tests.test_tensor_parallel_MLP, tests.test_fully_sharded_MLP, tests.test_data_parallel_MLP):
    test.__wrapped__("distributed")
pathlib.Path(sys.argv[1], str(torch.distributed.get_rank())).touch()
torch.distributed.destroy_process_group()
"""


CUTS = {  # along which dimension x [N, C, L] is cut, and with it the bias [C] and the position [L, C]
    "batch": (0, None, None),
    "channels": (1, 0, 1),
    "length": (2, None, 0),
    "nothing": (None, None, None),
}


@ways("distributed")
@pytest.mark.parametrize("cut", CUTS)
def test_sharded_tensors_transposed(way: str, cut: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    torch.manual_seed(0)
    whole = [torch.randn(size, requires_grad=True) for size in ((4, 6, 8), (6,), (8, 6))]
    x, bias, position = whole
    expected = F.gelu(x + bias[:, None], approximate="tanh").transpose(1, 2) + position
    mesh = init_device_mesh("cpu", (RANKS,))
    placements = [Replicate() if dim is None else Shard(dim) for dim in CUTS[cut]]
    parts = [distribute_tensor(t.detach(), mesh, [p]).requires_grad_() for t, p in zip(whole, placements, strict=True)]
    y = bias_gelu_transpose(*parts)
    torch.testing.assert_close(full(y), expected.detach(), rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(y.square().sum(), parts)
    theirs = torch.autograd.grad(expected.square().sum(), whole)
    torch.testing.assert_close([full(t) for t in ours], list(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_torchrun_starts_them_too(tmp_path: Path) -> None:
    agreed, script = tmp_path / "agreed", tmp_path / "every_mlp.py"
    agreed.mkdir()
    script.write_text(EVERY_MLP)
    paths = (str(Path(__file__).parent), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", str(RANKS)]
    done = subprocess.run([*torchrun, script, agreed], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(rank.name for rank in agreed.iterdir()) == [str(rank) for rank in range(RANKS)]
