"""Each penalty within the optimizers: the step, its bound, what a group holds, checkpoints."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from torchcalc import optim, prox
from torchcalc.prox import L1, MCP, NonNegative, NonNegativeL1

PENALTIES = [
    *(prox.L1(0.5), prox.L2(0.5), prox.ElasticNet(0.5, 0.2), NonNegative(), NonNegativeL1(0.5)),
    *(prox.Box(-0.2, 0.3), prox.Huber(2.0, 0.1), prox.L0(0.3), prox.LHalf(0.5), MCP(0.5, 0.4)),
    *(prox.SCAD(0.5, 2.5), 2 * prox.SCAD(0.5), MCP(0.5, 2.0) + L1(0.2) + NonNegative()),
    *(prox.GroupL2(1.0), prox.GroupL2(1.0, dim=1), prox.SparseGroupL2(0.5, 0.5)),
    *(prox.NMSparse(2, 4), prox.NMSparse(5, 8), prox.NMSparse(1, 3, dim=0)),
    *(prox.TopK(k=7), prox.TopK(density=0.4)),
    *(prox.LInf(2.0), prox.L1Ball(2.0), prox.L2Ball(1.0), prox.Simplex(1.0)),
    *(prox.TV1D(0.5), prox.TV1D(0.5, dim=0), prox.Nuclear(0.5)),
]
BOUNDED = [p for p in PENALTIES if p.kernel is None or p.kernel.low == -math.inf]
BOUNDED = [p for p in BOUNDED if not p.is_constraint]


def make(kind, params, penalty, **options):
    if kind != "SGD" and not penalty.takes_metric:
        options["prox_metric"] = "lr"
    return getattr(optim, kind)(params, lr=0.1, penalty=penalty, **options)


def drawn(seed, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 8, generator=generator, dtype=torch.float64).to(device, dtype)


def root(name, power=1.0):
    return lambda state, k: (state[name] / (1 - power**k) if power < 1 else state[name]).sqrt()


MOMENTUM, NORM = {"momentum": 0.5, "weight_decay": 0.1}, {"weight_decay": 0.1, "eps": 1e-8}
# The step where it is one for all, and the d that divides it for each coordinate.
KINDS = {
    "SGD": (MOMENTUM, 0.1 / (1 - 0.5), None),
    "Adam": (NORM, 0.1, root("exp_avg_sq", 0.999)),
    "Adam, amsgrad": (NORM | {"amsgrad": True}, 0.1, root("max_exp_avg_sq", 0.999)),
    "AdamW": (NORM, 0.1, root("exp_avg_sq", 0.999)),
    "AdamW, by lr": (NORM, 0.1, None),
    "Adagrad": (NORM | {"initial_accumulator_value": 0.1}, 0.1, root("sum")),
    "RMSprop": (NORM | {"momentum": 0.5}, 0.1 / (1 - 0.5), root("square_avg")),
    "RMSprop, by lr": (NORM, 0.1, None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_a_step_is_torchs_and_then_the_prox(kind, penalty, device):
    options, step, d = KINDS[kind]
    name = kind.split(",")[0]
    by_lr = d is None or not penalty.takes_metric
    extra = {"prox_metric": "lr" if by_lr else "adaptive", "prox_clip": None}
    w = torch.nn.Parameter(drawn(0, device=device))
    extra = {} if name == "SGD" else extra
    ours = getattr(optim, name)([w], lr=0.1, penalty=penalty, **options, **extra)
    v = torch.nn.Parameter(drawn(0, device=device))
    theirs = getattr(torch.optim, name)([v], lr=0.1, **options)
    for k in range(1, 6):
        w.grad = v.grad = drawn(k, device=device)
        ours.step()
        theirs.step()
        steps = step if by_lr else step / (d(theirs.state[v], k) + 1e-8)
        with torch.no_grad():
            v.copy_(penalty.prox(v, steps))
        torch.testing.assert_close(w, v, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("penalty", BOUNDED, ids=str)
def test_the_pull_is_bounded(penalty, device):
    strong = 1e6 * penalty
    w = torch.nn.Parameter(drawn(0, device=device))
    v = torch.nn.Parameter(drawn(0, device=device))
    ours, theirs = make("AdamW", [w], strong), torch.optim.AdamW([v], lr=0.1)
    w.grad = v.grad = drawn(1, device=device)
    ours.step()
    theirs.step()
    pull, bound = (v - w).detach(), 1.25 * 0.1
    if penalty.is_separable:
        torch.testing.assert_close(pull.abs().max().item(), bound)
    elif isinstance(penalty, (prox.GroupL2, prox.SparseGroupL2)):
        dim = 1 - penalty.dim
        norms = torch.linalg.vector_norm(pull, dim=dim)
        torch.testing.assert_close(norms, torch.full_like(norms, bound * pull.shape[dim] ** 0.5))
    else:
        torch.testing.assert_close(pull.norm().item(), bound * pull.numel() ** 0.5)


@pytest.mark.parametrize("lr", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adagrad", "RMSprop"])
@pytest.mark.parametrize("penalty", [p for p in PENALTIES if p.is_constraint], ids=str)
def test_constraints_are_met_after_every_step(penalty, kind, lr, device, dtype):
    if lr == 10.0 and not isinstance(penalty, (prox.NMSparse, prox.TopK, NonNegative, prox.Box)):
        lr = 0.3  # rounding is relative to the values that are projected
    w = torch.nn.Parameter(drawn(0, dtype, device))
    optimizer = getattr(optim, kind)([w], lr=lr, penalty=penalty)
    for k in range(3):
        w.grad = drawn(k + 1, dtype, device)
        optimizer.step()
        assert penalty.value(w.detach()) == 0


@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adagrad", "RMSprop"])
@pytest.mark.parametrize("penalty", BOUNDED, ids=str)
def test_no_learning_rate_no_change(penalty, kind, device, dtype):
    w = torch.nn.Parameter(drawn(0, dtype, device))
    before = w.detach().clone()
    optimizer = make(kind, [w], penalty)
    optimizer.param_groups[0]["lr"] = 0.0  # as a warm-up begins
    for k in range(2):
        w.grad = drawn(k, dtype, device)
        optimizer.step()
        assert torch.equal(w, before)


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_a_group_holds_plain_values_and_a_checkpoint_goes_on_the_same(penalty, tmp_path, device):
    w = torch.nn.Parameter(drawn(0, device=device))
    optimizer = make("AdamW", [w], penalty)
    group = optimizer.param_groups[0]
    assert group["penalty"] == penalty.name
    for key, value in group.items():
        if key != "params":
            assert value is None or type(value) in (str, float, int, bool, tuple), key
    w.grad = drawn(1, device=device)
    optimizer.step()
    torch.save((w.detach(), optimizer.state_dict()), tmp_path / "checkpoint")
    saved, state = torch.load(tmp_path / "checkpoint", weights_only=True)
    other = torch.nn.Parameter(saved)
    again = optim.AdamW([other], lr=7.0, penalty=L1(3.0))
    again.load_state_dict(state)
    assert again.param_groups[0].keys() == group.keys()
    for o, p in ((optimizer, w), (again, other), (copy.deepcopy(optimizer), None)):
        p = o.param_groups[0]["params"][0] if p is None else p
        p.grad = drawn(2, device=device)
        o.step()
    assert torch.equal(w, other)


def test_today_checkpoints_have_the_keys_of_before():
    for penalty, l1, l2 in ((L1(0.1), 0.1, 0.0), (prox.L2(0.2), 0.0, 0.2), (None, 0.0, 0.0)):
        group = optim.SGD([torch.nn.Parameter(torch.ones(2))], penalty=penalty).param_groups[0]
        assert (group["l1"], group["l2"]) == (l1, l2)
        assert not [key for key in group if key.startswith("penalty_")]
    old = {"penalty": "elastic_net", "l1": 0.1, "l2": 0.2}
    optimizer = optim.SGD([torch.nn.Parameter(torch.ones(2))], penalty=MCP(1.0))
    state = optimizer.state_dict()
    saved = state["param_groups"][0]
    state["param_groups"][0] = {
        **{key: value for key, value in saved.items() if not key.startswith("penalty_")},
        **old,
    }
    optimizer.load_state_dict(state)
    group = optimizer.param_groups[0]
    assert {key: group[key] for key in old} == old
    assert "penalty_lam" not in group


def test_a_state_of_torch_keeps_the_penalty():
    w = torch.nn.Parameter(torch.ones(4, 4))
    theirs = torch.optim.SGD([w], lr=0.3)
    ours = optim.SGD([w], lr=0.1, penalty=prox.GroupL2(0.5, dim=1))
    ours.load_state_dict(theirs.state_dict())
    group = ours.param_groups[0]
    assert (group["lr"], group["penalty"], group["penalty_lam"]) == (0.3, "group_l2", 0.5)


def test_a_scheduler_changes_the_numbers(device):
    w = torch.nn.Parameter(torch.linspace(-1, 1, 9, device=device).double())
    optimizer = optim.SGD([w], lr=1.0, penalty=prox.L0(0.0))
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert (w != 0).sum() == 8
    optimizer.param_groups[0]["penalty_lam"] = 0.1
    optimizer.step()
    assert (w != 0).sum() == 6  # |v| > sqrt(0.2)
    optimizer.param_groups[0]["penalty"] = NonNegative()
    optimizer.step()
    assert (w != 0).sum() == 3
    assert "penalty_lam" not in optimizer.param_groups[0]


def test_groups_of_another_dimension_from_one_step_to_the_next(device):
    w = torch.nn.Parameter(drawn(0, device=device))
    optimizer = optim.SGD([w], lr=1.0, penalty=prox.GroupL2(0.5))
    w.grad = torch.zeros_like(w)
    optimizer.step()
    before = w.detach().clone()
    optimizer.param_groups[0]["penalty_dim"] = 1
    optimizer.step()
    torch.testing.assert_close(w.detach(), prox.GroupL2(0.5, dim=1).prox(before))


@pytest.mark.parametrize("dim", [0, 1, (0, 1), (1, 2, 3), -1])
def test_groups_in_a_channels_last_convolution(dim, device):
    penalty = prox.GroupL2(2.0, dim=dim)
    plain = torch.randn(4, 3, 2, 5, device=device).double()
    w = torch.nn.Parameter(plain.to(memory_format=torch.channels_last))
    w.grad = torch.randn_like(w)
    optimizer = optim.SGD([w], lr=0.1, penalty=penalty)
    expected = penalty.prox(plain - 0.1 * w.grad, 0.1)
    optimizer.step()
    torch.testing.assert_close(w.detach(), expected)
    assert w.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        (prox.GroupL2(1.0, dim=2), "dim must be a dimension"),
        (prox.GroupL2(1.0, dim=(0, 0)), "dim must name each dimension once"),
        (prox.NMSparse(2, 5), "m must divide the size of dimension -1, which is 8"),
        (prox.TopK(k=49), "k must be at most the number of coordinates, 48"),
        (prox.TV1D(1.0, dim=-3), "dim must be a dimension"),
    ],
    ids=lambda value: str(value),
)
def test_what_does_not_suit_a_parameter_is_told_when_it_is_added(penalty, message):
    w = torch.nn.Parameter(drawn(0))
    optimizer = optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [w], "penalty": penalty})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [w]})
    w.grad = torch.ones_like(w)
    optimizer.param_groups[1]["penalty"] = penalty
    before = w.detach().clone()
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert torch.equal(w, before)


def test_bad_penalties_of_an_optimizer():
    w = torch.nn.Parameter(torch.ones(3, 4))
    with pytest.raises(ValueError, match="prox_metric must be 'lr' with Nuclear"):
        optim.AdamW([w], penalty=prox.Nuclear(0.1))
    with pytest.raises(ValueError, match="Nuclear: the tensor must be a matrix"):
        optim.SGD([torch.nn.Parameter(torch.ones(3))], penalty=prox.Nuclear(0.1))
    with pytest.raises(TypeError, match="penalty must have numbers as strengths, got a tensor"):
        optim.SGD([w], penalty=MCP(torch.tensor(0.1)))
    with pytest.raises(TypeError, match="unknown argument 'momentun'"):
        optim.SGD([w], momentun=0.9)
    with pytest.raises(TypeError, match="'mcp' without penalty_lam and penalty_gamma"):
        optim.SGD([w], penalty="mcp")
    optimizer = optim.SGD([w], penalty=MCP(0.1))
    w.grad = torch.ones_like(w)
    for key, value, error in (
        ("penalty_lam", -1.0, ValueError),
        ("penalty_gamma", 0.0, ValueError),
        ("penalty_lam", torch.tensor(0.1), TypeError),
        ("penalty_lam", math.nan, ValueError),
        ("penalty", "mpc", TypeError),
    ):
        before = dict(optimizer.param_groups[0])
        optimizer.param_groups[0][key] = value
        with pytest.raises(error, match="SGD: penalty"):
            optimizer.step()
        optimizer.param_groups[0].update(before)
    assert (w == 1).all()
    again = optim.SGD([w], **optimizer.defaults)
    assert again.param_groups[0]["penalty_gamma"] == 3.0


def test_what_is_set_later_is_checked_as_what_is_given_first():
    w = torch.nn.Parameter(torch.randn(4, 8))
    optimizer = optim.AdamW([w], penalty=prox.TopK(k=4))
    w.grad = torch.randn(4, 8)
    optimizer.step()
    before = w.detach().clone()
    state = copy.deepcopy(optimizer.state_dict())
    for change in ({"penalty_k": 33}, {"penalty": prox.TopK(k=33)}):
        kept = dict(optimizer.param_groups[0])
        optimizer.param_groups[0].update(change)
        with pytest.raises(ValueError, match="k must be at most the number of coordinates, 32"):
            optimizer.step()
        optimizer.param_groups[0].update(kept)
    state["param_groups"][0]["penalty_k"] = 33
    with pytest.raises(ValueError, match="k must be at most the number of coordinates, 32"):
        optimizer.load_state_dict(state)
    assert torch.equal(w, before)
    optimizer.step()
    assert (w != 0).sum() == 4


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_pieces_are_constant(kind, device):
    v = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).to(device) * 1000
    w = torch.nn.Parameter(v.clone())
    penalty = prox.TV1D(1e5)
    options = {} if kind == "SGD" else {"prox_clip": None, "weight_decay": 0.0}
    w.grad = torch.zeros_like(w)
    getattr(optim, kind)([w], lr=1.0, penalty=penalty, **options).step()
    assert torch.equal(w, penalty.prox(v, torch.ones_like(v)))
    assert len(w.unique()) < 500


def test_the_plain_form_of_each():
    w = torch.nn.Parameter(torch.randn(6, 8))
    for penalty in PENALTIES:
        group = make("AdamW", [w], penalty).param_groups[0]
        entries = {
            key: value
            for key, value in group.items()
            if value is not None and (key.startswith("penalty") or (key in ("l1", "l2") and value))
        }
        again = optim.AdamW([w], prox_metric="lr", **entries)
        assert {key: again.param_groups[0][key] for key in entries} == entries
        assert again.check_group(again.param_groups[0]) == penalty


def test_a_checkpoint_is_plain_whatever_was_set(tmp_path):
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.SGD([w])
    optimizer.param_groups[0]["penalty"] = MCP(0.1)
    optimizer.param_groups[0]["momentum"] = np.float64(0.5)
    torch.save(optimizer.state_dict(), tmp_path / "state")
    (group,) = torch.load(tmp_path / "state", weights_only=True)["param_groups"]
    assert (group["penalty"], group["penalty_lam"], group["momentum"]) == ("mcp", 0.1, 0.5)


def test_arguments_of_no_penalty_are_refused():
    class Mine(prox.L1):
        name = "mine"

    w = torch.nn.Parameter(torch.ones(3))
    for call, message in (
        (lambda: optim.AdamW([w], penalty_lam=3.0), "penalty_lam is no argument of penalty=None"),
        (
            lambda: optim.AdamW([w], penalty="l0", penalty_lam=1.0, penalty_gamma=3.0),
            "penalty_gamma is no argument of penalty='l0'",
        ),
        (
            lambda: optim.AdamW([{"params": [w], "penalty_lam": 0.5}], penalty=L1(0.1)),
            "penalty_lam is no argument of penalty='l1'",
        ),
        (lambda: optim.AdamW([w], penalty=Mine(0.1)), "one of torchcalc.prox, which groups can"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    optimizer = optim.SGD([w], penalty=MCP(0.1))
    optimizer.param_groups[0]["penalty_lam"] = np.array([0.1])
    w.grad = torch.ones(3)
    with pytest.raises(TypeError, match="penalty_lam must be a number"):
        optimizer.step()
