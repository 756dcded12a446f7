"""The feed-forward block of diffusion transformers, gated GELU, with the state_dict of diffusers' own.

    pip install triton_gelu diffusers
    python examples/geglu_block.py --width 1280 --tokens 4096
    python examples/geglu_block.py --width 32 --tokens 16      # seconds on a CPU

One projection makes values and gates: [values | gates] = x W^T + b, and the block goes on with values * gelu(gates).
`GEGLU` adds the bias, cuts, applies GELU and multiplies in one pass over memory, and its gradient is one tensor; in
code of your own, `triton_gelu.bias_geglu(x @ w, b, activated="second", approximate="none")` does.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import nn

import triton_gelu


def block(features: int) -> nn.Module:
    """In the place of `FeedForward(features)`: what it holds, with another GEGLU."""
    feed_forward = FeedForward(features)
    feed_forward.net[0] = triton_gelu.GEGLU(features, 4 * features)
    return feed_forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=320, help="of the transformer (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs, ours = FeedForward(args.width).to(device), block(args.width).to(device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, args.tokens, args.width, device=device)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    print(f"the same state_dict and the same result as diffusers' FeedForward({args.width})")

    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3)
    losses = []
    for _ in range(args.steps):
        loss = F.mse_loss(ours(x), x.roll(1, dims=-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {args.steps} steps on {device}")


if __name__ == "__main__":
    main()
