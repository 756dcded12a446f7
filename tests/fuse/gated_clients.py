"""Small models with gated GELUs, with random weights: whole ones, and layers of libraries that are not installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import diffusers.models.attention
import torch
import transformers as hf
from clients import SIZE, TEXT, TOKENS, WIDTH, Client
from torch import Tensor, nn

MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FLAT = torch.randn(2, 6, WIDTH)


@dataclass(frozen=True)
class Gated(Client):
    """A model whose GELUs are gated: the library, the module that has the gate, and how many biases a gate has."""

    library: str = "transformers"
    module: str = ""
    biases: int = 0


def model(name: str, **config: Any) -> Callable[[], nn.Module]:
    """A decoder of transformers, or an encoder of the same kind."""

    def make() -> nn.Module:
        kind = getattr(hf, f"{name}Config")
        settings = {**SIZE, **MARKS, "vocab_size": TOKENS, "num_key_value_heads": 2, "head_dim": 16, **config}
        net: nn.Module = getattr(hf, f"{name}Model")(kind(**settings))
        return net

    return make


def t5_like(name: str, of: str, **config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        settings = {
            "d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": TOKENS,
            "dropout_rate": 0.0, "feed_forward_proj": "gated-gelu", **config,
        }  # fmt: skip
        net: nn.Module = getattr(hf, of)(getattr(hf, f"{name}Config")(**settings))
        return net

    return make


def t5_gemma() -> nn.Module:
    layers = {**SIZE, **MARKS, "vocab_size": TOKENS, "num_key_value_heads": 2, "head_dim": 16}
    config = hf.T5GemmaConfig(encoder=layers, decoder=layers, is_encoder_decoder=False, dropout_rate=0.0, **MARKS)
    return hf.T5GemmaEncoderModel(config)


def feed_forward(**named: Any) -> Callable[[], nn.Module]:
    return lambda: diffusers.models.attention.FeedForward(WIDTH, inner_dim=64, activation_fn="geglu", **named)


def block() -> nn.Module:
    return diffusers.models.attention.BasicTransformerBlock(WIDTH, 2, 16, activation_fn="geglu")


def transformer_2d() -> nn.Module:
    return diffusers.Transformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=WIDTH, num_layers=2, norm_num_groups=4
    )


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip


class GLU(nn.Module):
    """x-transformers': the second half is activated, and there may be a bias for the product."""

    def __init__(self, dim_in: int, dim_out: int, activation: nn.Module, *, mult_bias: bool) -> None:
        super().__init__()
        self.act = activation
        self.proj = nn.Linear(dim_in, dim_out * 2)
        self.mult_bias: Any = nn.Parameter(torch.ones(dim_out)) if mult_bias else 1.0

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        y: Tensor = x * self.act(gate) * self.mult_bias
        return y


