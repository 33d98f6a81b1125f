"""Optimizers: torch.optim without a penalty, a written-out prox step with one."""

from __future__ import annotations

import pytest
import torch
from training import STEPS, assert_params_close, gradients, make_params, train

from torchcalc import optim, prox
from torchcalc.reference import optim as reference

PENALTIES = {"l1": prox.L1(0.05), "l2": prox.L2(0.5), "elastic_net": prox.ElasticNet(0.05, 0.5)}

SGD_SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "weight decay": {"momentum": 0.9, "weight_decay": 0.1},
    "maximize": {"momentum": 0.9, "weight_decay": 0.1, "maximize": True},
}
ADAMW_SETTINGS = {
    "default": {},
    "no weight decay": {"weight_decay": 0.0},
    "betas and eps": {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
    "maximize": {"maximize": True},
}


@pytest.mark.parametrize("settings", SGD_SETTINGS.values(), ids=list(SGD_SETTINGS))
def test_sgd_equals_torch(settings, device):
    ours, theirs = make_params(device), make_params(device)
    train(optim.SGD(ours, lr=0.01, **settings), ours, STEPS)
    train(torch.optim.SGD(theirs, lr=0.01, **settings), theirs, STEPS)
    assert_params_close(ours, theirs)


@pytest.mark.parametrize("settings", ADAMW_SETTINGS.values(), ids=list(ADAMW_SETTINGS))
def test_adamw_equals_torch(settings, device):
    ours, theirs = make_params(device), make_params(device)
    train(optim.AdamW(ours, **settings), ours, STEPS)
    train(torch.optim.AdamW(theirs, **settings), theirs, STEPS)
    assert_params_close(ours, theirs)


def written_out(penalty):
    """S(v, s l1) / (1 + s l2), but no farther than the bound from v."""
    l1, l2 = penalty.kernel.l1, penalty.kernel.l2

    def prox(bound, v, s):
        w = torch.sign(v) * (v.abs() - s * l1).clamp_min(0) / (1 + s * l2)
        return torch.where((v - w).abs() <= bound, w, v - bound * torch.sign(v - w))

    return prox


@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=list(PENALTIES))
@pytest.mark.parametrize("settings", SGD_SETTINGS.values(), ids=list(SGD_SETTINGS))
def test_sgd_equals_a_written_out_prox_step(settings, penalty, device):
    ours, theirs = make_params(device, torch.float64), make_params(device, torch.float64)
    optimizer = optim.SGD(ours, lr=0.01, penalty=penalty, **settings)
    buffers = [torch.zeros_like(p) for p in theirs]
    for step in range(20):
        train(optimizer, ours, 1, step)
        grads = gradients(step, device, torch.float64)
        for p, g, b in zip(theirs, grads, buffers, strict=True):
            rule = reference.SGDRule(0.01, first_step=step == 0, **settings)
            reference.step(rule, 0.0, p.data, g, [b], prox=written_out(penalty))
    assert_params_close(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("metric", ["adaptive", "lr"])
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=list(PENALTIES))
@pytest.mark.parametrize("settings", ADAMW_SETTINGS.values(), ids=list(ADAMW_SETTINGS))
def test_adamw_equals_a_written_out_prox_step(settings, penalty, metric, device):
    options = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, **settings}
    ours, theirs = make_params(device, torch.float64), make_params(device, torch.float64)
    optimizer = optim.AdamW(ours, penalty=penalty, prox_metric=metric, **options)
    beta1, beta2 = options.pop("betas")
    state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in theirs]
    for step in range(20):
        train(optimizer, ours, 1, step)
        grads = gradients(step, device, torch.float64)
        for p, g, (m, n) in zip(theirs, grads, state, strict=True):
            reference.step(
                *(reference.AdamRule(beta1=beta1, beta2=beta2, **options), step + 1.0),
                *(p.data, g, (m, n)),
                prox=written_out(penalty),
                adaptive=metric == "adaptive",
                prox_clip=1.25,
            )
    assert_params_close(ours, theirs, atol=1e-12)


def test_l1_makes_exact_zeros_and_keeps_them(device):
    param = torch.nn.Parameter(torch.linspace(-1, 1, 1001, device=device))
    optimizer = optim.AdamW([param], lr=0.01, weight_decay=0.0, penalty=prox.L1(1.0))
    for _ in range(50):
        param.grad = torch.full_like(param, 0.1)
        optimizer.step()
    assert (param == 0).any()
    param.grad = torch.zeros_like(param)
    zeros = param == 0
    optimizer.step()
    assert (param[zeros] == 0).all()


@pytest.mark.no_kernels  # thousands of steps, each tested elsewhere
def test_adaptive_metric_has_the_right_fixed_point():
    # min f(w) + lam |w|, f = sum c_i (w_i - t_i)^2 / 2:  w = S(t, lam / c), whatever c is.
    c = torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=torch.float64)
    target = torch.tensor([4.0, -1.5, 0.02, 2.0], dtype=torch.float64)
    lam = 0.3
    expected = torch.sign(target) * (target.abs() - lam / c).clamp(min=0)
    errors = {}
    for metric in ("adaptive", "lr"):
        w = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
        optimizer = optim.AdamW(
            [w], lr=0.05, weight_decay=0.0, penalty=prox.L1(lam), prox_metric=metric
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.998)
        for _ in range(4000):
            w.grad = c * (w.detach() - target)
            optimizer.step()
            schedule.step()
        errors[metric] = (w - expected).abs().max().item()
    assert errors["adaptive"] < 1e-3
    assert errors["lr"] > 0.1  # another problem's solution: hence the default
