"""Optimizers as objects: state, checkpoints, groups, gradients and parameters of any kind."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from training import assert_params_close, make_params, train

from torchcalc import optim, prox


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, penalty=prox.L1(0.01)),
        lambda p: optim.AdamW(p, penalty=prox.ElasticNet(0.01, 0.1)),
    ],
    ids=["SGD", "AdamW"],
)
def test_resuming_gives_the_same_bits(make, dtype, device):
    whole = make_params(device, dtype)
    train(make(whole), whole, 20)
    params = make_params(device, dtype)
    optimizer = make(params)
    train(optimizer, params, 11)
    buffer = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    params = [torch.nn.Parameter(p.detach()) for p in loaded["params"]]
    optimizer = make(params)
    optimizer.load_state_dict(loaded["optimizer"])
    train(optimizer, params, 9, first=11)
    assert all(torch.equal(a, b) for a, b in zip(params, whole, strict=True))


PAIRS = {
    "SGD": (
        lambda p, **k: optim.SGD(p, lr=0.01, momentum=0.9, **k),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    ),
    "AdamW": (optim.AdamW, torch.optim.AdamW),
    "AdamW fused": (optim.AdamW, lambda p: torch.optim.AdamW(p, fused=True)),
}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS.values(), ids=list(PAIRS))
def test_state_loads_both_ways(ours, theirs, device):
    expected = make_params(device)
    train(theirs(expected), expected, 20)
    for first, second in ((ours, theirs), (theirs, ours)):
        params = make_params(device)
        optimizer = first(params)
        train(optimizer, params, 10)
        successor = second(params)
        successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        keys = {k for s in optimizer.state.values() for k in s}
        assert keys == {k for s in successor.state.values() for k in s}
        train(successor, params, 10, first=10)
        assert_params_close(params, expected)


def test_loading_a_torch_state_keeps_the_penalty():
    params = make_params()
    optimizer = optim.AdamW(params, penalty=prox.L1(0.3), prox_metric="lr")
    optimizer.load_state_dict(torch.optim.AdamW(params, lr=0.5).state_dict())
    group = optimizer.param_groups[0]
    assert (group["penalty"], group["l1"], group["prox_metric"]) == ("l1", 0.3, "lr")
    assert group["lr"] == 0.5
    # A state of this optimizer brings its own.
    optimizer.load_state_dict(optim.AdamW(params, penalty=prox.L2(0.2)).state_dict())
    group = optimizer.param_groups[0]
    assert (group["penalty"], group["l1"], group["l2"]) == ("l2", 0.0, 0.2)


def test_states_that_mean_another_algorithm_are_refused():
    params = make_params()
    theirs = torch.optim.Adam(params, weight_decay=0.1)
    optimizer = optim.AdamW(params)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="decoupled_weight_decay must be True"):
        optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.state_dict() == before
    optim.Adam(params).load_state_dict(theirs.state_dict())


def test_groups_hold_plain_values_that_a_scheduler_can_change():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    groups = optim.groups(model, {"0.weight": None, "*.weight": prox.L1(1e-2), "*": prox.L2(0.1)})
    assert [len(g["params"]) for g in groups] == [1, 1, 2]
    optimizer = optim.SGD(groups, lr=0.1, penalty=prox.ElasticNet(1.0, 1.0))
    stored = [(g["penalty"], g["l1"], g["l2"]) for g in optimizer.param_groups]
    assert stored == [(None, 0.0, 0.0), ("l1", 1e-2, 0.0), ("l2", 0.0, 0.1)]
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert optimizer.param_groups[3]["penalty"] == "elastic_net"
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[1]["l1"] = 1e6
    optimizer.step()
    assert (model[1].weight == 0).all()
    assert not (model[0].weight == 0).any()


def test_parameters_without_gradient_stay(device):
    params = make_params(device)
    before = [p.detach().clone() for p in params]
    optimizer = optim.AdamW(params, penalty=prox.L1(10.0))
    params[3].grad = torch.ones_like(params[3])
    optimizer.step()
    for i, (p, b) in enumerate(zip(params, before, strict=True)):
        assert torch.equal(p, b) == (i != 3)
    # A parameter that joins later starts at its own first step.
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[params[3]]["step"] == 2
    assert optimizer.state[params[4]]["step"] == 1


@pytest.mark.parametrize("make", [torch.Tensor.t, lambda t: t[:, ::2], lambda t: t[1:]])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_any_strides(make, kind, device):
    settings = {"momentum": 0.9} if kind == "SGD" else {}
    base = torch.randn(6, 8, device=device)
    strided = torch.nn.Parameter(make(base.clone()))
    plain = torch.nn.Parameter(strided.detach().clone().contiguous())
    assert strided.is_contiguous() == (make(base).is_contiguous())
    for p in (strided, plain):
        optimizer = getattr(optim, kind)([p], lr=0.1, penalty=prox.L1(0.1), **settings)
        torch.manual_seed(0)
        for i in range(5):
            p.grad = torch.randn(p.shape, device=device)
            if i % 2:
                p.grad = p.grad.t().contiguous().t()
            optimizer.step()
    assert torch.equal(strided, plain)


def test_channels_last_parameters_are_updated_in_place(device):
    conv = torch.nn.Conv2d(3, 5, 3, device=device).to(memory_format=torch.channels_last)
    twin = copy.deepcopy(conv).to(memory_format=torch.contiguous_format)
    x = torch.randn(2, 3, 8, 8, device=device)
    for model in (conv, twin):
        optimizer = optim.AdamW(model.parameters(), lr=0.1, penalty=prox.L1(1e-3))
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(conv.weight, twin.weight, atol=1e-5, rtol=1e-4)


def test_a_stale_backward_raises():
    w = torch.nn.Parameter(torch.randn(3))
    loss = (w * w).sum()
    w.grad = torch.ones(3)
    optim.SGD([w], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closure_and_schedulers_and_hooks():
    w = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = optim.SGD([w], lr=0.1)
    calls = []
    optimizer.register_step_post_hook(lambda *a: calls.append("post"))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 1.0
    schedule.step()
    assert calls == ["post"]
    assert optimizer.param_groups[0]["lr"] == 0.05
    torch.testing.assert_close(w.detach(), torch.tensor([0.8]))


def test_grad_scaler_skips_infinite_steps():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = optim.AdamW([w])
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale((w * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(w, torch.ones(2))


def test_half_precision_parameters(device, dtype):
    params, exact = make_params(device, dtype), make_params(device, torch.float64)
    for e, p in zip(exact, params, strict=True):
        e.data.copy_(p)
    for chosen in (params, exact):
        # A large eps: else an update is the quotient of two numbers that have lost their digits.
        train(optim.AdamW(chosen, lr=1e-2, eps=0.1, penalty=prox.L1(1e-2)), chosen, 3)
    unit = torch.finfo(dtype).eps
    for p, e in zip(params, exact, strict=True):
        torch.testing.assert_close(p.double(), e, atol=8 * unit, rtol=8 * unit)
        assert p.dtype == dtype


def test_optimizer_can_be_pickled_and_copied():
    params = make_params()
    optimizer = optim.AdamW(params, penalty=prox.L1(0.1))
    train(optimizer, params, 2)
    clone = copy.deepcopy(optimizer)
    assert clone.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert "l1" in repr(optimizer)


def test_states_lie_together_but_belong_to_their_parameters(device):
    params = make_params(device)
    optimizer = optim.AdamW(params, penalty=prox.L1(0.01))
    train(optimizer, params, 3)
    for p in params:
        state = optimizer.state[p]
        assert list(state) == ["exp_avg", "exp_avg_sq", "step"]
        assert state["exp_avg"].shape == p.shape
        assert state["step"] == 3
    # No two of them overlap: writing one leaves the others.
    before = [optimizer.state[p]["exp_avg"].clone() for p in params]
    optimizer.state[params[3]]["exp_avg"].fill_(7)
    for p, b in zip(params, before, strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], b) == (p is not params[3])


@pytest.mark.parametrize("change", ["replaced", "written", "deepcopy", "swapped", "removed"])
def test_states_that_somebody_changes_count(change, device):
    def run(interfere):
        params = make_params(device)
        optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
        train(optimizer, params, 3)
        state = optimizer.state[params[3]]
        if not interfere:  # what must come out: values written into the tensors themselves
            if change in ("replaced", "written", "removed"):
                state["momentum_buffer"].fill_(0.5)
        elif change == "replaced":
            state["momentum_buffer"] = torch.full_like(params[3], 0.5)
        elif change == "written":
            state["momentum_buffer"].copy_(torch.full_like(params[3], 0.5))
        elif change == "removed":
            del optimizer.state[params[3]]
            optimizer.state[params[3]] = {"momentum_buffer": torch.full_like(params[3], 0.5)}
        elif change == "deepcopy":
            optimizer = copy.deepcopy(optimizer)
            params = optimizer.param_groups[0]["params"]
        elif change == "swapped":
            group = optimizer.param_groups[0]["params"]
            group[2], group[4] = group[4], group[2]
        train(optimizer, params, 3, first=3)
        return params

    for a, b in zip(run(True), run(False), strict=True):
        assert torch.equal(a, b)


def test_momentum_that_comes_and_goes():
    ours, theirs = make_params(), make_params()
    pair = (optim.SGD(ours, lr=0.01), torch.optim.SGD(theirs, lr=0.01))
    for step, momentum in enumerate([0.0, 0.9, 0.9, 0.0, 0.9]):
        for optimizer, params in zip(pair, (ours, theirs), strict=True):
            optimizer.param_groups[0]["momentum"] = momentum
            train(optimizer, params, 1, step)
    assert_params_close(ours, theirs)


def test_a_state_of_another_shape_is_refused():
    params = make_params()
    optimizer = optim.AdamW(params)
    train(optimizer, params, 1)
    optimizer.state[params[2]]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"state 'exp_avg' must be a tensor of shape \(7,\)"):
        train(optimizer, params, 1)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_memory_order_that_changes_between_steps(kind, device):
    settings = {"momentum": 0.9} if kind == "SGD" else {}
    results = []
    for change in (False, True):
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(3, 4, 3, device=device)
        optimizer = getattr(optim, kind)(conv.parameters(), lr=0.1, **settings)
        for step in range(6):
            if change and step == 3:
                conv.to(memory_format=torch.channels_last)
            for p in conv.parameters():
                p.grad = torch.randn(p.shape, device=device)
            optimizer.step()
        results.append([p.detach() for p in conv.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("change", ["size", "dtype"])
def test_a_parameter_that_no_longer_fits_its_state_is_refused(change):
    a, b = (torch.nn.Parameter(torch.ones(n)) for n in (40, 30))
    optimizer = optim.AdamW([a, b])
    a.grad, b.grad = torch.ones(40), torch.ones(30)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    a.grad = None
    a.data = torch.ones(90) if change == "size" else torch.ones(40, dtype=torch.float64)
    a.grad = torch.ones_like(a)
    with pytest.raises(ValueError, match="state 'exp_avg' must be a tensor of shape"):
        optimizer.step()
    after = optimizer.state_dict()
    for key, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(after["state"][key][name], value)


def test_numpy_numbers_are_stored_as_plain_ones():
    penalty = prox.L1(np.float64(0.1))
    optimizer = optim.AdamW(
        make_params(), lr=np.float32(0.5), betas=(np.float64(0.9), 0.9), penalty=penalty
    )
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    group = torch.load(buffer, weights_only=True)["param_groups"][0]
    assert (group["lr"], group["betas"], group["l1"]) == (0.5, (0.9, 0.9), 0.1)


def test_loading_checks_shapes_before_it_changes_anything():
    ours, theirs = (torch.nn.Parameter(torch.ones(s)) for s in ((3, 5), (5,)))
    ours.grad, theirs.grad = torch.ones(3, 5), torch.ones(5)
    optimizer, other = optim.AdamW([ours]), optim.AdamW([theirs])
    optimizer.step()
    other.step()
    with pytest.raises(
        ValueError, match=r"state 'exp_avg' of parameter 0 must have shape \(3, 5\)"
    ):
        optimizer.load_state_dict(other.state_dict())
    assert optimizer.state[ours]["exp_avg"].shape == (3, 5)


def test_loading_shares_nothing():
    params, others = make_params(), make_params()
    first, second = optim.AdamW(params), optim.AdamW(others)
    train(first, params, 1)
    second.load_state_dict(first.state_dict())
    train(first, params, 2)
    assert {s["step"].item() for s in second.state.values()} == {1.0}


def test_groups_of_shared_parameters_and_duplicates():
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    )
    model[1].weight = model[0].weight
    groups = optim.groups(model, {"1.weight": prox.L1(0.1), "0.weight": None})
    assert [(len(g["params"]), g["penalty"]) for g in groups] == [(1, None)]
    with pytest.raises(ValueError, match="twice"), pytest.warns(UserWarning, match="duplicate"):
        optim.SGD([model[0].weight, model[0].weight])


def test_one_minus_beta_keeps_its_digits(device):
    # In float32 1 - 0.999 is 0.00100004673: an error of 5e-5 in every second moment.
    param = torch.nn.Parameter(torch.zeros(1, device=device))
    param.grad = torch.ones(1, device=device)
    optimizer = optim.AdamW([param])
    optimizer.step()
    assert optimizer.state[param]["exp_avg_sq"].item() == pytest.approx(1 - 0.999, rel=2e-7)
    assert optimizer.state[param]["exp_avg"].item() == pytest.approx(1 - 0.9, rel=2e-7)
