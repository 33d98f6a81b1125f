"""Adagrad, RMSprop and FTRL with a penalty: published updates step for step, and where they end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torchcalc import optim, prox

MAKE = {
    "SGD": lambda w, g: optim.SGD([w], lr=0.1, penalty=g),
    "SGD, momentum": lambda w, g: optim.SGD([w], lr=0.02, momentum=0.8, penalty=g),
    "Adam": lambda w, g: optim.Adam([w], lr=0.05, penalty=g),
    "Adam, amsgrad": lambda w, g: optim.Adam([w], lr=0.05, amsgrad=True, penalty=g),
    "AdamW": lambda w, g: optim.AdamW([w], lr=0.05, weight_decay=0.0, penalty=g),
    "Adagrad": lambda w, g: optim.Adagrad([w], lr=0.5, penalty=g),
    "Adagrad, decay": lambda w, g: optim.Adagrad([w], lr=1.0, lr_decay=1e-3, penalty=g),
    "Adagrad, no clip": lambda w, g: optim.Adagrad(
        [w], lr=0.5, initial_accumulator_value=0.1, penalty=g, prox_clip=None
    ),
    "RMSprop": lambda w, g: optim.RMSprop([w], lr=0.05, penalty=g),
    "RMSprop, momentum": lambda w, g: optim.RMSprop([w], lr=0.01, momentum=0.8, penalty=g),
    "RMSprop, centered": lambda w, g: optim.RMSprop(
        [w], lr=0.01, centered=True, eps=0.1, penalty=g
    ),
    "RMSprop, both": lambda w, g: optim.RMSprop(
        [w], lr=0.002, momentum=0.8, centered=True, eps=0.1, penalty=g
    ),
    "FTRL": lambda w, g: optim.FTRL([w], lr=1.0),
}


@pytest.mark.no_kernels  # thousands of steps, each tested elsewhere
@pytest.mark.parametrize("lam", [0.01, 1.0, 6.0])
@pytest.mark.parametrize("name", MAKE)
def test_each_ends_at_the_solution(name, lam):
    """min (w - 2)^2 / 2 + lam |w| is at max(2 - lam, 0)."""
    w = torch.nn.Parameter(torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64))
    optimizer = MAKE[name](w, prox.L1(lam))
    start = optimizer.param_groups[0]["lr"]
    for step in range(3000):
        if not name.startswith(("Adagrad", "FTRL")):  # their steps shrink by themselves
            optimizer.param_groups[0]["lr"] = start * 0.995 ** max(0, step - 1500)
        if name == "FTRL":  # l1 is once for all losses: a penalty on their mean grows with them
            optimizer.param_groups[0]["l1"] = lam * (step + 1)
        w.grad = w.detach() - 2
        optimizer.step()
    expected = max(2 - lam, 0.0)
    torch.testing.assert_close(w.detach(), torch.full_like(w, expected), atol=2e-3, rtol=0)
    if expected == 0:
        assert (w == 0).all()


def gradient(k, w):
    """Of a convex function, and another one at each step; some coordinates see none at times."""
    generator = np.random.default_rng(k)
    g = 0.5 * w + generator.normal(size=w.shape)
    return np.where(generator.random(w.shape) < 0.3, 0.0, g)


def steps(optimizer, w, update, count=50):
    """Runs both side by side: update(k, w, g) is the published one, on numpy arrays."""
    x = w.detach().numpy().copy()
    for k in range(count):
        g = gradient(k, x)
        w.grad = torch.from_numpy(gradient(k, w.detach().numpy()))
        optimizer.step()
        x = update(k, x, g)
        np.testing.assert_allclose(w.detach().numpy(), x, rtol=1e-10, atol=1e-12)
    assert (x == 0).any()
    assert (x != 0).any()


def start(seed=0, size=40):
    return torch.nn.Parameter(torch.from_numpy(np.random.default_rng(seed).normal(size=size)))


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("power", [-0.5, -0.7, 0.0])
def test_ftrl_is_mcmahans(power, beta):
    """Algorithm 1 of "Ad click prediction", with its per-coordinate alpha, beta, lambda 1 and 2."""
    alpha, l1, l2, initial = 0.3, 1.5, 0.4, 0.1
    w = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
    z, n = np.zeros(40), np.full(40, initial)

    def update(k, x, g):
        sigma = ((n + g * g) ** -power - n**-power) / alpha
        z[:] += g - sigma * x
        n[:] += g * g
        inner = -(z - np.sign(z) * l1) / ((beta + n**-power) / alpha + l2)
        return np.where(np.abs(z) <= l1, 0.0, inner)

    optimizer = optim.FTRL([w], alpha, power, beta, l1, l2, initial_accumulator_value=initial)
    steps(optimizer, w, update)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_ftrl_is_tensorflows(beta):
    """Its documented update: quadratic = n^-p / lr + 2 l2, where beta adds beta / (2 lr) to l2."""
    lr, power, l1, half_l2, initial = 0.3, -0.5, 1.5, 0.2, 0.1
    w = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
    linear, accumulator = np.zeros(40), np.full(40, initial)
    adjusted = half_l2 + beta / (2 * lr)

    def update(k, x, g):
        new = accumulator + g * g
        linear[:] += g - (new**-power - accumulator**-power) / lr * x
        accumulator[:] = new
        quadratic = new**-power / lr + 2 * adjusted
        clipped = np.clip(linear, -l1, l1)
        return (clipped - linear) / quadratic

    optimizer = optim.FTRL([w], lr, power, beta, l1, 2 * half_l2, initial_accumulator_value=initial)
    steps(optimizer, w, update)


def test_ftrl_starts_at_the_weights_given(dtype, device):
    given = torch.tensor([1.0, -0.5, 0.0, 1e-3, -30.0], device=device, dtype=dtype)
    w = torch.nn.Parameter(given.clone())
    optimizer = optim.FTRL([w], lr=0.1, l1=0.5, l2=0.1, beta=1.0)
    w.grad = torch.zeros_like(w)
    optimizer.step()
    torch.testing.assert_close(w.detach(), given, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)
    assert w[2] == 0


@pytest.mark.parametrize("falls", [0.0, 0.5])
def test_ftrl_minimises_what_it_says(falls):
    """w_t = argmin  sum g w + sum_s sigma_s (w - w_s)^2 / 2 + l1 |w| + l2 w^2 / 2.

    The sigmas sum up to 1 / the step, of the lr that holds.
    """
    lr, l1, l2, initial, beta = 0.5, 0.7, 0.3, 0.1, 0.2
    w = start()
    first = w.detach().clone()
    optimizer = optim.FTRL([w], lr, beta=beta, l1=l1, l2=l2, initial_accumulator_value=initial)
    grads, weights, sigmas, n = [], [], [], torch.full_like(first, initial)
    d0 = d = (beta + math.sqrt(initial)) / lr
    for k in range(8):
        lr = optimizer.param_groups[0]["lr"] = 0.5 / (1 + falls * k)
        g = torch.from_numpy(gradient(k, w.detach().numpy()))
        grads.append(g)
        weights.append(w.detach().clone())
        n = n + g * g
        sigmas.append((beta + n.sqrt()) / lr - d)
        d = (beta + n.sqrt()) / lr
        w.grad = g
        optimizer.step()
    # The first weights are those of an objective without losses: its subgradient there is 0.
    linear = -(first * (d0 + l2) + l1 * first.sign())
    x = w.detach().requires_grad_()
    smooth = (x * (linear + sum(grads))).sum() + d0 * x.square().sum() / 2
    smooth = smooth + sum(
        (s * (x - v).square()).sum() / 2 for s, v in zip(sigmas, weights, strict=True)
    )
    (slope,) = torch.autograd.grad(smooth + l2 * x.square().sum() / 2, x)
    assert (slope.abs()[x == 0] <= l1 + 1e-10).all()
    torch.testing.assert_close(slope[x != 0], -l1 * x.detach().sign()[x != 0])


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_ftrl_does_not_jump_with_lr(kind):
    w = start()
    optimizer = optim.FTRL([w], kind(0.5), beta=1.0, l1=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    for k in range(5):
        w.grad = torch.from_numpy(gradient(k, w.detach().numpy()))
        optimizer.step()
    w.grad = torch.zeros_like(w)
    before = w.detach().clone()
    for found_inf in (None, torch.ones(()), torch.zeros(())):
        optimizer.found_inf = found_inf
        schedule.step()
        optimizer.step()
        torch.testing.assert_close(w.detach(), before)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(w.detach(), before)


def test_ftrl_begins_behind_a_step_of_no_lr():
    """So torch.distributed.checkpoint makes states."""
    w, v = start(), start()
    optimizer, other = (optim.FTRL([p], 0.5, l1=0.1) for p in (w, v))
    optimizer.param_groups[0]["lr"] = 0.0
    w.grad = torch.zeros_like(w)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.5
    w.grad, v.grad = torch.ones_like(w), torch.ones_like(v)
    optimizer.step()
    other.step()
    assert torch.equal(w, v)


def test_adagrad_is_tensorflows_proximal_adagrad():
    """Its documented update: v = w - r g, w = S(v, r l1) / (1 + r l2) with r = lr / sqrt(a)."""
    lr, l1, l2, initial = 0.3, 0.4, 0.2, 0.1
    w = start()
    a = np.full(40, initial)

    def update(k, x, g):
        a[:] += g * g
        rate = lr / np.sqrt(a)
        v = x - rate * g
        return np.sign(v) * np.maximum(np.abs(v) - rate * l1, 0) / (1 + rate * l2)

    optimizer = optim.Adagrad(
        [w],
        lr,
        initial_accumulator_value=initial,
        eps=0.0,
        penalty=prox.ElasticNet(l1, l2),
        prox_clip=None,
    )
    steps(optimizer, w, update)


def test_the_bound_of_adagrad_goes_with_its_decayed_rate(device):
    w = torch.nn.Parameter(torch.ones(3, device=device, dtype=torch.float64))
    v = torch.nn.Parameter(torch.ones(3, device=device, dtype=torch.float64))
    ours = optim.Adagrad([w], 0.1, lr_decay=0.5, penalty=prox.L1(1e6))
    theirs = torch.optim.Adagrad([v], 0.1, lr_decay=0.5)
    for k in range(4):
        with torch.no_grad():
            v.copy_(w)
        w.grad = v.grad = torch.full_like(w, -1.0)
        ours.step()
        theirs.step()
        expected = v.detach() - 1.25 * 0.1 / (1 + 0.5 * k)
        torch.testing.assert_close(w.detach(), expected)


def test_the_bound_of_rmsprop_goes_with_momentum(device):
    pulls = {}
    for centered in (False, True):
        w = torch.nn.Parameter(torch.full((3,), 100.0, device=device, dtype=torch.float64))
        options = {"lr": 0.1, "momentum": 0.5, "centered": centered}
        optimizer = optim.RMSprop([w], **options, penalty=prox.L1(0.4))
        w.grad = torch.full_like(w, 1e-3)
        v = torch.nn.Parameter(w.detach().clone())
        v.grad = w.grad
        torch.optim.RMSprop([v], **options).step()
        optimizer.step()
        pulls[centered] = (v - w).detach()
    torch.testing.assert_close(pulls[False], torch.full_like(pulls[False], 1.25 * 0.1 / 0.5))
    assert (pulls[True] > 2 * pulls[False]).all()
