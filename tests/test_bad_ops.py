"""Wrong calls of the private ops, and memory that is refused."""

from __future__ import annotations

import math

import pytest
import torch

from torchcalc import functional as F

X, W, B, R = torch.randn(3, 5), torch.randn(7, 5), torch.randn(7), torch.randn(3, 7)
W8 = torch.randn(8, 5)  # an even number of rows
ONE = torch.tensor([1])

# Raw ops are private, but a wrong call must not touch memory that is not its own.
OPS = torch.ops.torchcalc


NUMBERS = (0.0, 0.0, 1.0, 0.0, 0.0, -math.inf, math.inf)


def _raw_sgd(
    params,
    grads,
    states=(),
    places=(0, 0, 0, 2, 3, 5, 0),
    momentum=0.0,
    penalty=0,
    numbers=NUMBERS,
):
    places = torch.tensor(places) if isinstance(places, tuple) else places
    hyper = (0.1, momentum, 0.0, 0.0, False, False, False, penalty, numbers)
    OPS.sgd_step(params, grads, list(states), places, *hyper, [], [])


def _raw_adamw(steps, number=0):
    hyper = (0.1, 0.9, 0.9, 0.0, 0.0, False, True, False, 0, NUMBERS, True, 1.0)
    states = [X.clone(), X.clone(), steps]
    OPS.adam_step([X], [X], states, torch.tensor([0, number, 0, 2, 3, 5, 0]), *hyper, [], [])


def _raw_live(live, fields):
    hyper = (0.1, 0.0, 0.0, 0.0, False, False, False, 0, NUMBERS)
    places = torch.tensor([0, 0, 0, 2, 3, 5, 0])
    OPS.sgd_step([X], [X], [], places, *hyper, live, fields)


def _raw_dropout(seed=ONE, threshold=10, samples=1, block=None, shared=1, residual=None):
    return OPS.dropout(X, residual, seed, threshold, samples, block, shared, 1.1, 0.0, 0.0)


def _raw_linear_act(bias=None, residual=None, activation=2, threshold=0):
    return OPS.linear_act(X, W, bias, residual, None, activation, 0.0, 0.0, threshold, 1, None)


def _raw_act_grad(saved, order=1):
    return OPS.act_grad(R, saved, None, 2, 0.0, 0.0, 0, 1, None, 1, order)


def _raw_layer_grad(x=X, weight=W, grad=R):
    return OPS.linear_act_grad(grad, x, weight, grad, None, 2, 0.0, 0.0, 0, 1, None, 1, True)


def _raw_gated_layer_grad(x=X, weight=W, weight_value=W, pair=True):
    options = 4, 0.0, 0.0, 0, 1, None, pair, True
    return OPS.gated_linear_grad(R, x, weight, weight_value, Z, None, *options)


def _raw_gated(*tensors, activation=4, threshold=0):
    given = (*tensors, *[None] * (5 - len(tensors)))
    return OPS.gated_linear_keep(X, *given, activation, 0.0, 0.0, threshold, 1, None)


def _raw_gated_grad(name, *tensors):
    return getattr(OPS, name)(*tensors, None, 4, 0.0, 0.0, 0, 1, None)


Z = torch.cat([R, R], 1)

