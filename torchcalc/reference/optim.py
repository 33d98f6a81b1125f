"""Optimizers in plain PyTorch: update rules of one tensor, each followed by a prox.

The fields of a rule are the arguments of its op, in their order (csrc/library.cpp). ``update``
gives v, the plain update, at step number k, and writes the states; ``steps`` are those that
coordinates make in the long run, from the states written; ``one_step`` is that of all, where theirs
are not wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Prox = Callable[[float, Tensor, Tensor | float], Tensor]  # of a penalty: (bound, v, step) -> w


def step(
    rule: Rule,
    k: float,
    param: Tensor,
    grad: Tensor,
    states: Sequence[Tensor] = (),
    *,
    prox: Prox | None = None,
    adaptive: bool = False,
    prox_clip: float = math.inf,
) -> None:
    """param = prox(v, s), in place; s are the coordinates' steps where adaptive, else one."""
    v = rule.update(k, param, grad, states)
    if prox is not None:
        v = prox(bound(rule, k, prox_clip), v, prox_step(rule, k, states, adaptive))
    param.copy_(v)


def prox_step(rule: Rule, k: float, states: Sequence[Tensor], adaptive: bool) -> Tensor | float:
    """With lr = 0 all steps are 0, and a constraint is met in the metric of one step for all."""
    return rule.steps(k, states) if adaptive and rule.lr else rule.one_step(k)


def bound(rule: Rule, k: float, prox_clip: float) -> float:
    """How far a penalty may pull a coordinate."""
    return prox_clip * rule.one_step(k) if prox_clip < math.inf else math.inf


def _gradient(w: Tensor, g: Tensor, weight_decay: float, maximize: bool) -> Tensor:
    g = -g if maximize else g
    return g + weight_decay * w if weight_decay else g  # 0 times an infinite weight is NaN


def _steps(lr: float, d: Tensor, unseen: Tensor) -> Tensor:
    """lr / d where a gradient was ever seen, else lr."""
    return torch.where(unseen, lr, lr / d).clamp_max(torch.finfo(d.dtype).max)


class SGDRule(NamedTuple):
    """torch.optim.SGD; states: momentum_buffer where momentum is not 0."""

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False
    first_step: bool = False

    def update(self, k: float, w: Tensor, g: Tensor, states: Sequence[Tensor]) -> Tensor:
        d = _gradient(w, g, self.weight_decay, self.maximize)
        if self.momentum:
            b = states[0]
            b.copy_(d if self.first_step else self.momentum * b + (1 - self.dampening) * d)
            d = d + self.momentum * b if self.nesterov else b
        return w - self.lr * d

    def one_step(self, k: float) -> float:
        # How far a constant gradient of 1 moves a coordinate a step in the end.
        factor = (1 - self.dampening) / (1 - self.momentum) if self.momentum else 1.0
        return self.lr * factor

    def steps(self, k: float, states: Sequence[Tensor]) -> float:
        return self.one_step(k)


class AdamRule(NamedTuple):
    """torch.optim.Adam or, decoupled, AdamW; states: exp_avg, exp_avg_sq, with amsgrad its max."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float = 0.0
    amsgrad: bool = False
    decoupled: bool = True
    maximize: bool = False

    def update(self, k: float, w: Tensor, g: Tensor, states: Sequence[Tensor]) -> Tensor:
        g = _gradient(w, g, 0.0 if self.decoupled else self.weight_decay, self.maximize)
        m, n = states[:2]
        m.copy_(self.beta1 * m + (1 - self.beta1) * g)
        n.copy_(self.beta2 * n + (1 - self.beta2) * g * g)
        if self.amsgrad:
            states[2].copy_(torch.maximum(states[2], n))
        decay = 1 - self.lr * self.weight_decay if self.decoupled else 1.0
        mean: Tensor = m / (1 - self.beta1**k)
        return w * decay - self.lr * mean / self._d(k, states)

    def one_step(self, k: float) -> float:
        return self.lr

    def steps(self, k: float, states: Sequence[Tensor]) -> Tensor:
        return _steps(self.lr, self._d(k, states), (states[0] == 0) & (states[-1] == 0))

    def _d(self, k: float, states: Sequence[Tensor]) -> Tensor:
        return torch.sqrt(states[-1] / (1 - self.beta2**k)) + self.eps


class AdagradRule(NamedTuple):
    """torch.optim.Adagrad; states: sum."""

    lr: float
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-10
    maximize: bool = False

    def update(self, k: float, w: Tensor, g: Tensor, states: Sequence[Tensor]) -> Tensor:
        g = _gradient(w, g, self.weight_decay, self.maximize)
        (n,) = states
        n.copy_(n + g * g)
        return w - self.one_step(k) * g / (n.sqrt() + self.eps)

    def one_step(self, k: float) -> float:
        return self.lr / (1 + (k - 1) * self.lr_decay)

    def steps(self, k: float, states: Sequence[Tensor]) -> Tensor:
        (n,) = states
        return _steps(self.one_step(k), n.sqrt() + self.eps, n == 0)


class RMSpropRule(NamedTuple):
    """torch.optim.RMSprop; states: square_avg, with momentum momentum_buffer, centered grad_avg."""

    lr: float
    alpha: float
    eps: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    maximize: bool = False

    def update(self, k: float, w: Tensor, g: Tensor, states: Sequence[Tensor]) -> Tensor:
        g = _gradient(w, g, self.weight_decay, self.maximize)
        n = states[0]
        n.copy_(self.alpha * n + (1 - self.alpha) * g * g)
        if self.centered:
            states[-1].copy_(self.alpha * states[-1] + (1 - self.alpha) * g)
        d = g / self._d(states)
        if self.momentum:
            d = states[1].copy_(self.momentum * states[1] + d)
        return w - self.lr * d

    def one_step(self, k: float) -> float:
        return self.lr / (1 - self.momentum)

    def steps(self, k: float, states: Sequence[Tensor]) -> Tensor:
        return _steps(self.one_step(k), self._d(states), states[0] == 0)

    def _d(self, states: Sequence[Tensor]) -> Tensor:
        n = states[0] - states[-1] ** 2 if self.centered else states[0]
        return n.sqrt() + self.eps


class FTRLRule(NamedTuple):
    """FTRL-Proximal (McMahan et al., KDD 2013); states: z, n, made with lr_before."""

    lr: float
    lr_before: float
    lr_power: float = -0.5
    beta: float = 0.0
    maximize: bool = False

    def update(self, k: float, w: Tensor, g: Tensor, states: Sequence[Tensor]) -> Tensor:
        g = _gradient(w, g, 0.0, self.maximize)
        z, n = states
        before = n**-self.lr_power
        n.copy_(n + g * g)
        # What d grows by, without the difference of what stays.
        sigma = (n**-self.lr_power - before) / self.lr
        sigma += (self.beta + before) * (1 / self.lr - 1 / self.lr_before)
        z.copy_(z + g - sigma * w)
        return -z * self.steps(k, states)

    def one_step(self, k: float) -> float:
        return self.lr

    def steps(self, k: float, states: Sequence[Tensor]) -> Tensor:
        d = self.d(self.lr, states[1])
        return (1 / d).clamp_max(torch.finfo(d.dtype).max)

    def d(self, lr: float | Tensor, n: Tensor) -> Tensor:
        return (self.beta + n**-self.lr_power) / lr


Rule = SGDRule | AdamRule | AdagradRule | RMSpropRule | FTRLRule
