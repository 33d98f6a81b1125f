"""Tensors that change after a call, and threads that compile meanwhile: an error or the truth."""

from __future__ import annotations

import threading

import pytest
import torch
from conftest import rows

from torchcalc import functional

STALE = "modified by an inplace operation"


def _changed(op, device, call_of):
    """Each sample with one of its tensors changed between forward and backward."""
    for sample in op.samples(torch.device(device), torch.float64):
        call = call_of(sample.call)
        leaves = [t.clone().requires_grad_() for t in sample.inputs]
        expected = torch.autograd.grad(sample.reference(*leaves).sum(), leaves)
        for changed in range(len(leaves) + 1):
            inputs = [t.detach().clone().requires_grad_() for t in leaves]
            y = call(*inputs)
            with torch.no_grad():
                (*inputs, y)[changed].add_(1)
            raised = ""
            try:
                actual = torch.autograd.grad(y.sum(), inputs)
            except RuntimeError as error:
                raised = str(error)
            if raised:
                assert STALE in raised
            else:
                torch.testing.assert_close(actual, expected, msg=sample.name)


@rows("gradcheck")
def test_change_after_the_call(op, device):
    _changed(op, device, lambda call: call)


@pytest.mark.no_kernels  # a graph with the same ops
@rows("gradcheck")
def test_change_after_the_compiled_call(op, device):
    def compiled(call):
        torch.compiler.reset()
        return torch.compile(call, backend="aot_eager")

    _changed(op, device, compiled)


@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_change_inside_of_the_function(backend):
    def compiled(function):
        return function if backend is None else torch.compile(function, backend=backend)

    weight = torch.randn(8, 8, requires_grad=True)

    def block(x):
        h = functional.linear_act(x, weight, activation="relu")
        h += x  # relu keeps its output
        return h

    def drop(x, seed):
        y = functional.dropout(x, 0.5, seed=seed)
        seed.add_(1)
        return y

    x = torch.randn(4, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match=STALE):
        compiled(block)(x).sum().backward()
    with pytest.raises(RuntimeError, match=STALE):
        compiled(drop)(x, torch.tensor([3])).sum().backward()


def test_residuals_do_not_share_their_gradients():
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    first, second = (torch.zeros(3, 5, requires_grad=True) for _ in range(2))
    sum(functional.linear_act(x, weight, residual=r) for r in (first, second)).sum().backward()
    first.grad.zero_()
    assert (second.grad == 1).all()


def test_a_thread_that_compiles_changes_nothing():
    x, weight = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (5, 4)))

    def second_derivative(layer):
        (g,) = torch.autograd.grad(layer(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    def reference(x, weight):
        return torch.nn.functional.gelu(torch.nn.functional.linear(x, weight))

    expected = second_derivative(reference)
    done = threading.Event()
    compilations = []

    def compile_again_and_again():
        while not done.is_set():
            function = torch.compile(lambda x: functional.linear_act(x, weight), backend="eager")
            compilations.append(function(torch.randn(2, 4, dtype=torch.float64)))
            torch.compiler.reset()

    thread = threading.Thread(target=compile_again_and_again)
    thread.start()
    try:
        count = 0
        while len(compilations) < 5 or count < 100:
            torch.testing.assert_close(second_derivative(functional.linear_act), expected)
            count += 1
    finally:
        done.set()
        thread.join()
