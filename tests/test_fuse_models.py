"""fuse on models that nobody wrote for it: the same function, fewer bytes, the same training."""

from __future__ import annotations

import copy
import importlib.util
import math
import warnings

import pytest
import torch
from fewest import _few_are_enough  # noqa: F401
from torch import nn

import torchcalc
from torchcalc.testing.models import MODELS, TINY, Size, loss_of

pytestmark = pytest.mark.no_kernels

# What each model must have become at least, whatever else: (op, the end of a path).
EXPECTED = {
    "sequential": [("linear_act", "linear + gelu + dropout"), ("linear_act", "linear + relu")],
    "encoder": [
        ("linear_act", "linear + relu + dropout"),
        ("linear_act", "linear + dropout + residual"),
        ("dropout_add", "dropout + residual"),
    ],
    "encoder-norm-first": [
        ("mlp", "mlp: linear + gelu + dropout + linear + dropout + residual"),
        ("dropout_add", "dropout + residual"),
    ],
    "transformer": [
        ("linear_act", "linear + relu + dropout"),
        ("linear_act", "linear + dropout + residual"),
        ("dropout_add", "dropout + residual"),
    ],
    "bert": [
        ("mlp", "mlp: linear + gelu + linear + dropout + residual (in feed_forward_chunk)"),
        ("linear_act", "linear + dropout + residual"),
        ("dropout", "dropout (in eager_attention_forward)"),
    ],
    "gpt2": [
        ("mlp", "mlp: linear + gelu_tanh + linear + dropout + residual"),
        ("linear_act", "linear + dropout"),
        ("dropout", "dropout (in eager_attention_forward)"),
    ],
    "vit": [
        ("mlp", "mlp: linear + gelu + linear + dropout + residual"),
        ("dropout_add", "dropout + residual"),
    ],
    "llama": [("gated", "linear + silu + gate")],
    "t5": [
        ("linear_act", "linear + relu + dropout"),
        ("dropout_add", "dropout + residual"),
        ("dropout", "dropout (in eager_attention_forward)"),
    ],
    "t5-gated": [("gated", "linear + gelu_tanh + gate + dropout")],
    "whisper": [
        ("mlp", "mlp: linear + gelu + dropout + linear + dropout + residual"),
        ("dropout_add", "dropout + residual"),
    ],
    "clip": [("mlp", "mlp: linear + quick_gelu + linear + residual")],
    "timm-vit": [
        ("mlp", "mlp: linear + gelu + dropout + linear + dropout"),
        ("linear_act", "linear + dropout"),
    ],
    "timm-mixer": [("mlp", "mlp: linear + gelu + dropout + linear + dropout")],
    "torchvision-vit": [
        ("mlp", "mlp: linear + gelu + dropout + linear + dropout + residual"),
        ("dropout_add", "dropout + residual"),
    ],
    "torchvision-swin": [
        ("mlp", "mlp: linear + gelu + dropout + linear + dropout"),
        ("dropout", "dropout (in shifted_window_attention)"),
    ],
}


