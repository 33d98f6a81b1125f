"""torch's own test data for its optimizers: the same inputs, steps, states and errors here."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.testing._internal import common_optimizers as theirs

from torchcalc import optim
from torchcalc.prox import L1, TV1D, GroupL2

pytestmark = pytest.mark.no_kernels  # each rule's: test_optim_kernels.py

NAMES = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"]
INFOS = {info.optim_cls.__name__: info for info in theirs.optim_db}
# What torch accepts and torchcalc does not: configurations that would have another result.
REFUSED = {"differentiable": True}


def inputs(name, device):
    info = INFOS[name]
    # A learning rate on a GPU is for torch's capturable implementations, which run there only.
    for entry in info.optim_inputs_func(device=str(device)):
        yield entry.desc, entry.kwargs
    for key in info.supported_impls:
        if key != "differentiable":
            yield key, {"lr": 0.01, key: True}
    if "capturable" in info.optim_inputs_func(device="cuda")[-1].kwargs:
        yield "capturable", {"lr": 0.01, "capturable": True}


def cases():
    for name in NAMES:
        for i, (desc, kwargs) in enumerate(inputs(name, "cpu")):
            yield pytest.param(name, kwargs, id=f"{name}-{i}-{desc}")


def make_params(dtype, device):
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 3), (7,), (), (2, 3, 4)]
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for s in shapes
    ]


def step(optimizer, params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        p.grad = (g + p.detach().cpu().double()).to(p.device, p.dtype)
    optimizer.step()


def accepted(kwargs):
    return not any(kwargs.get(key) == value for key, value in REFUSED.items())


@pytest.mark.parametrize(("name", "kwargs"), list(cases()))
def test_twenty_steps(name, kwargs, device):
    if not accepted(kwargs):
        with pytest.raises(ValueError, match="must be False"):
            getattr(optim, name)(make_params(torch.float64, device), **kwargs)
        return
    pairs = []
    for module in (optim, torch.optim):
        params = make_params(torch.float64, device)
        options = copy.deepcopy(kwargs)
        if module is torch.optim and torch.device(device).type == "cpu":
            options.pop("capturable", None)
        pairs.append((getattr(module, name)(params, **options), params))
    for seed in range(20):
        for optimizer, params in pairs:
            step(optimizer, params, seed)
        for p, q in zip(pairs[0][1], pairs[1][1], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)
        # Each goes on with the other's state.
        states = [copy.deepcopy(optimizer.state_dict()) for optimizer, _ in pairs]
        for (optimizer, _), state in zip(pairs, states[::-1], strict=True):
            for group in state["param_groups"]:
                if "capturable" in group:
                    group["capturable"] = False  # torch has it on accelerators only
            optimizer.load_state_dict(state)


def errors():
    for name in NAMES:
        for i, case in enumerate(
            INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
        ):
            yield pytest.param(name, case, id=f"{name}-{i}-{case.optimizer_error_input.desc}")


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
@pytest.mark.parametrize(("name", "case"), list(errors()))
def test_errors(name, case):
    entry = case.optimizer_error_input
    if case.error_on is not theirs.OptimizerErrorEnum.CONSTRUCTION_ERROR:
        pytest.skip("torch raises at the step")
    with pytest.raises((ValueError, TypeError)):
        getattr(optim, name)(entry.params, **entry.kwargs)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_complex_parameters(name, layout, device):
    pairs = []
    options = {"lr": 0.05, "weight_decay": 0.1, "maximize": True}
    options |= {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    options |= {"amsgrad": True} if name == "Adam" else {}
    for module in (optim, torch.optim):
        start = torch.randn(5, 3, dtype=torch.complex128, device=device)
        start = start.t() if layout == "transposed" else start
        p = torch.nn.Parameter(start if module is optim else pairs[0][1].detach().clone())
        pairs.append((getattr(module, name)([p], **options), p))
    for seed in range(10):
        torch.manual_seed(seed)
        grad = torch.randn(pairs[0][1].shape, dtype=torch.complex128, device=device)
        for optimizer, p in pairs:
            p.grad = (grad + p.detach()).conj()  # lazily: a view with the conjugate bit
            optimizer.step()
        torch.testing.assert_close(pairs[0][1], pairs[1][1], rtol=1e-11, atol=1e-12)
        states = [copy.deepcopy(optimizer.state_dict()) for optimizer, _ in pairs]
        for (optimizer, _), state in zip(pairs, states[::-1], strict=True):
            optimizer.load_state_dict(state)


def test_complex_parameters_have_no_penalty():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    with pytest.raises(ValueError, match="penalty must be None for complex parameters, got L1"):
        optim.SGD([p], penalty=L1(0.1))
    optimizer = optim.SGD([p])
    optimizer.param_groups[0]["penalty"] = L1(0.1)
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match="penalty must be None for complex parameters"):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own Adagrad
@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
@pytest.mark.parametrize("penalty", [None, L1(0.05)], ids=str)
def test_sparse_gradients(name, penalty, device):
    layers = []
    for sparse in (True, False):
        torch.manual_seed(0)
        layer = torch.nn.Embedding(20, 4, sparse=sparse).to(device)
        layers.append((getattr(optim, name)(layer.parameters(), lr=0.1, penalty=penalty), layer))
    theirs = copy.deepcopy(layers[0][1])
    torchs = getattr(torch.optim, name)(theirs.parameters(), lr=0.1)
    for k in range(5):
        tokens = torch.tensor([[1, 2, 2, k], [7, 7, 0, 3]], device=device)
        for optimizer, layer in (*layers, (torchs, theirs)):
            optimizer.zero_grad()
            layer(tokens).pow(2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(layers[0][1].weight, layers[1][1].weight)
    if penalty is None:
        torch.testing.assert_close(layers[0][1].weight, theirs.weight)


def test_sparse_gradients_where_torch_takes_none():
    layer = torch.nn.Embedding(20, 4, sparse=True)
    optimizer = optim.AdamW(layer.parameters())
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="gradients must be dense"):
        optimizer.step()


@pytest.mark.parametrize("penalty", [None, L1(0.05), GroupL2(0.1), TV1D(0.1)], ids=str)
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_grad_scaler(name, unscale, penalty, device):
    runs = []
    for scaled in (True, False):
        w = torch.nn.Parameter(torch.linspace(-1, 1, 12, device=device).view(4, 3))
        optimizer = getattr(optim, name)([w], lr=0.05, penalty=penalty)
        scaler = torch.amp.GradScaler(torch.device(device).type, init_scale=1024.0)
        runs.append((w, optimizer))
        for k in range(5):
            optimizer.zero_grad()
            loss = (w - 1).square().sum()
            bad = k in (0, 3)
            if scaled:
                scaler.scale(loss * math.inf if bad else loss).backward()
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            elif not bad:
                loss.backward()
                optimizer.step()
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-6, atol=1e-7)
    for ours, plain in zip(*(o.state_dict()["state"].values() for _, o in runs), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
