"""What only a GPU can show: streams, graphs, devices, its memory; and each kernel once, briefly."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import pytest
import torch
from conftest import rows

from torchcalc import functional, ops, optim, prox
from torchcalc.testing import OPS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GPU = torch.device("cuda", 0)
SECOND = pytest.param(
    torch.device("cuda", 1),
    marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
)
LARGE = 2**26  # elements of float32: 256 MiB, which no gap in torch's cache holds
SLEEP = 100_000_000  # cycles: tens of milliseconds, far longer than the launches that follow


def test_the_kernels_are_loaded():
    assert ops.is_native(GPU)  # else every other test here would test the reference


def with_gradients(op):
    """op(seed, *inputs) and its gradients, as a function of tensors alone."""

    def call(seed, upstream, *inputs):
        leaves = [t.detach().requires_grad_() for t in inputs]
        y = op(seed, *leaves)
        return (y.detach(), *torch.autograd.grad(y, leaves, upstream))

    return call


def linear_act(activation):
    def op(seed, x, weight, bias, residual):
        return functional.linear_act(
            x, weight, bias, activation, dropout_p=0.3, seed=seed, residual=residual
        )

    return op


def optimizer_step(name):
    """The kernel on copies, as the last sample of the op table calls it."""
    (op,) = (op for op in OPS if op.name == name)
    *_, sample = op.samples(torch.device("cpu"), torch.float32)
    return lambda *tensors: (sample.call(*tensors),)


M, K, N = 300, 65, 70  # several blocks of the bias gradient, no whole octets
CASES = {  # name -> a function of tensors that returns tensors, and the shapes of its arguments
    "linear_act gelu": (
        with_gradients(linear_act("gelu")),
        ["seed", (M, N), (M, K), (N, K), (N,), (M, N)],
    ),
    "linear_act relu": (
        with_gradients(linear_act("relu")),
        ["seed", (M, N), (M, K), (N, K), (N,), (M, N)],
    ),
    "dropout": (
        with_gradients(lambda seed, x: functional.dropout(x, 0.3, seed=seed)),
        ["seed", (M, N), (M, N)],
    ),
    "dropout, seed an int": (
        with_gradients(lambda seed, x: functional.dropout(x, 0.3, seed=7)),
        ["seed", (M, N), (M, N)],
    ),
    "dropout_mask": (lambda seed: (functional.dropout_mask((M, N), 0.3, seed=seed),), ["seed"]),
    "prox_elastic_net": (
        with_gradients(lambda seed, x, l1, l2: functional.prox_elastic_net(x, l1.abs(), l2.abs())),
        ["seed", (M, N), (M, N), (M, N), (M, N)],
    ),
    "sgd_step": (optimizer_step("sgd_step"), [(M, N)] * 3),
    "adam_step": (optimizer_step("adam_step"), ["positive"] * 4),
}
cases = pytest.mark.parametrize("name", CASES)


def arguments(name, number, device=GPU):
    """The case's arguments; others for each ``number``."""
    generator = torch.Generator().manual_seed(number)

    def make(shape):
        if shape == "seed":
            return torch.tensor([1000 + number], device=device)
        if shape == "positive":
            return torch.rand((M, N), generator=generator).to(device)
        return torch.randn(shape, generator=generator).to(device)

    return [make(shape) for shape in CASES[name][1]]


