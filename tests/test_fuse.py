"""fuse on small modules: what it finds, says and refuses."""

from __future__ import annotations

import pytest
import torch
from fewest import _few_are_enough  # noqa: F401
from fuse_blocks import (
    ByFunctions,
    ByMethod,
    ByStatements,
    Doubled,
    Gated,
    Mlp,
    OwnActivation,
    Parent,
    TensorMethod,
    assert_same,
    what,
)
from torch import nn

import torchcalc
from torchcalc.fusion import _run, _swap

pytestmark = pytest.mark.no_kernels


FOUND = {
    ByStatements: ["linear + gelu + dropout + residual"],
    ByFunctions: ["linear + silu + dropout + residual"],
    ByMethod: ["linear + dropout + residual", "linear + tanh"],
    Gated: ["linear + gelu + gate + dropout"],
    Mlp: ["mlp: linear + gelu + dropout + linear + dropout + residual"],
    TensorMethod: ["linear + relu"],
    Parent: ["mlp: linear + gelu + linear + dropout + residual"],
    OwnActivation: ["linear + quick_gelu"],
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_is_found(kind):
    model = kind()
    found = what(model)
    for name in FOUND[kind]:
        assert any(name in each for each in found), found
    assert_same(model)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(), "relu"), (nn.LeakyReLU(0.2), "leaky_relu"), (nn.GELU("tanh"), "gelu_tanh"),
        (nn.Softplus(2.0), "softplus"), (nn.Hardtanh(-2.0, 2.0), "hardtanh"), (nn.ELU(), "elu"),
        (nn.Mish(), "mish"), (nn.Softsign(), "softsign"), (nn.Hardswish(), "hardswish"),
    ],
)  # fmt: skip
def test_modules_of_torch(module, name):
    model = nn.Sequential(nn.Linear(8, 8), module)
    assert what(model) == [f"linear + {name}"]
    assert_same(model)


def test_report_says_what_was_left():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    report = torchcalc.fuse(model)
    (fused,) = report.fused
    assert fused.path == ""
    assert fused.modules == ("1", "0") or fused.modules == ("0", "1")
    assert (fused.kept_before, fused.kept_after) == (32, 32)
    assert ("2", "Linear") in {(left.path, left.what) for left in report.left}
    model[0].register_forward_hook(lambda *args: None)
    left = {each.path: each.why for each in torchcalc.fuse(model).left}
    assert left["0"] == "has hooks"


def test_nothing_to_fuse():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    report = torchcalc.fuse(model)
    assert report.fused == ()
    assert "Nothing to fuse" in str(report)
    assert type(model) is nn.Sequential


def test_bad_input():
    with pytest.raises(TypeError, match=r"fuse: model must be a torch.nn.Module, got Tensor"):
        torchcalc.fuse(torch.ones(1))
    with pytest.raises(TypeError, match=r"unfuse: model must be a torch.nn.Module, got int"):
        torchcalc.unfuse(3)
    with pytest.raises(TypeError, match="example_inputs must be a tuple"):
        torchcalc.fuse(nn.Linear(2, 2), torch.ones(1, 2))


def test_example_inputs_that_do_not_fit():
    model = ByStatements()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torchcalc.fuse(model, (torch.randn(2, 9),))
    with pytest.raises(TypeError, match="unexpected keyword"):
        torchcalc.fuse(model, {"y": torch.randn(2, 8)})
    assert type(model) is ByStatements
    assert model.training


@pytest.mark.parametrize("few", [0, 1 << 16])
def test_blocks_that_do_not_agree_are_left(monkeypatch, few):
    for training in (True, False):  # also where these would not be used
        monkeypatch.setitem(_swap.FEW, training, few)

    def wrong(*args, **kwargs):
        return functional(*args, **kwargs) * 1.5

    functional = _run.functional.linear_act
    monkeypatch.setattr(_run.functional, "linear_act", wrong)
    model = nn.Sequential(ByStatements(), Gated())
    report = torchcalc.fuse(model, (torch.randn(2, 8),))
    assert [left.path for left in report.left if "other results" in left.why] == ["0"]
    assert "linear + gelu + gate + dropout" in {f.what for f in report.fused}
    assert type(model[0]) is ByStatements


def test_modes_are_kept_by_example_inputs():
    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            super().train(mode)
            self.merged = not mode
            return self

    model = nn.Sequential(Merging(8, 8), ByStatements(), nn.Dropout(0.5))
    model[2].eval()
    torchcalc.fuse(model, (torch.randn(2, 8),))
    assert not model[0].merged
    assert [m.training for m in model] == [True, True, False]


def test_few_elements_are_left_to_pytorch(monkeypatch):
    # Their calls cost less. What a model computes does not depend on it.
    monkeypatch.undo()
    model = ByStatements()
    torchcalc.fuse(model)

    def uses_fused_ops(rows):
        with torch.profiler.profile() as profile:
            model(torch.randn(rows, 8))
        return any("torchcalc::" in event.key for event in profile.key_averages())

    assert not uses_fused_ops(2)
    assert uses_fused_ops(1024)
    model.eval()
    assert not uses_fused_ops(1024)
    assert uses_fused_ops(8192)


def test_what_nobody_thought_of_costs_a_block(monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("oops")

    monkeypatch.setattr("torchcalc.fusion._pieces.Lower._gated", broken)
    report = torchcalc.fuse(nn.Sequential(Gated(), ByStatements()))
    assert {left.why for left in report.left if left.path == "0"} == {
        "could not be read: RuntimeError: oops"
    }
    assert [f.path for f in report.fused if f.op == "linear_act"] == ["1"]


def test_long_and_deep_models():
    model = nn.Sequential(*[Doubled() for _ in range(30)])
    torchcalc.fuse(model)
    model(torch.randn(2, 8))  # in no more time than layers take
    long = nn.Sequential(*[m for _ in range(300) for m in (nn.Linear(8, 8), nn.ReLU())])
    assert len(torchcalc.fuse(long).fused) == 300
    assert_same(long, 2, 8)
