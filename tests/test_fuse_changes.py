"""What happens to fused modules afterwards: modes, replaced parts, copies."""

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
from fuse_blocks import ByFunctions, ByStatements, Layers, OwnActivation, Parent, assert_same, what
from torch import nn

import torchcalc

pytestmark = pytest.mark.no_kernels


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
