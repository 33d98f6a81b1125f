"""Groups and the penalties in them, hooks, failures, and other code that passes groups on."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.distributed as dist
from training import gradients, make_params, train

from torchcalc import optim, prox

INF = float("inf")
MAKERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, penalty=prox.L1(0.01)),
    "AdamW": lambda p: optim.AdamW(p, penalty=prox.ElasticNet(0.01, 0.1), prox_clip=2.0),
    "no penalty": lambda p: optim.AdamW(p, prox_clip=None),
}


@pytest.fixture(params=MAKERS.values(), ids=list(MAKERS))
def make(request):
    return request.param


def values(optimizer):
    return [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]


def test_groups_and_defaults_of_another_optimizer(make):
    params = make_params()
    optimizer = make(params[:3])
    optimizer.add_param_group({"params": params[3:], "penalty": prox.L2(0.3), "lr": 0.5})
    groups = [dict(g) for g in optimizer.param_groups]
    assert values(type(optimizer)(groups)) == values(optimizer)
    assert values(type(optimizer)(params, **optimizer.defaults)) == values(optimizer)[:1]


def test_names_need_their_strengths():
    for arguments in ({"penalty": "l1"}, {"penalty": "elastic_net", "l1": 0.1}, {"penalty": "l0"}):
        with pytest.raises(TypeError, match=r"penalty must be a .* None, or the name"):
            optim.AdamW(make_params(), **arguments)
    with pytest.raises(ValueError, match="l2 must be 0 with penalty='l1'"):
        optim.SGD(make_params(), penalty="l1", l1=0.1, l2=0.2)
    with pytest.raises(ValueError, match="l1 come with penalty"):
        optim.SGD(make_params(), penalty=prox.L1(0.1), l1=0.2)


def test_a_penalty_set_as_an_object_becomes_plain():
    params = make_params()
    optimizer = optim.SGD(params, lr=0.1, penalty=prox.L1(0.1))
    optimizer.param_groups[0]["penalty"] = prox.L2(0.3)
    train(optimizer, params, 1)
    group = optimizer.param_groups[0]
    assert (group["penalty"], group["l1"], group["l2"]) == ("l2", 0.0, 0.3)


@pytest.mark.parametrize("key", ["l1", "l2"])
def test_strengths_are_finite(key, make):
    for build in (prox.L1, prox.L2, lambda lam: prox.ElasticNet(lam, 0.0)):
        with pytest.raises(ValueError, match="must be finite"):
            build(INF)
    with pytest.raises(ValueError, match=f"{key} must be finite"):
        make([{"params": make_params(), "penalty": "elastic_net", "l1": 0.1, "l2": 0.1, key: INF}])
    params = make_params()
    optimizer = make(params)
    optimizer.param_groups[0][key] = INF  # as a scheduler might
    with pytest.raises(ValueError, match=f"{key} must be finite"):
        train(optimizer, params, 1)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"momentum": 1.0}, "momentum with a penalty must be in"),
        ({"momentum": 0.9, "dampening": 1.0}, "dampening with a penalty must be in"),
    ],
)
def test_steps_in_the_long_run_are_positive(arguments, match):
    params = make_params()
    optim.SGD(params, **arguments)
    optim.SGD(params, dampening=1.0, penalty=prox.L1(0.1))  # without momentum torch ignores it
    with pytest.raises(ValueError, match=match):
        optim.SGD(params, penalty=prox.L1(0.1), **arguments)
    optimizer = optim.SGD(params, momentum=0.9, penalty=prox.L1(0.1))
    optimizer.param_groups[0].update(arguments)
    with pytest.raises(ValueError, match=match):
        train(optimizer, params, 1)


@pytest.mark.parametrize("clip", [1, 1.0, 0.5, -2.0, INF, float("nan"), "1.25", True])
def test_prox_clip_is_more_than_one(clip):
    error = TypeError if isinstance(clip, str | bool) else ValueError
    with pytest.raises(error, match="prox_clip must be"):
        optim.AdamW(make_params(), prox_clip=clip)


def test_prox_clip_is_of_the_group():
    params = make_params()
    optimizer = optim.AdamW(params, penalty=prox.L1(0.1), prox_clip=3.0)
    optimizer.load_state_dict(torch.optim.AdamW(params).state_dict())
    assert optimizer.param_groups[0]["prox_clip"] == 3.0
    optimizer.load_state_dict(optim.AdamW(params, prox_clip=None).state_dict())
    assert optimizer.param_groups[0]["prox_clip"] is None


def test_what_hooks_return_is_what_is_checked(make):
    params = make_params()
    optimizer = make(params)
    before = copy.deepcopy(optimizer.state_dict())
    saved = optimizer.state_dict()

    def change(state_dict, **entries):
        group = {**state_dict["param_groups"][0], **entries}
        return {**state_dict, "param_groups": [group]}

    handle = optimizer.register_load_state_dict_pre_hook(lambda _, s: change(s, lr=-1.0))
    with pytest.raises(ValueError, match="lr must be in"):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict() == before
    handle.remove()
    # One that makes a state fit.
    optimizer.register_load_state_dict_pre_hook(lambda _, s: change(s, lr=0.25, penalty=None))
    optimizer.load_state_dict(change(saved, lr=-1.0))
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["penalty"] is None
    # And one that looks at what was loaded.
    seen = []
    optimizer.register_load_state_dict_post_hook(
        lambda o: seen.append([s["step"].dtype for s in o.state.values() if "step" in s])
    )
    state = (
        {i: {"step": 3} for i in range(len(params))} if isinstance(optimizer, optim.AdamW) else {}
    )
    optimizer.load_state_dict({**saved, "state": state})
    assert seen == [[torch.float32] * len(state)]


def test_loading_leaves_no_hooks_behind(make):
    optimizer = make(make_params())
    for _ in range(3):
        optimizer.load_state_dict(optimizer.state_dict())
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


def assert_unchanged(optimizer, params, before, values_before):
    after = optimizer.state_dict()
    assert before["state"].keys() == after["state"].keys()
    for key, state in before["state"].items():
        for name, value in state.items():
            assert torch.equal(after["state"][key][name], value)
    assert all(torch.equal(p, v) for p, v in zip(params, values_before, strict=True))


def wrong_shape(p):
    p.data, p.grad = p.data.new_ones(3, 2), None
    p.grad = torch.ones(3, 2)


def other_shape_of_the_same_size(p):
    p.data, p.grad = p.data.view(-1), None
    p.grad = torch.ones_like(p)


def shape_without_its_gradient(p):
    p.data = p.data.new_ones(7, 2)


def dtype_without_its_gradient(p):
    p.data = p.data.double()


def sparse_gradient(p):
    p.grad = torch.ones_like(p).to_sparse()


def bad_value(p):
    pass


@pytest.mark.parametrize("first_step", [True, False])
@pytest.mark.parametrize(
    "spoil",
    [
        wrong_shape,
        other_shape_of_the_same_size,
        shape_without_its_gradient,
        dtype_without_its_gradient,
        sparse_gradient,
        bad_value,
    ],
)
def test_a_step_that_fails_changes_nothing(spoil, first_step, make):
    good, bad = (torch.nn.Parameter(torch.ones(5, 2)) for _ in range(2))
    optimizer = make([{"params": [good]}, {"params": [bad]}])
    good.grad, bad.grad = torch.ones(5, 2), torch.ones(5, 2)
    if not first_step:
        optimizer.step()
    spoil(bad)
    if spoil is bad_value:
        optimizer.param_groups[1]["lr"] = -1.0
    before, params = copy.deepcopy(optimizer.state_dict()), [good, bad]
    values_before = [p.detach().clone() for p in params]
    fits = spoil in (wrong_shape, other_shape_of_the_same_size) and first_step
    fits |= spoil is sparse_gradient and optimizer.takes_sparse
    for _ in range(2):  # also where the first failure might have left something
        if fits:  # as where there is no state yet that it could fail to fit
            optimizer.step()
            return
        with pytest.raises((TypeError, ValueError), match=r"must (be|have)"):
            optimizer.step()
        assert_unchanged(optimizer, params, before, values_before)
        assert len(optimizer.state) == (0 if first_step else 2)


@pytest.mark.parametrize("layout", ["expanded", "transposed", "other memory"])
def test_gradients_of_any_layout_at_any_time(layout, make):
    """The first steps plan for contiguous tensors; what comes later may be anything."""
    ours, theirs = make_params(), make_params()
    optimizer, other = make(ours), make(theirs)
    for step in range(6):
        for p, q, g in zip(ours, theirs, gradients(step), strict=True):
            p.grad = q.grad = None
            if step < 3 or p.dim() < 2:
                p.grad, q.grad = g, g.clone()
            elif layout == "expanded":
                p.grad = g.new_full((), 0.5).expand(g.shape)
                q.grad = torch.full_like(g, 0.5)
            elif layout == "transposed":
                p.grad, q.grad = g.t().contiguous().t(), g
            else:
                p.data = p.data.t().contiguous().t()
                p.grad, q.grad = g, g
        optimizer.step()
        other.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_gradients_that_come_and_go():
    """Experts: another set of parameters has gradients in each step."""
    ours, theirs = make_params(), make_params()
    optimizer, other = optim.AdamW(ours), torch.optim.AdamW(theirs)
    for step in range(20):
        for i, (p, q, g) in enumerate(zip(ours, theirs, gradients(step), strict=True)):
            p.grad, q.grad = (None, None) if (i * step) % 3 == 1 else (g, g)
        optimizer.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)
        assert optimizer.state[p]["step"] == other.state[q]["step"]


def test_parameters_that_change_groups(make):
    params = make_params()
    optimizer = make([{"params": params[:4]}, {"params": params[4:], "lr": 0.0}])
    train(optimizer, params, 2)
    a, b = optimizer.param_groups
    b["params"].insert(0, a["params"].pop())
    before = params[3].detach().clone()
    train(optimizer, params, 2, first=2)
    assert torch.equal(params[3], before)  # its learning rate is 0 now


@pytest.mark.parametrize("way", ["deepcopy", "weights_only", "whole"])
def test_copies_are_of_their_own(way, make):
    params = make_params()
    optimizer = make(params)
    train(optimizer, params, 2)
    if way == "deepcopy":
        others, clone = copy.deepcopy((params, optimizer))
    else:
        whole, buffer = way == "whole", io.BytesIO()
        saved = optimizer if whole else optimizer.state_dict()
        torch.save((params, saved), buffer)
        buffer.seek(0)
        others, clone = torch.load(buffer, weights_only=not whole)
        if not whole:
            fresh = make(others)
            fresh.load_state_dict(clone)
            clone = fresh
    kept = [p.detach().clone() for p in params]
    train(clone, others, 3, first=2)
    assert all(torch.equal(p, k) for p, k in zip(params, kept, strict=True))
    train(optimizer, params, 3, first=2)
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo")
def test_zero_redundancy_optimizer(tmp_path, make):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    expected, params = make_params(), make_params()
    single = make(expected[:4])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        sharded = ZeroRedundancyOptimizer(params[:4], type(single), **single.defaults)
        for optimizer, rest in ((single, expected[4:]), (sharded, params[4:])):
            optimizer.add_param_group({"params": rest[:1]})
            optimizer.add_param_group({"params": rest[1:], "penalty": prox.L2(0.1)})
        train(single, expected, 3)
        train(sharded, params, 3)
        sharded.consolidate_state_dict()
        saved = sharded.state_dict()
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(p, q) for p, q in zip(params, expected, strict=True))
    plain = [(g["penalty"], g["l1"], g["l2"]) for g in single.param_groups]
    assert [(g["penalty"], g["l1"], g["l2"]) for g in saved["param_groups"]] == plain
