"""Reports of zeros, and compact models that compute the same."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchcalc.nn as tnn
from torchcalc import sparsity

pytestmark = pytest.mark.no_kernels


def kill(layer, rows=(), columns=(), bias=True):
    """Zeros in rows and columns of a weight."""
    weight = layer.weight1 if hasattr(layer, "weight1") else layer.weight
    with torch.no_grad():
        weight[list(rows)] = 0
        weight[:, list(columns)] = 0
        if not bias and layer.bias is not None:
            layer.bias[list(rows)] = 0
    return layer


def fill_statistics(model):
    """Running statistics and affine parameters that are not those of a new module."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
                if m.affine:
                    m.weight.normal_()
                    m.bias.normal_()
    return model


def same(model, smaller, *inputs):
    model.eval()
    smaller.eval()
    with torch.no_grad():
        torch.testing.assert_close(smaller(*inputs), model(*inputs), rtol=1e-9, atol=1e-9)


def chain():
    return nn.Sequential(
        kill(nn.Linear(8, 16), rows=range(5)),
        nn.GELU(),
        kill(nn.Linear(16, 12), columns=[6, 7], rows=[0]),
        nn.Dropout(0.5),
        nn.Sigmoid(),
        nn.Linear(12, 4),
    )


def test_dead_rows_and_columns_of_a_chain():
    model = chain().double()
    smaller = sparsity.compact(model, torch.randn(3, 8, dtype=torch.float64))
    assert [tuple(m.weight.shape) for m in (smaller[0], smaller[2], smaller[5])] == [
        (9, 8),
        (11, 9),
        (4, 11),
    ]
    assert (smaller[0].out_features, smaller[2].in_features) == (9, 9)
    same(model, smaller, torch.randn(5, 7, 8, dtype=torch.float64))
    assert all(p.requires_grad and p.is_leaf for p in smaller.parameters())
    assert not {id(p) for p in smaller.parameters()} & {id(p) for p in model.parameters()}
    assert tuple(model[0].weight.shape) == (16, 8)


def test_what_becomes_constant_by_what_is_removed():
    """Row 0 of the second layer reads only what the first layer makes constant."""
    first, second, third = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
    kill(first, rows=[0, 1])
    with torch.no_grad():
        second.weight[0, 2:] = 0
    model = nn.Sequential(first, nn.Tanh(), second, nn.ReLU(), third).double()
    smaller = sparsity.compact(model)
    assert tuple(smaller[2].weight.shape) == (4, 4)
    same(model, smaller, torch.randn(9, 4, dtype=torch.float64))


def test_what_is_unread_by_what_is_removed():
    """Nobody reads the second layer's row 0, and nobody else reads the first one's row 0."""
    first, second, third = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)
    kill(third, columns=[0])
    with torch.no_grad():
        second.weight[1:, 0] = 0
    model = nn.Sequential(first, nn.Tanh(), second, nn.ReLU(), third).double()
    smaller = sparsity.compact(model)
    assert tuple(smaller[0].weight.shape) == (5, 4)
    assert tuple(smaller[2].weight.shape) == (4, 5)
    same(model, smaller, torch.randn(9, 4, dtype=torch.float64))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu", "sigmoid", "softplus"])
def test_layers_of_ours(activation, bias):
    model = nn.Sequential(
        kill(tnn.LinearAct(8, 16, bias, activation, dropout_p=0.1), rows=range(4)),
        kill(tnn.GatedLinear(16, 12, bias, activation), rows=[0, 1, 13, 14]),
        tnn.Dropout(0.3),
        kill(tnn.MLP(12, 20, 6, activation, bias=bias), rows=range(7)),
        tnn.MLP(6, 10, 5, activation, gated=True, bias=bias),
        nn.Linear(5, 2),
    ).double()
    with torch.no_grad():
        model[3].weight2[0] = 0
        model[4].weight1[[3, 4, 15]] = 0
        model[4].weight2[:, 9] = 0
    smaller = sparsity.compact(model, torch.randn(2, 8, dtype=torch.float64))
    assert smaller[0].weight.shape[0] == smaller[0].out_features == 12
    assert smaller[1].weight.shape == (2 * smaller[1].out_features, 12)
    # Of 0, 1 the gate is constant, of 1, 2 the value: their product where one of them is 0.
    at_zero = activation in ("gelu", "relu")
    assert smaller[1].out_features <= (11 if bias else 9 if at_zero else 10)
    assert smaller[3].hidden_features == smaller[3].weight1.shape[0] == 13
    assert smaller[3].out_features == smaller[4].in_features == 5
    assert smaller[4].hidden_features < 10
    assert smaller[4].weight1.shape[0] == 2 * smaller[4].hidden_features
    same(model, smaller, torch.randn(7, 8, dtype=torch.float64))


