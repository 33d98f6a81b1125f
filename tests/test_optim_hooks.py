"""Hooks, closures, the profiler's label, clipping, accumulation: what people hang on a step."""

from __future__ import annotations

import copy
import math
from unittest import mock

import pytest
import torch
from torch.optim import optimizer as torchs
from training import KINDS, OPTIONS, assert_same, build

from torchcalc import optim

pytestmark = pytest.mark.no_kernels  # a step's numbers are tested elsewhere

TORCHS = [kind for kind in KINDS if hasattr(torch.optim, kind)]


def give(w, k=0):
    w.grad = torch.sin(torch.arange(w.numel(), dtype=w.dtype) + k).view_as(w)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_a_step(kind):
    w, optimizer = build(kind)
    calls, start = [], w.detach().clone()

    def record(name):
        return lambda o, args, kwargs: calls.append((name, o is optimizer, torch.equal(w, start)))

    handles = [
        torchs.register_optimizer_step_pre_hook(record("global pre")),
        torchs.register_optimizer_step_post_hook(record("global post")),
        optimizer.register_step_pre_hook(record("pre")),
        optimizer.register_step_post_hook(record("post")),
    ]
    give(w)
    try:
        optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    # The hooks before see the weights as they were, those after as they are.
    names = [("global pre", True), ("pre", True), ("post", False), ("global post", False)]
    assert calls == [(name, True, same) for name, same in names]
    optimizer.step()
    assert len(calls) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_pre_hook_changes_arguments_and_gradients(kind):
    (w, optimizer), (v, other) = build(kind), build(kind)
    closure = mock.Mock(return_value=torch.tensor(7.0))

    def hook(o, args, kwargs):
        w.grad.mul_(2.0)
        return args, {"closure": closure}

    optimizer.register_step_pre_hook(hook)
    give(w)
    give(v)
    v.grad.mul_(2.0)
    assert optimizer.step() == 7.0
    closure.assert_called_once_with()
    other.step()
    assert torch.equal(w, v)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_of_a_state(kind):
    w, optimizer = build(kind)
    give(w)
    optimizer.step()
    before, calls = copy.deepcopy(optimizer.state_dict()), []

    def after_saving(o, state):
        calls.append("saved")
        return {**state, "version": 3}

    def before_loading(o, state):
        calls.append(("loading", state["version"]))

    optimizer.register_state_dict_pre_hook(lambda o: calls.append("saving"))
    optimizer.register_state_dict_post_hook(after_saving)
    optimizer.register_load_state_dict_pre_hook(before_loading)
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    saved = copy.deepcopy(optimizer.state_dict())
    give(w, 1)
    optimizer.step()
    optimizer.load_state_dict(saved)
    assert calls == ["saving", "saved", ("loading", 3), "loaded"]
    again = optimizer.state_dict()
    torch.testing.assert_close(again["state"], before["state"], rtol=0, atol=0)
    assert again["param_groups"] == before["param_groups"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_profiler_shows_steps_and_clearing(kind):
    w, optimizer = build(kind)
    give(w)
    with torch.profiler.profile() as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = {event.key for event in profile.key_averages()}
    assert {f"Optimizer.step#{kind}.step", f"Optimizer.zero_grad#{kind}.zero_grad"} <= names


@pytest.mark.parametrize("kind", KINDS)
def test_a_closure_is_evaluated_with_gradients(kind):
    (w, optimizer), (v, other) = build(kind), build(kind)
    for k in range(3):
        with torch.no_grad():  # as a caller may have it

            def closure(k=k):
                optimizer.zero_grad()
                loss = (w - k).square().sum()
                loss.backward()
                return loss

            loss = optimizer.step(closure)
        assert loss == (v - k).square().sum()
        v.grad = 2 * (v.detach() - k)
        other.step()
    assert_same((w, optimizer), (v, other))


@pytest.mark.filterwarnings("ignore:`torch.jit")  # that torch.distributed.optim imports
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_in_backward(kind):
    """Each parameter has an optimizer of its own, that steps once its gradient is there."""

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))

    plain, hooked, applied = model(), model(), model()
    make = getattr(optim, kind)
    optimizer = make(plain.parameters(), **OPTIONS[kind])
    for p in hooked.parameters():

        def step(p, own=make([p], **OPTIONS[kind])):  # noqa: B008
            own.step()
            own.zero_grad()

        p.register_post_accumulate_grad_hook(step)
    if torch.distributed.is_available():
        from torch.distributed.optim import _apply_optimizer_in_backward

        _apply_optimizer_in_backward(make, applied.parameters(), OPTIONS[kind])
    x = torch.randn(5, 3)
    for _ in range(4):
        optimizer.zero_grad()
        for m in (plain, hooked, applied):
            m(x).square().sum().backward()
        optimizer.step()
    for other in (hooked, *([applied] if torch.distributed.is_available() else [])):
        for p, q in zip(other.parameters(), plain.parameters(), strict=True):
            assert p.grad is None
            assert torch.equal(p, q)


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("kind", TORCHS)
def test_clipped_and_accumulated_gradients(kind, foreach):
    """As with torch's; clipping by the norm of all parameters, and of each element."""
    results = []
    for module in (torch.optim, optim):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 4, dtype=torch.float64)
        optimizer = getattr(module, kind)(model.parameters(), **OPTIONS[kind])
        for step in range(6):
            for _ in range(3):  # gradients add up in place
                x = torch.randn(5, 3, dtype=torch.float64)
                (model(x).square().sum() / 3).backward()
            if step % 2:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5, foreach=foreach)
            else:
                torch.nn.utils.clip_grad_value_(model.parameters(), 0.1, foreach=foreach)
            optimizer.step()
            optimizer.zero_grad(set_to_none=step < 3)
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_a_scaler_with_clipping(kind):
    """The idiom of torch's pages: scale, unscale, clip, step, update; one step overflows."""
    results = []
    for scaled in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 4)
        optimizer = getattr(optim, kind)(model.parameters(), **OPTIONS[kind])
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=scaled)
        for k in range(5):
            x = torch.randn(5, 3)
            if k == 2 and not scaled:
                continue
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(x).float().square().sum()
            scaler.scale(loss * math.inf if k == 2 else loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