RAW = {
    "optim: a number without its field": lambda: _raw_live([torch.ones(())], []),
    "optim: an unknown field": lambda: _raw_live([torch.ones(())], [6]),
    "optim: a number of another dtype": lambda: _raw_live([torch.ones((), dtype=torch.half)], [2]),
    "optim: a number of two": lambda: _raw_live([torch.ones(2)], [2]),
    "gated: odd rows": lambda: _raw_gated(W),
    "gated: unlike weights": lambda: _raw_gated(W, W[1:]),
    "gated: unlike dtypes": lambda: _raw_gated(W, W.double()),
    "gated: bias too short": lambda: _raw_gated(W8, None, B[:4]),
    "gated: bias of one weight": lambda: _raw_gated(W, W, B, None),
    "gated: bias of the value too short": lambda: _raw_gated(W, W, B, B[1:]),
    "gated: two biases, one weight": lambda: _raw_gated(W8, None, B[:4], B[:4]),
    "gated: activation": lambda: _raw_gated(W8, activation=99),
    "gated: no seed": lambda: _raw_gated(W8, threshold=10),
    "gated_grad: z as grad": lambda: _raw_gated_grad("gated_grad", R, R),
    "gated_grad: z too short": lambda: _raw_gated_grad("gated_grad", R, Z[1:]),
    "gated_grad: z's dtype": lambda: _raw_gated_grad("gated_grad", R, Z.double()),
    "gated_grad: no dimension": lambda: _raw_gated_grad("gated_grad", R[0, 0], R[0, 0]),
    "gated_bias_grad: z as grad": lambda: _raw_gated_grad("gated_bias_grad", R, R),
    "gated_grad_grad: c as grad": lambda: _raw_gated_grad("gated_grad_grad", R, R, Z),
    "gated_grad_grad: z as grad": lambda: _raw_gated_grad("gated_grad_grad", Z, R, R),
    "layer's gradients: x too short": lambda: _raw_layer_grad(X[1:]),
    "layer's gradients: x of other dimensions": lambda: _raw_layer_grad(X[0]),
    "layer's gradients: x's dtype": lambda: _raw_layer_grad(X.double()),
    "layer's gradients: weight too short": lambda: _raw_layer_grad(weight=W[1:]),
    "layer's gradients: weight of one row": lambda: _raw_layer_grad(weight=W[0]),
    "layer's gradients: weight's dtype": lambda: _raw_layer_grad(weight=W.double()),
    "layer's gradients: no dimension": lambda: _raw_layer_grad(X[0, 0], W, R[0, 0]),
    "gated layer's gradients: x too short": lambda: _raw_gated_layer_grad(X[1:]),
    "gated layer's gradients: weight of a pair": lambda: _raw_gated_layer_grad(pair=False),
    "gated layer's gradients: value too short": lambda: _raw_gated_layer_grad(weight_value=W[1:]),
    "gated layer's gradients: weight too short": lambda: _raw_gated_layer_grad(
        weight=W[1:], weight_value=None, pair=False
    ),
    "saved has another shape": lambda: _raw_act_grad(R[1:]),
    "saved where nothing is": lambda: OPS.act_grad(R, B[:1], None, 0, 0, 0, 0, 1, None, 0, 1),
    "bits of an activation of many slopes": lambda: OPS.act_grad(
        R, R.bool().to(torch.uint8)[:, :1], None, 2, 0, 0, 0, 1, None, 4, 1
    ),
    "mask of a negative shape": lambda: OPS.dropout_mask([-1, -8], ONE, 9, 1, None, True),
    "mask of a shape that overflows": lambda: OPS.dropout_mask(
        [2**32, 2**32], ONE, 9, 1, None, True
    ),
    "saved is missing": lambda: _raw_act_grad(None),
    "order": lambda: _raw_act_grad(R, order=3),
    "activation": lambda: _raw_linear_act(activation=99),
    "bias too short": lambda: _raw_linear_act(bias=B[1:]),
    "residual too small": lambda: _raw_linear_act(residual=R[1:]),
    "no seed": lambda: _raw_linear_act(threshold=10),
    "seed too short": lambda: _raw_dropout(ONE[1:]),
    "a seed too many": lambda: _raw_dropout(ONE.repeat(2)),
    "threshold": lambda: _raw_dropout(threshold=65537),
    "samples do not divide": lambda: _raw_dropout(samples=2),
    "no samples": lambda: _raw_dropout(samples=0),
    "shared does not divide": lambda: _raw_dropout(shared=2),
    "shared by none": lambda: _raw_dropout(shared=0),
    "block of another size": lambda: _raw_dropout(block=[9, 9, 0, 0, 3, 4]),
    "block beyond the shape": lambda: _raw_dropout(block=[9, 9, 7, 0, 3, 5]),
    "block before the shape": lambda: _raw_dropout(block=[9, 9, -1, 0, 3, 5]),
    "block of two lists": lambda: _raw_dropout(block=[9, 9, 0, 0]),
    "empty block": lambda: _raw_dropout(block=[]),
    "another residual": lambda: _raw_dropout(residual=X[1:]),
    "strength's shape": lambda: OPS.prox(X, B, None, 0.0, 0.0),
    "cotangent's shape": lambda: OPS.prox_grad(X[1:], X, None, None, 0.0, 0.0),
    "lists of other lengths": lambda: _raw_sgd([X], []),
    "gradient too small": lambda: _raw_sgd([X], [X[1:]]),
    "strided parameter": lambda: _raw_sgd([X.t()], [X.t()], places=(0, 0, 0, 2, 5, 3, 0)),
    "another shape than its state's": lambda: _raw_sgd([X.view(15)], [X.view(15)]),
    "no momentum buffer": lambda: _raw_sgd([X], [X], momentum=0.9),
    "momentum buffer too small": lambda: _raw_sgd([X], [X], [X[1:]], momentum=0.9),
    "offset beyond the end": lambda: _raw_sgd([X], [X], [R], (7, 0, 2, 3, 5, 0), 0.9),
    "negative offset": lambda: _raw_sgd([X], [X], [R], (-1, 0, 2, 3, 5, 0), 0.9),
    "offset that overflows": lambda: _raw_sgd([X], [X], [R], (2**63 - 1, 0, 2, 3, 5, 0), 0.9),
    "places too short": lambda: _raw_sgd([X], [X], places=(0, 0, 0, 2, 3)),
    "no groups in places": lambda: _raw_sgd([X], [X], places=(0, 0, 0, 2, 3, 5)),
    "unknown penalty": lambda: _raw_sgd([X], [X], penalty=99),
    "few numbers": lambda: _raw_sgd([X], [X], numbers=NUMBERS[1:]),
    "negative strength": lambda: _raw_sgd([X], [X], numbers=(0.0, 0.0, 1.0, -1.0, *NUMBERS[4:])),
    "NaN as strength": lambda: _raw_sgd([X], [X], numbers=(math.nan, *NUMBERS[1:])),
    "blocks that do not divide": lambda: _raw_sgd(
        [X], [X], places=(0, 0, 0, 2, 3, 5, 1), penalty=7, numbers=(1.0, 0.0, 2.0, *NUMBERS[3:])
    ),
    "steps of another shape": lambda: OPS.penalty_prox(X, X[:2], 0.0, 0, NUMBERS, 0),
    "steps of another dtype": lambda: OPS.penalty_prox(X, X.double(), 0.0, 0, NUMBERS, 0),
    "too many dimensions": lambda: OPS.penalty_prox(
        torch.zeros((2,) * 10), None, 1.0, 6, (1.0, *NUMBERS[1:]), 0b0101010101
    ),
    "no places": lambda: _raw_sgd([X], [X], places=()),
    "negative dimensions": lambda: _raw_sgd([X], [X], places=(0, 0, 0, -2, 3, 5, 0)),
    "places of int32": lambda: _raw_sgd([X], [X], places=torch.tensor([0, 0, 0, 2, 3, 5, 0]).int()),
    "step counts of int64": lambda: _raw_adamw(ONE),
    "number beyond the end": lambda: _raw_adamw(B, 7),
    "check": lambda: OPS.optim_check([X], [X[1:]], [], 0, torch.tensor([0, 0, 0, 2, 3, 5])),
}


