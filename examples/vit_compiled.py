"""Train a vision transformer in a plain loop: `fuse`, then `torch.compile`.

pip install triton_gelu transformers
python examples/vit_compiled.py --checkpoint google/vit-base-patch16-224-in21k
python examples/vit_compiled.py --tiny      # random weights, on a CPU, no download
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from transformers import ViTConfig, ViTForImageClassification

import triton_gelu

TINY = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="google/vit-base-patch16-224-in21k", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers instead")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: %(default)s)")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.tiny:
        model = ViTForImageClassification(TINY)
    else:
        model = ViTForImageClassification.from_pretrained(args.checkpoint, num_labels=2)
    model = model.to(device).train()

    size = model.config.image_size
    images = torch.randn(args.batch, 3, size, size, device=device)  # stand for yours
    labels = torch.arange(args.batch, device=device) % 2

    print(triton_gelu.fuse(model, images))  # first fuse, which runs the model once, then compile
    compiled = torch.compile(model, backend=args.backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    losses, start = [], 0.0
    for step in range(args.steps):
        if step == 1:  # the first compiles
            start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            logits = compiled(images).logits
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())  # waits for the device
    each = (time.perf_counter() - start) / max(1, args.steps - 1)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {args.steps} steps, {1e3 * each:.1f} ms each on {device}")


if __name__ == "__main__":
    main()
