"""Where optimizers end: at scikit-learn's solutions, at exact zeros, and away from what waits."""

from __future__ import annotations

import pytest
import torch

from torchcalc import optim, prox

SGD_SETTINGS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "dampening": {"momentum": 0.8, "dampening": 0.5},
}
LAM = 0.3
PENALTIES = {
    "lasso": (prox.L1(LAM), "Lasso", {"alpha": LAM}),
    "elastic net": (
        prox.ElasticNet(LAM, 0.2),
        "ElasticNet",
        {"alpha": LAM + 0.2, "l1_ratio": LAM / (LAM + 0.2)},
    ),
}
EXACT = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}


@pytest.fixture(scope="module")
def diabetes():
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = (torch.from_numpy(a) for a in datasets.load_diabetes(return_X_y=True))
    x = x / x.std(0)  # the columns are as they were scaled, not orthogonal
    return x, (y - y.mean()) / y.std()


def scikit_learn(model, options, data):
    """The coefficients that scikit-learn finds."""
    estimator = getattr(pytest.importorskip("sklearn.linear_model"), model)(**options, **EXACT)
    return torch.from_numpy(estimator.fit(*(t.numpy() for t in data)).coef_)


def objective(w, data, penalty):
    x, y = data
    return (0.5 * (x @ w - y).square().mean() + penalty.value(w)).item()


def minimise(optimizer, w, data, steps, decay_from=None):
    x, y = data
    gram, moment = x.T @ x / len(y), x.T @ y / len(y)
    for step in range(steps):
        w.grad = gram @ w.detach() - moment
        if decay_from is not None and step >= decay_from:
            optimizer.param_groups[0]["lr"] *= 0.99
        optimizer.step()
    return w.detach()


@pytest.mark.no_kernels  # thousands of steps, each tested elsewhere
@pytest.mark.parametrize(("penalty", "model", "options"), PENALTIES.values(), ids=list(PENALTIES))
@pytest.mark.parametrize("settings", SGD_SETTINGS.values(), ids=list(SGD_SETTINGS))
def test_sgd_ends_at_the_solution_of_scikit_learn(settings, penalty, model, options, diabetes):
    w = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    momentum, dampening = settings.get("momentum", 0.0), settings.get("dampening", 0.0)
    lr = 0.2 * (1 - momentum) / (1 - dampening)
    optimizer = optim.SGD([w], lr=lr, penalty=penalty, **settings)
    w = minimise(optimizer, w, diabetes, 2000)
    expected = scikit_learn(model, options, diabetes)
    assert 0 < (expected == 0).sum() < 10
    assert torch.equal(w == 0, expected == 0)
    assert objective(w, diabetes, penalty) - objective(expected, diabetes, penalty) < 1e-9


@pytest.mark.no_kernels  # thousands of steps, each tested elsewhere
def test_momentum_that_is_cycled(diabetes):
    """The prox step follows the momentum: each has the same solution."""
    w = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    optimizer = optim.SGD([w], lr=0.02, momentum=0.5, penalty=prox.L1(LAM))
    group = optimizer.param_groups[0]
    gaps = []
    expected = scikit_learn(*PENALTIES["lasso"][1:], diabetes)
    best = objective(expected, diabetes, prox.L1(LAM))
    for momentum in (0.5, 0.9, 0.0, 0.95, 0.8):
        group["momentum"] = momentum
        minimise(optimizer, w, diabetes, 1000)
        gaps.append(objective(w.detach(), diabetes, prox.L1(LAM)) - best)
        assert torch.equal(w == 0, expected == 0)
    assert max(gaps) < 1e-9


@pytest.mark.no_kernels  # thousands of steps, each tested elsewhere
@pytest.mark.parametrize("prox_clip", [1.25, None])
@pytest.mark.parametrize(("penalty", "model", "options"), PENALTIES.values(), ids=list(PENALTIES))
def test_adamw_ends_at_the_solution_of_scikit_learn(penalty, model, options, prox_clip, diabetes):
    w = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    optimizer = optim.AdamW(
        [w], lr=0.01, weight_decay=0.0, penalty=penalty, prox_clip=prox_clip, eps=1e-3
    )
    w = minimise(optimizer, w, diabetes, 2500, decay_from=1500)
    expected = scikit_learn(model, options, diabetes)
    assert torch.equal(w == 0, expected == 0)
    assert objective(w, diabetes, penalty) - objective(expected, diabetes, penalty) < 1e-6


