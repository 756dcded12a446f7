"""Operations of other libraries on fused models; docs/fused_models.md is the table of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gated_clients import GATED, Gated, gated_table, losses
from small_tensors import small_tensors_take_the_whole_mechanism
from test_fuse import assert_same, results
from torch import Tensor, nn

from triton_gelu import fuse, unfuse

TABLE = Path(__file__).parents[2] / "docs" / "fused_models.md"
HEAD = """# What was tried with fused models

Written by `python tests/fuse/test_libraries.py`; each line is a test of `make test-all`, on a model with an nn.Linear
before an nn.GELU. "Same" is: the same values, and where there are any the same gradients, as without `fuse`.

| library | operation | result |
|---|---|---|
"""

TAIL = """
## Gated GELUs

Of each of these, the product of the GELU and its factor is one operator, forward and backward, and the gradients of the
biases that are before it come from the same pass. Outputs, gradients and three steps of training are compared with the
unfused model, and so is the compiled model.

"""

__all__ = ["small_tensors_take_the_whole_mechanism"]  # a fixture for every test here


class MLP(nn.Module):
    """A layer, its GELU, another layer: widths that quantisers take."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(self.act(self.fc1(x)))
        return y


class Functional(MLP):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


Operation = Callable[[Any, Any, Tensor], None]
OPERATIONS: dict[tuple[str, str], tuple[Operation, str]] = {}


def operation(library: str, what: str, result: str = "same") -> Callable[[Operation], Operation]:
    """Note a function of a fused model, the same model unfused, and an input, which compares the two."""

    def note(function: Operation) -> Operation:
        OPERATIONS[library, what] = function, result
        return function

    return note


def compare(model: Any, plain: Any, x: Tensor, tolerance: float = 1e-5) -> None:
    assert_same(results(model, x), results(plain, x), tolerance)


@operation("peft", "LoRA on the layer before and after GELU, merged, unloaded")
def lora(model: Any, plain: Any, x: Tensor) -> None:
    from peft import LoraConfig, get_peft_model

    nets = []
    for net in (model, plain):
        torch.manual_seed(0)
        net = get_peft_model(net, LoraConfig(target_modules=["fc1", "fc2"], r=2, init_lora_weights=False))
        nets.append(net)
    compare(*nets, x)
    merged = [net.merge_and_unload() for net in nets]
    compare(*merged, x)


@operation("torchao", "int8 weights (quantize_)", "same; the layer is unfused, because its weight is a tensor subclass")
def int8(model: Any, plain: Any, x: Tensor) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    with torch.no_grad():
        for net in (model, plain):
            quantize_(net, Int8WeightOnlyConfig())
            assert type(net.fc1.weight).__name__ not in ("Parameter", "Tensor")
        torch.testing.assert_close(model(x), plain(x))


@operation(
    "torchao", "float8 training (convert_to_float8_training)", "the layers are found and replaced as without `fuse`"
)
def float8(model: Any, plain: Any, x: Tensor) -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    for net in (model, plain):
        convert_to_float8_training(net, config=Float8LinearConfig(emulate=True))
    assert [type(module).__name__ for module in model.modules()][1] == "Float8Linear"
    compare(model, plain, x)


@operation("torch.ao", "quantize_dynamic", "the layers are found and replaced as without `fuse`")
def dynamic(model: Any, plain: Any, x: Tensor) -> None:
    ours, theirs = (torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear}) for net in (model, plain))
    assert type(ours.fc1) is type(theirs.fc1) is not nn.Linear
    torch.testing.assert_close(ours(x), theirs(x))


@operation("torch.nn.utils", "prune, then remove")
def prune(model: Any, plain: Any, x: Tensor) -> None:
    from torch.nn.utils import prune

    for net in (model, plain):
        prune.l1_unstructured(net.fc1, "weight", 0.5)
        prune.l1_unstructured(net.fc1, "bias", 0.5)
    compare(model, plain, x)
    for net in (model, plain):
        prune.remove(net.fc1, "weight"), prune.remove(net.fc1, "bias")
    compare(model, plain, x)


