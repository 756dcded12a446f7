"""Fine-tune Whisper with the Trainer of Hugging Face: `fuse` is one line before it.

pip install triton_gelu transformers accelerate
python examples/whisper_trainer.py --checkpoint openai/whisper-small
python examples/whisper_trainer.py --tiny      # random weights, seconds on a CPU, no download
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, WhisperConfig, WhisperForConditionalGeneration

import triton_gelu

TINY = WhisperConfig(
    vocab_size=100, d_model=32, num_mel_bins=8, max_source_positions=50, max_target_positions=20,
    encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
    decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=64,
    pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip


class Speech(torch.utils.data.Dataset):
    """Stands for yours: log-mel spectrograms [mels, frames], as WhisperFeatureExtractor gives them, and tokens."""

    def __init__(self, config: WhisperConfig, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        frames = 2 * config.max_source_positions  # the encoder's second convolution halves them
        self.mels = torch.randn(size, config.num_mel_bins, frames, generator=generator)
        self.tokens = torch.randint(3, config.vocab_size, (size, 12), generator=generator)

    def __len__(self) -> int:
        return len(self.mels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_features": self.mels[index], "labels": self.tokens[index]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="openai/whisper-tiny", help="of the hub (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a random model of two layers instead")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()

    torch.manual_seed(0)
    if args.tiny:
        model = WhisperForConditionalGeneration(TINY)
    else:
        model = WhisperForConditionalGeneration.from_pretrained(args.checkpoint)
    data = Speech(model.config, size=32)

    example = {name: tensor[None].to(model.device) for name, tensor in data[0].items()}
    print(triton_gelu.fuse(model, **example))  # the line: the Trainer moves, wraps and saves the model as ever

    with tempfile.TemporaryDirectory() as folder:
        settings = Seq2SeqTrainingArguments(
            folder, max_steps=args.steps, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=1,
            disable_tqdm=True, report_to=[], save_strategy="no",
            bf16=torch.cuda.is_available(), dataloader_pin_memory=torch.cuda.is_available(),
        )  # fmt: skip
        trainer = Seq2SeqTrainer(model, settings, train_dataset=data)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {float(losses[0]):.4f} -> {float(losses[-1]):.4f} in {args.steps} steps")


if __name__ == "__main__":
    main()
