"""Real data: FISTA and SGD end where scikit-learn and skglm do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from torchcalc import optim, prox

datasets = pytest.importorskip("sklearn.datasets")
linear_model = pytest.importorskip("sklearn.linear_model")

pytestmark = pytest.mark.no_kernels  # thousands of steps, each tested elsewhere
# tests/data/skglm.json holds what skglm 0.5 found, in float64, without intercept, on the data that
# `quadratic_diabetes` and `grouped_cancer` give as NumPy arrays x, y:
#   MCPRegression(alpha=0.05, gamma=3, fit_intercept=False, tol=1e-13, max_iter=1000,
#                 max_epochs=10**6, p0=64).fit(x, y).coef_
#   order = np.arange(30).reshape(3, 10).T.ravel()   # its groups are columns side by side
#   GroupLasso(groups=3, alpha=0.05, weights=np.ones(10), fit_intercept=False, tol=1e-13,
#              max_iter=1000, max_epochs=10**6).fit(x[:, order], y).coef_   # in that order
SKGLM = json.loads((Path(__file__).parent / "data" / "skglm.json").read_text())


def standardized(a):
    return (a - a.mean(0)) / np.maximum(a.std(0), 1e-12)


def diabetes():
    x, y = datasets.load_diabetes(return_X_y=True)
    return standardized(x), standardized(y)


def quadratic_diabetes():
    """With all products, but not the square of a column of two values, which is that column."""
    x, y = diabetes()
    i, j = np.triu_indices(10)
    products = np.delete(x[:, i] * x[:, j], 10, axis=1)
    return np.concatenate([x, standardized(products)], axis=1), y


def cancer():
    x, y = datasets.load_breast_cancer(return_X_y=True)
    return standardized(x), y.astype(float)


def grouped_cancer():
    """Mean, error and worst of a measure go together: columns i, 10 + i and 20 + i."""
    x, y = cancer()
    return x, standardized(y)


def digits():
    x, y = datasets.load_digits(return_X_y=True)
    return standardized(x[:500]), y[:500]


class Problem:
    """A loss of w and perhaps an intercept, a penalty on w, and what others found."""

    curvature: float  # of the loss of one example, by its prediction

    def __init__(self, data, shape, penalty, solution, intercept=False, steps=2000):
        x, y = data
        self.x, self.y = torch.from_numpy(x), torch.from_numpy(y)
        self.penalty, self.intercept, self.steps = penalty, intercept, steps
        self.shape = shape
        most = torch.linalg.eigvalsh(self.x.T @ self.x / len(y))[-1].item()
        self.lr = 1 / (self.curvature * (most + intercept))
        self.solution = [torch.from_numpy(np.asarray(a, dtype=np.float64)) for a in solution]

    def parameters(self):
        shapes = [self.shape, (1,)] if self.intercept else [self.shape]
        return [torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in shapes]

    def groups(self, params):
        penalties = [self.penalty, None]
        return [{"params": [p], "penalty": g} for p, g in zip(params, penalties, strict=False)]

    def objective(self, params):
        with torch.no_grad():
            return (self.loss(*params) + self.penalty.value(params[0])).item()

    def gradient(self, w):
        """Of the loss, at the solution of a problem without intercept."""
        w = w.detach().clone().requires_grad_()
        return torch.autograd.grad(self.loss(w), w)[0]


class LeastSquares(Problem):
    curvature = 1.0

    def loss(self, w):
        return 0.5 * (self.x @ w.flatten() - self.y).square().mean()


class Logistic(Problem):
    curvature = 0.25

    def loss(self, w, b=0.0):
        return F.softplus((1 - 2 * self.y) * (self.x @ w + b)).mean()


class Multinomial(Problem):
    curvature = 0.5

    def loss(self, w):
        return F.cross_entropy(self.x @ w.T, self.y)


def lasso():
    x, y = diabetes()
    theirs = linear_model.Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=10**6)
    return LeastSquares((x, y), (10,), prox.L1(0.1), [theirs.fit(x, y).coef_])


def elastic_net():
    x, y = diabetes()
    theirs = linear_model.ElasticNet(
        alpha=0.2, l1_ratio=0.5, fit_intercept=False, tol=1e-14, max_iter=10**6
    )
    return LeastSquares((x, y), (10,), prox.ElasticNet(0.1, 0.1), [theirs.fit(x, y).coef_])


def saga(x, y, lam, intercept=False, tol=1e-10):
    return linear_model.LogisticRegression(
        l1_ratio=1.0,
        C=1 / (lam * len(y)),
        solver="saga",
        fit_intercept=intercept,
        tol=tol,
        max_iter=20_000,
    ).fit(x, y)


def logistic():
    x, y = cancer()
    found = saga(x, y, 0.02)
    return Logistic((x, y), (30,), prox.L1(0.02), [found.coef_[0]], steps=8000)


def logistic_with_intercept():
    x, y = cancer()
    found = saga(x, y, 0.02, intercept=True)
    solution = [found.coef_[0], found.intercept_]
    return Logistic((x, y), (30,), prox.L1(0.02), solution, intercept=True, steps=6000)


def multinomial():
    x, y = digits()
    found = saga(x, y, 0.02, tol=1e-8)
    return Multinomial((x, y), (10, 64), prox.L1(0.02), [found.coef_], steps=3000)


def group_lasso():
    solution = np.array(SKGLM["group lasso"]).reshape(10, 3).T
    return LeastSquares(grouped_cancer(), (3, 10), prox.GroupL2(0.05, dim=1), [solution])


def mcp():
    solution = np.zeros(64)
    for column, value in SKGLM["mcp"].items():
        solution[int(column)] = value
    return LeastSquares(quadratic_diabetes(), (64,), prox.MCP(0.05, 3.0), [solution])


def by_fista(problem, params):
    optimizer = optim.FISTA(problem.groups(params), tol=1e-9, max_iter=20_000)

    def closure():
        optimizer.zero_grad()
        loss = problem.loss(*params)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.converged


def by_sgd(problem, params):
    """Full batches, Nesterov's momentum, and a learning rate that falls to a twentieth."""
    optimizer = optim.SGD(problem.groups(params), lr=problem.lr, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, problem.steps, eta_min=problem.lr / 20
    )
    for _ in range(problem.steps):
        optimizer.zero_grad()
        problem.loss(*params).backward()
        optimizer.step()
        schedule.step()


