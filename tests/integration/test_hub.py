"""What `make hub` builds, loaded by `kernels` of Hugging Face from a folder: next to this package, into models."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import triton_gelu
from perf.accuracy.truth import gelu as true_gelu
from triton_gelu import hub_layers

kernels, hf = (pytest.importorskip(name) for name in ("kernels", "transformers"))
activations, gemma = hf.activations, hf.models.gemma.modeling_gemma

ROOT = Path(__file__).resolve().parents[2]
BACKEND = "cuda" if torch.version.cuda else "rocm" if torch.version.hip else "cpu"
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NAMED: dict[str, tuple[type[nn.Module], str]] = {  # layers: what transformers has of that name, and its formula
    "GeLU": (activations.GELUActivation, "none"),
    "GeluTanh": (activations.GELUTanh, "tanh"),
    "NewGELU": (activations.NewGELUActivation, "tanh"),
    "FastGELU": (activations.FastGELUActivation, "tanh"),
    "QuickGELU": (activations.QuickGELUActivation, "sigmoid"),
    "GeGLUMLP": (gemma.GemmaMLP, "tanh"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that is uploaded."""
    folder = tmp_path_factory.mktemp("hub")
    subprocess.run([sys.executable, ROOT / "hub" / "build.py", "--output", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Classes of transformers that ask for our layers, and a mapping that has them."""
    mapping: dict[str, Any] = {}
    for name, (cls, _) in NAMED.items():
        monkeypatch.setattr(cls, "kernel_layer_name", name, raising=False)
        monkeypatch.setattr(cls, "kernel_condition", staticmethod(lambda module: True), raising=False)
        mapping[name] = {BACKEND: kernels.LocalLayerRepository(repository, layer_name=name)}
    with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
        yield


def bert() -> nn.Module:
    return hf.BertModel(hf.BertConfig(**SIZE, **STILL), add_pooling_layer=False)


def gpt2() -> nn.Module:
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return hf.GPT2Model(hf.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, use_cache=False, **still))


def gemma_model() -> nn.Module:
    rest = {"head_dim": 16, "num_key_value_heads": 1, "use_cache": False, "hidden_act": "gelu_pytorch_tanh"}
    return hf.GemmaModel(hf.GemmaConfig(**SIZE, **rest))


MODELS = {"GeLU": bert, "NewGELU": gpt2, "GeGLUMLP": gemma_model}


def test_each_variant_says_what_it_is(repository: Path) -> None:
    read = {
        path.parent.name: kernels.Metadata.read_from_file(path) for path in repository.glob("build/*/metadata.json")
    }
    assert set(read) == {"torch-cpu", "torch-cuda", "torch-rocm"}
    assert len({each.id for each in read.values()}) == len(read)
    for variant, each in read.items():
        assert each.name.python_name == triton_gelu.__name__
        assert each.version == int(triton_gelu.__version__.split(".")[0])
        assert variant == f"torch-{str(each.backend.backend_type).rpartition('.')[2].lower()}"
    assert not [path for path in repository.rglob("*") if path.suffix == ".pyc" or path.name == "__pycache__"]


def test_a_copy_from_the_hub_and_this_one_keep_their_operators_apart(repository: Path, device: str) -> None:
    copy: Any = kernels.get_local_kernel(repository)
    assert copy.bias_gelu is not triton_gelu.bias_gelu
    x, bias = torch.randn(8, 16, device=device), torch.randn(16, device=device)
    results = []
    for package in (copy, triton_gelu):
        given = x.clone().requires_grad_(), bias.clone().requires_grad_()
        y = package.bias_gelu(*given)
        results.append([y, *torch.autograd.grad(y.square().sum(), given)])
        function = torch.compile(package.bias_gelu, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(function(x, bias), y, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    names = [package.ops.bias_gelu.BIAS_GELU.operators[0]._qualname for package in (copy, triton_gelu)]
    assert names == [f"{copy.__name__}::bias_gelu", "triton_gelu::bias_gelu"]


def test_an_older_version_of_kernels_finds_the_same_package(repository: Path) -> None:
    copy = kernels.get_local_kernel(repository)
    path = repository / "build" / f"torch-{BACKEND}" / "triton_gelu" / "__init__.py"
    spec = importlib.util.spec_from_file_location("flattened", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.bias_gelu is copy.bias_gelu
    assert module.layers is copy.layers


def test_the_layers_are_those_that_transformers_asks_for() -> None:
    assert set(NAMED) == set(hub_layers.__all__)
    classes = {cls.__name__: formula for cls, formula in NAMED.values() if cls is not gemma.GemmaMLP}
    assert classes == hub_layers.FORMULAS


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("name", [name for name in NAMED if name != "GeGLUMLP"])
def test_a_kernelized_activation_keeps_its_digits_where_its_own_code_loses_them(name: str, device: str) -> None:
    cls, formula = NAMED[name]
    x = torch.tensor([-8.0, -6.0, -3.0, 0.5, 4.0], device=device)
    activation = kernels.kernelize(cls(), mode=kernels.Mode.INFERENCE, device=device, use_fallback=False)
    torch.testing.assert_close(activation(x).double(), true_gelu(x.double(), formula), rtol=1e-5, atol=0.0)


def gradients(model: nn.Module, run: Callable[..., Any], tokens: Tensor) -> list[Tensor]:
    y = run(input_ids=tokens)[0]
    return [y, *torch.autograd.grad(y.square().mean(), list(model.parameters()))]


@pytest.mark.slow
@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_hugging_face_computes_what_it_did(name: str, device: str) -> None:
    model = MODELS[name]().to(device)
    tokens = torch.randint(50, (2, 8), device=device)
    before = gradients(model, model, tokens)
    changed = [module for module in model.modules() if type(module) is NAMED[name][0]]
    assert len(changed) == 2
    for mode in (kernels.Mode.INFERENCE, kernels.Mode.TRAINING, kernels.Mode.TRAINING | kernels.Mode.TORCH_COMPILE):
        kernels.kernelize(model, mode=mode, use_fallback=False)
        for module in changed:  # a function of the copy
            assert vars(module)["forward"].__func__.__module__.startswith("_triton_gelu_")
        compiled = kernels.Mode.TORCH_COMPILE in mode
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        after = gradients(model, run, tokens)
        for one, other in zip(after, before, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_gated_mlp_takes_its_formula_from_its_activation_and_leaves_others_alone(device: str) -> None:
    config = hf.GemmaConfig(hidden_size=8, intermediate_size=16)
    x = torch.randn(4, 8, device=device)
    for activation in ("gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "quick_gelu", "silu", "relu"):
        config.hidden_act = activation
        mlp = gemma.GemmaMLP(config).to(device)
        y = hub_layers.GeGLUMLP.forward(mlp, x)
        torch.testing.assert_close(y, mlp(x), rtol=1e-3, atol=1e-5)
        is_gelu = "gelu" in activation
        assert (hub_layers.formula_of(mlp.act_fn) is not None) == is_gelu
    seen: list[Tensor] = []
    watched = gemma.GemmaMLP(config.__class__(hidden_size=8, intermediate_size=16, hidden_act="gelu")).to(device)
    watched.act_fn.register_forward_hook(lambda module, args, y: seen.append(y))
    hub_layers.GeGLUMLP.forward(watched, x)
    assert len(seen) == 1
    watched.act_fn._forward_hooks.clear()
    watched.act_fn.register_full_backward_hook(lambda module, dx, dy: seen.append(dx[0]))
    hub_layers.GeGLUMLP.forward(watched, x.detach().requires_grad_()).sum().backward()
    assert len(seen) == 2
    assert hub_layers.formula_of(nn.GELU("tanh")) == "tanh"
    assert hub_layers.formula_of(nn.GELU()) == "none"


@pytest.mark.slow
def test_the_example_of_the_documents_runs(repository: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "hugging_face.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (code,) = (block for block in blocks if "LocalLayerRepository" in block)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "hub").symlink_to(repository)
    code += "print({type(module).__name__ for module in model.modules() if 'forward' in vars(module)})"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["{'GELUActivation'}"], done.stderr