def build(
    name: str, dtype: torch.dtype = torch.float32, size: Size = TINY
) -> tuple[nn.Module, dict]:
    model = MODELS[name]
    if importlib.util.find_spec(model.package) is None:
        pytest.skip(f"{model.package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others' packages warn of on import
        torch.manual_seed(0)
        built = model.build(size).to(dtype)
    inputs = {k: t.to(dtype) if t.is_floating_point() else t for k, t in model.inputs(size).items()}
    return built, inputs


def run(model: nn.Module, inputs: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and all gradients."""
    model.zero_grad()
    torch.manual_seed(1)
    loss = loss_of(model(**inputs))
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def assert_same(got: tuple, expected: tuple, tolerance: float) -> None:
    """Relative to the largest gradient where a gradient is itself rounding, as a key's bias is."""
    (loss, grads), (wanted_loss, wanted) = got, expected
    assert abs(loss - wanted_loss) <= tolerance * max(abs(wanted_loss), 1)
    assert grads.keys() == wanted.keys()
    largest = max(g.norm() for g in wanted.values())
    for name, g in wanted.items():
        error, size = (grads[name] - g).norm(), max(g.norm(), 1e-3 * largest)
        assert error <= tolerance * size, (name, error / size)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", [torch.float32, torch.float64], ids=str)
def test_same_function(name, precision):
    model, inputs = build(name, precision)
    exact = precision == torch.float64 and not MODELS[name].computes_float32
    tolerance = 1e-12 if exact else 1e-6 if precision == torch.float64 else 1e-5
    model.eval()
    expected = run(model, inputs)
    report = torchcalc.fuse(model, inputs)
    assert report.fused
    assert not model.training
    assert_same(run(model, inputs), expected, tolerance)
    # In training without dropout, too.
    for module in model.modules():
        for attribute in ("p", "dropout", "attention_dropout", "activation_dropout", "drop_prob"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    model.train()
    got = run(model, inputs)
    torchcalc.unfuse(model)
    assert_same(got, run(model, inputs), tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_found(name):
    model, _ = build(name)
    before = {path: (id(m), type(m)) for path, m in model.named_modules()}
    state = {key: (t.data_ptr(), t.clone()) for key, t in model.state_dict().items()}
    report = torchcalc.fuse(model)
    found = {(f.op, f.what) for f in report.fused}
    assert found >= set(EXPECTED[name])
    assert not any(left.why.startswith("could not") for left in report.left)
    assert {path: id(m) for path, m in model.named_modules()} == {
        path: number for path, (number, _) in before.items()
    }
    assert all(isinstance(m, before[path][1]) for path, m in model.named_modules())
    for key, t in model.state_dict().items():
        assert t.data_ptr() == state[key][0]
        assert torch.equal(t, state[key][1])
    assert torchcalc.fuse(model) == report
    assert torchcalc.unfuse(model) is model
    assert {path: (id(m), type(m)) for path, m in model.named_modules()} == before
    text = str(report)
    assert all(f.what in text for f in report.fused)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["encoder", "bert", "gpt2", "vit", "t5-gated", "timm-vit", "torchvision-swin"]
)
def test_mean_over_seeds(name):
    """With dropout the loss is another number for each seed, of the same mean."""
    model, inputs = build(name)
    fused = copy.deepcopy(model)
    torchcalc.fuse(fused)

    @torch.no_grad()
    def losses(model, first):
        model.train()
        values = []
        for seed in range(first, first + 200):
            torch.manual_seed(seed)
            values.append(loss_of(model(**inputs)).double())
        return torch.stack(values)

    a, b = losses(model, 0), losses(fused, 1000)
    error = math.sqrt((a.var() + b.var()) / 200)
    assert error > 0
    assert abs(a.mean() - b.mean()) <= 4 * error


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)
    images = (images - images.mean()) / images.std()
    return images[:, None].expand(-1, 3, -1, -1).contiguous(), torch.tensor(data.target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key", "goal"), [("vit", "pixel_values", 0.95), ("timm-mixer", "x", 0.6)]
)
def test_learns_digits_alike(name, key, goal):
    """50 steps on real digits: the loss goes down as far, to the spread between seeds."""
    images, labels = digits()
    last = {}
    for fused in (False, True):
        finals = []
        for seed in (0, 1):
            model, _ = build(name, size=TINY._replace(width=64, image=8, patch=2))
            if fused:
                torchcalc.fuse(model)
            torch.manual_seed(seed)
            optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
            losses = []
            for _ in range(50):
                rows = torch.randint(len(labels), (64,))
                out = model(**{key: images[rows]})
                logits = out if isinstance(out, torch.Tensor) else out.logits
                loss = nn.functional.cross_entropy(logits, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            finals.append(sum(losses[-10:]) / 10)
            assert finals[-1] < goal * losses[0]
        last[fused] = sum(finals) / 2
    assert abs(last[True] - last[False]) < 0.25


@pytest.mark.slow
def test_learns_text_alike():
    """50 steps of GPT-2 on the licence's text, letter by letter."""
    from pathlib import Path

    text = (Path(__file__).parents[1] / "LICENSE").read_bytes()
    letters = torch.tensor(list(text))
    last = {}
    for fused in (False, True):
        model, _ = build("gpt2")
        if fused:
            torchcalc.fuse(model)
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(50):
            at = torch.randint(len(letters) - 16, (32,))
            rows = torch.stack([letters[k : k + 16] for k in at])
            loss = model(input_ids=rows, labels=rows).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert sum(losses[-10:]) / 10 < 0.7 * losses[0]
        last[fused] = sum(losses[-10:]) / 10
    assert abs(last[True] - last[False]) < 0.1 * last[False]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_keeps_fewer_bytes(name):
    from benchmarks.bench_models import MUST_KEEP, bytes_kept

    model, inputs = build(name, size=TINY._replace(width=128, tokens=64))
    model.train()
    before = bytes_kept(lambda: loss_of(model(**inputs)))
    torchcalc.fuse(model)
    assert bytes_kept(lambda: loss_of(model(**inputs))) <= MUST_KEEP[name] * before


@pytest.mark.parametrize("name", ["encoder", "bert", "gpt2", "t5"])
def test_bfloat16_autocast(name):
    model, inputs = build(name)
    model.eval()
    fused = copy.deepcopy(model)
    torchcalc.fuse(fused)
    exact, _ = run(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        eager, _ = run(model, inputs)
        ours, _ = run(fused, inputs)
    assert abs(ours - exact) <= 2 * abs(eager - exact) + 0.01 * abs(exact)
