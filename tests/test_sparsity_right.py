"""What compact could get wrong: what is done in place, read elsewhere, or in branches only."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import torchcalc.nn as tnn
from torchcalc import sparsity
from torchcalc.sparsity._trace import copied

pytestmark = pytest.mark.no_kernels


def constant(layer, rows, value=-3.0):
    """Rows that make the same number whatever comes in."""
    with torch.no_grad():
        layer.weight[list(rows)] = 0
        layer.bias[list(rows)] = value
    return layer


def same(model, *inputs, removed=None):
    """Compacts a model; both have the same outputs. Returns the smaller one."""
    model = model.double().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    smaller = sparsity.compact(model).eval()
    with torch.no_grad():
        expected, found = (
            copied(m)(*copy.deepcopy(inputs)) for m in (model, smaller)
        )  # a forward may change buffers
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, smaller)]
    if removed is not None:
        assert (sizes[1] < sizes[0]) == removed
    return smaller


class Net(nn.Module):
    """Layers, and a function for a forward."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        self.first = constant(nn.Linear(5, 6), [0, 1])
        self.second, self.third, self.last = nn.Linear(6, 4), nn.Linear(6, 3), nn.Linear(4, 2)
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def read_before(net, x):
    h = net.first(x)
    return net.second(h), net.third(net.act(h))


def read_after(net, x):
    h = net.first(x)
    return net.act(h), net.second(h)


def functional(net, x):
    h = net.first(x)
    return net.third(F.relu(h, inplace=True)), net.second(h)


def by_method(net, x):
    h = net.first(x)
    h.relu_()
    return net.last(net.second(h))


def flattened(net, x):
    h = net.first(x)
    y = h.contiguous()
    h += 7
    return net.second(y), net.third(h)


def added(net, x):
    h = y = net.first(x)
    h *= net.gate(x)
    return net.second(y)


@pytest.mark.parametrize(
    "function", [read_before, read_after, functional, by_method, flattened, added]
)
def test_in_place(function):
    net = Net(function, act=nn.ReLU(inplace=True), gate=constant(nn.Linear(5, 6), [0], 2.0))
    if function is by_method:
        constant(net.first, range(6))
    same(net, torch.randn(4, 5, dtype=torch.float64))


def keyword(net, x):
    h = net.first(x)
    return net.second(input=h), net.third(h)


def weight(net, x):
    return F.linear(net.second(net.first(x)), net.second.weight.t())


def statistics(net, x):
    return net.second(net.norm(net.first(x))), net.other(x) * net.norm.running_var.sqrt()


def size(net, x):
    return net.second(net.first(x)) * net.first.out_features


def its_input(net, x):
    h = net.first(x)
    return net.second(net.act(h, residual=h))


@pytest.mark.parametrize("function", [keyword, weight, statistics, size, its_input])
def test_what_reads_features_in_another_way(function):
    layers = {"other": nn.Linear(5, 6), "norm": nn.BatchNorm1d(6)}
    net = Net(function, **layers, act=tnn.LinearAct(6, 6, activation="gelu"))
    with torch.no_grad():
        net.act.weight[0] = 0
        net.act.weight[:, 1] = 0
    same(net, torch.randn(4, 5, dtype=torch.float64), removed=function is its_input)


