"""What the tests of fuse are made of: blocks that say the same in different ways."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

import torchcalc


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


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.fc(x))
