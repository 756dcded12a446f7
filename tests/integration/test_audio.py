"""The audio encoder."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from triton_gelu import AudioEncoder

SIZES = {"tiny": (80, 1500, 384, 6, 4), "base": (80, 1500, 512, 8, 6)}
"""n_mels, n_ctx, n_state, n_head, n_layer in openai-whisper's checkpoints."""

SAMPLE_RATE, WINDOW, HOP = 16_000, 400, 160
"""Whisper's: 25 ms windows, 10 ms apart."""


def chirp(seconds: float) -> Tensor:
    """A tone that rises from 100 Hz to 3 kHz, with some noise."""
    t = torch.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    phase = 2 * math.pi * (100 * t + 2900 * t.square() / (2 * seconds))
    return phase.sin() + 0.01 * torch.randn_like(t)


def mel_filters(n_mels: int) -> Tensor:
    """Triangles [n_mels, WINDOW // 2 + 1], equally wide in mel = 2595 lg(1 + f / 700)."""
    highest = 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, n_mels + 2) / 2595) - 1)
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    rising = (frequencies - corners[:-2, None]) / corners.diff()[:-1, None]
    falling = (corners[2:, None] - frequencies) / corners.diff()[1:, None]
    return torch.minimum(rising, falling).clamp_min(0)


def log_mel(sound: Tensor, n_mels: int) -> Tensor:
    """The spectrogram [n_mels, frames] that Whisper's encoder takes."""
    power = torch.stft(sound, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)[:, :-1].abs().square()
    log = (mel_filters(n_mels) @ power).clamp_min(1e-10).log10()
    return (log.clamp_min(log.max() - 8) + 4) / 4


def twins(*size: int) -> tuple[AudioEncoder, nn.Module]:
    theirs = pytest.importorskip("whisper.model").AudioEncoder(*size)
    ours = AudioEncoder(*size)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_it_turns_a_sound_into_features(device: str) -> None:
    encoder = AudioEncoder(n_mels=16, n_ctx=25, n_state=32, n_head=4, n_layer=2).to(device)
    mel = log_mel(chirp(seconds=0.5), n_mels=16).to(device)[None]
    assert mel.shape == (1, 16, 50)
    features = encoder(mel)
    assert features.shape == (1, 25, 32)
    assert features.isfinite().all()
    features.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert not torch.equal(features, encoder(torch.zeros_like(mel)))


def test_its_parameters_results_and_gradients_are_those_of_openai_whisper() -> None:
    ours, theirs = twins(16, 25, 32, 4, 2)
    mel = log_mel(chirp(seconds=0.5), n_mels=16)[None]
    weights = torch.randn(1, 25, 32)
    for encoder in (ours, theirs):
        (encoder(mel) * weights).sum().backward()
    torch.testing.assert_close(ours(mel), theirs(mel), rtol=0, atol=1e-5)
    for (name, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4, msg=name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert torch.equal(AudioEncoder(16, 25, 32, 4, 2).positional_embedding, theirs.positional_embedding)


def test_the_exact_formula_is_the_default_and_another_can_be_asked_for() -> None:
    mel = torch.randn(1, 8, 20)
    exact = AudioEncoder(8, 10, 16, 2, 1)
    other = AudioEncoder(8, 10, 16, 2, 1, approximate="tanh")
    other.load_state_dict(exact.state_dict())
    assert exact.approximate == "none"
    assert repr(other).splitlines()[1] == "  approximate='tanh'"
    assert not torch.allclose(exact(mel), other(mel), rtol=0, atol=1e-5)


def test_it_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    encoder, mel = AudioEncoder(8, 10, 16, 2, 1), torch.randn(1, 8, 20)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(mel), encoder(mel))


def test_under_autocast_its_features_are_near_those_of_openai_whisper() -> None:
    ours, theirs = twins(16, 25, 32, 4, 2)
    mel = log_mel(chirp(seconds=0.5), n_mels=16)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = ours(mel)
    torch.testing.assert_close(features.float(), theirs(mel), rtol=0.05, atol=0.05)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="n_state must be even and a multiple of n_head = 3, got 16"):
        AudioEncoder(8, 10, 16, 3, 1)
    with pytest.raises(ValueError, match="mel must have 20 frames, got 18"):
        AudioEncoder(8, 10, 16, 2, 1)(torch.randn(1, 8, 18))


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_at_full_size_it_agrees_with_openai_whisper(size: str) -> None:
    pytest.importorskip("whisper")
    # In a process of its own: Triton's interpreter would take minutes.
    subprocess.run([sys.executable, __file__, size], env=os.environ | {"TRITON_INTERPRET": "0"}, check=True)


def compare(size: str) -> None:
    ours, theirs = twins(*SIZES[size])
    mel = log_mel(chirp(seconds=30), n_mels=80)[None]
    with torch.inference_mode():
        features = ours(mel)
        torch.testing.assert_close(features, theirs(mel), rtol=0, atol=1e-5)
    assert features.shape == (1, 1500, SIZES[size][2])


if __name__ == "__main__":
    compare(sys.argv[1])
