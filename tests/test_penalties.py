"""Proximal operators beside minima that were found without them, in float64.

What is minimised is written out here once more; grids, enumeration and a convex solver do it.
"""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from torchcalc import prox

pytest.importorskip("hypothesis")
pytest.importorskip("cvxpy")

import cvxpy
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.no_kernels

# 0, tiny, large, and what lies between.
POSITIVE = st.floats(-3, 3).map(lambda e: 10**e)
STRENGTH = st.one_of(st.just(0.0), POSITIVE)
VALUE = st.one_of(st.just(0.0), st.floats(-6, 6))


def mcp(x, lam, gamma):
    x = np.abs(x)
    return np.where(x <= gamma * lam, lam * x - x * x / (2 * gamma), gamma * lam * lam / 2)


def scad(x, lam, a, factor=1.0):
    x = np.abs(x)
    middle = (2 * a * lam * x - x * x - lam * lam) / (2 * (a - 1))
    flat = lam * lam * (a + 1) / 2
    return factor * np.where(x <= lam, lam * x, np.where(x <= a * lam, middle, flat))


def huber(x, lam, delta):
    x = np.abs(x)
    return lam * np.where(x <= delta, x * x / 2, delta * x - delta * delta / 2)


def outside(x, low, high):
    return np.where((x < low) | (x > high), math.inf, 0.0)


# name -> how it is made of two strengths and two positive numbers, g(x) of the same
SEPARABLE = {
    "L1": (lambda a, b, p, q: prox.L1(a), lambda x, a, b, p, q: a * abs(x)),
    "L2": (lambda a, b, p, q: prox.L2(a), lambda x, a, b, p, q: a / 2 * x * x),
    "ElasticNet": (
        lambda a, b, p, q: prox.ElasticNet(a, b),
        lambda x, a, b, p, q: a * abs(x) + b / 2 * x * x,
    ),
    "NonNegative": (
        lambda a, b, p, q: prox.NonNegative(),
        lambda x, a, b, p, q: outside(x, 0, math.inf),
    ),
    "NonNegativeL1": (
        lambda a, b, p, q: prox.NonNegativeL1(a),
        lambda x, a, b, p, q: a * abs(x) + outside(x, 0, math.inf),
    ),
    "Box": (
        lambda a, b, p, q: prox.Box(1 - p, 1 + q),
        lambda x, a, b, p, q: outside(x, 1 - p, 1 + q),
    ),
    "Huber": (lambda a, b, p, q: prox.Huber(a, p), lambda x, a, b, p, q: huber(x, a, p)),
    "L0": (lambda a, b, p, q: prox.L0(a), lambda x, a, b, p, q: a * (x != 0)),
    "LHalf": (lambda a, b, p, q: prox.LHalf(a), lambda x, a, b, p, q: a * np.sqrt(abs(x))),
    "MCP": (lambda a, b, p, q: prox.MCP(a, p), lambda x, a, b, p, q: mcp(x, a, p)),
    "SCAD": (
        lambda a, b, p, q: prox.SCAD(a, 2 + p),
        lambda x, a, b, p, q: scad(x, a, 2 + p),
    ),
    "3 SCAD": (
        lambda a, b, p, q: 3 * prox.SCAD(a, 2 + p),
        lambda x, a, b, p, q: scad(x, a, 2 + p, 3),
    ),
    "3 MCP": (lambda a, b, p, q: 3 * prox.MCP(a, p), lambda x, a, b, p, q: 3 * mcp(x, a, p)),
    "L1 + L2 + Box": (
        lambda a, b, p, q: prox.L1(a) + prox.L2(b) + prox.Box(1 - p, 1 + q),
        lambda x, a, b, p, q: a * abs(x) + b / 2 * x * x + outside(x, 1 - p, 1 + q),
    ),
    "Huber + ElasticNet + Box": (
        lambda a, b, p, q: prox.Box(-q, 1) + (prox.ElasticNet(a, b) + prox.Huber(b, p)),
        lambda x, a, b, p, q: a * abs(x) + b / 2 * x * x + huber(x, b, p) + outside(x, -q, 1),
    ),
    "L0 + ElasticNet": (
        lambda a, b, p, q: prox.L0(a) + prox.ElasticNet(b, p),
        lambda x, a, b, p, q: a * (x != 0) + b * abs(x) + p / 2 * x * x,
    ),
    "LHalf + NonNegativeL1": (
        lambda a, b, p, q: prox.LHalf(a) + prox.NonNegativeL1(b),
        lambda x, a, b, p, q: a * np.sqrt(abs(x)) + b * abs(x) + outside(x, 0, math.inf),
    ),
    "2 (MCP + L2 + NonNegative)": (
        lambda a, b, p, q: 2 * (prox.MCP(a, p) + prox.L2(b) + prox.NonNegative()),
        lambda x, a, b, p, q: 2 * mcp(x, a, p) + b * x * x + outside(x, 0, math.inf),
    ),
    "SCAD + L1": (
        lambda a, b, p, q: prox.SCAD(a, 2 + p, q) + prox.L1(b),
        lambda x, a, b, p, q: scad(x, a, 2 + p, q) + b * abs(x),
    ),
}


