"""Devices without kernels run plain PyTorch; GPUs that the CUDA kernels do not serve are such."""

from __future__ import annotations

import contextlib
import math
import warnings
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchcalc import functional
from torchcalc.ops import _library
from torchcalc.ops import optim as optim_ops
from torchcalc.ops._autograd import raise_as_torch

pytestmark = pytest.mark.no_kernels


class Seen(TorchDispatchMode):
    """The ops that reach a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def without_kernels(monkeypatch):
    monkeypatch.setattr("torchcalc.ops._autograd.NATIVE", {"meta"})
    return Seen()  # in a mode, calls take no short cut to the kernels


@pytest.mark.parametrize(
    "call",
    [
        lambda x: functional.linear_act(x, x[:4], dropout_p=0.5, seed=3),
        lambda x: functional.dropout(x, seed=1),
        lambda x: functional.soft_threshold(x, 0.3),
        lambda x: functional.prox_elastic_net(x, 0.3, x.detach().abs()),
    ],
)
def test_ops_run_the_reference(without_kernels, call):
    x = torch.randn(6, 5, requires_grad=True)
    with without_kernels:
        there = call(x)
        (grad_there,) = torch.autograd.grad(there.square().sum(), x)
    assert not any(name.startswith("torchcalc::") for name in without_kernels.names)
    here = call(x)
    torch.testing.assert_close(there, here)
    torch.testing.assert_close(grad_there, torch.autograd.grad(here.square().sum(), x)[0])


@pytest.mark.parametrize(
    "name",
    [
        "linear_act",
        "dropout",
        "dropout_mask",
        "prox",
        "penalty_prox",
        "sgd_step",
        "adam_step",
        "adagrad_step",
        "rmsprop_step",
        "ftrl_step",
        "optim_check",
    ],
)
@pytest.mark.parametrize("key", ["MPS", "XPU", "HPU", "PrivateUse1"])
def test_ops_have_an_implementation_there(name, key):
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"torchcalc::{name}", key)


def numbers(l1, l2):
    return (0.0, 0.0, 1.0, l1, l2, -math.inf, math.inf)


GROUPS = 6, (3.0, 0.0, 1.0, 0.1, 0.0, -math.inf, math.inf)
BOTH = 0, numbers(3.0, 0.5)
STEPS = {  # the op, its options
    "sgd": ("sgd_step", (0.1, 0.0, 0.0, 0.1, False, True, False, 0, numbers(0.5, 0.5))),
    "momentum": ("sgd_step", (0.1, 0.9, 0.0, 0.1, True, False, False, 0, numbers(0.5, 0.0))),
    "first step": ("sgd_step", (0.1, 0.9, 0.5, 0.0, False, False, True, 0, numbers(0.0, 0.0))),
    "adam": ("adam_step", (0.1, 0.9, 0.99, 0.1, 0.01, False, True, False, *BOTH, True, math.inf)),
    "groups": ("adam_step", (0.1, 0.9, 0.99, 0.1, 0.01, False, False, True, *GROUPS, True, 0.5)),
    "bound": ("adam_step", (0.1, 0.9, 0.99, 0.1, 0.01, False, True, True, *BOTH, False, 0.1)),
    "amsgrad": ("adam_step", (0.1, 0.9, 0.99, 0.1, 0.01, True, True, True, *BOTH, True, 1.25)),
    "adagrad": ("adagrad_step", (0.1, 0.5, 0.01, 0.1, False, *BOTH, True, 1.25)),
    "rmsprop": ("rmsprop_step", (0.1, 0.9, 0.1, 0.01, 0.5, False, True, *BOTH, True, 1.25)),
    "ftrl": ("ftrl_step", (0.1, 0.2, -0.5, 1.0, True, *BOTH)),
}
STATES = {"sgd": 0, "amsgrad": 3, "adagrad": 1, "momentum": 1, "first step": 1}  # else 2


@pytest.mark.parametrize("name", STEPS)
def test_optimizer_steps_in_plain_pytorch(name, dtype):
    op, options = STEPS[name]
    shapes = [(3, 4), (), (0,), (5,)]
    params, grads = ([torch.randn(s).to(dtype) for s in shapes] for _ in range(2))
    params[3][:2] = torch.tensor([math.inf, -math.inf])
    offsets = [0, 16, 20, 24]
    states = [torch.rand(32).to(dtype) for _ in range(STATES.get(name, 2))]
    if optim_ops.RULES[op][1]:
        states.append(torch.arange(4.0))
    places = torch.tensor(
        [n for i, s in enumerate(shapes) for n in (offsets[i], i, i, len(s), *s, 1)]
    )
    results = []
    for step in (getattr(torch.ops.torchcalc, op), partial(optim_ops.plain_step, op)):
        copies = [[t.clone() for t in tensors] for tensors in (params, grads, states)]
        step(*copies, places, *options, [], [])
        results.append(copies)
        assert all(g._version == 0 for g in copies[1])  # only params and states are written
    torch.testing.assert_close(*results, equal_nan=True)
    assert not torch.equal(results[0][0][0], params[0])


def test_a_step_in_plain_pytorch_that_raises_has_changed_nothing():
    params, grads = [torch.ones(3), torch.ones(2)], [torch.ones(3), torch.ones(1)]
    places = torch.tensor([0, 0, 0, 1, 3, 0, 16, 1, 1, 1, 2, 0])
    with pytest.raises(RuntimeError, match="grads holds a tensor of another shape"):
        optim_ops.plain_step("sgd_step", params, grads, [], places, *STEPS["sgd"][1], [], [])
    assert torch.equal(params[0], torch.ones(3))


# --- the CUDA kernels


@pytest.mark.parametrize(
    ("archs", "capability", "served"),
    [
        ("8.0+PTX;9.0a", (7, 5), False),
        ("8.0+PTX;9.0a", (8, 0), True),
        ("8.0+PTX;9.0a", (8, 9), True),
        ("8.0+PTX;9.0a", (9, 0), True),
        ("8.0+PTX;9.0a", (12, 0), True),
        ("9.0a", (9, 0), True),
        ("9.0a", (10, 0), False),
        ("9.0a", (8, 0), False),
        ("9.0a+PTX", (10, 0), False),
        ("8.6", (8, 0), False),
        ("8.6", (9, 0), False),
        ("8.0 8.6", (8, 6), True),
        ("10.0f", (10, 3), True),
        ("10.0f+PTX", (11, 0), False),
        ("", (8, 0), False),
    ],
)
def test_which_gpus_the_kernels_serve(archs, capability, served):
    assert _library.serves(archs, capability) is served


@pytest.fixture
def gpu(monkeypatch):
    """torch sees one GPU of this capability, and the kernels were built for those archs."""

    def there_is(capability, archs="8.0+PTX", cuda="13.0"):
        monkeypatch.setattr(torch.version, "cuda", "13.2")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
        monkeypatch.setattr(_library._C, "build_info", lambda: {"cuda": cuda, "cuda_archs": archs})
        monkeypatch.setattr(_library, "NATIVE", {"cpu"})

    return there_is


def test_an_old_gpu_runs_the_reference(gpu, tmp_path):
    gpu((7, 5))
    with pytest.warns(
        RuntimeWarning, match=r"_cuda.so are not used: .*8.0\+PTX.*cuda:0 \(Some GPU\) is 7.5"
    ):
        _library.load_cuda(tmp_path / "_cuda.so")
    assert "cuda" not in _library.NATIVE


def test_an_old_gpu_beside_a_new_one(gpu, tmp_path, monkeypatch):
    gpu((8, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(8, 0), (7, 0)][i])
    with pytest.warns(RuntimeWarning, match="cuda:1 .* is 7.0"):
        _library.load_cuda(tmp_path / "_cuda.so")
    assert "cuda" not in _library.NATIVE


@pytest.mark.parametrize("has_kernels", [True, False])
def test_a_library_that_loads(gpu, tmp_path, monkeypatch, has_kernels):
    gpu((9, 0))
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: has_kernels)
    expected = contextlib.nullcontext() if has_kernels else pytest.warns(match="no kernels")
    with expected:
        _library.load_cuda(tmp_path / "_cuda.so")
    assert loaded == [str(tmp_path / "_cuda.so")]
    assert ("cuda" in _library.NATIVE) == has_kernels


def test_warnings_that_are_errors_do_not_keep_torch_from_cuda(gpu, tmp_path, capsys):
    gpu((7, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _library.load_cuda(tmp_path / "_cuda.so")
    assert "are not used: it was built for 8.0+PTX" in capsys.readouterr().err


def test_another_major_version_of_cuda(gpu, tmp_path):
    gpu((8, 0), cuda="12.8")
    with pytest.warns(RuntimeWarning, match="it was built with CUDA 12.8, and torch with 13.2"):
        _library.load_cuda(tmp_path / "_cuda.so")
    assert "cuda" not in _library.NATIVE


@pytest.mark.parametrize("content", [None, "no library"])
def test_a_library_that_does_not_load(gpu, tmp_path, content):
    gpu((8, 0))
    library = tmp_path / "_cuda.so"
    if content:
        library.write_text(100 * content)
    reason = "invalid ELF header" if content else "No such file"
    with pytest.warns(RuntimeWarning, match=f"{library} are not used: .*{reason}"):
        _library.load_cuda(library)
    assert "cuda" not in _library.NATIVE
    assert functional.dropout(torch.ones(9)).shape == (9,)


@pytest.mark.parametrize(
    ("where", "kind"), [("cpu", RuntimeError), ("meta", torch.OutOfMemoryError)]
)
def test_memory_that_is_there_again_when_torch_is_asked(where, kind):
    refused = RuntimeError("allocating a tensor of [2, 3, 4] bytes failed: torch's words")
    with pytest.raises(kind, match="torch's words"):
        raise_as_torch(refused, (None, torch.empty(1, device=where)))


def test_other_errors_stay_as_they_are():
    for text in (
        "allocating a tensor of [a, b] bytes",
        "no: allocating a tensor of [1] bytes failed",
    ):
        raise_as_torch(RuntimeError(text), (torch.ones(1),))
    text = "the matrix product failed: CUDA out of memory. Tried to allocate 2 GiB"
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        raise_as_torch(RuntimeError(text), (torch.ones(1),))