class Convolutional(nn.Module):
    def __init__(self, padding=1, pool=nn.MaxPool2d, flat="module"):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=padding)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=padding, bias=False)
        self.pool = pool(2)
        self.flat = flat
        self.flatten = nn.Flatten()
        size = (16 if padding else 12) // 2
        self.head = nn.Linear(6 * size * size, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = self.pool(nn.functional.silu(self.second(x)))
        x = {"module": self.flatten, "method": lambda t: t.flatten(1)}.get(
            self.flat, lambda t: torch.flatten(t, 1)
        )(x)
        return self.head(x)


@pytest.mark.parametrize("flat", ["module", "method", "function"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d, nn.AvgPool2d])
@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions(padding, pool, flat):
    model = fill_statistics(Convolutional(padding, pool, flat)).double().eval()
    kill(model.first, rows=[0, 1, 2])
    kill(model.second, rows=[4])
    with torch.no_grad():
        model.norm.bias[:2] = 5.0  # constants that are not 0
        model.norm.bias[2] = -100.0  # one that relu makes 0
    smaller = sparsity.compact(model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    # Constants do not go through the zeros of a padding; a constant of 0 does.
    assert smaller.first.out_channels == (7 if padding else 5)
    assert smaller.norm.num_features == smaller.first.out_channels
    assert smaller.second.weight.shape[:2] == (5, smaller.first.out_channels)
    assert (smaller.second.bias is not None) == (padding == 0)
    assert smaller.head.in_features == model.head.in_features // 6 * 5
    same(model, smaller, torch.randn(3, 3, 16, 16, dtype=torch.float64))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.branch = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.gate = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.branch(x)
        return self.head(x * torch.sigmoid(self.gate(x)))


def test_branches_stay_in_step():
    model = Residual().double()
    kill(model.stem, rows=[0, 1, 2])
    kill(model.branch[0], rows=[1, 2, 3])
    # 1 and 2 are constant in the stem and in the branch, and in the product if the gate is, too.
    kill(model.gate, rows=[2])
    smaller = sparsity.compact(model)
    assert [m.weight.shape[0] for m in (smaller.stem, smaller.branch[0], smaller.gate)] == [7] * 3
    same(model, smaller, torch.randn(4, 5, dtype=torch.float64))


class Opaque(nn.Module):
    """A layer of zeros that something else reads."""

    def __init__(self, reader):
        super().__init__()
        self.first = kill(nn.Linear(6, 8), rows=[0, 1])
        self.reader = reader
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.reader(self.first(x)))


class Softmax(nn.Module):
    def forward(self, x):
        return x.softmax(-1)


class Doubled(nn.Module):
    def forward(self, x):
        return x - x.flip(-1)


@pytest.mark.parametrize(
    "reader",
    [nn.LayerNorm(8), nn.GroupNorm(2, 8), Softmax(), Doubled(), nn.PReLU(8), nn.GLU()],
    ids=lambda m: type(m).__name__,
)
def test_nothing_is_removed_before_what_reads_all(reader):
    model = Opaque(reader).double()
    if isinstance(reader, nn.GLU):
        model.last = nn.Linear(4, 3).double()
    smaller = sparsity.compact(model)
    assert smaller.first.weight.shape == (8, 6)
    same(model, smaller, torch.randn(4, 6, dtype=torch.float64))


def test_layers_that_are_shared_hooked_or_parametrized_stay():
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    tied[2].weight = kill(tied[0], rows=[0]).weight
    twice = nn.Linear(6, 6)
    again = nn.Sequential(kill(twice, rows=[0]), nn.ReLU(), twice, nn.Linear(6, 2))
    hooked = nn.Sequential(kill(nn.Linear(6, 6), rows=[0]), nn.Linear(6, 2))
    hooked[0].register_forward_hook(lambda m, i, o: o + 1)
    normed = nn.Sequential(kill(nn.Linear(6, 6), rows=[0]), nn.Linear(6, 2))
    nn.utils.parametrizations.weight_norm(normed[1])
    for model in (tied, again, hooked, normed):
        model.double()
        smaller = sparsity.compact(model)
        sizes = [tuple(p.shape) for p in model.parameters()]
        assert [tuple(p.shape) for p in smaller.parameters()] == sizes
        same(model, smaller, torch.randn(4, 6, dtype=torch.float64))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([chain(), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))])
        self.mlp = kill(tnn.MLP(4, 16), rows=range(6))

    def forward(self, x):
        for block in self.blocks:
            if x.sum() > -1e9:  # depends on values
                x = block(x)
        return self.mlp(x)


