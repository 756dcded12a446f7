"""Layers in peft and torchao, where those are installed."""

import pytest
import torch
from test_modified_layers import assert_same, mlps, results
from torch import nn

from triton_gelu import MLP, AudioEncoder, Conv1dGELU, LinearGELU
from triton_gelu.modules import is_untouched


def test_peft_merges_into_an_mlp_and_an_encoder_what_it_computes_with_adapters() -> None:
    peft = pytest.importorskip("peft")
    config = {"r": 2, "init_lora_weights": False}
    spectrogram = torch.randn(1, 4, 10)
    for model, target, x in (
        (MLP(8, 32), "fc1", torch.randn(4, 8)),
        (MLP(8, 32, recompute=True), "fc2", torch.randn(4, 8)),
        (AudioEncoder(4, 5, 8, 2, 1), "mlp.0", spectrogram),
        (AudioEncoder(4, 5, 8, 2, 1), "conv2", spectrogram),
    ):
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=[target], **config)).eval()
        unmerged = adapted(x)
        unmerged.sum().backward()
        adapted.merge_adapter()
        torch.testing.assert_close(adapted(x), unmerged, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"Conv1dGELU.* is not supported"):
        peft.get_peft_model(nn.Sequential(Conv1dGELU(4, 5, 3)), peft.LoraConfig(target_modules=["0"], **config))


def test_peft_with_dropout_and_recomputing_has_the_gradients_without() -> None:
    peft = pytest.importorskip("peft")
    x = torch.randn(4, 8, requires_grad=True)
    models = []
    for recompute in (False, True):
        torch.manual_seed(3)
        config = peft.LoraConfig(target_modules=["fc1", "fc2"], r=2, init_lora_weights=False, lora_dropout=0.5)
        models.append(peft.get_peft_model(MLP(8, recompute=recompute), config).train())
    assert_same(*(results(model, x) for model in models))


def test_torchao_trains_both_layers_of_an_mlp_in_float8_and_no_layer_with_a_gelu() -> None:
    float8 = pytest.importorskip("torchao.float8")
    model = float8.convert_to_float8_training(nn.ModuleList([MLP(16, 32), LinearGELU(16, 32), nn.Linear(16, 32)]))
    mlp, alone, linear = model
    assert type(mlp.fc1) is type(mlp.fc2) is type(linear)
    assert type(alone) is LinearGELU
    assert not is_untouched(mlp.fc1, nn.Linear)


def test_torchao_quantises_the_weights_of_an_mlp() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    ours, theirs, x = mlps(False, "cpu", torch.float32)
    for model in (ours, theirs):
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert not is_untouched(ours.fc1, nn.Linear)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
