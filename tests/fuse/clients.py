"""Small models of well-known kinds with random weights: what `fuse` is for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import transformers as hf
import whisper.model

from triton_gelu import fuse

WIDTH, TOKENS = 32, 50
SIZE = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # without dropout, two models can be compared
PATCHES = {"image_size": 16, "patch_size": 8}


@dataclass(frozen=True)
class Client:
    """A model, the keyword its example goes by, and the (layer, formula) that its source says are to be fused."""

    make: Callable[[], nn.Module]
    keyword: str
    example: Tensor
    sites: list[tuple[str, str]] = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)
    compiles_in_eval: bool = False
    casts_its_weights: bool = False

    def model(self, dtype: torch.dtype) -> nn.Module:
        return self.make().to(torch.float32 if self.casts_its_weights else dtype).train()

    def inputs(self, dtype: torch.dtype) -> dict[str, Any]:
        example = self.example.to(dtype) if self.example.is_floating_point() else self.example
        return {self.keyword: example, **self.named}

    @staticmethod
    def output(result: Any) -> Tensor:
        y: Tensor = result if isinstance(result, Tensor) else result[0]
        return y


def layers(pattern: str, formula: str, *before: str) -> list[tuple[str, str]]:
    return [(name, formula) for name in (*before, *(pattern.format(i) for i in range(2)))]


def openai_whisper() -> nn.Module:
    return whisper.model.AudioEncoder(n_mels=8, n_ctx=20, n_state=WIDTH, n_head=2, n_layer=2)


def hf_whisper() -> nn.Module:
    config = hf.WhisperConfig(
        d_model=WIDTH, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, decoder_layers=1,
        decoder_attention_heads=2, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=20, dropout=0.0,
    )  # fmt: skip
    return hf.WhisperModel(config).encoder


def wav2vec2() -> nn.Module:
    config = hf.Wav2Vec2Config(
        **SIZE, vocab_size=TOKENS, conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3), conv_bias=True,
        num_feat_extract_layers=2, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, hidden_dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip
    return hf.Wav2Vec2Model(config)


def gpt2() -> nn.Module:
    config = hf.GPT2Config(
        n_embd=WIDTH, n_layer=2, n_head=2, n_positions=16, vocab_size=TOKENS, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return hf.GPT2Model(config)


def t5(activation: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = hf.T5Config(
            d_model=WIDTH, d_kv=16, d_ff=64, num_layers=2, num_heads=2, vocab_size=TOKENS, dropout_rate=0.0,
            feed_forward_proj=activation,
        )  # fmt: skip
        return hf.T5EncoderModel(config)

    return make


def transformer_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 64, dropout=0.0, activation="gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def swin() -> nn.Module:
    config = hf.SwinConfig(
        **STILL, image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2,
        drop_path_rate=0.0,
    )  # fmt: skip
    return hf.SwinModel(config, add_pooling_layer=False)


def convnext() -> nn.Module:
    return hf.ConvNextModel(hf.ConvNextConfig(num_stages=2, hidden_sizes=[16, 32], depths=[1, 1]))


def bloom() -> nn.Module:
    return hf.BloomModel(hf.BloomConfig(hidden_size=WIDTH, n_layer=2, n_head=2, vocab_size=TOKENS, use_cache=False))


def opt() -> nn.Module:
    config = hf.OPTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, vocab_size=TOKENS,
        word_embed_proj_dim=WIDTH, use_cache=False, dropout=0.0,
    )  # fmt: skip
    return hf.OPTModel(config)


SPECTRUM, IMAGE, SOUND = torch.randn(2, 8, 40), torch.randn(2, 3, 16, 16), torch.randn(2, 800)
TEXT = torch.arange(12).view(2, 6)

CLIENTS = {
    "openai-whisper": Client(
        openai_whisper, "x", SPECTRUM, layers("blocks.{}.mlp.0", "none", "conv1", "conv2"), casts_its_weights=True
    ),
    "HF Whisper": Client(
        hf_whisper, "input_features", SPECTRUM, layers("layers.{}.fc1", "none", "conv1", "conv2")
    ),
    "wav2vec2": Client(
        wav2vec2, "input_values", SOUND,
        layers("encoder.layers.{}.feed_forward.intermediate_dense", "none", "feature_extractor.conv_layers.1.conv"),
        compiles_in_eval=True,  # in training it sets requires_grad of its input, which Dynamo refuses
    ),
    "BERT": Client(
        lambda: hf.BertModel(hf.BertConfig(**SIZE, **STILL, vocab_size=TOKENS), add_pooling_layer=False), "input_ids",
        TEXT, layers("encoder.layer.{}.intermediate.dense", "none"),
    ),
    "GPT-2": Client(gpt2, "input_ids", TEXT, layers("h.{}.mlp.c_fc", "tanh")),
    "ViT": Client(
        lambda: hf.ViTModel(hf.ViTConfig(**SIZE, **STILL, **PATCHES), add_pooling_layer=False), "pixel_values", IMAGE,
        layers("layers.{}.mlp.fc1", "none"),
    ),
    "CLIP": Client(
        lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZE, **PATCHES)), "pixel_values", IMAGE,
        layers("encoder.layers.{}.mlp.fc1", "sigmoid"),
    ),
    "SigLIP": Client(
        lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**SIZE, **PATCHES)), "pixel_values", IMAGE,
        [*layers("encoder.layers.{}.mlp.fc1", "tanh"), ("head.mlp.fc1", "tanh")],
    ),
    "Swin": Client(swin, "pixel_values", IMAGE, layers("encoder.layers.{}.blocks.0.mlp.fc1", "none")),
    "ConvNeXt": Client(
        convnext, "pixel_values", torch.randn(2, 3, 32, 32), layers("encoder.stages.{}.layers.0.pwconv1", "none")
    ),
    "BLOOM": Client(bloom, "input_ids", TEXT, layers("h.{}.mlp.dense_h_to_4h", "tanh")),
    "SqueezeBERT": Client(
        lambda: hf.SqueezeBertModel(hf.SqueezeBertConfig(**SIZE, **STILL, vocab_size=TOKENS, embedding_size=WIDTH)),
        "input_ids", TEXT, layers("encoder.layers.{}.intermediate.conv1d", "none"),
    ),
    "nn.TransformerEncoder": Client(
        transformer_encoder, "src", torch.randn(2, 6, WIDTH), layers("layers.{}.linear1", "none")
    ),
    "T5 with ReLU": Client(t5("relu"), "input_ids", TEXT),
    "OPT": Client(opt, "input_ids", TEXT),
    "ESM": Client(
        lambda: hf.EsmModel(hf.EsmConfig(**SIZE, **STILL, vocab_size=TOKENS, pad_token_id=1)), "input_ids", TEXT,
        layers("encoder.layer.{}.intermediate.dense", "none"),
    ),
}  # fmt: skip


def table() -> str:
    """What `fuse` finds in each, in Markdown."""
    from gated_clients import GATED

    lines = ["| model | layer | formula | fused |", "|---|---|---|---|"]
    for name, client in {**CLIENTS, **GATED}.items():
        for site in fuse(client.model(torch.float32), **client.inputs(torch.float32)):
            lines.append(f"| {name} | `{site.name}` | {site.formula} | {site.outcome} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
