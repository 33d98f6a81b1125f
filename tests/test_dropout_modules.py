"""The dropout modules and functions take what torch.nn's take, and do with it what they do."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from torchcalc import functional as F
from torchcalc import nn

MODULES = {  # name: its function, and dimensions that it takes
    "Dropout": ("dropout", 3),
    "Dropout1d": ("dropout1d", 3),
    "Dropout2d": ("dropout2d", 4),
    "Dropout3d": ("dropout3d", 5),
    "AlphaDropout": ("alpha_dropout", 3),
    "FeatureAlphaDropout": ("feature_alpha_dropout", 4),
}

named = pytest.mark.parametrize("name", MODULES)


def _parameters(function):
    """Names and defaults of what may be given by position."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.default) for p in parameters if p.kind is not p.KEYWORD_ONLY]


@pytest.mark.parametrize("dim", range(7))
@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"])
def test_shapes_are_taken_as_torch_takes_them(name, dim):
    # Errors, warnings, and which elements are dropped together.
    shape = (40, 50, *[2] * (dim - 2))[:dim]
    found = []
    for where in (F, torch.nn.functional):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                y = getattr(where, name)(torch.ones(shape), 0.5, True)
            except (ValueError, RuntimeError) as error:
                found.append(("error", type(error) if where is F else ValueError))
                continue
        y = y == y.max()  # where kept
        parts = [y.flatten(k) for k in range(1, dim)]  # [.., elements behind dimension k]
        together = [bool((part == part[..., :1]).all()) for part in parts]
        found.append((together, y.float().mean().item() > 0.1, bool(told)))
        assert all(warning.filename == __file__ for warning in told)
    assert found[0] == found[1]


def test_samples_need_a_first_dimension():
    with pytest.raises(ValueError, match="drop_path: x must have 1 or more dim"):
        F.drop_path(torch.ones(()), 0.5)


@named
def test_modules_are_torchs(name):
    ours, theirs = getattr(nn, name), getattr(torch.nn, name)
    assert _parameters(ours) == _parameters(theirs)
    for arguments in ({}, {"p": 0.25, "inplace": True}):
        a, b = ours(**arguments), theirs(**arguments)
        assert repr(a) == repr(b)
        assert (a.p, a.inplace, a.training) == (b.p, b.inplace, b.training)
        assert a.state_dict() == b.state_dict() == {}
        for clone in (copy.deepcopy(a), pickle.loads(pickle.dumps(a))):
            assert type(clone) is ours
            assert repr(clone) == repr(a)
    x = torch.randn((2, 30, 4, 5, 6)[: MODULES[name][1]])
    assert ours(0.5).eval()(x) is x
    assert ours(0.0)(x) is x
    assert torch.equal(ours(1.0)(x), theirs(1.0)(x))
    # Written to where torch's module writes: the alpha ones do not.
    for module in (ours(0.5, inplace=True), theirs(0.5, inplace=True)):
        given = x.clone()
        y = module(given)
        assert not torch.equal(y, x)
        assert (y is given) == ("Alpha" not in name)
        assert torch.equal(given, x) == ("Alpha" in name)


@named
def test_functions_take_torchs_arguments(name):
    function = MODULES[name][0]
    ours, theirs = (_parameters(getattr(where, function)) for where in (F, torch.nn.functional))
    assert ours[0][0] == "x"
    assert ours[1:] == theirs[1:]


def test_modules_in_a_model_that_was_torchs():
    def model(of):
        return torch.nn.Sequential(
            torch.nn.Conv2d(2, 6, 3),
            of.Dropout2d(0.2),
            torch.nn.Flatten(),
            torch.nn.Linear(96, 32),
            torch.nn.SELU(),
            of.AlphaDropout(0.1, inplace=True),
            torch.nn.Linear(32, 4),
            of.Dropout(0.1, inplace=True),
        )

    theirs, ours = model(torch.nn), model(nn)
    ours.load_state_dict(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))
    ours.train()
    torch.manual_seed(1)
    plain = torch.autograd.grad(ours(x).square().sum(), list(ours.parameters()))
    torch.manual_seed(1)
    y = checkpoint(ours, x, use_reentrant=False)
    again = torch.autograd.grad(y.square().sum(), list(ours.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_paths_and_sums_as_modules():
    x, residual = torch.randn(64, 8), torch.randn(64, 8)
    path, add = nn.DropPath(0.5), nn.DropoutAdd(0.5)
    assert (repr(path), repr(add)) == ("DropPath(p=0.5)", "DropoutAdd(p=0.5)")
    assert nn.DropPath()(x) is x
    rows = (path(x) == 0).sum(1)
    assert set(rows.tolist()) == {0, 8}
    torch.manual_seed(2)
    y = add(x, residual)
    torch.manual_seed(2)
    assert torch.equal(y, residual + F.dropout(x, 0.5))
    assert path.eval()(x) is x
    assert torch.equal(add.eval()(x, residual), residual + x)