class FeedForward(nn.Module):
    """x-transformers': a GLU, dropout, the way back."""

    def __init__(self, mult_bias: bool = False) -> None:
        super().__init__()
        glu = GLU(WIDTH, 64, nn.GELU(), mult_bias=mult_bias)
        self.ff = nn.Sequential(glu, nn.Dropout(0.0), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ff(x)
        return y


class GluMlp(nn.Module):
    """timm's: either half, norm and dropout between."""

    def __init__(self, gate_last: bool = True, bias: bool = True, use_conv: bool = False) -> None:
        super().__init__()
        self.chunk_dim, self.gate_last = 1 if use_conv else -1, gate_last
        self.fc1: nn.Module = nn.Conv2d(WIDTH, 128, 1) if use_conv else nn.Linear(WIDTH, 128, bias=bias)
        self.act = nn.GELU()
        self.drop1, self.drop2 = nn.Dropout(0.0), nn.Dropout(0.0)
        self.norm = nn.Identity()
        self.fc2: nn.Module = nn.Conv2d(64, WIDTH, 1) if use_conv else nn.Linear(64, WIDTH, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x1, x2 = x.chunk(2, dim=self.chunk_dim)
        x = x1 * self.act(x2) if self.gate_last else self.act(x1) * x2
        x = self.drop1(x)
        x = self.norm(x)
        x = self.fc2(x)
        return self.drop2(x)


class GegluOfSlices(nn.Module):
    """As Megatron-LM's users write it: the halves of one projection, by chunk, taken from the tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.dense_h_to_4h, self.dense_4h_to_h = nn.Linear(WIDTH, 128), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        def geglu(x: Tensor) -> Tensor:
            parts = torch.chunk(x, 2, dim=-1)
            return nn.functional.gelu(parts[0], approximate="tanh") * parts[1]

        y: Tensor = self.dense_4h_to_h(geglu(self.dense_h_to_4h(x)))
        return y


def layers(pattern: str, formula: str, numbers: tuple[int, ...] = (0, 1)) -> list[tuple[str, str]]:
    return [(pattern.format(i), formula) for i in numbers]


def gated(
    make: Callable[[], nn.Module],
    keyword: str,
    example: Tensor,
    sites: list[tuple[str, str]],
    module: str,
    library: str = "transformers",
    biases: int = 0,
    **named: Any,
) -> Gated:
    return Gated(make, keyword, example, sites, named, library=library, module=module, biases=biases)


GEMMA, T5 = "layers.{}.mlp.gate_proj", "encoder.block.{}.layer.1.DenseReluDense.wi_0"
CLASSES = {"cls_token_id": 1, "sep_token_id": 2}
CACHELESS = {"use_cache": False}
UNET = [
    *layers("down_blocks.0.attentions.{}.transformer_blocks.0.ff.net.0.proj", "none", (0,)),
    ("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "none"),
    *layers("up_blocks.1.attentions.{}.transformer_blocks.0.ff.net.0.proj", "none"),
]

GATED = {
    "Gemma": gated(model("Gemma", **CACHELESS), "input_ids", TEXT, layers(GEMMA, "tanh"), "GemmaMLP"),
    "Gemma 2": gated(model("Gemma2", **CACHELESS), "input_ids", TEXT, layers(GEMMA, "tanh"), "Gemma2MLP"),
    "Gemma 3": gated(model("Gemma3Text", **CACHELESS), "input_ids", TEXT, layers(GEMMA, "tanh"), "Gemma3MLP"),
    "VaultGemma": gated(model("VaultGemma", **CACHELESS), "input_ids", TEXT, layers(GEMMA, "tanh"), "VaultGemmaMLP"),
    "T5Gemma": gated(t5_gemma, "input_ids", TEXT, layers(f"encoder.{GEMMA}", "tanh"), "T5GemmaMLP"),
    "RecurrentGemma": gated(
        model("RecurrentGemma", intermediate_size=128, lru_width=WIDTH, block_types=["attention"],
              attention_window_size=4, **CACHELESS),
        "input_ids", TEXT,
        layers("layers.{}.mlp_block.gate_proj", "tanh"), "RecurrentGemmaMlp", biases=2,
    ),
    "Llama with biases and GELU": gated(
        model("Llama", hidden_act="gelu_pytorch_tanh", mlp_bias=True, **CACHELESS), "input_ids", TEXT,
        layers(GEMMA, "tanh"), "LlamaMLP", biases=2,
    ),
    "GLM with GELU": gated(
        model("Glm", hidden_act="gelu", **CACHELESS), "input_ids", TEXT, layers("layers.{}.mlp.gate_up_proj", "none"),
        "GlmMLP",
    ),
    "ModernBERT": gated(
        model("ModernBert", **CLASSES), "input_ids", TEXT, layers("layers.{}.mlp.Wi", "none"), "ModernBertMLP"
    ),
    "ModernBERT with biases": gated(
        model("ModernBert", mlp_bias=True, **CLASSES), "input_ids", TEXT, layers("layers.{}.mlp.Wi", "none"),
        "ModernBertMLP", biases=1,
    ),
    "T5 v1.1": gated(
        t5_like("T5", "T5EncoderModel"), "input_ids", TEXT, layers(T5, "tanh"), "T5DenseGatedActDense"
    ),
    "mT5": gated(t5_like("MT5", "MT5EncoderModel"), "input_ids", TEXT, layers(T5, "tanh"), "MT5DenseGatedActDense"),
    "UMT5": gated(t5_like("UMT5", "UMT5EncoderModel"), "input_ids", TEXT, layers(T5, "tanh"), "UMT5DenseGatedActDense"),
    "LongT5": gated(
        t5_like("LongT5", "LongT5EncoderModel"), "input_ids", TEXT, layers(T5, "tanh"), "LongT5DenseGatedActDense"
    ),
    "UDOP": gated(
        t5_like("Udop", "UdopEncoderModel"), "input_ids", TEXT, layers(T5, "none"),
        "UdopDenseGatedActDense", bbox=torch.zeros(2, 6, 4),
    ),
    "a feed-forward layer": gated(
        feed_forward(), "hidden_states", FLAT, [("net.0.proj", "none")], "GEGLU", "diffusers", 1
    ),
    "a feed-forward layer without biases": gated(
        feed_forward(bias=False), "hidden_states", FLAT, [("net.0.proj", "none")], "GEGLU", "diffusers"
    ),
    "BasicTransformerBlock": gated(
        block, "hidden_states", FLAT, [("ff.net.0.proj", "none")], "GEGLU", "diffusers", 1
    ),
    "Transformer2DModel": gated(
        transformer_2d, "hidden_states", torch.randn(2, WIDTH, 4, 4),
        layers("transformer_blocks.{}.ff.net.0.proj", "none"), "GEGLU", "diffusers", 1,
    ),
    "UNet2DConditionModel": gated(
        unet, "sample", torch.randn(2, 4, 8, 8), UNET, "GEGLU", "diffusers", 1,
        timestep=torch.tensor(3), encoder_hidden_states=FLAT,
    ),
    "FeedForward": gated(FeedForward, "x", FLAT, [("ff.0.proj", "none")], "GLU", "x-transformers, written out", 1),
    "FeedForward with a bias for the product": gated(
        lambda: FeedForward(True), "x", FLAT, [("ff.0.proj", "none")], "GLU", "x-transformers, written out", 1
    ),
    "GluMlp": gated(GluMlp, "x", FLAT, [("fc1", "none")], "GluMlp", "timm, written out", 1),
    "GluMlp, the first half": gated(
        lambda: GluMlp(False, False), "x", FLAT, [("fc1", "none")], "GluMlp", "timm, written out"
    ),
    "GluMlp of images": gated(
        lambda: GluMlp(use_conv=True), "x", torch.randn(2, WIDTH, 4, 4), [("fc1", "none")], "GluMlp",
        "timm, written out", 1,
    ),
    "ParallelMLP": gated(
        GegluOfSlices, "x", FLAT, [("dense_h_to_4h", "tanh")], "ParallelMLP", "Megatron-LM, written out", 1
    ),
}  # fmt: skip


def losses(net: nn.Module, client: Client, steps: int) -> list[float]:
    """What a model loses in some training steps."""
    found = []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(steps):
        loss = (client.output(net(**client.inputs(torch.float32))) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def gated_table() -> str:
    """The models, in Markdown."""
    lines = ["| library | model | module | gates | formula | biases of each |", "|---|---|---|---|---|---|"]
    for name, client in GATED.items():
        (site, formula), count = client.sites[0], len(client.sites)
        gates = f"`{site}`" + (f" and {count - 1} more" if count > 1 else "")
        lines.append(f"| {client.library} | {name} | {client.module} | {gates} | {formula} | {client.biases} |")
    return "\n".join(lines) + "\n"
