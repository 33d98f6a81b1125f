"""The modules: what they promise to share with torch.nn, and to save."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.fx.experimental.optimization

import torchcalc
from torchcalc import functional, nn
from torchcalc.ops.activations import NAMES


def test_linear_act_has_linears_parameters(device):
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 7, device=device)
    torch.manual_seed(0)
    layer = nn.LinearAct(5, 7, device=device)
    assert list(layer.state_dict()) == list(linear.state_dict())
    for a, b in zip(layer.parameters(), linear.parameters(), strict=True):
        assert torch.equal(a, b)
    linear.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5, device=device)
    torch.testing.assert_close(layer(x), torch.nn.functional.gelu(linear(x)))


def test_linear_act_is_no_linear():
    # What merges, fuses or replaces linear layers would forget the activation.
    layer = nn.LinearAct(5, 7, activation="relu", dtype=torch.float64)
    assert not isinstance(layer, torch.nn.Linear)
    assert (layer.in_features, layer.out_features) == (5, 7)
    model = torch.nn.Sequential(layer, torch.nn.BatchNorm1d(7, dtype=torch.float64)).eval()
    model[1].running_mean.fill_(0.5)
    fused = torch.fx.experimental.optimization.fuse(model)
    x = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))
    before = layer.weight.detach().clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before)
    assert nn.LinearAct(5, 7, bias=False).bias is None


def test_dropout_only_in_training():
    layer = nn.LinearAct(4, 400, activation="identity", dropout_p=0.5)
    x = torch.randn(2, 4)
    assert (layer(x) == 0).any()
    torch.testing.assert_close(
        layer.eval()(x), torch.nn.functional.linear(x, layer.weight, layer.bias)
    )


def test_residual_of_a_module():
    layer = nn.LinearAct(4, 4, bias=False)
    x = torch.randn(2, 4)
    torch.testing.assert_close(layer(x, residual=x), x + layer(x))


@pytest.mark.parametrize(
    "module",
    [nn.LinearAct(3, 4, activation="relu", dropout_p=0.1), nn.Dropout(0.3), nn.SoftThreshold(0.2)],
    ids=lambda m: type(m).__name__,
)
def test_repr_copy_and_deepcopy(module):
    clone = copy.deepcopy(module)
    assert repr(clone) == repr(module)
    assert repr(module) != f"{type(module).__name__}()"
    x = torch.randn(2, 3)
    assert torch.equal(module.eval()(x), clone.eval()(x))


def test_functional_call_and_ensembles(device):
    # Stacked parameters, as in torch.func's model ensembling.
    models = [nn.LinearAct(5, 7, activation="tanh", device=device) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    x = torch.randn(4, 5, device=device)

    def call(p, b):
        return torch.func.functional_call(models[0], (p, b), (x,))

    actual = torch.vmap(call)(params, buffers)
    torch.testing.assert_close(actual, torch.stack([m(x) for m in models]))


def _saved_bytes(model, x):
    """Bytes that autograd keeps of a forward pass, parameters and x left out, storages once."""
    left_out = {t.untyped_storage().data_ptr() for t in (x, *model.parameters())}
    kept = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in left_out:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    return sum(kept.values()), y


# Bits for each element that are kept for backward: without dropout, with it, with a residual.
KEPT = {
    "identity": (0, 0, 0),
    "relu": (32, 32, 1),  # y, which the next layer keeps too; with a residual, where it is on
    "leaky_relu": (32, 32, 1),
    torch.nn.LeakyReLU(-0.1): (1, 1, 1),
    "relu6": (32, 1, 1),
    "hardtanh": (32, 1, 1),
    "hardsigmoid": (32, 1, 1),
    "tanh": (32, 32, 32),  # y; with a residual a
    "sigmoid": (32, 32, 32),
    "elu": (32, 32, 32),
    torch.nn.ELU(-1.0): (32, 32, 32),  # z
    "celu": (32, 32, 32),
    "selu": (32, 32, 32),
    "softplus": (32, 32, 32),
    "softsign": (32, 32, 32),
    "gelu": (32, 32, 32),  # z, as all that follow
    "gelu_tanh": (32, 32, 32),
    "silu": (32, 32, 32),
    "quick_gelu": (32, 32, 32),
    "mish": (32, 32, 32),
    "relu_squared": (32, 32, 32),
    "hardswish": (32, 32, 32),
}


@pytest.mark.parametrize("case", [0, 1, 2], ids=["alone", "dropout", "residual"])
@pytest.mark.parametrize(("activation", "bits"), KEPT.items(), ids=str)
def test_what_is_kept_for_backward(activation, bits, case):
    layer = nn.LinearAct(16, 1000, activation=activation, dropout_p=0.5 * (case == 1))
    x, r = torch.randn(64, 16), torch.randn(64, 1000)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x, r if case == 2 else None)

    kept, _ = _saved_bytes(Model(), x)
    assert kept == bits[case] * 64 * 1000 // 8 + 8 * (case == 1)  # and the seed


def test_the_bytes_of_every_activation_are_known():
    assert set(NAMES) <= set(KEPT)


@pytest.mark.parametrize(("activation", "hidden"), [("gelu", 32), ("relu", 32), ("hardtanh", 32)])
def test_what_an_mlp_keeps(activation, hidden):
    block = nn.MLP(16, 1000, 8, activation, hidden_dropout_p=0.5, dropout_p=0.5)
    kept, _ = _saved_bytes(block, torch.randn(64, 16))
    assert kept == hidden * 64 * 1000 // 8 + 2 * 8  # z or h, and the seeds


@pytest.mark.parametrize("frozen", ["weight", "x"])
def test_what_no_gradient_needs_is_not_kept(frozen):
    x, weight = torch.randn(3, 5), torch.randn(7, 5)
    (weight if frozen == "x" else x).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape), lambda t: t):
        functional.linear_act(x, weight)
    # z, and the factor that the other's gradient is made with
    assert sorted(kept) == sorted([(3, 7), x.shape if frozen == "x" else weight.shape])


def test_freeing_needs_no_garbage_collector():
    x = torch.randn(4, 8, requires_grad=True)
    y = functional.dropout(functional.linear_act(x, torch.randn(8, 8), activation="tanh"), 0.5)
    alive = weakref.ref(y)
    gc.disable()
    try:
        del y
        assert alive() is None
    finally:
        gc.enable()


def test_saved_tensor_that_is_changed_is_noticed():
    x, weight = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    y = functional.linear_act(x, weight, activation="relu")
    y.detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_meta_tensors_have_shapes():
    x, weight = torch.empty(3, 4, device="meta"), torch.empty(5, 4, device="meta")
    assert functional.linear_act(x, weight, dropout_p=0.5).shape == (3, 5)
    assert functional.dropout(x).device.type == "meta"


def test_autocast_adds_a_float32_residual_as_pytorch_would():
    x, weight, residual = torch.randn(3, 4), torch.randn(4, 4), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = functional.linear_act(x, weight, residual=residual)
        expected = residual + functional.linear_act(x, weight)
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)


def test_everything_is_reachable_from_the_package():
    assert torchcalc.__version__
    layers = ("LinearAct", "GatedLinear", "MLP", "SoftThreshold", "DropPath", "DropoutAdd")
    dropouts = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")
    for name in (*layers, *dropouts, "FeatureAlphaDropout"):
        assert hasattr(torchcalc.nn, name)
    assert torchcalc.distributed.ColwiseParallel
    with pytest.raises(AttributeError, match="nothing"):
        _ = torchcalc.nothing
    for name in ("L1", "L2", "ElasticNet"):
        assert hasattr(torchcalc.prox, name)
    for name in ("SGD", "AdamW", "groups"):
        assert hasattr(torchcalc.optim, name)


@pytest.mark.parametrize("training", [1, 2, "yes"])
def test_training_is_a_truth_value(training):
    x, w = torch.ones(64, 16), torch.ones(64, 16)
    for call in (
        lambda t: functional.linear_act(x, w, dropout_p=0.25, training=t, seed=1),
        lambda t: functional.gated_linear(x, w, dropout_p=0.25, training=t, seed=1),
        lambda t: functional.mlp(x, w, None, w.t(), None, dropout_p=0.25, training=t, seed=1),
    ):
        assert torch.equal(call(training), call(True))
        assert torch.equal(call(None), call(False))


@pytest.mark.parametrize(
    "module",
    [nn.LinearAct(7, 8), nn.GatedLinear(7, 8), nn.MLP(7, 8), nn.Dropout(), nn.SoftThreshold(0.1)],
    ids=lambda module: type(module).__name__,
)
def test_traced_modules_pickle(module):
    module.eval()
    traced = pickle.loads(pickle.dumps(torch.fx.symbolic_trace(module)))
    x = torch.randn(3, 7)
    torch.testing.assert_close(traced(x), module(x))


@pytest.mark.parametrize("layer", [nn.LinearAct, nn.GatedLinear, nn.MLP])
def test_a_part_of_a_packed_tensor_is_not_copied(layer, device):
    x = torch.randn(8, 64, 3 * 16, device=device)[..., :16]
    module = layer(16, 16).to(device)

    def copies(x):
        with torch.no_grad(), torch.profiler.profile() as profile:
            module(x)
        return [event.name for event in profile.events()].count("aten::copy_")

    assert copies(x) == copies(x.contiguous())
    torch.testing.assert_close(module(x), module(x.contiguous()))


def test_linear_layers_gradients_lie_as_their_weights(dtype, device):
    # Of a weight [in, out], as GPT-2's: autograd would copy another order.
    weight = torch.randn(8, 16, dtype=dtype, device=device, requires_grad=True)
    x = torch.randn(4, 8, dtype=dtype, device=device, requires_grad=True)
    for activation in ("identity", "gelu"):
        y = functional.linear_act(x, weight.t(), activation=activation)
        (grad,) = torch.autograd.grad(y.sum(), weight)
        assert grad.is_contiguous()
    second = torch.randn(16, 8, dtype=dtype, device=device, requires_grad=True)
    y = functional.mlp(x, weight.t(), None, second.t(), None)
    for grad in torch.autograd.grad(y.sum(), (weight, second)):
        assert grad.is_contiguous()