def test_models_that_cannot_be_traced():
    model = Untraceable().double()
    smaller = sparsity.compact(model, torch.randn(3, 8, dtype=torch.float64))
    assert smaller.blocks[0][0].out_features == 9
    assert smaller.mlp.hidden_features == 10
    same(model, smaller, torch.randn(5, 8, dtype=torch.float64))


def test_all_features_dead():
    model = nn.Sequential(kill(nn.Linear(4, 6), rows=range(6)), nn.ReLU(), nn.Linear(6, 3)).double()
    smaller = sparsity.compact(model)
    assert smaller[0].out_features == 1
    same(model, smaller, torch.randn(4, 4, dtype=torch.float64))


def test_nan_and_infinite_weights_stay():
    model = chain().double()
    with torch.no_grad():
        model[0].weight[6, 0] = float("nan")
        model[0].bias[1] = float("inf")
    smaller = sparsity.compact(model)
    x = torch.randn(4, 8, dtype=torch.float64)
    model.eval()
    smaller.eval()
    torch.testing.assert_close(smaller(x), model(x), equal_nan=True)


def test_it_trains_and_keeps_its_mode():
    model = chain().train()
    model[0].weight.requires_grad_(False)
    smaller = sparsity.compact(model)
    assert smaller.training
    assert not smaller[0].weight.requires_grad
    optimizer = torch.optim.SGD([p for p in smaller.parameters() if p.requires_grad], lr=0.1)
    before = smaller[5].weight.detach().clone()
    smaller(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(smaller[5].weight, before)
    copied = chain()
    copied.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(copied[0].weight, model[0].weight)  # the model itself is as it was


class Sly(nn.Module):
    """Reads a weight in a way that no trace of its children shows."""

    def __init__(self):
        super().__init__()
        self.body = chain()

    def forward(self, x):
        if x.dim() != 2:
            raise ValueError
        assert bool((x == x).all())
        return self.body(x).sum(-1) + self.body[0].weight.shape[0]


def test_outputs_that_differ_are_an_error():
    with pytest.raises(RuntimeError, match="compact: the smaller model has other outputs"):
        sparsity.compact(Sly(), torch.randn(3, 8))


def test_report():
    model = nn.Sequential(kill(nn.Linear(8, 16), rows=range(5)), nn.ReLU(), nn.Conv1d(4, 6, 3))
    with torch.no_grad():
        model[2].weight[:, 1] = 0
        model[2].weight[0, 0, 0] = 0
    found = sparsity.report(model)
    linear, conv = found.layers
    assert (linear.name, linear.zeros, linear.dead_rows, linear.dead_columns) == (
        *("0.weight", 40, 5, 0),
    )
    assert (conv.zeros, conv.dead_rows, conv.dead_columns) == (19, 0, 1)
    assert found.zeros == 59
    assert found.size == 128 + 72
    text = str(found)
    assert "5 of 16" in text
    assert "29.5 %" in text
    assert len({len(line) for line in text.splitlines()[:-1]}) == 1


def test_heat_map(tmp_path):
    pytest.importorskip("matplotlib")
    found = sparsity.report(
        nn.Sequential(kill(nn.Linear(80, 100), rows=range(50)), nn.Linear(9, 2))
    )
    assert found.layers[0].heat.shape == (32, 32)
    assert found.layers[0].heat[0].min() == 1
    assert found.layers[0].heat[-1].max() == 0
    found.plot(tmp_path / "zeros.png")
    assert (tmp_path / "zeros.png").stat().st_size > 1000
    sparsity.report(nn.ReLU()).plot()


def test_semi_structured_says_why_not():
    with pytest.raises(RuntimeError, match="no layer of the model is fit: weights are on cpu"):
        sparsity.to_semi_structured(nn.Sequential(nn.Linear(64, 64)))
    with pytest.raises(RuntimeError, match=r"it has no nn\.Linear"):
        sparsity.to_semi_structured(nn.ReLU())


@pytest.mark.parametrize("f", [sparsity.report, sparsity.compact, sparsity.to_semi_structured])
def test_models_only(f):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Tensor"):
        f(torch.ones(3))


def test_it_is_found_without_its_import():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "import torchcalc; torchcalc.sparsity.report"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
