"""States, gradients and numbers that an optimizer cannot use: said by name, and nothing changes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from training import KINDS, build

from torchcalc import optim, prox

pytestmark = pytest.mark.no_kernels
MINUS, NAN, INF = -1.0, float("nan"), float("inf")
TORCHS = [kind for kind in KINDS if hasattr(torch.optim, kind)]
COUNTED = [kind for kind in KINDS if getattr(optim, kind).counts]


def after_a_step(kind, **options):
    w, optimizer = build(kind, **options)
    w.grad = torch.ones_like(w)
    optimizer.step()
    return w, optimizer


def assert_refused(action, error, match, w, optimizer):
    before = copy.deepcopy((w.detach(), optimizer.state_dict()))
    for _ in range(2):  # also where the first failure might have left something
        with pytest.raises(error, match=match):
            action()
        after = (w.detach(), optimizer.state_dict())
        torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
        torch.testing.assert_close(after[1]["state"], before[1]["state"], rtol=0, atol=0)
        assert after[1]["param_groups"] == before[1]["param_groups"]


# --- states


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.ones(3, 5), r"have shape \(5, 3\), got \(3, 5\)"),
        (torch.ones(()), r"have shape \(5, 3\), got \(\)"),
        (3.0, "be a tensor, got 3.0"),
        ([1.0, 2.0], "be a tensor, got"),
    ],
    ids=str,
)
def test_states_that_do_not_fit(kind, value, match):
    w, optimizer = after_a_step(kind)
    for name in optimizer.names(optimizer.param_groups[0]):
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0][name] = value
        says = f"{kind}: state '{name}' of parameter 0 must {match}"
        assert_refused(lambda s=saved: optimizer.load_state_dict(s), ValueError, says, w, optimizer)


def test_a_state_of_fista_that_does_not_fit():
    w = torch.nn.Parameter(torch.ones(5, 3))
    optimizer = optim.FISTA([w], lr=0.1)
    optimizer.state[w]["y"] = torch.ones(3)  # broadcasting would take it
    says = r"FISTA: state 'y' must have shape \(5, 3\), got \(3,\)"
    assert_refused(lambda: optimizer.step(torch.zeros), ValueError, says, w, optimizer)


@pytest.mark.parametrize("kind", COUNTED)
@pytest.mark.parametrize("value", [torch.ones(2), None, "x"], ids=str)
def test_counts_that_are_no_numbers(kind, value):
    w, optimizer = after_a_step(kind)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = value
    says = f"{kind}: state 'step' of parameter 0 must be a number, got"
    assert_refused(lambda: optimizer.load_state_dict(saved), ValueError, says, w, optimizer)


@pytest.mark.parametrize("kind", COUNTED)
@pytest.mark.parametrize("value", [1, 1.0, torch.ones(1), torch.ones((), dtype=torch.int64)])
def test_counts_as_earlier_versions_of_torch_had_them(kind, value):
    (w, optimizer), (v, other) = after_a_step(kind), after_a_step(kind)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = value
    optimizer.load_state_dict(saved)
    optimizer.step()
    other.step()
    assert torch.equal(w, v)
    assert torch.equal(optimizer.state[w]["step"], torch.tensor(2.0))


@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_a_later_version(kind):
    w, optimizer = after_a_step(kind)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0] |= {"warp": 9, "lr_mult": 2.0}
    says = f"{kind}: groups of the loaded state have lr_mult, warp, which nothing reads here"
    with pytest.warns(UserWarning, match=says) as caught:
        optimizer.load_state_dict(saved)
    assert len(caught) == 1
    group = optimizer.param_groups[0]
    assert (group["warp"], group["lr_mult"]) == (9, 2.0)
    optimizer.step()
    # They are the group's now: what it saves loads in silence, here and where it is the same.
    again = copy.deepcopy(optimizer.state_dict())
    assert (again["param_groups"][0]["warp"], again["param_groups"][0]["lr_mult"]) == (9, 2.0)
    optimizer.load_state_dict(again)
    # What makes the load fail is told first, and alone.
    saved["param_groups"][0]["lr"], group["lr"] = -1.0, 0.05
    del group["warp"]
    assert_refused(
        lambda: optimizer.load_state_dict(saved), ValueError, "lr must be in", w, optimizer
    )


@pytest.mark.parametrize("kind", TORCHS)
def test_known_keys_are_loaded_in_silence(kind):
    """Those of torch's own optimizers and schedulers, of names and of penalties."""
    w, theirs = build(kind, torch.optim)
    cycled = not {"momentum", "betas"}.isdisjoint(theirs.defaults)
    torch.optim.lr_scheduler.OneCycleLR(theirs, 0.1, total_steps=9, cycle_momentum=cycled)
    torch.optim.lr_scheduler.CyclicLR(theirs, 0.01, 0.1, cycle_momentum=cycled)
    torch.optim.swa_utils.SWALR(theirs, 0.01)
    v, ours = build(kind, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_state_dict(theirs.state_dict())
        assert ours.param_groups[0]["swa_lr"] == 0.01
        # A penalty's arguments, and a seed.
        options = {"penalty": prox.MCP(0.1, 3.0), "stochastic_rounding": True}
        build(kind)[1].load_state_dict(build(kind, **options)[1].state_dict())
        named = getattr(optim, kind)([("w", w)], lr=0.1)
        getattr(optim, kind)([v], lr=0.1).load_state_dict(named.state_dict())
    assert named.state_dict()["param_groups"][0]["param_names"] == ["w"]


# --- gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_another_dtype_or_device(kind):
    w, optimizer = build(kind)

    def step_with(grad):
        # torch refuses such a ``.grad``; a compiled graph hands over any.
        return lambda: optimizer.step_with([w], [grad], [0])

    meta, half = torch.ones_like(w, device="meta"), torch.ones_like(w, dtype=torch.float16)
    assert_refused(step_with(meta), ValueError, "on cpu; got .* on meta", w, optimizer)
    assert_refused(step_with(half), TypeError, "of their parameter's dtype", w, optimizer)
    w.grad = torch.ones_like(w)
    w.data = w.data.float()  # and then it is the parameter that is another one
    assert_refused(optimizer.step, TypeError, f"{kind}: gradients must be", w, optimizer)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("kind", TORCHS)
def test_nan_and_inf_go_where_torch_lets_them_go(kind, options):
    (w, ours), (v, theirs) = (build(kind, module, **options) for module in (optim, torch.optim))
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        grad = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        if step == 1:
            grad[0, 0], grad[1, 1], grad[2, 2] = NAN, INF, -INF
        w.grad, v.grad = grad, grad.clone()
        ours.step()
        theirs.step()
        torch.testing.assert_close(w, v, equal_nan=True, rtol=1e-11, atol=1e-12)
        for name, value in ours.state[w].items():
            torch.testing.assert_close(
                value, theirs.state[v][name], equal_nan=True, rtol=1e-11, atol=1e-12
            )
    assert w.isnan().sum() >= 1


# --- numbers


NUMBERS = {
    "SGD": ["lr", "momentum", "weight_decay"],
    "Adam": ["lr", "eps", "weight_decay"],
    "AdamW": ["lr", "eps", "weight_decay"],
    "Adagrad": ["lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"],
    "RMSprop": ["lr", "alpha", "eps", "weight_decay", "momentum"],
    "FTRL": ["lr", "beta", "l1", "l2", "initial_accumulator_value"],
}


@pytest.mark.parametrize("value", [MINUS, NAN, INF, "x", None, True, torch.ones(2)], ids=str)
@pytest.mark.parametrize(("kind", "key"), [(k, key) for k, keys in NUMBERS.items() for key in keys])
def test_numbers_out_of_range(kind, key, value):
    """When it is made (as torch's: what that refuses is refused here), and when set later."""
    error = ValueError if isinstance(value, float) else TypeError
    with pytest.raises(error, match=f"{kind}: ({key} must be|.*without {key})"):
        build(kind, **{key: value})
    if kind in TORCHS and value is MINUS:
        with pytest.raises(ValueError, match="Invalid"):
            build(kind, torch.optim, **{key: value})
    w, optimizer = after_a_step(kind)
    start = w.detach().clone()
    optimizer.param_groups[0][key] = value
    if key != "initial_accumulator_value" or kind == "FTRL":
        with pytest.raises(error, match=f"{kind}: {key} must be"):
            optimizer.step()
        assert torch.equal(w, start)


@pytest.mark.parametrize("value", [MINUS, NAN, INF, "x", True, torch.ones(2)], ids=str)
@pytest.mark.parametrize("kind", TORCHS)
def test_strengths_out_of_range(kind, value):
    error = ValueError if isinstance(value, float) else TypeError
    with pytest.raises(error, match="l1 must be"):
        build(kind, penalty="l1", l1=value)
    w, optimizer = after_a_step(kind, penalty=prox.L1(0.1))
    start = w.detach().clone()
    optimizer.param_groups[0]["l1"] = value
    with pytest.raises(error, match=f"{kind}: l1 must be"):
        optimizer.step()
    assert torch.equal(w, start)