class Branches(nn.Module):
    def __init__(self, training):
        super().__init__()
        self.by_mode = training
        self.first, self.last = constant(nn.Linear(5, 6), [0, 1]), nn.Linear(6, 2)

    def forward(self, x, mask=None):
        h = self.first(x)
        if self.training if self.by_mode else mask is not None:
            return self.last(h)
        return self.last(h), h.softmax(-1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("by_mode", [False, True])
def test_branches(by_mode, training):
    model = Branches(by_mode).double().train(training)
    smaller = sparsity.compact(model).eval()
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(smaller(x), model.eval()(x))
    smaller.train()(x)


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = constant(nn.Linear(5, 6), [0, 1]), nn.Linear(6, 2)
        self.seen = []
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        h = self.hidden = self.first(x)
        self.seen.append(h)
        self.calls += 1
        return self.last(h)


def test_what_a_forward_keeps():
    smaller = same(Remembers(), torch.randn(3, 5, dtype=torch.float64), removed=True)
    assert (smaller.seen, smaller.calls.item()) == ([], 0)
    assert not hasattr(smaller, "hidden")


class Children(nn.Module):
    """A layer in two children, in a model that cannot be traced."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(6, 6)
        self.first = nn.Sequential(constant(nn.Linear(5, 6), [0]), nn.ReLU(), shared)
        self.second = nn.Sequential(shared, nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x):
        return self.second(self.first(x) if x.sum() > -1e9 else x)


def test_layers_shared_by_children():
    same(Children(), torch.randn(3, 5, dtype=torch.float64), removed=False)


@pytest.mark.parametrize("made", ["pruned", "weight_norm", "spectral_norm", "parametrized"])
def test_weights_that_are_made_of_others(made):
    model = nn.Sequential(constant(nn.Linear(5, 6), [0]), nn.ReLU(), nn.Linear(6, 3)).double()
    if made == "pruned":
        prune.ln_structured(model[2], "weight", 0.5, 2, 1)
    elif made == "parametrized":
        parametrizations.weight_norm(model[2])
    else:
        with pytest.warns(FutureWarning) if made == "weight_norm" else _nothing():
            getattr(nn.utils, made)(model[2])
    x = torch.randn(3, 5, dtype=torch.float64)
    model(x)
    same(model, x, removed=False)
    if made == "pruned":
        found = sparsity.report(model).layers[1]
        assert (found.name, found.zeros, found.dead_columns) == ("2.weight", 9, 3)
        prune.remove(model[2], "weight")
        same(model, x, removed=True)
    if made == "parametrized":
        assert sparsity.report(model).layers[1].name == "2.weight"


def _nothing():
    return torch.no_grad()


class ResNetBlock(nn.Module):
    """One ReLU, in place, is called twice."""

    def __init__(self):
        super().__init__()
        self.conv1 = constant(nn.Conv2d(3, 8, 3, padding=1), [0, 1])
        self.norm1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 3, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(3)

    def forward(self, x):
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        out += x
        return self.relu(out)


def test_a_block_of_a_resnet():
    smaller = same(ResNetBlock(), torch.randn(2, 3, 8, 8, dtype=torch.float64), removed=True)
    assert smaller.conv1.out_channels == smaller.norm1.num_features == 6


def test_average_pools_that_divide_by_something_else():
    layers = [constant(nn.Conv2d(3, 6, 3), [0, 1]), nn.AvgPool2d(2, divisor_override=3)]
    same(nn.Sequential(*layers, nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 8, 8).double())


def test_dropout_that_is_always_on_makes_no_constants():
    net = Net(lambda net, x: net.second(F.dropout(net.first(x), 0.5)))
    assert sparsity.compact(net).first.out_features == 6


def test_numbers_go_into_constants():
    net = Net(lambda net, x: net.second(2 * (net.first(x) + 1) * 0.5))
    smaller = same(net, torch.randn(3, 5, dtype=torch.float64), removed=True)
    assert smaller.first.out_features == 4


def test_batch_norm_over_sequences():
    """The channels of BatchNorm1d are not the features, which are as many."""
    model = nn.Sequential(constant(nn.Linear(5, 6), [0]), nn.BatchNorm1d(6), nn.Linear(6, 2))
    model = model.eval()
    x = torch.randn(4, 6, 5)
    torch.testing.assert_close(sparsity.compact(model, x)(x), model(x))
    assert sparsity.compact(model, x[:, 0])[0].out_features == 5


def test_batch_norm_over_what_convolutions_make():
    model = nn.Sequential(constant(nn.Conv1d(3, 6, 1), [0]), nn.BatchNorm1d(6), nn.Conv1d(6, 2, 1))
    assert sparsity.compact(model, torch.randn(4, 3, 5))[0].out_channels == 5


def test_convolutions_without_a_batch():
    """Flatten makes [channels, places] of [channels, length]: there is no batch."""
    layers = [constant(nn.Conv1d(3, 4, 1), [0, 1]), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)]
    model = nn.Sequential(*layers).eval()
    x = torch.randn(3, 8)
    torch.testing.assert_close(sparsity.compact(model, x)(x), model(x))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_outputs_of_half_types_may_differ_by_rounding(kind):
    layers = [constant(nn.Linear(64, 64), range(40), 0.7), nn.GELU(), nn.Linear(64, 9)]
    model = nn.Sequential(*layers).to(kind)
    with torch.no_grad():
        model[2].weight.mul_(2)
    smaller = sparsity.compact(model, torch.randn(50, 64, dtype=kind))
    assert smaller[0].out_features == 24


def test_example_inputs_are_left_as_they_are_and_may_give_nan():
    net = Net(lambda net, x: net.second(net.first(x.log_())))
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, -1.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    before = x.clone()
    assert sparsity.compact(net.eval(), x).first.out_features == 4
    assert torch.equal(x, before)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("training", [False, True])
def test_transformers_of_torch(training):
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).double().train(training)
    for layer in (model.encoder.layers[0], model.decoder.layers[0]):
        constant(layer.linear1, range(5))
    smaller = sparsity.compact(model)
    assert smaller.encoder.layers[0].linear1.out_features == 11
    assert smaller.decoder.layers[0].linear1.out_features == 11
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(smaller.eval()(x, x), model.eval()(x, x))


def test_reports_of_transposed_and_grouped_convolutions():
    transposed, grouped = nn.ConvTranspose2d(3, 5, 2), nn.Conv2d(4, 6, 3, groups=2)
    both = nn.ConvTranspose1d(4, 6, 2, groups=2)
    with torch.no_grad():
        transposed.weight[:, 1] = 0  # makes output 1
        grouped.weight[:3, 0] = 0  # input 0, which group 0 reads
        both.weight[2:, 0] = 0  # output 3, which group 1 makes
    found = sparsity.report(nn.Sequential(transposed, grouped, both)).layers
    numbers = [(f.rows, f.columns, f.dead_rows, f.dead_columns) for f in found]
    assert numbers == [(5, 3, 1, 0), (6, 4, 0, 1), (6, 4, 1, 0)]
    assert found[0].heat[1].min() == 1
    assert found[2].heat[3].min() == 1


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_a_smaller_model_is_a_model(kind):
    """It copies, saves, loads, exports and compiles; flags, types and hooks stay."""
    model = nn.Sequential(constant(nn.Linear(5, 6), [0]), nn.ReLU(), nn.Linear(6, 3)).to(kind)
    model[2].weight.requires_grad_(False)
    model.register_forward_hook(lambda module, inputs, output: output * 2)
    smaller = sparsity.compact(model)
    x = torch.randn(2, 5, dtype=kind)
    expected = smaller(x)
    assert [p.dtype for p in smaller.parameters()] == [kind] * 4
    assert [p.requires_grad for p in smaller.parameters()] == [True, True, False, True]
    assert list(smaller.state_dict()) == list(model.state_dict())
    assert torch.equal(copy.deepcopy(smaller)(x), expected)
    assert torch.equal(torch.compile(smaller, backend="aot_eager", fullgraph=True)(x), expected)
    file = io.BytesIO()
    torch.save(smaller.state_dict(), file)
    file.seek(0)
    assert smaller.load_state_dict(torch.load(file)).missing_keys == []
    smaller._forward_hooks.clear()
    exported = torch.export.export(smaller, (x,)).module()
    assert torch.equal(exported(x), expected / 2)


def test_semi_structured_leaves_pruned_layers():
    model = nn.Sequential(nn.Linear(64, 64))
    prune.random_unstructured(model[0], "weight", 0.5)
    with pytest.raises(RuntimeError, match="weights are made of others"):
        sparsity.to_semi_structured(model)
