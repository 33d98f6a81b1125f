"""Bad input to optimizers: an exception that names the argument, and nothing is changed."""

from __future__ import annotations

import pytest
import torch

from torchcalc import optim, prox

NAN = float("nan")


def _param():
    p = torch.nn.Parameter(torch.ones(2, 3))
    p.grad = torch.ones(2, 3)
    return p


def _step_after(change):
    optimizer = optim.AdamW([_param()], penalty=prox.L1(0.1))
    optimizer.param_groups[0].update(change)
    optimizer.step()


def _step_with_grad(grad, make):
    good, bad = _param(), _param()
    bad.grad = None
    bad.grad = grad
    optimizer = make([{"params": [good]}, {"params": [bad]}], lr=0.1)
    try:
        optimizer.step()
    finally:
        assert torch.equal(good, torch.ones(2, 3))  # all or nothing
        assert not optimizer.state.get(good)


MODEL = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
OPTIMIZERS = {
    "penalty is a float": (lambda: optim.SGD([_param()], penalty=0.1), TypeError, "penalty must"),
    "penalty is a name": (lambda: optim.AdamW([_param()], penalty="l1"), TypeError, "penalty must"),
    "penalty of a group": (
        lambda: optim.SGD([{"params": [_param()], "penalty": 1}]),
        TypeError,
        "penalty must",
    ),
    "lr": (lambda: optim.SGD([_param()], lr=-1.0), ValueError, "lr must be"),
    "lr tensor": (lambda: optim.SGD([_param()], lr=torch.ones(2)), TypeError, "lr must be"),
    "momentum": (lambda: optim.SGD([_param()], momentum=-1.0), ValueError, "momentum must"),
    "weight_decay": (lambda: optim.SGD([_param()], weight_decay=NAN), ValueError, "weight_decay"),
    "nesterov": (lambda: optim.SGD([_param()], nesterov=True), ValueError, "nesterov needs"),
    "betas": (lambda: optim.AdamW([_param()], betas=(0.9, 1.0)), ValueError, "betas must"),
    "eps": (lambda: optim.AdamW([_param()], eps=-1), ValueError, "eps must"),
    "prox_metric": (lambda: optim.AdamW([_param()], prox_metric="x"), ValueError, "prox_metric"),
    "betas a number": (lambda: optim.AdamW([_param()], betas=0.9), ValueError, "betas must be two"),
    "l1 without penalty": (
        lambda: optim.SGD([{"params": [_param()], "l1": 0.1}]),
        ValueError,
        "l1 must be 0 with penalty=None",
    ),
    "params": (lambda: optim.SGD([torch.ones(2).int()]), TypeError, "params must be float32"),
    "complex params": (
        lambda: optim.SGD([torch.ones(2).cfloat()], penalty=prox.L1(0.1)),
        ValueError,
        "penalty must be None for complex parameters",
    ),
    "l1 set later": (lambda: _step_after({"l1": NAN}), ValueError, "l1 must be"),
    "penalty set later": (
        lambda: _step_after({"penalty": 0.1}),
        TypeError,
        "penalty of a group",
    ),
    "sparse gradient": (
        lambda: _step_with_grad(torch.ones(2, 3).to_sparse(), optim.AdamW),
        TypeError,
        "gradients must be dense",
    ),
    "rule without parameter": (
        lambda: optim.groups(MODEL, {"*": None, "head.*": None}),
        ValueError,
        r"rule 'head.\*' matches no parameter",
    ),
    "parameter without rule": (
        lambda: optim.groups(MODEL, {"*.weight": prox.L1(1.0)}),
        ValueError,
        "parameter '0.bias' is matched by no rule",
    ),
    "rule's value": (lambda: optim.groups(MODEL, {"*": 0.1}), TypeError, r"penalty of rule '\*'"),
}


@pytest.mark.parametrize(("call", "error", "match"), OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_optimizers(call, error, match):
    with pytest.raises(error, match=match):
        call()
