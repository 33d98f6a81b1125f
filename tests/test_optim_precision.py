"""Half types: states in float32, stochastic rounding."""

from __future__ import annotations

import io
from functools import partial

import pytest
import torch

from torchcalc import optim, prox
from torchcalc.ops import optim as optim_ops
from torchcalc.reference.rounding import round_randomly

KINDS = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"]
HALVES = [torch.bfloat16, torch.float16]
OPTIONS = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.5, "centered": True}}


def make(kind, dtype, device="cpu", size=(40, 16), seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(size, generator=generator, dtype=torch.float64)
    w = torch.nn.Parameter(w.to(device, dtype))
    options = {"lr": 1e-2, **OPTIONS.get(kind, {}), **options}
    return w, getattr(optim, kind)([w], **options)


def give(w, k):
    generator = torch.Generator().manual_seed(100 + k)
    w.grad = torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w.device, w.dtype)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [None, prox.L1(0.1), prox.GroupL2(0.1, dim=1)], ids=str)
def test_states_in_float32_are_those_of_float32(kind, penalty, half, device):
    """The states are those of a float32 parameter with the same values and gradients."""
    w, narrow = make(kind, half, device, penalty=penalty, state_dtype=torch.float32)
    v, wide = make(kind, torch.float32, device, penalty=penalty)
    for k in range(6):
        with torch.no_grad():
            v.copy_(w)
        give(w, k)
        v.grad = w.grad.float()
        narrow.step()
        wide.step()
        for name, value in wide.state[v].items():
            assert narrow.state[w][name].dtype is torch.float32
            assert torch.equal(narrow.state[w][name], value), name
        torch.testing.assert_close(w.float(), v, rtol=2 * torch.finfo(half).eps, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_checkpoint_goes_on_with_the_same_bits(kind, stochastic, device):
    options = {"state_dtype": torch.float32, "stochastic_rounding": stochastic}
    w, optimizer = make(kind, torch.bfloat16, device, penalty=prox.L1(0.05), **options)
    for k in range(3):
        give(w, k)
        optimizer.step()
    v, other = make(kind, torch.bfloat16, device, seed=1)
    with torch.no_grad():
        v.copy_(w)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.state[v][other.names(other.param_groups[0])[0]].dtype is torch.float32
    for k in range(3, 6):
        give(w, k)
        give(v, k)
        optimizer.step()
        other.step()
        assert torch.equal(w, v)


def test_states_become_wide_on_the_way():
    w, optimizer = make("AdamW", torch.bfloat16)
    give(w, 0)
    optimizer.step()
    before = optimizer.state[w]["exp_avg"].clone()
    optimizer.param_groups[0]["state_dtype"] = torch.float32
    optimizer.param_groups[0]["lr"] = 0.0
    w.grad = torch.zeros_like(w)
    optimizer.step()
    after = optimizer.state[w]["exp_avg"]
    assert after.dtype is torch.float32
    torch.testing.assert_close(after, 0.9 * before.float())


@pytest.mark.parametrize("half", HALVES)
def test_every_rounding_is_to_a_neighbour(half):
    x = torch.randn(4096).mul(torch.logspace(-9, 5, 4096))
    x = torch.cat([x, torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan")])])
    y = round_randomly(x, half, 1, 2, 3)
    exact = x.to(half).float() == x
    assert torch.equal(y[exact].float(), x[exact])
    assert y[-1].isnan()
    up, down = (torch.nextafter(x.to(half), torch.tensor(s, dtype=half)) for s in (9e9, -9e9))
    inside = x.isfinite() & (x.abs() < torch.finfo(half).max)
    ok = (down <= y) & (y <= up)
    assert ok[inside].all()


@pytest.mark.parametrize("half", HALVES)
def test_the_mean_is_exact(half):
    for value in (1.001, -3.3e-3, 2e-6, -7e-8 if half is torch.float16 else -1e-30):
        x = torch.full((200_000,), value)
        mean = round_randomly(x, half, 5, 0, 1).double().mean()
        spread = (x.to(half).double() - value).abs().max() + abs(value) * torch.finfo(half).eps
        assert abs(mean - x[0].double()) < 0.02 * max(spread, 6e-8 if half is torch.float16 else 0)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("states", [torch.float32, None])
def test_the_kernel_rounds_as_the_reference(half, states, device):
    sizes = [(7,), (5, 13), (300, 150)]
    params, grads = ([torch.randn(s).to(device, half) for s in sizes] for _ in range(2))
    offsets = [0, 16, 96]
    state = [torch.rand(45_200, device=device).to(states or half) for _ in range(2)]
    state.append(torch.full((3,), 2.0, device=device))
    places = [n for i, s in enumerate(sizes) for n in (offsets[i], i, i, len(s), *s, 0)]
    numbers = [0.0, 0.0, 1.0, 0.01, 0.0, -float("inf"), float("inf")]
    options = (0.1, 0.9, 0.99, 0.1, 0.01, False, True, False, 0, numbers, True, 1.25, [], [], 77)
    results = []
    for op in (torch.ops.torchcalc.adam_step, partial(optim_ops.plain_step, "adam_step")):
        copies = [[t.clone() for t in ts] for ts in (params, grads, state)]
        op(*copies, torch.tensor(places), *options)
        results.append(copies)
    for ours, plain in zip(results[0][0], results[1][0], strict=True):
        # Where float32 results differ in the last place, a few are rounded to the other side.
        different = (ours != plain).float().mean()
        assert different < 0.01
        torch.testing.assert_close(ours, plain, rtol=2 * torch.finfo(half).eps, atol=1e-6)
    nearest = [t.clone() for t in params]
    torch.ops.torchcalc.adam_step(
        nearest, grads, [t.clone() for t in state], torch.tensor(places), *options[:-1]
    )
    assert (nearest[2] != results[0][0][2]).float().mean() > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_steps_too_small_for_the_nearest_are_taken_on_average(kind, device):
    moved = {}
    for stochastic in (False, True):
        w, optimizer = make(
            kind, torch.bfloat16, device, size=(20_000,), lr=1e-5, stochastic_rounding=stochastic
        )
        with torch.no_grad():
            w.fill_(1.0)
        v = torch.nn.Parameter(torch.ones(1, device=device))
        options = {"lr": 1e-5, **OPTIONS.get(kind, {})}
        exact = getattr(torch.optim, kind)([v], **options)
        for _ in range(10):
            w.grad, v.grad = torch.ones_like(w), torch.ones_like(v)
            optimizer.step()
            exact.step()
        moved[stochastic] = (w.double().mean() - 1).item()
    expected = v.item() - 1
    assert moved[False] == 0
    assert abs(moved[True] - expected) < 0.2 * abs(expected)


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("penalty", [prox.L1(2.0), prox.GroupL2(9.0), prox.NMSparse(2, 4)], ids=str)
def test_zeros_stay_exact(half, penalty, device):
    w, optimizer = make("AdamW", half, device, penalty=penalty, stochastic_rounding=True, lr=0.05)
    for k in range(30):
        give(w, k)
        optimizer.step()
    zeros = (w == 0).float().mean()
    assert zeros > 0.1
    assert penalty.value(w.detach()).isfinite()


def test_a_penalty_by_groups_shrinks_on_average(device):
    """A shrinkage far below half a unit in the last place, on rows cut by a stage as well."""
    for size in ((4096, 8), (300, 100)):
        w, optimizer = make(
            *("SGD", torch.bfloat16, device, size),
            momentum=0.0,
            lr=1e-4,
            penalty=prox.GroupL2(1.0),
            stochastic_rounding=True,
        )
        with torch.no_grad():
            w.fill_(1.0)
        for _ in range(10):
            w.grad = torch.zeros_like(w)
            optimizer.step()
        expected = -1e-3 / size[1] ** 0.5
        assert abs((w.double().mean() - 1).item() - expected) < 0.3 * abs(expected)


def test_ranks_of_other_seeds_round_alike():
    """Else the replicas of DistributedDataParallel would drift apart."""
    ranks = []
    for seed in range(2):
        torch.manual_seed(seed)
        ranks.append(make("SGD", torch.bfloat16, stochastic_rounding=True))
    for k in range(3):
        for w, optimizer in ranks:
            give(w, k)
            optimizer.step()
    (w, _), (v, _) = ranks
    assert torch.equal(w, v)


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float64, "float32"])
def test_bad_state_dtypes(given):
    with pytest.raises(ValueError, match="state_dtype must be None"):
        make("AdamW", torch.bfloat16, state_dtype=given)
