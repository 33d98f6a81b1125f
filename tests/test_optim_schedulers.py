"""torch's learning-rate schedulers and averages of weights, on our optimizers as on its own."""

from __future__ import annotations

import io

import pytest
import torch
from torch.optim import lr_scheduler as lrs
from torch.optim import swa_utils
from training import KINDS, OPTIONS, assert_same, build

from torchcalc import optim, prox

pytestmark = pytest.mark.no_kernels  # a step's numbers are tested elsewhere

TORCHS = [kind for kind in KINDS if hasattr(torch.optim, kind)]
STEPS = 10


def cyclic(optimizer):
    return lrs.CyclicLR(
        optimizer,
        *(0.01, 0.1),
        step_size_up=3,
        cycle_momentum="momentum" in optimizer.defaults or "betas" in optimizer.defaults,
    )


def one_cycle(optimizer):
    cycle = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
    return lrs.OneCycleLR(optimizer, 0.1, total_steps=2 * STEPS, cycle_momentum=cycle)


SCHEDULERS = {
    "LambdaLR": lambda o: lrs.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lrs.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lrs.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lrs.MultiStepLR(o, [2, 7], 0.5),
    "ConstantLR": lambda o: lrs.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda o: lrs.LinearLR(o, 0.1, 1.0, 6),
    "ExponentialLR": lambda o: lrs.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lrs.PolynomialLR(o, 2 * STEPS, 2.0),
    "CosineAnnealingLR": lambda o: lrs.CosineAnnealingLR(o, 2 * STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lrs.CosineAnnealingWarmRestarts(o, 4),
    "ChainedScheduler": lambda o: lrs.ChainedScheduler(
        [lrs.ConstantLR(o, 0.5, 4), lrs.ExponentialLR(o, 0.9)]
    ),
    "SequentialLR": lambda o: lrs.SequentialLR(
        o, [lrs.LinearLR(o, 0.1, 1.0, 4), lrs.CosineAnnealingLR(o, 2 * STEPS)], [4]
    ),
    "ReduceLROnPlateau": lambda o: lrs.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "CyclicLR": cyclic,
    "OneCycleLR": one_cycle,
    "SWALR": lambda o: swa_utils.SWALR(o, 0.02, anneal_epochs=6),
}


def test_the_table_is_complete():
    # LRScheduler is the base. What a later torch adds is to be added here.
    assert set(lrs.__all__) - {"LRScheduler"} <= SCHEDULERS.keys()


def gradient(w, step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(w.shape, generator=generator, dtype=w.dtype) + w.detach()


def train(w, optimizer, schedule, first, last):
    """The learning rates and momenta of each step."""
    seen = []
    for step in range(first, last):
        w.grad = gradient(w, step)
        optimizer.step()
        # The metric stops improving, for ReduceLROnPlateau.
        is_plateau = isinstance(schedule, lrs.ReduceLROnPlateau)
        schedule.step(*([max(1.0, 3.0 - step)] if is_plateau else []))
        group = optimizer.param_groups[0]
        seen.append([float(group["lr"]), group.get("momentum"), group.get("betas")])
    return seen


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=list(SCHEDULERS))
@pytest.mark.parametrize("kind", TORCHS)
def test_schedulers_do_what_they_do_to_torchs(kind, schedule):
    (v, theirs), (w, ours) = (build(kind, module) for module in (torch.optim, optim))
    expected = train(v, theirs, schedule(theirs), 0, STEPS)
    assert train(w, ours, schedule(ours), 0, STEPS) == expected
    assert len({tuple(map(str, values)) for values in expected}) > 1
    torch.testing.assert_close(w, v, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=list(SCHEDULERS))
@pytest.mark.parametrize("kind", KINDS)
def test_going_on_from_a_checkpoint(kind, schedule):
    penalty = {} if kind == "FTRL" else {"penalty": prox.L1(0.05)}
    w, optimizer = build(kind, **penalty)
    scheduler = schedule(optimizer)
    train(w, optimizer, scheduler, 0, STEPS // 2)
    file = io.BytesIO()
    saved = {"w": w.detach(), "o": optimizer.state_dict(), "s": scheduler.state_dict()}
    torch.save(saved, file)
    file.seek(0)
    # LambdaLR saves no functions, but a scheduler has more in its state than torch.load takes
    # by itself (a Counter, an optimizer's name).
    loaded = torch.load(file, weights_only=False)
    v, other = build(kind)
    again = schedule(other)
    v.data.copy_(loaded["w"])
    other.load_state_dict(loaded["o"])
    again.load_state_dict(loaded["s"])
    expected = train(w, optimizer, scheduler, STEPS // 2, STEPS)
    assert train(v, other, again, STEPS // 2, STEPS) == expected
    assert_same((v, other), (w, optimizer))


AVERAGES = {
    "SWA": lambda model: swa_utils.AveragedModel(model, use_buffers=True),
    "EMA": lambda model: swa_utils.AveragedModel(
        model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9)
    ),
    "EMA one by one": lambda model: swa_utils.AveragedModel(
        model, avg_fn=swa_utils.get_ema_avg_fn(0.9)
    ),
}


@pytest.mark.parametrize("average", AVERAGES.values(), ids=list(AVERAGES))
@pytest.mark.parametrize("kind", TORCHS)
def test_averages_of_weights(kind, average):
    results = []
    for module in (torch.optim, optim):
        torch.manual_seed(0)
        # Without a bias: behind BatchNorm its gradient is noise, which Adam would make large.
        model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.BatchNorm1d(6))
        model.double()
        optimizer = getattr(module, kind)(model.parameters(), **OPTIONS[kind])
        averaged = average(model)
        schedule = swa_utils.SWALR(optimizer, 0.02, anneal_epochs=3)
        batches = [torch.randn(8, 4, dtype=torch.float64) for _ in range(STEPS)]
        for x in batches:
            optimizer.zero_grad()
            (model(x) - x.sum(1, keepdim=True)).square().sum().backward()
            optimizer.step()
            averaged.update_parameters(model)
            schedule.step()
        swa_utils.update_bn(batches, averaged)
        results.append([*averaged.state_dict().values(), *model.state_dict().values()])
        assert not torch.equal(averaged.module[0].weight, model[0].weight)
    for ours, theirs in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