@pytest.mark.parametrize("call", RAW.values(), ids=list(RAW))
def test_raw_ops(call):
    with pytest.raises((RuntimeError, ValueError)) as error:
        call()
    assert "Declaration: " not in str(error.value)  # of the schema, which refuses what lacks one


@pytest.mark.parametrize(
    ("call", "in_torch"),
    [
        (
            lambda x: F.linear_act(x.expand(2**25, 1), x.expand(2**25, 1)),
            lambda x: torch.nn.functional.linear(x.expand(2**25, 1), x.expand(2**25, 1)),
        ),
        (lambda x: F.dropout(x.expand(2**50, 1)), lambda x: x.expand(2**50, 1).clone()),
        (
            lambda x: F.dropout_mask(2**52, seed=x.detach().long()),
            lambda x: torch.ones(2**52, dtype=torch.bool),
        ),
        (lambda x: F.soft_threshold(x.expand(2**50), 0.5), lambda x: x.expand(2**50) + 1),
        (
            lambda x: torch.func.jvp(F.dropout, (x.expand(2**50),), (x.expand(2**50),)),
            lambda x: x.expand(2**50) + 1,
        ),
    ],
    ids=["linear_act", "dropout", "dropout_mask", "soft_threshold", "in a transform"],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_no_memory_is_told_as_torch_does(call, in_torch, requires_grad):
    x = torch.ones(1, requires_grad=requires_grad)
    with pytest.raises(RuntimeError, match="allocat") as expected:
        in_torch(x)
    with pytest.raises(RuntimeError, match="allocat") as error:
        call(x)
    assert type(error.value) is type(expected.value)
    size = f"tried to allocate {2**52} bytes"
    assert size in str(expected.value)
    assert size in str(error.value)
    assert "allocating a tensor" not in str(error.value)  # our words for it
    assert F.dropout(torch.ones(64), 0.5).numel() == 64  # and it goes on
