"""fuse on small modules: what it finds, what it leaves alone, and what may happen afterwards."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from abc import ABC

import pytest
import torch
import torch.nn.functional as F
from fewest import _few_are_enough  # noqa: F401
from torch import nn

import torchcalc
from torchcalc.fusion import _run, _swap

pytestmark = pytest.mark.no_kernels


class Layers(nn.Module):
    """What the blocks below are made of."""

    def __init__(self):
        super().__init__()
        self.fc, self.fc2, self.gate = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.act, self.drop, self.p = nn.GELU(), nn.Dropout(0.5), 0.5


def what(model: nn.Module, *inputs: torch.Tensor) -> list[str]:
    return sorted(f.what for f in torchcalc.fuse(model, inputs or None).fused)


def assert_same(model: nn.Module, *shape: int) -> None:
    """A fused model computes what it did without fusion, and its gradients."""
    assert not any(left.why.startswith("could not") for left in torchcalc.fuse(model).left)
    plain = torchcalc.unfuse(copy.deepcopy(model))
    torch.manual_seed(0)
    x = torch.randn(*(shape or (3, 5, 8)), dtype=torch.float64)
    for module in (plain, model):
        module.double()
        for drop in module.modules():
            if isinstance(drop, nn.Dropout):
                drop.p = 0.0
            if hasattr(drop, "p"):
                drop.p = 0.0
    for training in (True, False):
        results = []
        for module in (plain, model):
            module.train(training).zero_grad()
            given = x.clone().requires_grad_()
            y = module(given * 1)
            (y * torch.arange(y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
            grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
            results.append({"y": y.detach(), "x": given.grad, **grads})
        assert results[0].keys() == results[1].keys()
        for key, value in results[0].items():
            torch.testing.assert_close(results[1][key], value, rtol=1e-12, atol=1e-10)


# --- found


class ByStatements(Layers):
    def forward(self, x):
        h = self.fc(x)
        h = self.act(h)
        h: torch.Tensor = self.drop(h)
        return x + h


class ByFunctions(Layers):
    def forward(self, x):
        h = F.dropout(F.silu(self.fc(x)), p=self.p, training=self.training)
        return h + x


class ByMethod(Layers):
    def feed_forward(self, x, scale=None):
        """With a docstring."""
        return self.fc2(torch.tanh(self.fc(x)).view(x.shape))

    def forward(self, x):
        return x + F.dropout(self.feed_forward(x), self.p, self.training)


class Gated(Layers):
    def forward(self, x):
        gate = self.act(self.gate(x))
        value = self.fc(x)
        return self.drop(gate * value)


class Mlp(Layers):
    def forward(self, x):
        if x.dim() > 2:
            for _ in range(2):
                x = self.drop(self.fc2(self.drop(self.act(self.fc(x))))) + x
        return x


class TensorMethod(Layers):
    def forward(self, x):
        return self.fc(x).relu()


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = Half(), Other()

    def forward(self, x):
        return self.out(self.hidden(x), x)


class Half(Layers):
    def forward(self, x):
        x = self.fc(x)
        return self.act(x)


class Other(Layers):
    def forward(self, h, residual):
        h = self.drop(self.fc2(h))
        return F.layer_norm(h + residual, (8,))


class Quick(nn.Module):
    factor = 1.702  # of the class, which is not looked at

    def __init__(self):
        super().__init__()
        self.slope = 1.702

    def forward(self, x):
        scaled = self.slope * x
        return x * torch.sigmoid(scaled)


class OwnActivation(Layers):
    def __init__(self):
        super().__init__()
        self.act = Quick()

    def forward(self, x):
        return self.act(self.fc(x))


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


# --- left alone, and right


class UsedTwice(Layers):
    def forward(self, x):
        z = self.fc(x)
        return self.act(z) + z.sum()


class UsedInNextRound(Layers):
    def forward(self, x):
        h = x
        for _ in range(3):
            y = self.act(h)
            h = self.fc(y)
        return h


class UsedLater(Layers):
    def forward(self, x):
        h = x * 1
        later = (h * i for i in range(3))
        h = self.fc(x)
        y = self.act(h)
        return y + sum(later)


class ReadByHandler(Layers):
    def forward(self, x):
        h = x
        try:
            h = self.fc(x)
            h = self.act(h).view(7)
        except RuntimeError:
            pass
        return h


class Swallowed(Layers):
    def forward(self, x):
        import contextlib

        h = x
        with contextlib.suppress(RuntimeError):
            h = self.fc(x)
            h = self.act(h).view(7)
        return h


class ReadInTarget(Layers):
    def forward(self, x):
        out = torch.zeros_like(x)
        h = self.fc(x)
        out[: h.shape[0]] = self.act(h)
        return out


class Deleted(Layers):
    def forward(self, x):
        h = self.fc(x)
        y = self.act(h)
        del h
        return y


class ChangedBehind(Layers):
    def __init__(self):
        super().__init__()
        self.fc.requires_grad_(False)

    def forward(self, x):
        y = x.detach().clone()
        return (self.drop(self.fc(y)) + y.add_(1)) * x


class ChangedResult(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), nn.ELU()

    def forward(self, x):
        h = self.act(self.fc(x))
        h += x
        return h


class InPlaceDropout(Layers):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x):
        x = x.clone()
        return self.drop(x) + x


def act(x):
    return torch.tanh(x)


class LocalName(Layers):
    def forward(self, x):
        from torch.nn.functional import relu as act

        return act(self.fc(x))


class Recording(nn.Module):
    def forward(self, x):
        self.last = F.relu(x)
        return self.last


class WithEffect(Layers):
    def __init__(self):
        super().__init__()
        self.act = Recording()

    def forward(self, x):
        return self.act(self.fc(x)) + self.act.last.mean()


class Clamped(nn.Module):
    def forward(self, x):
        return F.relu(x).clamp(max=0.1)


class NotAnActivation(Layers):
    def __init__(self):
        super().__init__()
        self.act = Clamped()

    def forward(self, x):
        return self.act(self.fc(x))


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad


class OwnGradient(Layers):
    def forward(self, x):
        return StraightThrough.apply(self.fc(x))


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.fc(x))


class ArgumentUsedTwice(Layers):
    def __init__(self):
        super().__init__()
        self.block = Doubled()

    def forward(self, x):
        return self.block(self.drop(self.fc(x)))


class OwnMethodBound(Layers):
    def __init__(self):
        super().__init__()
        self.other = Half()
        self.run = self.other.forward

    def forward(self, x):
        return self.drop(self.run(x)) + x


class Static(Layers):
    @staticmethod
    def added(x, y=1.0):
        return x + y

    def forward(self, x):
        return self.added(self.drop(self.fc(x)), x)


class WithSuper(Half):
    def forward(self, x):
        return self.fc2(super().forward(x))


class InlinesSuper(Layers):
    def __init__(self):
        super().__init__()
        self.block = WithSuper()

    def forward(self, x):
        return x + self.drop(self.block(x))


class Broadcast(Layers):
    def forward(self, x):
        return x.mean(0, keepdim=True) + self.drop(self.fc(x)) + 0.5


class Transposed(Layers):
    def forward(self, x):
        x = x.transpose(0, 1)
        x = x + self.drop(self.fc(x))
        return x.transpose(0, 1).view(3, -1)


class ExpressionsOfP(Layers):
    def forward(self, x):
        return x + F.dropout(self.act(self.fc(x)), p=self.p * 0.5 + 0.0, training=self.training)


class WideGate(Layers):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 1)

    def forward(self, x):
        return torch.sigmoid(self.gate(x)) * self.fc(x)


class Unreachable(Layers):
    def __init__(self):
        super().__init__()
        self.fc2 = nn.Linear(16, 8)

    def forward(self, x):
        if x is None:
            return self.fc2(self.act(self.fc(x)))
        return self.act(self.fc(x))


class Walrus(Layers):
    def forward(self, x):
        if (h := self.fc(x)).numel() > 0:
            h = self.act(h)
        return h


class Matched(Layers):
    def forward(self, x):
        match x:
            case torch.Tensor() as h:
                h = self.fc(h)
                return self.act(h)


class EffectBefore(Layers):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = x * 1.0
        h = self.fc(self.relu(x))
        return 0.5 * x + self.drop(h)


class WalrusInArgument(Layers):
    def forward(self, x):
        y = x
        a = self.fc(y := x * 2)
        return y + self.act(a)


class InlinedWalrus(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop = WalrusOfItsOwn(), nn.Dropout(0.5)

    def forward(self, x):
        y = x * 2
        h = self.drop(self.inner(x))
        return h + y


class WalrusOfItsOwn(Layers):
    def forward(self, x):
        return self.act(self.fc(y := x)) + 0 * y


def doubled(x):
    return F.dropout(x, 0.0) * 2


doubled.enabled = True
FACTORS = {doubled: 3.0}


class LooksAtFunctions(Layers):
    def forward(self, x):
        if doubled.enabled and self.feed.__func__ is LooksAtFunctions.feed:
            return self.feed(doubled(x)) * FACTORS[doubled]
        return x

    def feed(self, x):
        for _ in range(2):
            x = self.drop(self.fc(x))
        return x


class SoftplusInPlace(Layers):
    def forward(self, x):
        return F.softplus(self.fc(x)).add_(1e-3)


class BothWait(Layers):
    def forward(self, x):
        gate = self.gate(x)
        x = self.fc(x)
        x = self.act(gate) * x
        return self.fc2(x)


class NearlyRelu(Layers):
    def forward(self, x):
        def near(x):
            return x + F.relu(-x)

        return near(self.fc(x)) + self.halves(self.fc2(x))

    def halves(self, x):
        return F.relu(x) - 0.01 * F.relu(-x)


RIGHT = [
    UsedTwice, UsedInNextRound, UsedLater, ReadByHandler, Swallowed, ReadInTarget, Deleted,
    ChangedBehind, ChangedResult, InPlaceDropout, LocalName, WithEffect, NotAnActivation,
    OwnGradient, ArgumentUsedTwice, OwnMethodBound, Static, WithSuper, InlinesSuper, Broadcast,
    EffectBefore, WalrusInArgument, InlinedWalrus, WalrusOfItsOwn, LooksAtFunctions,
    SoftplusInPlace, BothWait, NearlyRelu, Transposed, ExpressionsOfP, WideGate, Unreachable,
    Walrus, Matched,
]  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_right_whatever_the_forward_says(kind):
    model = kind()
    torchcalc.fuse(model)
    assert_same(model)


@pytest.mark.parametrize("kind", [WithEffect, OwnGradient, LocalName])
def test_not_taken_for_an_activation(kind):
    assert "linear + tanh" not in what(kind())
    assert kind is LocalName or "linear + relu" not in what(kind())


def test_dropout_in_place_is_seen_by_others():
    model = InPlaceDropout()
    torchcalc.fuse(model)
    model.drop.p = 1.0
    assert model(torch.ones(4, 8)).count_nonzero() == 0


def test_nothing_of_the_model_runs(tmp_path):
    written = tmp_path / "file"

    class Module(Layers):
        def forward(self, x):
            if x is None:
                written.write_text(repr(self.fc(x)))
                print(self.fc(x))
            return x

    torchcalc.fuse(Module())
    assert not written.exists()


def test_a_dropped_argument_is_dropped_once():
    model = ArgumentUsedTwice()
    nn.init.eye_(model.block.fc.weight)
    nn.init.eye_(model.fc.weight)
    model.block.fc.bias.data.zero_()
    model.fc.bias.data.zero_()
    model.block.drop.p = 0.0
    torchcalc.fuse(model)
    values = model(torch.ones(1000, 8)).unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 4.0]))


def test_long_and_deep_models():
    model = nn.Sequential(*[Doubled() for _ in range(30)])
    torchcalc.fuse(model)
    model(torch.randn(2, 8))  # in no more time than layers take
    long = nn.Sequential(*[m for _ in range(300) for m in (nn.Linear(8, 8), nn.ReLU())])
    assert len(torchcalc.fuse(long).fused) == 300
    assert_same(long, 2, 8)


# --- while training


def test_modes_and_probabilities_count_later():
    model = ByStatements()
    torchcalc.fuse(model)
    x = torch.randn(64, 8)
    assert not torch.equal(model(x), model(x))
    model.drop.eval()
    torch.testing.assert_close(model(x), model(x))
    model.drop.train()
    model.drop.p = 0.0
    torch.testing.assert_close(model(x), x + model.act(model.fc(x)))
    model.drop.p = 1.0
    torch.testing.assert_close(model(x), x)
    functions = ByFunctions()
    torchcalc.fuse(functions)
    functions.p = 0.0
    torch.testing.assert_close(functions(x), x + F.silu(functions.fc(x)))
    functions.p = 1.0
    torch.testing.assert_close(functions(x), x)


def test_activations_parameters_count_later():
    model = nn.Sequential(nn.Linear(8, 8), nn.LeakyReLU(0.2))
    torchcalc.fuse(model)
    model[1].negative_slope = 0.5
    x = torch.randn(4, 8)
    torch.testing.assert_close(model(x), F.leaky_relu(model[0](x), 0.5))
    own = OwnActivation()
    torchcalc.fuse(own)
    own.act.slope = 3.0
    torch.testing.assert_close(own(x), own.act(own.fc(x)))


def replace_linear(model):
    model.fc = nn.Linear(8, 8)


def replace_activation(model):
    model.act = nn.Tanh()


def add_hook(model):
    model.fc.register_forward_hook(lambda module, args, y: y * 2)


def add_pre_hook(model):
    model.fc.register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def add_parametrization(model):
    class Twice(nn.Module):
        def forward(self, w):
            return 2 * w

    nn.utils.parametrize.register_parametrization(model.fc, "weight", Twice())


class Triple(nn.Module):  # a copy of which has no idea of the first
    def forward(self, x):
        return x * 3


def replace_forward(model):
    model.fc.__dict__["forward"] = Triple()


def change_class(model):
    class Scaled(nn.Linear):
        def forward(self, x):
            return 5 * super().forward(x)

    model.fc.__class__ = Scaled


def replace_method(model):
    kind = type(torchcalc.unfuse(copy.deepcopy(model)))
    kind.forward = lambda self, x: x * 7


def put_lora_on(model):
    class Lora(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.a, self.b = base, nn.Linear(8, 2), nn.Linear(2, 8)

        def forward(self, x):
            return self.base(x) + self.b(self.a(x))

    model.fc = Lora(model.fc)


CHANGES = [
    replace_linear, replace_activation, add_hook, add_pre_hook, add_parametrization,
    replace_forward, change_class, replace_method, put_lora_on,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_changed_children_count(change, when):
    class Own(Layers):
        def forward(self, x):
            return self.act(self.fc(x)) + x

    model = Own()
    if when == "before":
        change(model)
    torchcalc.fuse(model)
    if when == "after":
        change(model)
    plain = torchcalc.unfuse(copy.deepcopy(model))
    x = torch.randn(4, 8)
    torch.testing.assert_close(model(x), plain(x))
    model(x.requires_grad_()).sum().backward()


def test_global_hooks_see_every_module():
    model = ByStatements()
    torchcalc.fuse(model)
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, args, y: seen.append(m))
    try:
        model(torch.randn(2, 8))
    finally:
        hook.remove()
    assert {model.fc, model.act, model.drop} <= set(seen)


def test_replaced_functions_count(monkeypatch):
    model = ByFunctions()
    torchcalc.fuse(model)
    monkeypatch.setattr(F, "silu", lambda x: x * 0)
    model.eval()
    x = torch.randn(2, 8)
    assert torch.equal(model(x), x)


def test_lora_taken_off_again_is_fused_again():
    model = ByStatements()
    torchcalc.fuse(model)
    base = model.fc
    put_lora_on(model)
    model.fc = base
    with torch.profiler.profile() as profile:
        model(torch.randn(2, 8))
    assert any("torchcalc::linear_act" in event.key for event in profile.key_averages())


class Holder(nn.Module):
    def __init__(self, function=F.gelu, slope=1.0):
        super().__init__()
        self.function, self.slope = function, slope

    def run(self, x):
        for _ in range(1):
            x = F.dropout(x, 0.0)
        return x * self.slope


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.holder = nn.Linear(8, 8), Holder()
        self.layers = nn.ModuleList([nn.Linear(8, 8)])

    def forward(self, x):
        return self.holder.run(self.holder.function(self.fc(x))) + F.relu(self.layers[-1](x))


def replace_holder(model):
    model.holder = Holder(torch.tanh, 2.0)


def append_layer(model):
    model.layers.append(nn.Linear(8, 8))
    model.layers[-1].register_forward_hook(lambda module, args, y: y * 5)


def change_bias(model):
    model.fc.bias = nn.Parameter(torch.zeros(1))


def reload_function(model):
    def tanh(self, x):
        return x * torch.tanh(self.slope * x)

    Holder.run.__code__ = tanh.__code__


@pytest.mark.parametrize("change", [replace_holder, append_layer, change_bias, reload_function])
def test_what_is_on_the_way_counts(change):
    model, code = Held(), Holder.run.__code__
    torchcalc.fuse(model)
    try:
        change(model)
        x = torch.randn(4, 8)
        torch.testing.assert_close(model(x), type(model).__bases__[0].forward(model, x))
        torchcalc.fuse(model)
        torch.testing.assert_close(model(x), type(model).__bases__[0].forward(model, x))
    finally:
        Holder.run.__code__ = code


ACT = torch.tanh


class ByGlobal(Layers):
    def forward(self, x):
        return ACT(self.fc(x))


def test_globals_count_when_compiled(monkeypatch):
    model, x = ByGlobal(), torch.randn(4, 8)
    torchcalc.fuse(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.tanh(model.fc(x)))
    monkeypatch.setattr(f"{__name__}.ACT", torch.sigmoid)
    for each in (model, compiled, torch.compile(model, backend="eager")):
        torch.testing.assert_close(each(x), torch.sigmoid(model.fc(x)))


# --- copies


def test_copies_are_of_their_own():
    model = ByStatements()
    torchcalc.fuse(model)
    x = torch.randn(4, 8)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies.append(torch.load(buffer, weights_only=False))
    for made in copies:
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        torch.testing.assert_close(made(x), expected)
        made.fc.weight.data.zero_()
        made.drop.p = 0.0
        torch.testing.assert_close(made(x), x + F.gelu(made.fc.bias).expand(4, 8))
        assert "torchcalc_fused" not in "".join(made.state_dict())
    shallow = copy.copy(model)
    shallow.train(False)
    torch.testing.assert_close(shallow(x), shallow(x))
    replica = model._replicate_for_data_parallel()
    replica._modules = {name: copy.deepcopy(m) for name, m in model._modules.items()}
    replica._modules["fc"].weight.data.zero_()
    replica.eval()
    torch.testing.assert_close(replica(x), x + F.gelu(replica.fc.bias).expand(4, 8))


def test_a_model_is_freed_at_once():
    gc.collect()
    gc.disable()
    try:
        model = Parent()
        torchcalc.fuse(model)
        model(torch.randn(2, 8))
        gc.collect()  # what fuse has left behind
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_optimizer_made_before_goes_on():
    model = ByStatements()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torchcalc.fuse(model)
    before = model.fc.weight.detach().clone()
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.fc.weight, before)


def test_a_metaclass_is_not_told():
    class Registry(type):
        known: list[str] = []  # noqa: RUF012

        def __init__(cls, name, bases, namespace):
            assert name not in Registry.known
            Registry.known.append(name)
            super().__init__(name, bases, namespace)

    class Registered(Layers, metaclass=Registry):
        def __init_subclass__(cls, *, tag):
            raise AssertionError

        def forward(self, x):
            return self.act(self.fc(x))

    model = Registered()
    assert what(model) == ["linear + gelu", "dropout"] or "linear + gelu" in what(model)
    assert_same(model)
    assert isinstance(model, Registered)


def test_abstract_classes_know_their_subclasses():
    class Base(Layers, ABC):
        def forward(self, x):
            return self.act(self.fc(x))

    class Sub(Base):
        pass

    model = Base()
    torchcalc.fuse(model)
    assert type(model) is not Base
    assert not isinstance(Sub(), type(model))
    assert isinstance(Sub(), Base)
    assert issubclass(Sub, Base)
    assert isinstance(model, Base)


def test_classes_that_cannot_be_extended():
    class Slots(Layers):
        __slots__ = ("extra",)

        def forward(self, x):
            return self.act(self.fc(x))

    model = nn.Sequential(Slots(), ByStatements())
    report = torchcalc.fuse(model)
    assert any("cannot be extended" in left.why for left in report.left)
    assert type(model[0]) is Slots
    assert {f.path for f in report.fused if f.op == "linear_act"} == {"", "1"}
    assert_same(model)


# --- the report, and what is refused


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
