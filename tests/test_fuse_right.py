"""fuse on forwards that say more than a pattern: right, whatever they do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fewest import _few_are_enough  # noqa: F401
from fuse_blocks import Doubled, Half, Layers, assert_same, what
from torch import nn

import torchcalc

pytestmark = pytest.mark.no_kernels


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