FOUND_BY_FISTA_ELSEWHERE = (lasso, elastic_net, logistic)  # tests/test_fista.py
PROBLEMS = (lasso, elastic_net, logistic, logistic_with_intercept, multinomial, group_lasso, mcp)
CASES = [(by_sgd, p) for p in PROBLEMS]
CASES += [(by_fista, p) for p in PROBLEMS if p not in FOUND_BY_FISTA_ELSEWHERE]


@pytest.mark.parametrize(("solve", "problem"), CASES, ids=lambda f: f.__name__)
def test_the_solutions_of_others(solve, problem):
    problem = problem()
    params = problem.parameters()
    solve(problem, params)
    best = problem.objective(problem.solution)
    assert abs(problem.objective(params) - best) <= 1e-6 * best
    zero = params[0] == 0
    assert torch.equal(zero, problem.solution[0].abs() < 1e-9)
    assert 0 < zero.sum() < zero.numel()
    if isinstance(problem.penalty, prox.MCP):  # where the objective alone says little
        torch.testing.assert_close(params[0].data, problem.solution[0], atol=1e-6, rtol=0)


def test_the_group_lasso_of_skglm_is_optimal():
    problem = group_lasso()
    (w,) = problem.solution
    slope = problem.gradient(w)
    norms = torch.linalg.vector_norm(w, dim=0)
    used = norms > 0
    assert used.sum() == 7
    assert (slope[:, used] + 0.05 * w[:, used] / norms[used]).abs().max() < 1e-10
    assert torch.linalg.vector_norm(slope[:, ~used], dim=0).max() < 0.05


def test_the_mcp_of_skglm_is_stationary():
    problem = mcp()
    (w,) = problem.solution
    slope = problem.gradient(w)
    used = w != 0
    assert used.sum() == 9
    pull = w.sign() * (0.05 - w.abs() / 3).clamp(min=0)
    assert (slope + pull)[used].abs().max() < 1e-10
    assert slope[~used].abs().max() < 0.05


def test_minibatches_for_the_lasso():
    """Halves of the data, lr ~ 1 / t: noise falls with lr; the support shows without noise."""
    problem = lasso()
    (w,) = problem.parameters()
    optimizer = optim.SGD([w], lr=0.2, penalty=problem.penalty)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t / 20))
    for _ in range(500):
        for rows in torch.randperm(442).view(2, 221):
            residual = problem.x[rows] @ w.detach() - problem.y[rows]
            w.grad = problem.x[rows].T @ residual / 221
            optimizer.step()
            schedule.step()
    best = problem.objective(problem.solution)
    assert problem.objective([w]) - best <= 1e-6 * best
    for _ in range(300):
        w.grad = problem.gradient(w)
        optimizer.step()
    assert torch.equal(w == 0, problem.solution[0] == 0)
