"""What holds for all values, tried with those that nobody thought of (hypothesis)."""

from __future__ import annotations

import numpy as np
import philox_numpy
import pytest
import torch

from torchcalc import _C, prox

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st

STRENGTHS = st.floats(0, 3)
PENALTIES = {
    "l1": lambda a, b: prox.L1(a),
    "l2": lambda a, b: prox.L2(b),
    "elastic_net": prox.ElasticNet,
}


@given(st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6))
@settings(max_examples=200, deadline=None)
def test_cpp_equals_numpy(words):
    counter, key = np.array(words[:4], dtype=np.uint32), np.array(words[4:], dtype=np.uint32)
    assert (_C.philox4x32(counter, key) == philox_numpy.philox4x32_10(counter, key)).all()


def brute_force_argmin(penalty, v, step):
    """argmin_w step g(w) + (w - v)^2 / 2 over a grid, refined about its best point."""
    low, high = -abs(v) - 1, abs(v) + 1
    for _ in range(12):
        grid = torch.linspace(low, high, 401, dtype=torch.float64)
        grid = torch.cat([grid, torch.zeros(1, dtype=torch.float64)])
        values = torch.stack([step * penalty.value(w) for w in grid]) + (grid - v).square() / 2
        best = grid[values.argmin()].item()
        width = (high - low) / 40
        low, high = best - width, best + width
    return best


@pytest.mark.parametrize("name", PENALTIES)
@given(v=st.floats(-4, 4), a=STRENGTHS, b=STRENGTHS, step=st.floats(0.1, 2))
@settings(max_examples=15, deadline=None)
def test_prox_is_the_argmin(name, v, a, b, step):
    penalty = PENALTIES[name](a, b)
    actual = penalty.prox(torch.tensor([v], dtype=torch.float64), step).item()
    assert actual == pytest.approx(brute_force_argmin(penalty, v, step), abs=1e-6)
