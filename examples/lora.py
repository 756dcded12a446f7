"""LoRA on a fused model: adapt first, then fuse, or the other way round.

    pip install triton_gelu transformers peft
    python examples/lora.py --checkpoint FacebookAI/roberta-base
    python examples/lora.py --tiny      # random weights, on a CPU, no download

Where LoRA changes a layer that a GELU follows, `fuse` fuses what is left to fuse, and the report says so.
"""

from __future__ import annotations

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import RobertaConfig, RobertaForSequenceClassification

import triton_gelu

TINY = RobertaConfig(
    vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="FacebookAI/roberta-base", help="of the hub (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers instead")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--targets", nargs="+", default=["query", "value"], help="layers that get an adapter")
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.tiny:
        model = RobertaForSequenceClassification(TINY)
    else:
        model = RobertaForSequenceClassification.from_pretrained(args.checkpoint)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=args.targets, r=4)
    model = get_peft_model(model.to(device), lora)

    tokens = torch.randint(3, model.config.vocab_size, (8, 16), device=device)  # stand for yours
    labels = torch.arange(8, device=device) % 2
    print(triton_gelu.fuse(model, input_ids=tokens))

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(args.steps):
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    model.eval()
    with torch.no_grad():
        adapted = model(input_ids=tokens).logits
        merged = model.merge_and_unload()  # the adapters go into the weights; the layers stay fused
        torch.testing.assert_close(merged(input_ids=tokens).logits, adapted, rtol=1e-3, atol=1e-3)
    print(f"{sum(p.numel() for p in trained)} parameters trained, merged without a change of the result")
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {args.steps} steps")


if __name__ == "__main__":
    main()
