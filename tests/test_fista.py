"""FISTA: scikit-learn's, scipy's and a solver's solutions, certificates, restarts, backtracking."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from torchcalc import optim, prox

sklearn = pytest.importorskip("sklearn")
from sklearn import datasets, linear_model  # noqa: E402

pytestmark = pytest.mark.no_kernels
DOUBLE = torch.float64


def standardized(name):
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = torch.from_numpy((x - x.mean(0)) / np.maximum(x.std(0), 1e-12))
    return x, torch.from_numpy(y.astype(np.float64))


def least_squares(x, y):
    return lambda w: 0.5 * (x @ w - y).square().mean()


def minimise(loss, w, **options):
    optimizer = optim.FISTA([w], **options)

    def closure():
        optimizer.zero_grad()
        value = loss(w)
        value.backward()
        return value

    optimizer.step(closure)
    return optimizer, closure


@pytest.mark.parametrize("penalty", [prox.L1(0.2), prox.ElasticNet(0.2, 0.3)], ids=str)
@pytest.mark.parametrize("options", [{}, {"lr": 0.2}, {"restart": False}], ids=str)
def test_least_squares_of_scikit_learn(penalty, options):
    x, y = standardized("diabetes")
    y = (y - y.mean()) / y.std()
    l1, l2 = penalty.kernel.l1, penalty.kernel.l2
    theirs = linear_model.ElasticNet(
        alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), fit_intercept=False, tol=1e-14, max_iter=10**6
    ).fit(x.numpy(), y.numpy())
    w = torch.nn.Parameter(torch.zeros(10, dtype=DOUBLE))
    loss = least_squares(x, y)
    optimizer, _ = minimise(loss, w, penalty=penalty, tol=1e-9, max_iter=20_000, **options)
    assert optimizer.converged
    coefficients = torch.from_numpy(theirs.coef_)
    assert torch.equal(w == 0, coefficients == 0)
    ours = (loss(w) + penalty.value(w)).item()
    best = (loss(coefficients) + penalty.value(coefficients)).item()
    assert ours <= best + 1e-9 * abs(best)


def test_sparse_logistic_regression_of_scikit_learn():
    x, y = standardized("breast_cancer")
    lam = 0.02
    theirs = linear_model.LogisticRegression(
        l1_ratio=1.0,
        C=1 / (lam * len(y)),
        solver="saga",
        fit_intercept=False,
        tol=1e-8,
        max_iter=20_000,
    )
    theirs.fit(x.numpy(), y.numpy())
    w = torch.nn.Parameter(torch.zeros(30, dtype=DOUBLE))
    sign = 2 * y - 1

    def loss(w):
        return torch.nn.functional.softplus(-sign * (x @ w)).mean()

    optimizer, _ = minimise(loss, w, penalty=prox.L1(lam), tol=1e-8, max_iter=20_000)
    assert optimizer.converged
    coefficients = torch.from_numpy(theirs.coef_[0])
    ours = (loss(w) + lam * w.abs().sum()).item()
    best = (loss(coefficients) + lam * coefficients.abs().sum()).item()
    assert ours <= best + 1e-6 * abs(best)
    assert torch.equal(w == 0, coefficients.abs() < 1e-6)


def test_group_lasso_of_a_solver():
    """Multi-task: rows of coefficients go together."""
    cvxpy = pytest.importorskip("cvxpy")
    x, digit = standardized("digits")
    x, target = x[:200], torch.nn.functional.one_hot(digit[:200].long(), 10).to(DOUBLE)
    target = target - target.mean(0)
    lam = 0.1
    w = torch.nn.Parameter(torch.zeros(64, 10, dtype=DOUBLE))

    def loss(w):
        return 0.5 * (x @ w - target).square().sum() / len(x)

    optimizer, _ = minimise(loss, w, penalty=prox.GroupL2(lam), tol=1e-8, max_iter=20_000)
    assert optimizer.converged
    v = cvxpy.Variable((64, 10))
    fit = cvxpy.sum_squares(x.numpy() @ v - target.numpy()) / (2 * len(x))
    problem = cvxpy.Problem(cvxpy.Minimize(fit + lam * cvxpy.sum(cvxpy.norm(v, 2, axis=1))))
    problem.solve(solver=cvxpy.CLARABEL)
    ours = (loss(w) + lam * torch.linalg.vector_norm(w, dim=1).sum()).item()
    assert abs(ours - problem.value) <= 1e-6 * problem.value
    norms = torch.from_numpy(np.linalg.norm(v.value, axis=1))
    assert torch.equal((w == 0).all(1), norms < 1e-5)
    assert 0 < (w == 0).all(1).sum() < 64


def test_mcp_stops_at_a_stationary_point():
    x, y = standardized("diabetes")
    y = (y - y.mean()) / y.std()
    penalty = prox.MCP(0.1, 3.0)
    w = torch.nn.Parameter(torch.zeros(10, dtype=DOUBLE))
    optimizer, _ = minimise(least_squares(x, y), w, penalty=penalty, tol=1e-9, max_iter=20_000)
    assert optimizer.converged
    (slope,) = torch.autograd.grad(least_squares(x, y)(w), w)
    size = w.detach().abs()
    expected = -w.detach().sign() * (0.1 - size / 3).clamp(min=0)
    torch.testing.assert_close(slope[w != 0], expected[w != 0], atol=1e-7, rtol=0)
    assert (slope[w == 0].abs() <= 0.1).all()


CERTIFIED = [prox.ElasticNet(0.2, 0.3), prox.L2(0.5), prox.Box(-0.1, 0.2), prox.L1Ball(0.5)]
CERTIFIED += [prox.L2Ball(0.3), prox.Simplex(1.0)]


@pytest.mark.parametrize("penalty", CERTIFIED, ids=str)
def test_the_certificate_bounds_what_is_left(penalty):
    x, y = standardized("diabetes")
    y = (y - y.mean()) / y.std()
    loss = least_squares(x, y)
    w = torch.nn.Parameter(torch.full((10,), 0.1, dtype=DOUBLE))
    optimizer, closure = minimise(loss, w, penalty=penalty, tol=1e-300)
    seen = []
    for _ in range(800):
        optimizer.step(closure)
        seen.append((optimizer.certificate, (loss(w) + penalty.value(w)).item()))
    best = min(value for _, value in seen)
    assert all(value - best <= gap + 1e-12 for gap, value in seen)
    assert seen[-1][0] < 1e-8


def test_restarts_make_it_linear():
    torch.manual_seed(0)
    scales = torch.logspace(-3, 0, 50, dtype=DOUBLE)
    target = torch.randn(50, dtype=DOUBLE)

    def loss(w):
        return 0.5 * (scales * (w - target).square()).sum()

    counts = {}
    for restart in (True, False):
        w = torch.nn.Parameter(torch.zeros(50, dtype=DOUBLE))
        optimizer, closure = minimise(
            loss, w, lr=1.0, penalty=prox.L1(1e-4), restart=restart, tol=1e-9
        )
        counts[restart] = 1
        while not optimizer.converged and counts[restart] < 20_000:
            optimizer.step(closure)
            counts[restart] += 1
    assert counts[True] < 0.5 * counts[False]


def test_backtracking_finds_the_step():
    """f = 50 w^2: lr must be at most 1 / 100."""
    w = torch.nn.Parameter(torch.ones(3, dtype=DOUBLE))
    optimizer, _ = minimise(lambda w: 50 * w.square().sum(), w, max_iter=50)
    assert 0.004 < optimizer.param_groups[0]["lr"] <= 0.01
    assert w.abs().max() < 1e-6


def test_models_and_groups():
    """The weights are penalised, the bias is not; each step leaves the parameters at w."""
    x, digit = standardized("digits")
    x, digit = x[:300].float(), digit[:300].long()
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 10)
    optimizer = optim.FISTA(
        [
            {"params": [model.weight], "penalty": prox.SparseGroupL2(1e-3, 1e-2, dim=1)},
            {"params": [model.bias]},
        ],
        max_iter=100,
    )

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), digit)
        loss.backward()
        return loss

    first = closure().item()
    optimizer.step(closure)
    assert (model.weight == 0).all(0).any()
    assert closure().item() < first / 4
    accuracy = (model(x).argmax(1) == digit).float().mean()
    assert accuracy > 0.95


def test_it_goes_on_from_a_checkpoint():
    x, y = standardized("diabetes")
    loss = least_squares(x, y / y.std())
    w = torch.nn.Parameter(torch.zeros(10, dtype=DOUBLE))
    optimizer, closure = minimise(loss, w, penalty=prox.L1(0.2), max_iter=5)
    v = torch.nn.Parameter(w.detach().clone())
    other = optim.FISTA([v], penalty=prox.L1(0.2))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    def closure_of_v():
        other.zero_grad()
        value = loss(v)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)
        other.step(closure_of_v)
    assert torch.equal(w, v)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be > 0"),
        ({"lr": -1.0}, "lr must be in"),
        ({"backtracking": False}, "lr must be a number where backtracking is False"),
        ({"tol": -1.0}, "tol must be in"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1"),
        ({"l1": 0.3}, "l1 must be 0"),
        ({"penalty": prox.NMSparse(2, 4)}, "m must divide"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        optim.FISTA([torch.nn.Parameter(torch.ones(3))], **options)
    with pytest.raises(TypeError, match="unknown argument"):
        optim.FISTA([torch.nn.Parameter(torch.ones(3))], momentum=0.9)
