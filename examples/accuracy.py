"""What is left of GELU for negative inputs: PyTorch's formulas and ours against float64, for each number of bfloat16.

python examples/accuracy.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import triton_gelu

FORMULAS = {"tanh": "as in GPT-2", "none": "exact, as in BERT"}
SMALLEST = 2.0**-120  # results that are smaller may become zero


def truth(x: torch.Tensor, approximate: str) -> torch.Tensor:
    """GELU in float64, in forms that do not cancel: gelu(x) = x times a gate, and the gate of a negative x is tiny."""
    x = x.double()
    if approximate == "none":
        return x * torch.special.erfc(-x / 2**0.5) / 2
    return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))


def ulps(y: torch.Tensor, right: torch.Tensor) -> float:
    """The largest distance to the truth, in units of the last place of y's dtype."""
    unit = torch.exp2(torch.floor(torch.log2(right.abs()))) * torch.finfo(y.dtype).eps
    return ((y.double() - right).abs() / unit).max().item()


def main() -> None:
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    finite = numbers[numbers.isfinite()].float()
    regions = {"x < -5": finite[(finite < -5) & (finite > -12)], "-5 <= x < 0": finite[(finite >= -5) & (finite < 0)]}
    for dtype in (torch.bfloat16, torch.float32):
        print(f"\n{str(dtype).removeprefix('torch.')}: largest error in ulp (0.5 is perfect rounding)")
        print(f"{'formula':24} {'inputs':12} {'F.gelu':>12} {'triton_gelu':>12}")
        for approximate, where in FORMULAS.items():
            for region, x in regions.items():
                right = truth(x, approximate)
                x, right = x[right.abs() >= SMALLEST].to(dtype), right[right.abs() >= SMALLEST]
                theirs = ulps(F.gelu(x, approximate=approximate), right)
                ours = ulps(triton_gelu.gelu(x, approximate=approximate), right)
                print(f"{approximate + ', ' + where:24} {region:12} {theirs:12.4g} {ours:12.4g}")

    x = torch.tensor([-3.0, -5.0, -6.0, -8.0])
    print(f"\n{'x':>14} {'F.gelu':>14} {'triton_gelu':>14} {'float64':>14}   (exact, in float32)")
    for row in zip(x, F.gelu(x), triton_gelu.gelu(x, approximate="none"), truth(x, "none"), strict=True):
        print("".join(f"{value.item():>15.6g}" for value in row)[1:])


if __name__ == "__main__":
    main()
