"""What traces a program sees the ops with their derivatives: export, make_fx, functionalize, fx."""

from __future__ import annotations

import warnings
from itertools import islice

import pytest
import torch
from conftest import rows
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from torchcalc import functional, nn


def samples(op, device, count=None):
    return islice(op.samples(torch.device(device), torch.float64), count)


def scalar(call):
    return lambda *t: call(*t).pow(3).sum()


def gradients(call, inputs):
    leaves = [t.clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(scalar(call)(*leaves), leaves)


class Layer(torch.nn.Module):
    """An op whose first input, times a parameter, is the module's, and whose others are."""

    def __init__(self, call, inputs):
        super().__init__()
        self.call = call
        self.gain = torch.nn.Parameter(torch.ones((), dtype=inputs[0].dtype))
        self.rest = torch.nn.ParameterList(torch.nn.Parameter(t.clone()) for t in inputs[1:])

    def forward(self, x):
        return self.call(x * self.gain, *list(self.rest))  # Dynamo of torch 2.10 needs the list


@rows("gradcheck")
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_export(op, strict, device):
    for sample in samples(op, device, 2):
        layer = Layer(sample.call, sample.inputs)
        x = sample.inputs[0]
        exported = torch.export.export(layer, (x,), strict=strict).module()
        torch.testing.assert_close(exported(x), layer(x), msg=sample.name)
        actual, expected = (
            torch.autograd.grad(scalar(m)(x), list(m.parameters())) for m in (exported, layer)
        )
        torch.testing.assert_close(actual, expected, msg=sample.name)


@rows("gradcheck")
@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx(op, mode, device):
    for sample in samples(op, device, 2):
        traced = make_fx(sample.call, tracing_mode=mode)(*sample.inputs)
        assert any("torchcalc" in str(node.target) for node in traced.graph.nodes)
        torch.testing.assert_close(traced(*sample.inputs), sample.call(*sample.inputs))
        everything = tuple(range(len(sample.inputs)))
        gradient = torch.func.grad(scalar(sample.call), everything)
        traced = make_fx(gradient, tracing_mode=mode)(*sample.inputs)
        torch.testing.assert_close(
            traced(*sample.inputs), gradients(sample.reference, sample.inputs), msg=sample.name
        )


@rows("gradcheck")
def test_functionalize(op, device):
    for sample in samples(op, device):
        function = torch.func.functionalize(torch.func.grad(scalar(sample.call)))
        expected = gradients(sample.reference, sample.inputs)[0]
        torch.testing.assert_close(function(*sample.inputs), expected, msg=sample.name)


@rows("gradcheck")
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobian(op, strategy, device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: "performance drop because of a batching rule"
        for sample in samples(op, device):
            jacobian = torch.autograd.functional.jacobian
            actual = jacobian(sample.call, sample.inputs, vectorize=True, strategy=strategy)
            expected = jacobian(sample.reference, sample.inputs)
            torch.testing.assert_close(actual, expected, msg=sample.name)


@rows("gradgradcheck")
@pytest.mark.parametrize("outer", ["reverse-mode", "forward-mode"])
def test_vectorized_hessian(op, outer, device):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in samples(op, device):
            hessian = torch.autograd.functional.hessian
            actual = hessian(
                scalar(sample.call), sample.inputs, vectorize=True, outer_jacobian_strategy=outer
            )
            expected = hessian(scalar(sample.reference), sample.inputs)
            torch.testing.assert_close(actual, expected, msg=sample.name)


def test_vectorized_hessian_of_one_row(device):
    x, w, b, w2 = (torch.randn(s, device=device) for s in ((3,), (4, 3), (4,), (2, 4)))
    for call, plain in (
        (
            lambda x: functional.linear_act(x, w, b, "silu"),
            lambda x: torch.nn.functional.silu(w @ x + b),
        ),
        (
            lambda x: functional.gated_linear(x, w, b, "silu"),
            lambda x: torch.nn.functional.silu(w[:2] @ x + b[:2]) * (w[2:] @ x + b[2:]),
        ),
        (
            lambda x: functional.mlp(x, w, b, w2, None, "silu"),
            lambda x: w2 @ torch.nn.functional.silu(w @ x + b),
        ),
    ):
        hessian = torch.autograd.functional.hessian
        actual = hessian(scalar(call), x, vectorize=True, outer_jacobian_strategy="forward-mode")
        torch.testing.assert_close(actual, hessian(scalar(plain), x))


def tangent(call, inputs):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs]
        return forward_ad.unpack_dual(call(*duals)).tangent


@rows("forward AD")
def test_dual_level(op, device):
    for sample in samples(op, device):
        expected = tangent(sample.reference, sample.inputs)
        torch.testing.assert_close(tangent(sample.call, sample.inputs), expected, msg=sample.name)


@pytest.mark.no_kernels  # a graph with the same ops
@rows("forward AD")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_dual_level_inside_of_compile(op, backend, device):
    for sample in samples(op, device, 1):
        compiled = torch.compile(lambda *t, s=sample: tangent(s.call, t), backend=backend)
        expected = tangent(sample.reference, sample.inputs)
        torch.testing.assert_close(compiled(*sample.inputs), expected, msg=sample.name)


@pytest.mark.no_kernels  # a graph with the same ops
@rows("gradgradcheck")
def test_hessian_inside_of_compile(op, device):
    for sample in samples(op, device, 1):
        hessian = torch.func.hessian(scalar(sample.call))
        compiled = torch.compile(hessian, fullgraph=True, backend="aot_eager")
        expected = torch.func.hessian(scalar(sample.reference))(*sample.inputs)
        torch.testing.assert_close(compiled(*sample.inputs), expected, msg=sample.name)


def test_symbolic_trace_sees_functions():
    model = torch.nn.Sequential(
        nn.LinearAct(4, 8, dropout_p=0.1),
        nn.Dropout(0.2),
        nn.SoftThreshold(0.1),
        nn.SoftThreshold(torch.nn.Parameter(torch.tensor(0.1))),
    )
    traced = torch.fx.symbolic_trace(model)
    functions = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert functions == [
        functional.linear_act,
        functional.dropout,
        functional.soft_threshold,
        functional.soft_threshold,
    ]
    x = torch.randn(3, 4)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(traced(x), expected)


def test_symbolic_trace_sees_functions_of_a_bias_or_residual():
    x, w = torch.ones(3, 4), torch.ones(64, 4)
    b, r, w2 = torch.zeros(64), torch.zeros(3, 64), torch.ones(64, 64)
    for call, given in (
        (lambda b: functional.linear_act(x, w, b, dropout_p=0.5), b),
        (lambda r: functional.linear_act(x, w, residual=r, dropout_p=0.5), r),
        (lambda b: functional.gated_linear(x, w, b, dropout_p=0.5), b),
        (lambda b: functional.mlp(x, w, b, w2, None, dropout_p=0.5), b),
        (lambda r: functional.mlp(x, w, None, w2, None, dropout_p=0.5, residual=r), r),
    ):
        traced = torch.fx.symbolic_trace(call)
        assert not torch.equal(traced(given), traced(given))  # the seed is no constant


def test_subclasses_and_modes_may_override():
    class Named(torch.Tensor):
        pass

    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    x, weight = torch.randn(3, 4).as_subclass(Named), torch.randn(2, 4)
    calls = {
        functional.linear_act: (x, weight),
        functional.dropout: (x,),
        functional.soft_threshold: (x, 0.1),
        functional.prox_l2: (x, 0.1),
        functional.prox_elastic_net: (x, 0.1, 0.2),
    }
    for function, args in calls.items():
        assert type(function(*args)) is Named
        seen.clear()
        with Mode():
            function(*args)
        assert seen[0] is function


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own use of it
def test_pipeline():
    pipelining = pytest.importorskip("torch.distributed.pipelining")

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LinearAct(4, 8), nn.LinearAct(8, 2, activation="relu")

        def forward(self, x):
            return self.second(self.first(x))

    model, x = Model(), torch.randn(3, 4)
    split = {"second": pipelining.SplitPoint.BEGINNING}
    pipe = pipelining.pipeline(model, mb_args=(x,), split_spec=split)
    y = pipe.get_stage_module(1)(pipe.get_stage_module(0)(x))
    torch.testing.assert_close(y, model(x))
    assert y.requires_grad


def test_flops_are_those_of_linear():
    x = torch.randn(2, 3, 4, requires_grad=True)
    linear, ours = torch.nn.Linear(4, 8), nn.LinearAct(4, 8)
    counts = []
    for layer in (lambda x: torch.nn.functional.gelu(linear(x)), ours):
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_profiler_sees_the_ops():
    with torch.profiler.profile(acc_events=True) as profile:
        functional.soft_threshold(torch.randn(3), 0.1)
    assert "torchcalc::prox" in {event.key for event in profile.key_averages()}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_compiled_autograd(activation):
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (5, 4))]

    def derivatives(layer):
        (g,) = torch.autograd.grad(layer().square().sum(), tensors[0], create_graph=True)
        return g, *torch.autograd.grad(g.square().sum(), tensors)

    def ours():
        return functional.linear_act(*tensors, activation=activation)

    def reference():
        return getattr(torch.nn.functional, activation)(torch.nn.functional.linear(*tensors))

    with compiled_autograd._enable(torch.compile(backend="eager")):
        actual = derivatives(ours)
    torch.testing.assert_close(actual, derivatives(reference))
