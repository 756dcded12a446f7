"""An MLP that is split over processes: tensor parallel within groups, fully sharded (FSDP2) across them.

    torchrun --nproc-per-node 2 examples/mlp_sharded.py --tensor-parallel 2
    torchrun --nproc-per-node 2 examples/mlp_sharded.py --tensor-parallel 1      # FSDP2 alone

`MLP` holds two nn.Linear, so the plans of PyTorch for tensor parallelism find them as they find any other.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import triton_gelu


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = triton_gelu.MLP(width, 4 * width, approximate="none")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensor-parallel", type=int, default=2, help="processes that share a layer")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    ranks, layer = int(os.environ["WORLD_SIZE"]), args.tensor_parallel
    mesh = init_device_mesh(device, (ranks // layer, layer), mesh_dim_names=("data", "layer"))

    torch.manual_seed(0)  # every process begins with the same weights
    model = nn.Sequential(*[Block(args.width) for _ in range(2)]).to(device)
    for block in model:
        if layer > 1:
            parallelize_module(block.mlp, mesh["layer"], {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()})
        fully_shard(block, mesh=mesh["data"])
    fully_shard(model, mesh=mesh["data"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    torch.manual_seed(1 + mesh["data"].get_local_rank())  # each group has data of its own
    x = torch.randn(32, args.width, device=device)
    losses = []
    for _ in range(args.steps):
        loss = F.mse_loss(model(x), x.roll(1, dims=-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(mean := loss.detach().clone())
        losses.append(mean.item() / ranks)
    if dist.get_rank() == 0:
        shards = ", ".join(f"{name} {tuple(p.to_local().shape)}" for name, p in model[0].mlp.named_parameters())
        print(f"of {ranks} processes, each of the first holds {shards}")
        print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {args.steps} steps")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
