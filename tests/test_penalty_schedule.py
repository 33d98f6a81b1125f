"""Penalties that begin later, and strengths that change."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from torchcalc import optim, prox
from torchcalc.optim import PenaltySchedule

pytestmark = pytest.mark.no_kernels
KINDS = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"]


def make(kind, penalty, **options):
    w = torch.nn.Parameter(torch.linspace(-1, 1, 8, dtype=torch.float64))
    return w, getattr(optim, kind)([w], lr=0.05, penalty=penalty, **options)


def step(w, optimizer, k):
    w.grad = torch.sin(torch.arange(8.0, dtype=torch.float64) + k) + w.detach()
    optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [prox.L1(0.3), prox.NMSparse(2, 4), prox.TV1D(0.3)], ids=str)
def test_a_penalty_that_waits(kind, penalty):
    w, optimizer = make(kind, penalty, prox_start=3)
    v, without = make(kind, None)
    for k in range(3):
        step(w, optimizer, k)
        step(v, without, k)
        assert torch.equal(w, v)
        assert optimizer.param_groups[0]["prox_start"] == 2 - k
    assert penalty.value(w.detach()) != 0
    step(w, optimizer, 3)
    step(v, without, 3)
    assert not torch.equal(w, v)
    # One that begins at once, from the same state, does the same.
    resumed = copy.deepcopy(optimizer)
    assert resumed.param_groups[0]["prox_start"] == 0


def test_waiting_goes_on_from_a_checkpoint():
    w, optimizer = make("AdamW", prox.L1(0.3), prox_start=4)
    for k in range(2):
        step(w, optimizer, k)
    v, other = make("AdamW", prox.L1(0.3))
    v.data.copy_(w.data)
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    for k in range(2, 6):
        step(w, optimizer, k)
        step(v, other, k)
        assert torch.equal(w, v)
    assert (w != torch.linspace(-1, 1, 8)).any()


@pytest.mark.parametrize("start", [-1, 1.5, True, None])
def test_bad_starts(start):
    with pytest.raises(ValueError, match="prox_start must be an integer >= 0"):
        make("SGD", prox.L1(0.1), prox_start=start)


PENALTIES = [
    *(prox.L1(0.3), prox.ElasticNet(0.3, 0.2), prox.Huber(0.3, 0.1), prox.MCP(0.3, 2.0)),
    *(prox.SCAD(0.3, 3.0), prox.GroupL2(0.3, dim=0), prox.TV1D(0.3), prox.LInf(0.3)),
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_each_step_has_its_strength(penalty):
    def factor(t):
        return 0.25 * t

    w, optimizer = make("SGD", penalty)
    schedule = PenaltySchedule(optimizer, factor)
    v, other = make("SGD", penalty)
    for k in range(5):
        step(w, optimizer, k)
        other.param_groups[0]["penalty"] = factor(k) * penalty
        step(v, other, k)
        assert torch.equal(w, v)
        schedule.step()
    assert schedule.get_last_factor() == [1.25]


def test_a_schedule_goes_on_from_a_checkpoint():
    w, optimizer = make("AdamW", prox.L1(0.3))
    schedule = PenaltySchedule(optimizer, lambda t: t / 4)
    for k in range(3):
        step(w, optimizer, k)
        schedule.step()
    v, other = make("AdamW", prox.L1(0.3))
    v.data.copy_(w.data)
    again = PenaltySchedule(other, lambda t: t / 4)
    other.load_state_dict(pickle.loads(pickle.dumps(optimizer.state_dict())))
    again.load_state_dict(pickle.loads(pickle.dumps(schedule.state_dict())))
    for k in range(3, 6):
        step(w, optimizer, k)
        schedule.step()
        step(v, other, k)
        again.step()
    assert torch.equal(w, v)
    assert other.param_groups[0]["l1"] == pytest.approx(0.3 * 6 / 4)


def test_groups_have_their_own():
    a, b, c = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = optim.SGD(
        [
            {"params": [a], "penalty": prox.L1(1.0)},
            {"params": [b]},
            {"params": [c], "penalty": prox.L2(2.0)},
        ],
        lr=0.1,
    )
    schedule = PenaltySchedule(optimizer, [lambda t: t, lambda t: 1.0, lambda t: 1 / (1 + t)])
    schedule.step()
    schedule.step()
    first, second, third = optimizer.param_groups
    assert (first["l1"], second["penalty"], third["l2"]) == (2.0, None, 2.0 / 3)


def test_bad_schedules():
    _, optimizer = make("SGD", prox.L1(0.1))
    with pytest.raises(TypeError, match="fn must be callable"):
        PenaltySchedule(optimizer, 0.5)
    with pytest.raises(ValueError, match="fn must be one for each of 1 groups, got 2"):
        PenaltySchedule(optimizer, [lambda t: 1.0] * 2)
    with pytest.raises(ValueError, match=r"fn\(t\) must be in"):
        PenaltySchedule(optimizer, lambda t: -1.0)
    with pytest.raises(TypeError, match=r"optimizer must be one of torchcalc\.optim"):
        PenaltySchedule(torch.optim.SGD([torch.ones(3)]), lambda t: 1.0)
    _, constrained = make("SGD", prox.NMSparse(2, 4))
    with pytest.raises(ValueError, match="factor must be > 0"):
        PenaltySchedule(constrained, lambda t: 0.0)
    with pytest.raises(ValueError, match="state_dict must have 1 groups"):
        PenaltySchedule(optimizer, lambda t: 1.0).load_state_dict({"t": 1, "initial": []})
