"""An optimizer's step in a compiled graph: one op that reads numbers when it runs."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from training import KINDS, OPTIONS, gradients, make_params, train

from torchcalc import optim, prox

MAKERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, penalty=prox.L1(0.01)),
    "AdamW": lambda p: optim.AdamW(p, penalty=prox.ElasticNet(0.01, 0.1)),
}


@pytest.fixture(params=MAKERS.values(), ids=list(MAKERS))
def make(request):
    return request.param


def schedule(optimizer, step):
    """All that schedulers may change."""
    group = optimizer.param_groups[0]
    group["lr"] = 0.01 / (1 + step % 7)
    group["l1"] = 0.01 * step
    group["weight_decay"] = 0.1 * step
    if "momentum" in group:
        group["momentum"] = 0.85 + 0.01 * step
    else:
        group["betas"] = (0.85 + 0.01 * step, 0.999)


def run(make, step_of, steps=12):
    params = make_params()
    optimizer = make(params)
    step = step_of(optimizer)
    for k in range(steps):
        schedule(optimizer, k)
        for p, g in zip(params, gradients(k), strict=True):
            p.grad = g
        step()
    return [p.detach() for p in params], optimizer.state_dict()


def assert_same(a, b):
    for x, y in zip(a[0], b[0], strict=True):
        assert torch.equal(x, y)
    for key, state in a[1]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b[1]["state"][key][name])
    assert a[1]["param_groups"] == b[1]["param_groups"]


def test_a_schedule_compiles_nothing_anew(make):
    """Neither in the first change of a value nor in the first step, which makes the states."""
    counter = CompileCounter()
    compiled = run(make, lambda o: torch.compile(o.step, fullgraph=True, backend=counter))
    # Dynamo before torch 2.13 guards the values of groups: it makes them inputs when one changes.
    assert counter.frame_count <= (1 if torch.__version__ >= "2.13" else 2)
    assert_same(compiled, run(make, lambda o: o.step))


@pytest.mark.slow
def test_inductor(make):
    compiled = run(make, lambda o: torch.compile(o.step, fullgraph=True), steps=3)
    assert_same(compiled, run(make, lambda o: o.step, steps=3))


def test_compiled_and_eager_steps_in_turn(make):
    params, expected = make_params(), make_params()
    optimizer, eager = make(params), make(expected)
    step = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
    for k in range(6):
        for p, g in zip(params, gradients(k), strict=True):
            p.grad = g
        (step if k % 2 else optimizer.step)()
    train(eager, expected, 6)
    for a, b in zip(params, expected, strict=True):
        assert torch.equal(a, b)


def test_what_a_graph_depends_on_is_guarded(make):
    """Another set of gradients, another group, another optimizer: the graph is made again."""
    counter = CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def step(optimizer):
        optimizer.step()

    params = make_params()
    optimizer = make(params[:3])
    for k, chosen in enumerate([params[:3], params[:2], params]):
        if chosen is params:
            optimizer.add_param_group({"params": params[3:]})
        for p in params:
            p.grad = None
        for p in chosen:
            p.grad = torch.ones_like(p)
        before = [p.detach().clone() for p in params]
        step(optimizer)
        for i, (p, b) in enumerate(zip(params, before, strict=True)):
            assert torch.equal(p, b) == (i >= len(chosen) or p.numel() == 0)
        assert counter.frame_count == k + 1
    others = make_params()
    other = make(others)
    for p in others:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in (*params, *others)]
    step(other)
    changed = [not torch.equal(p, b) for p, b in zip((*params, *others), before, strict=True)]
    assert not any(changed[: len(params)])
    assert any(changed[len(params) :])


def test_forward_backward_and_step_in_one_graph():
    """Parameters that a graph reads before and after the step."""
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.05]))
    optimizer = optim.SGD([w], lr=0.1, penalty=prox.L1(1.0))
    w.grad = torch.zeros(3)

    @torch.compile(fullgraph=True, backend="aot_eager")
    @torch.no_grad()
    def f():
        before = w * 2
        w.grad.add_(w)
        optimizer.step()
        return before, w * 2

    before, after = f()
    torch.testing.assert_close(before, torch.tensor([2.0, -4.0, 0.1]))
    torch.testing.assert_close(after, torch.tensor([1.6, -3.4, 0.0]))


@pytest.mark.no_kernels
# Dynamo asks the loss, which passes a graph break, for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("backend", "scheduler"), [("eager", "OneCycleLR"), ("aot_eager", "by hand")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step(kind, backend, scheduler):
    """Forward, backward, step and clearing of gradients, with graph breaks where torch has them."""
    counter, results, first = CompileCounterWithBackend(backend), [], 0
    for compiled in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        penalty = {} if kind == "FTRL" else {"penalty": prox.L1(0.05), "prox_start": 2}
        optimizer = getattr(optim, kind)(model.parameters(), **OPTIONS[kind], **penalty)
        cycled = not {"momentum", "betas"}.isdisjoint(optimizer.defaults)
        if scheduler == "OneCycleLR":
            change = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.1, total_steps=20, cycle_momentum=cycled
            ).step
        else:

            def change(group=optimizer.param_groups[0]):
                group["lr"] *= 0.9

        def step(x, model=model, optimizer=optimizer):
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        run_step = torch.compile(step, backend=counter) if compiled else step
        losses = []
        for k in range(8):
            losses.append(run_step(torch.randn(5, 4)).detach())
            change()
            # The third step is the first one with states and a penalty.
            first = counter.frame_count if k <= 2 else first
            assert counter.frame_count == first
        results.append([*(p.detach() for p in model.parameters()), *losses])
    assert first > 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