def assert_close(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@rows()
def test_every_kernel(op, dtype):
    """Both derivatives, small and beyond one block, as on the CPU: what compute-sanitizer runs.

    How exact they are is tested elsewhere; here sums of rounded terms have room.
    """
    tolerance = max(1e-4, 16 * torch.finfo(dtype).eps)
    for make in (op.samples, op.shapes):
        gpu, cpu = (list(make(device, dtype)) for device in (GPU, torch.device("cpu")))
        for sample, twin in zip(gpu, cpu, strict=True):
            for a, e in zip(derivatives(op, sample), derivatives(op, twin), strict=True):
                largest = e.double().abs().max().item() if e.numel() else 0.0
                torch.testing.assert_close(a.cpu(), e, atol=tolerance * max(1, largest), rtol=0)


def derivatives(op, sample):
    """Of a sample: the output, the gradients and, by the same op, theirs."""
    if "gradgradcheck" in op.skip:
        return [sample.call(*sample.inputs)]
    leaves = [t.detach().requires_grad_() for t in sample.inputs]
    y = sample.call(*leaves)
    upstream = torch.ones_like(y).requires_grad_()
    first = torch.autograd.grad(y, leaves, upstream, create_graph=True)
    sums = sum(g.sum() for g in first)
    second = torch.autograd.grad(sums, [upstream, *leaves], allow_unused=True)
    return [y, *first, *(g for g in second if g is not None)]


def capture(function):
    """The function in a CUDA graph, and the outputs that each replay writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what libraries do once must not be captured
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph, outputs


@cases
def test_graph_of_forward_and_backward(name):
    call, _ = CASES[name]
    static = arguments(name, 0)
    graph, outputs = capture(lambda: call(*static))
    for number in (1, 2):
        fresh = arguments(name, number)
        for t, value in zip(static, fresh, strict=True):
            t.copy_(value)
        graph.replay()
        assert_close(outputs, call(*fresh))


def test_graph_draws_a_new_mask_at_each_replay():
    x = torch.ones(M, N, device=GPU)
    graph, y = capture(lambda: functional.dropout(x, 0.5))
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(y != 0)
    assert 0.4 < masks[0].float().mean() < 0.6
    assert not torch.equal(*masks)


OPTIMIZERS = {
    "SGD": lambda params: optim.SGD(params, lr=0.1, momentum=0.9, penalty=prox.L1(0.01)),
    "AdamW": lambda params: optim.AdamW(params, lr=0.01, penalty=prox.ElasticNet(0.01, 0.1)),
}
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)


class Training:
    """A step of a small network: forward, backward, update."""

    def __init__(self, name):
        generator = torch.Generator().manual_seed(0)
        shapes = [(N, K), (N,), (3, N)]
        self.params = [
            torch.nn.Parameter(0.1 * torch.randn(shape, generator=generator).to(GPU))
            for shape in shapes
        ]
        self.optimizer = OPTIMIZERS[name](self.params)
        self.x, self.seed = torch.zeros(M, K, device=GPU), torch.zeros(1, dtype=int, device=GPU)

    def feed(self, number):
        generator = torch.Generator().manual_seed(number)
        self.x.copy_(torch.randn(M, K, generator=generator).to(GPU))
        self.seed.fill_(number)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        weight, bias, head = self.params
        hidden = functional.linear_act(self.x, weight, bias, dropout_p=0.3, seed=self.seed)
        loss = functional.linear_act(hidden, head, activation="tanh").square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


@optimizers
def test_graph_of_a_training_step(name):
    graphed, eager = Training(name), Training(name)
    graphed.feed(0)
    eager.feed(0)
    graph, loss = capture(graphed.step)
    for _ in range(3):  # capture's, before it captures
        eager.step()
    for number in range(1, 6):
        graphed.feed(number)
        eager.feed(number)
        graph.replay()
        torch.testing.assert_close(loss, eager.step())
    for a, e in zip(graphed.params, eager.params, strict=True):
        torch.testing.assert_close(a, e)
        for key, state in eager.optimizer.state[e].items():
            torch.testing.assert_close(graphed.optimizer.state[a][key], state)


@cases
def test_work_of_a_side_stream_is_in_order(name):
    call, _ = CASES[name]
    real, late = arguments(name, 1), arguments(name, 2)
    expected, wrong = call(*real), call(*late)
    assert not all(map(torch.equal, expected, wrong))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call(*late)  # memory of this stream's own: to get it would wait for the sleep
        torch.cuda._sleep(SLEEP)
        for t, value in zip(late, real, strict=True):
            t.copy_(value)
        actual = call(*late)
    side.synchronize()
    assert_close(actual, expected)


@contextmanager
def synchronisation_is_an_error():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@cases
def test_no_synchronisation(name):
    call, _ = CASES[name]
    tensors = arguments(name, 0)
    call(*tensors)  # what libraries do once may wait
    with synchronisation_is_an_error():
        call(*tensors)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@optimizers
def test_a_training_step_does_not_synchronise(name):
    training = Training(name)
    training.step()
    with synchronisation_is_an_error():
        training.step()
    training.optimizer.param_groups[0]["lr"] = 0.5
    with synchronisation_is_an_error():
        training.step()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_synchronisation_would_be_seen():
    x = torch.ones(1, device=GPU)
    with synchronisation_is_an_error(), pytest.raises(RuntimeError, match="synchronizing"):
        x.item()


@cases
@pytest.mark.parametrize("second", [SECOND])
def test_another_device_than_the_current_one(name, second):
    call, _ = CASES[name]
    actual = call(*arguments(name, 1, second))
    assert torch.cuda.current_device() == 0
    assert all(t.device == second for t in actual)
    assert_close([t.to(GPU) for t in actual], call(*arguments(name, 1)))


@optimizers
@pytest.mark.parametrize("second", [SECOND])
def test_optimizer_of_parameters_on_two_devices(name, second):
    apart = [torch.nn.Parameter(torch.ones(M, N, device=device)) for device in (GPU, second)]
    optimizer = OPTIMIZERS[name](apart)
    for _ in range(3):
        for param in apart:
            param.grad = torch.full_like(param, 0.5)
        optimizer.step()
    assert torch.cuda.current_device() == 0
    assert torch.equal(apart[0], apart[1].to(GPU))
    assert apart[0].ne(1).all()


@pytest.mark.parametrize("other", [torch.device("cpu"), SECOND], ids=str)
def test_tensors_on_different_devices(other):
    x, weight = torch.ones(M, K, device=GPU), torch.ones(N, K, device=GPU)
    bias, residual = torch.ones(N, device=GPU), torch.ones(M, N, device=GPU)
    seed, lam = torch.tensor([1], device=GPU), torch.tensor(0.5, device=GPU)
    calls = [
        ("weight", lambda t: functional.linear_act(x, t, bias), weight),
        ("bias", lambda t: functional.linear_act(x, weight, t), bias),
        ("residual", lambda t: functional.linear_act(x, weight, residual=t), residual),
        ("seed", lambda t: functional.linear_act(x, weight, dropout_p=0.5, seed=t), seed),
        ("seed", lambda t: functional.dropout(x, 0.5, seed=t), seed),
        ("lam", lambda t: functional.soft_threshold(x, t), lam),
    ]
    for name, call, t in calls:
        call(t)
        with pytest.raises(ValueError, match=rf"\b{name} must be on .*{GPU}.*{other}"):
            call(t.to(other))


@contextmanager
def no_more_memory():
    """No more than what torch holds by now."""
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved(GPU) / total, GPU)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)


def out_of_memory():
    return pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate")


# An op of x and a seed, and x's shape. The seed is there before: what does not fit is the output.
ALLOCATING = {
    "dropout": (lambda x, seed: functional.dropout(x, 0.5, seed=seed), (LARGE,)),
    "soft_threshold": (lambda x, seed: functional.soft_threshold(x, 0.5), (LARGE,)),
    "linear_act": (lambda x, seed: functional.linear_act(x, x), (2**13, 2)),
}


@pytest.mark.parametrize("name", ALLOCATING)
def test_out_of_memory(name):
    op, shape = ALLOCATING[name]
    x = torch.ones(shape, device=GPU, requires_grad=True)
    small, seed = torch.ones(8, 2, device=GPU), torch.tensor([1], device=GPU)
    expected = op(small, seed)
    with no_more_memory(), out_of_memory():
        op(x, seed)
    y = op(x, seed)
    upstream = torch.ones_like(y)
    with no_more_memory(), out_of_memory():
        torch.autograd.grad(y, x, upstream, retain_graph=True)
    assert torch.equal(op(small, seed), expected)
    (grad,) = torch.autograd.grad(y, x, upstream)
    assert grad.isfinite().all()


def test_mask_out_of_memory():
    seed = torch.tensor([1], device=GPU)
    with no_more_memory(), out_of_memory():
        functional.dropout_mask(4 * LARGE, 0.5, seed=seed)
    assert functional.dropout_mask(8, 0.5, seed=seed).shape == (8,)


@optimizers
def test_step_out_of_memory(name):
    param = torch.nn.Parameter(torch.ones(LARGE, device=GPU))
    param.grad = torch.ones_like(param)
    optimizer = OPTIMIZERS[name]([param])
    with no_more_memory(), out_of_memory():
        optimizer.step()
    assert torch.equal(param, torch.ones_like(param))
    optimizer.step()
    assert param.ne(1).all()