def least(objective, around):
    """The minimum of a function of one variable: a grid, then the best cells, each refined."""
    low, high = min(0, *around) - 1, max(0, *around) + 1
    grid = np.unique(np.concatenate([np.linspace(low, high, 601), [0.0], around]))
    values = objective(grid)
    best = values.min()
    for i in np.argsort(values)[:4]:
        a, b = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        for _ in range(9):  # each time the cells of the best of 21 points
            inner = np.linspace(a, b, 21)
            found = objective(inner)
            best = min(best, found.min())
            k = found.argmin()
            a, b = inner[max(k - 1, 0)], inner[min(k + 1, 20)]
    return best


@pytest.mark.parametrize("name", SEPARABLE)
@given(
    v=st.lists(VALUE, min_size=4, max_size=4),
    step=POSITIVE,
    metric=st.booleans(),
    numbers=st.tuples(STRENGTH, STRENGTH, POSITIVE, POSITIVE),
)
@settings(max_examples=25, deadline=None)
def test_separable(name, v, step, metric, numbers):
    make, g = SEPARABLE[name]
    penalty = make(*numbers)
    steps = step * (np.array([1.0, 2.0, 0.1, 30.0]) if metric else np.ones(4))
    x = penalty.prox(torch.tensor(v).double(), torch.from_numpy(steps) if metric else step).numpy()
    for xi, vi, s in zip(x, v, steps, strict=True):
        # Times the step: terms that are within rounding of each other.
        def objective(t, vi=vi, s=s):
            return s * g(t, *numbers) + (t - vi) ** 2 / 2

        _, _, p, q = numbers
        edges = [vi, np.clip(vi, 1 - p, 1 + q), np.clip(vi, -q, 1)]
        theirs = least(objective, edges)
        assert objective(xi) <= theirs + 1e-10 * (1 + abs(theirs))
    w = torch.from_numpy(x)
    assert penalty.value(w).item() == pytest.approx(g(x, *numbers).sum(), rel=1e-9, abs=1e-12)


def groups_of(w, dim):
    order = [d for d in range(w.ndim) if d not in np.atleast_1d(dim)]
    kept = [d for d in range(w.ndim) if d in np.atleast_1d(dim)]
    return w.transpose(*kept, *order).reshape(int(np.prod([w.shape[d] for d in kept])), -1)


def norm_of_groups(x, index):
    return cvxpy.sum([cvxpy.norm(x[np.flatnonzero(index == k)], 2) for k in np.unique(index)])


def group_index(shape, dim):
    """For each element in order the number of its group."""
    dims = [d % len(shape) for d in np.atleast_1d(dim)]
    places = np.indices(shape).reshape(len(shape), -1)
    return np.ravel_multi_index([places[d] for d in dims], [shape[d] for d in dims])


SHAPE = 3, 4
# name -> how it is made of two strengths, (g(x), constraints) in cvxpy's terms for a flat x
CONVEX = {
    "GroupL2": (
        lambda a, b: prox.GroupL2(a),
        lambda x, a, b: (a * norm_of_groups(x, group_index(SHAPE, 0)), []),
    ),
    "GroupL2, columns": (
        lambda a, b: prox.GroupL2(a, dim=-1),
        lambda x, a, b: (a * norm_of_groups(x, group_index(SHAPE, 1)), []),
    ),
    "L1 + GroupL2": (
        lambda a, b: prox.L1(b) + prox.GroupL2(a),
        lambda x, a, b: (a * norm_of_groups(x, group_index(SHAPE, 0)) + b * cvxpy.norm1(x), []),
    ),
    "LInf": (lambda a, b: prox.LInf(a), lambda x, a, b: (a * cvxpy.norm_inf(x), [])),
    "L1Ball": (lambda a, b: prox.L1Ball(a), lambda x, a, b: (0, [cvxpy.norm1(x) <= a])),
    "L2Ball": (lambda a, b: prox.L2Ball(a), lambda x, a, b: (0, [cvxpy.norm(x, 2) <= a])),
    "Simplex": (
        lambda a, b: prox.Simplex(a),
        lambda x, a, b: (0, [x >= 0, cvxpy.sum(x) == a]),
    ),
    "TV1D": (
        lambda a, b: prox.TV1D(a),
        lambda x, a, b: (a * cvxpy.sum([cvxpy.tv(x[4 * i : 4 * i + 4]) for i in range(3)]), []),
    ),
    "TV1D, columns": (
        lambda a, b: prox.TV1D(a, dim=0),
        lambda x, a, b: (a * cvxpy.sum([cvxpy.tv(x[i::4]) for i in range(4)]), []),
    ),
    "Nuclear": (
        lambda a, b: prox.Nuclear(a),
        lambda x, a, b: (a * cvxpy.normNuc(cvxpy.reshape(x, SHAPE, order="C")), []),
    ),
}
TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


