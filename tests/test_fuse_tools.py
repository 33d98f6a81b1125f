"""What people do with their models goes on working on fused ones."""

from __future__ import annotations

import copy
import importlib.util
import pickle

import pytest
import torch
from fewest import _few_are_enough  # noqa: F401
from test_fuse_models import build, run
from test_sharding import run as run_ranks
from torch import nn

import torchcalc
from torchcalc.testing.models import MODELS, loss_of

pytestmark = [pytest.mark.no_kernels, pytest.mark.slow]

TRANSFORMERS = importlib.util.find_spec("transformers") is not None
needs_transformers = pytest.mark.skipif(not TRANSFORMERS, reason="transformers is not installed")
IGNORED = pytest.mark.filterwarnings("ignore")  # of others' packages


def uses_fused_ops(model: nn.Module, inputs: dict) -> bool:
    with torch.profiler.profile() as profile:
        model(**inputs)
    return any("torchcalc::" in event.key for event in profile.key_averages())


def fused(name: str) -> tuple[nn.Module, nn.Module, dict]:
    """The untouched model, the same fused, and inputs."""
    model, inputs = build(name)
    made = copy.deepcopy(model)
    torchcalc.fuse(made)
    return model, made, inputs


@pytest.mark.parametrize("name", ["sequential", "encoder", "bert", "llama"])
def test_compiles_as_a_whole(name):
    model, made, inputs = fused(name)
    for each in (model, made):
        each.eval()
    expected = run(model, inputs)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    got = run(compiled, inputs)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-6)
    made.train()
    torch.manual_seed(0)
    first = loss_of(compiled(**inputs))
    torch.manual_seed(1)
    assert name == "llama" or not torch.equal(loss_of(compiled(**inputs)), first)


def test_equal_blocks_share_what_is_compiled():
    from torch._dynamo.testing import CompileCounter

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.act, self.drop = nn.GELU(), nn.Dropout(0.1)

        def forward(self, x):
            return x + self.drop(self.down(self.act(self.up(x))))

    x, counts = torch.randn(4, 8), []
    for fuse in (False, True):
        torch.compiler.reset()
        model, counter = nn.ModuleList(Block() for _ in range(12)), CompileCounter()
        if fuse:
            torchcalc.fuse(model)
        for block in model:
            block.compile(backend=counter, fullgraph=True)
            x = block(x.detach())
        counts.append(counter.frame_count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["sequential", "encoder", "bert", "timm-vit"])
@pytest.mark.parametrize("strict", [True, False])
@IGNORED
def test_exports(name, strict):
    model, made, inputs = fused(name)
    for each in (model, made):
        each.eval()
    program = torch.export.export(made, (), inputs, strict=strict)
    assert "torchcalc" in program.graph_module.code
    got, expected = program.module()(**inputs), model(**inputs)
    assert torch.allclose(loss_of(got), loss_of(expected), rtol=1e-4, atol=1e-6)


@IGNORED
def test_traced_and_symbolically_traced():
    model, inputs = build("sequential")
    torchcalc.fuse(model, inputs)
    model.eval()
    traced = torch.jit.trace(model, inputs["input"])
    torch.testing.assert_close(traced(inputs["input"]), model(inputs["input"]))
    graph = torch.fx.symbolic_trace(nn.Sequential(model))
    torch.testing.assert_close(graph(inputs["input"]), model(inputs["input"]))
    graph.train()  # modules stay modules there, with their modes
    assert not torch.equal(graph(inputs["input"]), graph(inputs["input"]))


def test_unpickled_models_compile_at_once():
    _, made, inputs = fused("encoder")
    loaded = pickle.loads(pickle.dumps(made)).eval()
    compiled = torch.compile(loaded, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs), made.eval()(**inputs))
    assert uses_fused_ops(loaded, inputs)


def test_functional_calls():
    from torch.func import functional_call, grad, vmap

    model, made, inputs = fused("sequential")
    params = {name: p.detach() for name, p in model.named_parameters()}
    x = inputs["input"]

    def gradients(module):
        def loss(p, row):
            return functional_call(module.eval(), p, (row,)).square().mean()

        return vmap(grad(loss), (None, 0))(params, x)

    expected = gradients(model)
    for name, g in gradients(made).items():
        torch.testing.assert_close(g, expected[name], rtol=1e-4, atol=1e-6)


def test_torchs_inference_path_is_taken():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 5, 32), torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with torch.no_grad(), pytest.warns(UserWarning, match="nested"):
        expected = model(x, src_key_padding_mask=padding)
    torchcalc.fuse(model)
    with torch.no_grad():
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), expected)
        with torch.profiler.profile() as profile:
            model(x)
    assert any("_transformer_encoder_layer_fwd" in e.key for e in profile.key_averages())


def test_on_two_ranks(tmp_path):
    for printed in run_ranks(2, "fused_ranks.py", str(tmp_path / "meeting")):
        assert printed == ["ok"]


@needs_transformers
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("reentrant", [True, False])
@IGNORED
def test_gradient_checkpointing(name, reentrant):
    _, made, inputs = fused(name)
    made.train()
    expected = run(made, inputs)
    made.gradient_checkpointing_enable({"use_reentrant": reentrant})
    got = run(made, inputs)
    torch.testing.assert_close(got[0], expected[0])
    for key, g in got[1].items():
        torch.testing.assert_close(g, expected[1][key], rtol=1e-4, atol=1e-6)


@needs_transformers
@IGNORED
def test_lora_put_on_and_taken_off():
    peft = pytest.importorskip("peft")
    model, made, inputs = fused("bert")
    for each in (model, made):
        each.eval()
    expected = run(model, inputs)[0]
    config = peft.LoraConfig(target_modules=["dense", "query"], r=2, init_lora_weights=False)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(made, config).eval()
    torch.manual_seed(0)
    plain = peft.get_peft_model(model, config).eval()
    loss, grads = run(tuned, inputs)
    wanted, wanted_grads = run(plain, inputs)
    torch.testing.assert_close(loss, wanted)
    assert abs(loss - expected) > 1e-4
    for key, g in wanted_grads.items():
        torch.testing.assert_close(grads[key], g, rtol=1e-3, atol=1e-6)
    merged = tuned.merge_and_unload()
    torch.testing.assert_close(loss_of(merged(**inputs)), wanted, rtol=1e-4, atol=1e-5)


@needs_transformers
@IGNORED
def test_saved_and_generated(tmp_path):
    model, made, inputs = fused("gpt2")
    for each in (model, made):
        each.eval()
    prompt = inputs["input_ids"][:, :4]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(made.generate(prompt, **settings), model.generate(prompt, **settings))
    made.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(run(loaded, inputs)[0], run(model, inputs)[0])


@needs_transformers
@IGNORED
def test_trainer(tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    _, made, inputs = fused("bert")
    rows = [{k: t[i] for k, t in inputs.items()} for i in range(2)] * 4
    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        learning_rate=1e-2, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(made, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    assert uses_fused_ops(made, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_other_dtypes(name):
    model, inputs = build(name)
    torchcalc.fuse(model)
    model.to(torch.bfloat16).train()
    half = {k: t.bfloat16() if t.is_floating_point() else t for k, t in inputs.items()}
    loss = loss_of(model(**half))
    loss.backward()
    assert loss.isfinite()


def test_other_devices():
    model, inputs = build("encoder")
    torchcalc.fuse(model)
    assert model.to("meta")(**{k: t.to("meta") for k, t in inputs.items()}).is_meta
    with torch.device("meta"):
        other, _ = build("encoder")
        assert torchcalc.fuse(other).fused