@operation("torch.nn.utils", "weight_norm and spectral_norm put on a fused layer", "same; the layer is unfused")
def norms(model: Any, plain: Any, x: Tensor) -> None:
    from torch.nn.utils.parametrizations import spectral_norm, weight_norm

    for net in (model, plain):
        torch.manual_seed(0)
        weight_norm(net.fc1), spectral_norm(net.fc2)
    compare(model, plain, x)


@operation("accelerate", "dispatch_model to CPU and disk")
def dispatch(model: Any, plain: Any, x: Tensor) -> None:
    import tempfile

    from accelerate import dispatch_model

    expected = plain(x)
    net = nn.Sequential(model)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        devices = {"0.fc1": "disk", "0.act": "cpu", "0.fc2": "cpu"}
        dispatch_model(net, devices, main_device="cpu", offload_dir=folder, force_hooks=True)
        torch.testing.assert_close(net(x), expected)


@operation("accelerate", "cpu_offload before and after fuse", "same; hooked before, the layer is reported unfused")
def offload(model: Any, plain: Any, x: Tensor) -> None:
    from accelerate import cpu_offload

    expected = plain(x)
    with torch.no_grad():
        cpu_offload(model, torch.device("cpu"))
        torch.testing.assert_close(model(x), expected)
        cpu_offload(plain, torch.device("cpu"))
        assert not any(site.fused for site in fuse(plain, x))
        torch.testing.assert_close(plain(x), expected)


@operation("accelerate", "hooks put on before fuse, removed after it, then unfuse", "nothing is left behind")
def hooks(model: Any, plain: Any, x: Tensor) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    unfuse(model)
    for module in model.modules():
        add_hook_to_module(module, ModelHook())
    fuse(model, x)
    remove_hook_from_module(model, recurse=True)
    unfuse(model)
    assert [type(a) is type(b) for a, b in zip(model.modules(), plain.modules(), strict=True)] == [True] * 4
    compare(model, plain, x)


@operation("accelerate", "prepare, then unwrap_model")
def unwrap(model: Any, plain: Any, x: Tensor) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    nets = [accelerator.unwrap_model(accelerator.prepare(net), keep_fp32_wrapper=False) for net in (model, plain)]
    compare(*nets, x)


