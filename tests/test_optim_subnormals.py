"""On a CPU, subnormal numbers count as 0 in a step: arithmetic on them is twenty times slower."""

from __future__ import annotations

import pytest
import torch

from torchcalc import optim, prox

OPTIONS = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}, "AdamW": {"amsgrad": True}}
KINDS = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"]
PENALTIES = [None, prox.L1(1e-3), prox.ElasticNet(1e-3, 1.0), prox.GroupL2(1e-3, dim=1)]
SUBNORMAL = {torch.float32: 1e-39, torch.float64: 1e-309, torch.bfloat16: 1e-39}

pytestmark = pytest.mark.no_kernels


def is_subnormal(t):
    return (t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)


@pytest.mark.parametrize("real", SUBNORMAL)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_none_is_kept(kind, penalty, real):
    """Neither of weights and states on their way to 0 nor of those that started as such."""
    w = torch.nn.Parameter(torch.full((6, 1000), SUBNORMAL[real], dtype=real))
    assert is_subnormal(w.detach()).all()
    options = {"lr": 1e-2, **OPTIONS.get(kind, {}), "penalty": penalty}
    optimizer = getattr(optim, kind)([w], **options)
    scale = torch.finfo(real).tiny
    for size in (2.0, 0.0, 0.0):
        w.grad = torch.full_like(w, size * scale)
        optimizer.step()
    for name, value in {"w": w.detach(), **optimizer.state[w]}.items():
        assert not is_subnormal(value).any(), name


def test_averages_of_gradients_that_became_zero_end_as_zero():
    w = torch.nn.Parameter(torch.ones(8))
    optimizer = optim.AdamW([w])
    w.grad = torch.ones(8)
    optimizer.step()
    w.grad = torch.zeros(8)
    for _ in range(1000):
        optimizer.step()
    assert torch.equal(optimizer.state[w]["exp_avg"], torch.zeros(8))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_threads_agree(kind, dim):
    """Each computes as the one that calls: in groups larger than what one thread takes as well."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-41, -30, (40, 40_000), generator=generator).double()
    start = (10.0**exponents).float()
    results = []
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        w = torch.nn.Parameter(start.clone())
        optimizer = getattr(optim, kind)([w], lr=1e-2, penalty=prox.GroupL2(1e-33, dim=dim))
        for k in range(3):
            w.grad = start.roll(k, 1)
            optimizer.step()
        results.append([w.detach(), *optimizer.state[w].values()])
    torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    assert not is_subnormal(results[0][0]).any()


@pytest.mark.parametrize("flush", [False, True])
def test_the_caller_goes_on_as_before(flush):
    w = torch.nn.Parameter(torch.ones(4))
    w.grad = torch.ones(4)
    torch.set_flush_denormal(flush)
    try:
        optim.AdamW([w], penalty=prox.L1(1e-3)).step()
        assert (torch.tensor(1e-39) * 1).item() == (0.0 if flush else pytest.approx(1e-39))
    finally:
        torch.set_flush_denormal(False)
