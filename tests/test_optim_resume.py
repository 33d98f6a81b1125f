"""Stopping in the middle and going on from what was saved gives the same bits as not stopping."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from training import KINDS, OPTIONS, assert_same, build

from torchcalc import optim, prox

pytestmark = pytest.mark.no_kernels  # a step's numbers are tested elsewhere

STEPS = 8
PENALTIES = [None, prox.L1(0.05), prox.GroupL2(0.05, dim=0), prox.TV1D(0.05)]


def cases():
    for kind in KINDS:
        penalties = [{}] if kind == "FTRL" else [{"penalty": penalty} for penalty in PENALTIES]
        for options in penalties:
            yield kind, torch.float32, options
        if kind == "FTRL":
            continue
        for penalty in PENALTIES[1:3]:
            yield kind, torch.float32, {"penalty": penalty, "prox_start": STEPS // 2 + 2}
        for half in (torch.bfloat16, torch.float16):
            # Where nothing but the rounding is random, and where nothing is.
            yield kind, half, {"penalty": PENALTIES[1], "stochastic_rounding": True}
            wide = {"state_dtype": torch.float32, "stochastic_rounding": True, "prox_start": 6}
            yield kind, half, {"penalty": PENALTIES[1], **wide}
    yield "SGD", torch.float32, {"momentum": 0.0, "weight_decay": 0.1}
    yield "SGD", torch.float32, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}
    yield "SGD", torch.float32, {"momentum": 0.9, "nesterov": True, "maximize": True}
    yield "AdamW", torch.float64, {"amsgrad": True, "penalty": PENALTIES[1]}
    yield "Adam", torch.float64, {"lr": torch.tensor(0.05), "betas": (torch.tensor(0.8), 0.9)}
    yield "Adagrad", torch.float64, {"initial_accumulator_value": 0.3}
    wide = {"state_dtype": torch.float32, "initial_accumulator_value": 0.3}
    yield "Adagrad", torch.bfloat16, wide
    yield "RMSprop", torch.float64, {"momentum": 0.0, "centered": False, "penalty": PENALTIES[2]}
    yield "FTRL", torch.bfloat16, {"l2": 0.1, "beta": 1.0, "lr_power": -0.3}


def by_state_dict(w, optimizer, kind, options):
    """As in most training scripts: the optimizer is made anew, of the same arguments."""
    file = io.BytesIO()
    torch.save({"w": w, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    torch.manual_seed(123)  # seeds come from the checkpoint
    v, other = build(kind, dtype=w.dtype, **copy.deepcopy(options))
    v.data.copy_(loaded["w"])
    other.load_state_dict(loaded["optimizer"])
    return v, other


def by_state_dict_alone(w, optimizer, kind, options):
    """What was given when the first one was made comes from the checkpoint, too."""
    kept = {"lr": 0.01} if kind != "FTRL" else {}
    return by_state_dict(w, optimizer, kind, kept)


def by_deepcopy(w, optimizer, kind, options):
    return copy.deepcopy((w, optimizer))


def by_pickle(w, optimizer, kind, options):
    return pickle.loads(pickle.dumps((w, optimizer)))


WAYS = [by_state_dict, by_state_dict_alone, by_deepcopy, by_pickle]


def train(w, optimizer, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        w.grad = torch.randn(w.shape, generator=generator).to(w.dtype)
        optimizer.step()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("kind", "precision", "options"), list(cases()), ids=str)
def test_each_optimizer(kind, precision, options, way):
    w, optimizer = build(kind, dtype=precision, **copy.deepcopy(options))
    for stop in (0, 1, STEPS // 2):
        train(w, optimizer, max(0, stop - 1), stop)
        twin = way(w, optimizer, kind, options)
        assert twin[0] is not w
        assert_same(twin, (w, optimizer))
    before = w.detach().clone()
    train(*twin, stop, STEPS)
    assert torch.equal(w, before)  # nothing is shared
    train(w, optimizer, stop, STEPS)
    assert not torch.equal(w, before)
    assert_same(twin, (w, optimizer))


@pytest.mark.parametrize("way", WAYS[:1] + WAYS[2:])
@pytest.mark.parametrize("penalty", [prox.L1(0.1), prox.GroupL2(0.1, dim=0), None], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.01}, {"restart": False, "max_iter": 50, "tol": 1e-3}], ids=str
)
def test_fista(options, penalty, way, monkeypatch):
    monkeypatch.setitem(OPTIONS, "FISTA", {})
    options = {"penalty": penalty, **options}

    def run(w, optimizer):
        target = torch.linspace(-1, 1, w.numel(), dtype=w.dtype).view_as(w)
        scale = 1 + torch.arange(w.numel(), dtype=w.dtype).view_as(w)

        def closure():
            optimizer.zero_grad()
            loss = (scale * (w - target).square()).sum()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)

    w, optimizer = build("FISTA", **options)
    run(w, optimizer)
    assert optimizer.converged == (options.get("tol", 0) > 0)
    twin = way(w, optimizer, "FISTA", options)
    for _ in range(2):
        assert_same(twin, (w, optimizer))
        if way is not by_state_dict:  # which has no place for it
            assert twin[1].converged == optimizer.converged
            assert twin[1].certificate == optimizer.certificate
        run(w, optimizer)
        run(*twin)


@pytest.mark.parametrize("penalty", PENALTIES[1:], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "FTRL"])
def test_a_penalty_schedule(kind, penalty):
    def schedule(optimizer):
        return optim.PenaltySchedule(optimizer, lambda t: min(1.0, t / 6))

    def run(w, optimizer, schedule, first, last):
        for step in range(first, last):
            train(w, optimizer, step, step + 1)
            schedule.step()

    w, optimizer = build(kind, penalty=penalty)
    strengths = schedule(optimizer)
    run(w, optimizer, strengths, 0, STEPS // 2)
    file = io.BytesIO()
    torch.save([w, optimizer.state_dict(), strengths.state_dict()], file)
    file.seek(0)
    value, states, place = torch.load(file, weights_only=True)
    v, other = build(kind, penalty=penalty)
    v.data.copy_(value)
    again = schedule(other)
    other.load_state_dict(states)
    again.load_state_dict(place)
    run(w, optimizer, strengths, STEPS // 2, STEPS)
    run(v, other, again, STEPS // 2, STEPS)
    assert_same((w, optimizer), (v, other))