@pytest.mark.parametrize("name", CONVEX)
@given(
    v=st.lists(VALUE, min_size=12, max_size=12),
    # What a solver of cones still solves to 12 digits.
    scales=st.lists(st.floats(-1, 1), min_size=12, max_size=12),
    strengths=st.tuples(*[st.one_of(st.just(0.0), st.floats(-2, 1).map(lambda e: 10**e))] * 2),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_convex(name, v, scales, strengths):
    make, terms = CONVEX[name]
    penalty = make(*strengths)
    steps = 10 ** np.array(scales) if penalty.takes_metric else np.full(12, 10 ** scales[0])
    step = torch.from_numpy(steps).view(SHAPE) if penalty.takes_metric else float(steps[0])
    w = penalty.prox(torch.tensor(v).double().view(SHAPE), step)
    g = penalty.value(w).item()
    assert g < math.inf
    ours = g + ((w.flatten().numpy() - v) ** 2 / (2 * steps)).sum()
    x = cvxpy.Variable(12)
    value, constraints = terms(x, *strengths)
    distance = cvxpy.sum_squares(cvxpy.multiply(x - np.array(v), 1 / np.sqrt(2 * steps)))
    problem = cvxpy.Problem(cvxpy.Minimize(value + distance), constraints)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not come so close
        problem.solve(solver=cvxpy.CLARABEL, **TIGHT)
    assume(problem.status == "optimal")
    assert ours <= problem.value + 1e-10 * (1 + abs(problem.value))


@pytest.mark.parametrize("case", ["1:2", "2:4", "3:6, rows", "k", "density"])
@given(
    v=st.lists(st.one_of(st.sampled_from([0.0, 1.0, -1.0]), VALUE), min_size=12, max_size=12),
    scales=st.lists(st.floats(-3, 3), min_size=12, max_size=12),
)
@settings(max_examples=25, deadline=None)
def test_those_that_stay_are_the_best(case, v, scales):
    penalty, shape, groups, kept = {
        "1:2": (prox.NMSparse(1, 2), (12,), [range(2 * i, 2 * i + 2) for i in range(6)], 1),
        "2:4": (prox.NMSparse(2, 4), (12,), [range(4 * i, 4 * i + 4) for i in range(3)], 2),
        "3:6, rows": (
            prox.NMSparse(3, 6, dim=0),
            (6, 2),
            [range(0, 12, 2), range(1, 12, 2)],
            3,
        ),
        "k": (prox.TopK(k=5), (3, 4), [range(12)], 5),
        "density": (prox.TopK(density=0.3), (4, 3), [range(12)], 4),
    }[case]
    v, steps = np.array(v), 10 ** np.array(scales)
    x = penalty.prox(*(torch.from_numpy(t).view(shape) for t in (v, steps))).flatten().numpy()
    assert penalty.value(torch.from_numpy(x).view(shape)) == 0
    assert ((x == v) | (x == 0)).all()
    cost = v * v / (2 * steps)
    for group in groups:
        group = list(group)
        total = cost[group].sum()
        best = min(total - cost[list(c)].sum() for c in itertools.combinations(group, kept))
        ours = ((x - v) ** 2 / (2 * steps))[group].sum()
        assert ours <= best + 1e-10 * (1 + best)


def examples():
    """Penalties, and whether a v of this shape suits them."""
    yield from (prox.L1(0.7), prox.L2(0.7), prox.ElasticNet(0.3, 0.5), prox.NonNegative())
    yield from (prox.NonNegativeL1(0.4), prox.Box(-0.3, 0.8), prox.Huber(2.0, 0.3))
    yield from (prox.GroupL2(1.2), prox.GroupL2(1.2, dim=1), prox.SparseGroupL2(0.3, 0.8))
    yield from (prox.LInf(3.0), prox.L1Ball(2.0), prox.L2Ball(1.5), prox.Simplex(1.5))
    yield from (prox.TV1D(0.6), prox.TV1D(0.6, dim=0), prox.Nuclear(0.8))
    yield from (prox.L1(0.3) + prox.L2(0.2) + prox.Box(-0.1, 2.0),)


EXAMPLES = list(examples())
DRAWN = st.lists(VALUE, min_size=12, max_size=12)


def draw(penalty, v, scales):
    v = torch.tensor(v).double().view(SHAPE)
    s = 10 ** torch.tensor(scales).double().view(SHAPE)
    return v, (s if penalty.takes_metric else torch.full_like(v, s[0, 0].item()))


def prox_of(penalty, v, s):
    return penalty.prox(v, s if penalty.takes_metric else s[0, 0].item())


SCALES = st.lists(st.floats(-1, 1), min_size=12, max_size=12)


@pytest.mark.parametrize("penalty", [p for p in EXAMPLES if hasattr(p, "conjugate")], ids=str)
@given(v=DRAWN, scales=SCALES)
@settings(max_examples=20, deadline=None)
def test_moreau(penalty, v, scales):
    # u = (v - x) / s is a subgradient of g at x, so that g(x) + g*(u) = <x, u>, and the prox of g*
    # with steps 1 / s at v / s.
    v, s = draw(penalty, v, scales)
    x = prox_of(penalty, v, s)
    u = (v - x) / s
    total = penalty.value(x) + penalty.conjugate(u * (1 - 1e-12))  # rounded u may be outside
    torch.testing.assert_close(total, (x * u).sum(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("penalty", EXAMPLES, ids=str)
@given(v=DRAWN, other=DRAWN, scales=SCALES)
@settings(max_examples=20, deadline=None)
def test_firmly_nonexpansive(penalty, v, other, scales):
    assert penalty.is_convex
    (v, s), (u, _) = draw(penalty, v, scales), draw(penalty, other, scales)
    x, y = prox_of(penalty, v, s), prox_of(penalty, u, s)
    assert ((x - y) ** 2 / s).sum() <= ((x - y) * (v - u) / s).sum() + 1e-9


@pytest.mark.parametrize(
    "penalty",
    [
        *(p for p in EXAMPLES if p.is_constraint),
        *(prox.NMSparse(2, 4), prox.TopK(k=5), prox.TopK(density=0.2)),
    ],
    ids=str,
)
@given(v=DRAWN, scales=SCALES)
@settings(max_examples=20, deadline=None)
def test_projections(penalty, v, scales):
    v, s = draw(penalty, v, scales)
    x = penalty.prox(v, s)
    assert penalty.value(x) == 0
    torch.testing.assert_close(penalty.prox(x, s), x, atol=1e-12, rtol=1e-12)
    assert penalty.value(penalty.prox(v, 0.0)) == 0  # the step of a learning rate of 0


def test_dual_norms():
    u = torch.randn(3, 4).double()
    w = torch.randn(3, 4).double()
    for penalty in (prox.L1(1.0), prox.GroupL2(1.0), prox.LInf(1.0), prox.Nuclear(1.0)):
        assert (u * w).sum() <= penalty.value(w) * penalty.dual_norm(u)
        inside = u / penalty.dual_norm(u)
        assert penalty.conjugate(inside) == 0
        assert penalty.conjugate(1.001 * inside) == math.inf


@pytest.mark.parametrize("name", SEPARABLE)
def test_float32_costs_no_more(name, device):
    # What float64 finds is the least (above); next to where formulas meet, too.
    numbers = 0.3, 0.5, 2.125, 3.0
    make, g = SEPARABLE[name]
    generator = torch.Generator().manual_seed(0)
    steps = 10 ** (6 * torch.rand(4000, generator=generator) - 3)
    v = torch.randn(4000, generator=generator) * 3
    units = torch.cartesian_prod(*[torch.tensor([1.0, 2.125, 3.125, 5.125])] * 2, torch.ones(500))
    ulps = 1 + 6e-8 * torch.randint(-6, 7, (2, len(units)), generator=generator)
    steps = torch.cat([steps, units[:, 0] * ulps[0]])
    v = torch.cat([v, numbers[0] * units[:, 1] * ulps[1]])
    s = steps.double().numpy()

    def cost(x):
        return s * g(x.double().cpu().numpy(), *numbers) + (x - v).double().cpu().numpy() ** 2 / 2

    ours = make(*numbers).prox(v.to(device), steps.to(device)).cpu()
    best = cost(make(*numbers).prox(v.double(), steps.double()))
    # What a constraint leaves out costs infinity, by a rounding of its bound as well: none here.
    assert (cost(ours) <= best + 2e-6 * (s + best)).all()
