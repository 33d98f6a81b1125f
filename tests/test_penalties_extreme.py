"""Proximal operators of values at the ends of their type's range, and beyond."""

from __future__ import annotations

import math

import pytest
import torch

from torchcalc import prox

HOMOGENEOUS = [
    *(prox.L1(0.7), prox.GroupL2(1.2), prox.GroupL2(1.2, dim=1), prox.SparseGroupL2(0.3, 0.8)),
    *(prox.LInf(3.0), prox.TV1D(0.6), prox.TV1D(0.6, dim=0)),
]


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("penalty", HOMOGENEOUS, ids=str)
def test_huge_and_tiny_values(penalty, scale, device):
    # Homogeneous problems, v and strengths scaled alike; squares leave float32's range.
    v, s = torch.randn(3, 4, device=device), torch.rand(3, 4, device=device) + 0.1
    expected = penalty.prox(v.double(), s.double()) * scale
    actual = (scale * penalty).prox(v * scale, s)
    torch.testing.assert_close(actual.double() / scale, expected / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("radius", [1.5e-30, 1.5e30])
def test_balls_of_huge_and_tiny_radius(radius, device):
    v, s = torch.randn(50, device=device) * radius, torch.rand(50, device=device) + 0.1
    for ball in (prox.L1Ball, prox.L2Ball, prox.Simplex):
        expected = ball(1.5).prox(v.double() / radius * 1.5, s.double())
        actual = ball(radius).prox(v, s)
        torch.testing.assert_close(actual.double() / radius * 1.5, expected, rtol=1e-4, atol=1e-5)


# Those that shrink alone: what they leave of an infinite number is infinite.
SHRINKING = [prox.L0, prox.LHalf, prox.MCP, prox.SCAD, lambda lam: prox.Huber(lam, 0.2)]


@pytest.mark.parametrize("real", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("penalty", SHRINKING)
@pytest.mark.parametrize("lam", [0.0, 1e-20, 0.1])
def test_numbers_that_are_not_finite_stay(penalty, lam, real, device):
    most = torch.finfo(real).max
    v = torch.tensor([math.inf, -math.inf, math.nan, 0, -1e-38, 3, -1e30, most], dtype=real)
    for step in (0.0, 1e-3, 2.7, 3.0, 1e10, most):
        x = penalty(lam).prox(v.to(device), step).cpu()
        torch.testing.assert_close(x[:4], v[:4], rtol=0, atol=0, equal_nan=True)
        assert (x[4:].abs() <= v[4:].abs()).all()
        assert (x[4:] * v[4:].sign() >= 0).all()
