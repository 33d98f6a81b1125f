"""What others do to an optimizer's states and parameters between steps: torch.optim's answer."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch

from torchcalc import optim, prox

PAIRS = {
    "SGD": lambda module, p: module.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda module, p: module.AdamW(p, lr=0.1),
}


def params(*shapes):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s)) for s in shapes or ((3,), (2, 4))]


def train(optimizer, parameters, steps):
    for step in range(steps):
        for p in parameters:
            p.grad = torch.full_like(p, 0.1 * (step + 1))
        optimizer.step()


@pytest.mark.parametrize("make", PAIRS.values(), ids=list(PAIRS))
@pytest.mark.parametrize("which", ["all", "one"])
def test_states_with_other_memory_count(make, which):
    results = []
    for module in (optim, torch.optim):
        chosen = params()
        optimizer = make(module, chosen)
        train(optimizer, chosen, 3)
        # The idiom that moves an optimizer to another device.
        for state in list(optimizer.state.values())[: None if which == "all" else 1]:
            for value in state.values():
                value.data = torch.zeros_like(value)
        train(optimizer, chosen, 3)
        results.append((chosen, copy.deepcopy(optimizer.state_dict()["state"])))
    (ours, our_states), (theirs, their_states) = results
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(our_states, their_states)


def test_a_stale_graph_over_a_state_raises():
    (w,) = chosen = params((3,))
    optimizer = optim.AdamW(chosen)
    train(optimizer, chosen, 1)
    loss = (w * optimizer.state[w]["exp_avg"]).sum()
    train(optimizer, chosen, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_that_leave_are_released():
    base = params()
    optimizer = optim.AdamW(base, penalty=prox.L1(0.1))
    gone = []
    for _ in range(3):
        p = torch.nn.Parameter(torch.ones(100))
        optimizer.add_param_group({"params": [p]})
        train(optimizer, [*base, p], 1)
        gone.append(weakref.ref(p))
        optimizer.param_groups.pop()
        optimizer.state.pop(p)
        del p
    train(optimizer, base, 1)
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


@pytest.mark.parametrize("make", PAIRS.values(), ids=list(PAIRS))
def test_first_gradients_one_by_one(make):
    results = []
    for module in (optim, torch.optim):
        chosen = params(*[(k + 1,) for k in range(8)])
        optimizer = make(module, chosen)
        for k in range(8):
            train(optimizer, chosen[: k + 1], 1)
        train(optimizer, chosen, 3)
        results.append(chosen)
        if module is optim:
            assert len(optimizer._plan.batches) <= 4  # kernel calls, not one for each
    torch.testing.assert_close(*results)


def test_loaded_states_are_used_where_they_are():
    chosen = params()
    optimizer = optim.AdamW(chosen)
    train(optimizer, chosen, 2)
    other = optim.AdamW([torch.nn.Parameter(p.detach().clone()) for p in chosen])
    other.load_state_dict(optimizer.state_dict())
    views = [v for state in other.state.values() for v in state.values()]
    train(other, other.param_groups[0]["params"], 1)
    after = [v for state in other.state.values() for v in state.values()]
    assert all(a is b for a, b in zip(views, after, strict=True))
    train(optimizer, chosen, 1)
    torch.testing.assert_close(chosen, other.param_groups[0]["params"])


@pytest.mark.parametrize("penalty", [prox.L1(1e39), prox.L2(1e39), prox.ElasticNet(1e39, 1e39)])
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "AdamW, no clip"])
def test_no_learning_rate_no_pull(kind, penalty):
    # Finite in double, but not in float32.
    (w,) = chosen = params((3,))
    options = {"prox_clip": None} if "no clip" in kind else {}
    optimizer = getattr(optim, kind[:5].rstrip(","))(chosen, lr=0.0, penalty=penalty, **options)
    before = w.detach().clone()
    train(optimizer, chosen, 1)
    assert torch.equal(w, before)


def test_default_device_is_not_the_optimizers():
    (w,) = chosen = params((3,))
    optimizer = optim.SGD(chosen, lr=0.1)
    w.grad = torch.ones(3)
    before = w.detach().clone()
    with torch.device("meta"):
        optimizer.step()
    torch.testing.assert_close(w.detach(), before - 0.1)


def test_a_parameter_without_memory_of_its_own_stops_the_whole_step():
    a, b = params((3,), (3,))
    optimizer = optim.AdamW([{"params": [a]}, {"params": [b]}])
    train(optimizer, [a, b], 1)
    b.data = torch.ones(1).expand(3)
    before = a.detach().clone()
    with pytest.raises(ValueError, match="params must have memory for each"):
        train(optimizer, [a, b], 1)
    assert torch.equal(a, before)
    assert optimizer.state[a]["step"] == 1


def test_learning_rates_that_are_tensors():
    results = []
    for module in (optim, torch.optim):
        chosen = params()
        optimizer = module.AdamW(chosen, lr=torch.tensor(0.1))
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        train(optimizer, chosen, 2)
        schedule.step()
        train(optimizer, chosen, 2)
        optimizer.param_groups[0]["lr"] = torch.tensor(0.01)
        train(optimizer, chosen, 1)
        results.append(chosen)
    torch.testing.assert_close(*results)


def test_nesterov_whose_momentum_a_schedule_turns_off():
    results = []
    for module in (optim, torch.optim):
        chosen = params()
        optimizer = module.SGD(chosen, lr=0.1, momentum=0.9, nesterov=True)
        train(optimizer, chosen, 2)
        optimizer.param_groups[0]["momentum"] = 0.0
        train(optimizer, chosen, 2)
        results.append(chosen)
    torch.testing.assert_close(*results)


def test_groups_of_an_earlier_version():
    optimizer = optim.AdamW(params())
    state = optimizer.__getstate__()
    del state["param_groups"][0]["prox_clip"]
    again = optim.AdamW.__new__(optim.AdamW)
    again.__setstate__(state)
    train(again, again.param_groups[0]["params"], 1)
    assert again.param_groups[0]["prox_clip"] == 1.25