@pytest.mark.no_kernels  # thousands of steps, each tested elsewhere
@pytest.mark.parametrize("lam", [1e-4, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("penalty", [prox.L1, prox.L2, lambda lam: prox.ElasticNet(lam, 0.5)])
def test_adamw_ends_at_the_solution_of_scalar_problems(penalty, lam):
    """f = c (w - 1)^2 / 2 for curvatures c from 0.01 to 100; too strong a penalty: exactly 0."""
    c = torch.tensor([0.01, 0.1, 1.0, 10.0, 100.0], dtype=torch.float64)
    g = penalty(lam)
    l1, l2 = g.kernel.l1, g.kernel.l2
    expected = (c - l1).clamp(min=0) / (c + l2)
    w = torch.nn.Parameter(torch.full_like(c, 0.7))
    optimizer = optim.AdamW([w], lr=0.02, weight_decay=0.0, penalty=g)
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = 0.02 * 0.995 ** max(0, step - 300)
        w.grad = c * (w.detach() - 1)
        optimizer.step()
    assert torch.equal(w == 0, expected == 0)
    torch.testing.assert_close(w.detach(), expected, atol=2e-3, rtol=0)


def test_the_pull_has_a_bound(dtype):
    """With gradients of 0 and tiny ones no step moves a weight by more than about lr."""
    size = 64
    for gradient in (0.0, torch.finfo(dtype).tiny, 1e-6, 1.0, torch.finfo(dtype).max / 4):
        for penalty in (prox.L1(1e6), prox.L2(1e6), prox.ElasticNet(1e6, 1e6)):
            w = torch.nn.Parameter(torch.full((size,), 1.0, dtype=dtype))
            optimizer = optim.AdamW([w], lr=2**-6, weight_decay=0.0, penalty=penalty)
            w.grad = torch.full_like(w, gradient)
            optimizer.step()
            assert w.isfinite().all()
            assert (w - 1).abs().max() <= 2**-6 * (1.01 + 1.25)


@pytest.mark.parametrize("penalty", [prox.L1(1e-6), prox.L2(1e-6), prox.ElasticNet(1e-6, 1e-6)])
def test_rows_that_no_batch_had_survive(penalty):
    embedding = torch.nn.Embedding(100, 8)
    before = embedding.weight.detach().clone()
    optimizer = optim.AdamW(embedding.parameters(), lr=1e-3, weight_decay=0.0, penalty=penalty)
    for _ in range(100):
        optimizer.zero_grad()
        embedding(torch.arange(10)).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(embedding.weight[10:], before[10:], atol=2e-7, rtol=1e-6)
    # Slow, and still right in the end: what no gradient holds goes to 0.
    optimizer.param_groups[0].update({"l1": 1e3, "penalty": "l1", "l2": 0.0, "prox_clip": None})
    optimizer.zero_grad()
    embedding(torch.arange(10)).square().sum().backward()
    for _ in range(10):
        optimizer.step()
    assert (embedding.weight[10:] == 0).all()


def test_what_lies_behind_a_layer_of_zeros_survives():
    """As in LoRA: the first factor's gradient is 0 until the second has moved."""
    torch.manual_seed(0)
    first, second = torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(4, 3, bias=False)
    torch.nn.init.zeros_(second.weight)
    start = first.weight.detach().clone()
    params = [*first.parameters(), *second.parameters()]
    optimizer = optim.AdamW(params, lr=1e-3, weight_decay=0.0, penalty=prox.L1(1e-6))
    x, y = torch.randn(16, 8), torch.randn(16, 3)
    for _ in range(3):
        optimizer.zero_grad()
        (second(first(x)) - y).square().mean().backward()
        optimizer.step()
    assert (first.weight != 0).all()
    assert (first.weight - start).abs().max() < 0.01


def test_experts_without_a_token_survive():
    torch.manual_seed(0)
    experts = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(4))
    optimizer = optim.AdamW(experts.parameters(), lr=1e-3, penalty=prox.L1(1e-6))
    route = torch.tensor([0.0, 1.0, 0.0, 0.0])  # dense routing: gradients of exactly 0
    for _ in range(5):
        optimizer.zero_grad()
        x = torch.randn(16, 8)
        sum(r * e(x) for r, e in zip(route, experts, strict=True)).square().mean().backward()
        optimizer.step()
    assert all((e.weight != 0).float().mean() > 0.99 for e in experts)


def test_a_learning_rate_of_zero_moves_nothing(dtype):
    for make in (
        lambda p: optim.SGD(p, lr=0.0, penalty=prox.L1(1e30)),
        lambda p: optim.SGD(p, lr=0.0, momentum=0.9, penalty=prox.ElasticNet(1e30, 1e30)),
        lambda p: optim.AdamW(p, lr=0.0, penalty=prox.ElasticNet(1e30, 1e30)),
        lambda p: optim.AdamW(p, lr=0.0, penalty=prox.L1(1e30), prox_clip=None),
    ):
        w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.0], dtype=dtype))
        w.grad = torch.tensor([0.0, 1.0, 0.0], dtype=dtype)
        make([w]).step()
        assert torch.equal(w.detach(), torch.tensor([1.0, -2.0, 0.0], dtype=dtype))


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e30, 1e38])
@pytest.mark.parametrize("prox_clip", [1.25, None])
def test_infinite_weights_stay_infinite(prox_clip, strength, dtype):
    inf = float("inf")
    for penalty in (prox.L1(strength), prox.L2(strength), prox.ElasticNet(strength, strength)):
        for kind, settings in (("SGD", {}), ("AdamW", {"prox_clip": prox_clip})):
            w = torch.nn.Parameter(torch.tensor([inf, -inf, float("nan"), 1.0], dtype=dtype))
            w.grad = torch.tensor([0.0, 1e-3, 0.0, 1e-3], dtype=dtype)
            getattr(optim, kind)([w], lr=10.0, penalty=penalty, **settings).step()
            assert w[0] == inf
            assert w[1] == -inf
            assert w[2].isnan()
            assert w[3].isfinite()