@operation("diffusers", "apply_layerwise_casting, frozen base, gradient to the input")
def layerwise(model: Any, plain: Any, x: Tensor) -> None:
    from diffusers.hooks import apply_layerwise_casting

    for net in (model, plain):
        net.requires_grad_(False)
        apply_layerwise_casting(net, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    gradients = []
    for net in (model, plain):
        x.grad = None
        net(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


@operation("diffusers", "apply_layerwise_casting before fuse")
def layerwise_before(model: Any, plain: Any, x: Tensor) -> None:
    unfuse(model)
    with torch.no_grad():
        from diffusers.hooks import apply_layerwise_casting

        for net in (model, plain):
            apply_layerwise_casting(net, storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        fuse(model, x)
        torch.testing.assert_close(model(x), plain(x))


@operation(
    "transformers",
    "BERT with gradient checkpointing, compiled whole",
    "one graph, with as many nodes as without `fuse`",
)
def bert(model: Any, plain: Any, x: Tensor) -> None:
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(**sizes, vocab_size=50, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    config.use_cache = False
    plain = transformers.BertModel(config, add_pooling_layer=False).train()
    plain.gradient_checkpointing_enable()
    model, tokens, counts = copy.deepcopy(plain), torch.arange(12).view(2, 6), []
    assert len([site for site in fuse(model, tokens) if site.fused]) == 3

    def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
        graphs = [module for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
        names = [str(node.target) for each in graphs for node in each.graph.nodes if node.op == "call_function"]
        gelus = [name for name in names if "gelu" in name]
        counts.append((len(gelus), len([name for name in names if not ("in_graph" in name or "detach" in name)])))
        return graph

    outputs = []
    for net in (model, plain):
        torch._dynamo.reset()
        outputs.append(torch.compile(net, backend=backend, fullgraph=True)(tokens)[0])
    torch.testing.assert_close(*outputs)
    (gelus, nodes), plain_counts = counts
    assert (gelus, nodes + gelus) == plain_counts
    assert gelus == 3


@operation("transformers", "a Gemma layer and a T5 v1.1 layer, three training steps", "the same losses")
def gated_language_models(model: Any, plain: Any, x: Tensor) -> None:
    for name in ("Gemma", "T5 v1.1"):
        compare_losses(GATED[name])


@operation("diffusers", "a BasicTransformerBlock, three training steps", "the same losses")
def gated_block(model: Any, plain: Any, x: Tensor) -> None:
    compare_losses(GATED["BasicTransformerBlock"])


def compare_losses(client: Gated) -> None:
    """Train a model of gated GELUs, fused and not."""
    plain = client.model(torch.float32)
    model = copy.deepcopy(plain)
    assert [site.gated for site in fuse(model, **client.inputs(torch.float32))] == [True] * len(client.sites)
    ours, theirs = (losses(net, client, 3) for net in (model, plain))
    assert ours == pytest.approx(theirs, rel=1e-5)


@operation("torch", "deepcopy, pickle, torch.save, load_state_dict", "same, still fused")
def copies(model: Any, plain: Any, x: Tensor) -> None:
    import pickle

    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin.fc1) is type(model.fc1)
        twin.load_state_dict(plain.state_dict())
        compare(twin, plain, x)


@operation("torch", "jit.script, jit.trace, export", "standard operators")
def graphs(model: Any, plain: Any, x: Tensor) -> None:
    x = x.detach()
    program = torch.export.export(model, (x,)).module()
    for net in (torch.jit.script(model), torch.jit.trace(model, x), program):
        torch.testing.assert_close(net(x), plain(x))


@operation("torch", "activation offloading (save_on_cpu), saved_tensors_hooks")
def saved(model: Any, plain: Any, x: Tensor) -> None:
    with torch.autograd.graph.save_on_cpu():
        ours, theirs = results(model, x), results(plain, x)
    assert_same(ours, theirs, 1e-5)


@operation("torch", "func.grad, vmap over examples, jvp", "same, by PyTorch's operators")
def transforms(model: Any, plain: Any, x: Tensor) -> None:
    x = x.detach()
    ours, theirs = (torch.func.vmap(torch.func.grad(lambda v, net=net: net(v).sum()))(x) for net in (model, plain))
    torch.testing.assert_close(ours, theirs)
    ours, theirs = (torch.func.jvp(net, (x,), (torch.ones_like(x),))[1] for net in (model, plain))
    torch.testing.assert_close(ours, theirs)


@operation("torch", "FlopCounterMode, profiler, autograd anomaly mode")
def modes(model: Any, plain: Any, x: Tensor) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    flops = []
    for net in (model, plain):
        with FlopCounterMode(display=False) as counter, torch.autograd.detect_anomaly(check_nan=True):
            net(x).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1]
    with torch.profiler.profile():
        compare(model, plain, x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [MLP, Functional])
@pytest.mark.parametrize("case", OPERATIONS, ids=" ".join)
def test_an_operation_on_a_fused_model(case: tuple[str, str], make: type[MLP]) -> None:
    for library in ("peft", "torchao", "accelerate", "diffusers"):
        if case[0] == library:
            pytest.importorskip(library)
    plain, x = make(), torch.randn(4, 32, requires_grad=True)
    model = copy.deepcopy(plain)
    assert [site.fused for site in fuse(model, x)] == [True]
    OPERATIONS[case][0](model, plain, x)


def table() -> str:
    """The operations in Markdown, and the models."""
    operations = "".join(f"| {lib} | {what} | {result} |\n" for (lib, what), (_, result) in OPERATIONS.items())
    return HEAD + operations + TAIL + gated_table()


def test_the_table_of_operations_is_what_is_tested() -> None:
    assert TABLE.read_text() == table(), "see its first lines"


if __name__ == "__main__":
    TABLE.write_text(table())
