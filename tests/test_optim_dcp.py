"""torch.distributed.checkpoint of one process: states by the names of parameters, and back."""

from __future__ import annotations

import copy

import pytest
import torch
from training import KINDS, OPTIONS

from torchcalc import optim, prox

pytestmark = [
    pytest.mark.no_kernels,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="torch has no torch.distributed"
    ),
    # torch of its own affairs: that there is one process, which storages it reads
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|not)"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
]

PENALTY = {"penalty": prox.L1(0.05), "prox_start": 4}
CASES = [
    *((kind, {}) for kind in KINDS),
    *((kind, PENALTY) for kind in KINDS if kind != "FTRL"),
    ("AdamW", {"penalty": prox.MCP(0.05, 3.0)}),
    ("SGD", {**PENALTY, "stochastic_rounding": True, "state_dtype": torch.float32}),
    ("Adam", {"lr": torch.tensor(0.05)}),
]


def make(kind, options, seed=0):
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if "state_dtype" in options else torch.float32
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).to(dtype)
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.01}]
    optimizer = getattr(optim, kind)(groups, **{**OPTIONS[kind], **copy.deepcopy(options)})
    return model, optimizer


def train(model, optimizer, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()
        optimizer.zero_grad()


def assert_same(one, other):
    (model, a), (twin, b) = one, other
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(a.state_dict()["state"], b.state_dict()["state"], rtol=0, atol=0)
    assert a.state_dict()["param_groups"] == b.state_dict()["param_groups"]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("through", ["memory", "files"])
@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_round_trip(kind, options, through, flat, tmp_path):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import state_dict as dcp

    chosen = dcp.StateDictOptions(flatten_optimizer_state_dict=flat)
    one, other = make(kind, options), make(kind, options, seed=1)
    train(*one, 0, 3)
    saved = dict(zip(("model", "optimizer"), dcp.get_state_dict(*one, options=chosen), strict=True))
    if through == "memory":
        loaded = copy.deepcopy(saved)
    else:
        checkpoint.save(saved, checkpoint_id=tmp_path)
        # Loading is in place: it needs states, which a step that moves nothing makes.
        places = dcp.get_state_dict(*other, options=chosen)
        loaded = dict(zip(("model", "optimizer"), places, strict=True))
        checkpoint.load(loaded, checkpoint_id=tmp_path)
    dcp.set_state_dict(
        *other,
        model_state_dict=loaded["model"],
        optim_state_dict=loaded["optimizer"],
        options=chosen,
    )
    assert_same(one, other)
    train(*one, 3, 6)
    train(*other, 3, 6)
    assert_same(one, other)


@pytest.mark.parametrize(("kind", "options"), CASES, ids=str)
def test_a_state_before_the_first_step(kind, options):
    """torch makes it by a step with lr = 0 and gradients of 0, which counts for nothing here."""
    from torch.distributed.checkpoint import state_dict as dcp

    one, (model, optimizer) = make(kind, options), make(kind, options)
    saved = dcp.get_optimizer_state_dict(model, optimizer)
    assert saved["state"].keys() <= dict(model.named_parameters()).keys()
    assert bool(saved["state"]) == (kind != "SGD" or optimizer.defaults["momentum"] != 0)
    torch.testing.assert_close(one[0].state_dict(), model.state_dict(), rtol=0, atol=0)
    assert one[1].state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
