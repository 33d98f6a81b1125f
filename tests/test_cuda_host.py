"""The CUDA kernels, compiled as C++ and run on the CPU under sanitizers (see tests/cuda_host).

A thread stands for each CUDA thread; arrays end where their memory does, so that AddressSanitizer
sees an index out of bounds. The oracle is torchcalc.reference in float64, and numpy for the mask.
"""

import math

import numpy as np
import pytest
import torch
from cuda_host import harness
from cuda_host.harness import run

from torchcalc.reference.linear_act import ACTIVATIONS, derivative
from torchcalc.reference.optim import adamw_step, sgd_step
from torchcalc.reference.prox import prox, prox_grad, prox_grad_grad

# Results are rounded to their dtype once, from an arithmetic that is more exact.
TOLERANCES = {
    torch.float32: (2e-6, 2e-6),
    torch.float64: (1e-12, 1e-12),
    torch.bfloat16: (2**-8, 2e-6),
    torch.float16: (2**-10, 2e-6),
}
SEED = -(2**40) - 12345  # both words of it count
THRESHOLD = 20000  # p = 0.305


SEED_TENSOR = torch.tensor([SEED])


@pytest.fixture(scope="module", autouse=True)
def programs():
    try:
        harness.build()
    except harness.BuildError as error:
        pytest.fail(str(error))
    yield
    harness.close_all()


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def check(actual, expected, dtype, terms=1):
    """`terms`: how many numbers were summed, each with an error of its own."""
    rtol, atol = TOLERANCES[dtype]
    assert actual.dtype == dtype
    expected = expected.reshape(actual.shape)
    torch.testing.assert_close(
        actual.double(), expected, rtol=rtol, atol=atol * max(terms, 1), equal_nan=True
    )


def randn(*shape, dtype=torch.float64, scale=1.0):
    return (scale * torch.randn(shape, dtype=torch.float64)).to(dtype)


def numpy_mask(n, threshold, seed=SEED):
    """Dropout's mask written in numpy (Salmon et al., SC11), True where an element is kept."""
    low = np.uint64(0xFFFFFFFF)
    group = np.arange((n + 7) // 8, dtype=np.uint64)
    c = [group & low, group >> np.uint64(32), np.zeros_like(group), np.zeros_like(group)]
    keys = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        k0, k1 = map(np.uint64, keys)
        c = [p1 >> np.uint64(32) ^ c[1] ^ k0, p1 & low, p0 >> np.uint64(32) ^ c[3] ^ k1, p0 & low]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    lanes = np.stack(c, axis=-1).astype("<u4").view("<u2").reshape(-1)[:n]
    return torch.from_numpy(lanes >= threshold)


def drop(x, threshold, scale=None):
    scale = (0.0 if threshold == 65536 else 65536 / (65536 - threshold)) if scale is None else scale
    kept = numpy_mask(x.numel(), threshold).reshape(x.shape)
    return torch.where(kept, x * scale, torch.zeros_like(x))


# --- the stand-in itself


def column_sums(program):
    x = torch.arange(32 * 64, dtype=torch.float32).reshape(32, 64)
    y = run(program, {"x": x}, {"y": x.dtype}, op="column_sums")["y"]
    assert torch.equal(y, x.sum(0))


@pytest.mark.parametrize("program", ["self_check", "no_race"])
def test_right_kernel_is_silent(program):
    column_sums(program)
    assert harness.close(program) == ""


def test_address_sanitizer_finds_index_out_of_bounds():
    with pytest.raises(AssertionError, match="AddressSanitizer: heap-buffer-overflow") as error:
        column_sums("out_of_bounds")
    assert "octet.cuh" in str(error.value)


def test_thread_sanitizer_finds_missing_syncthreads():
    with pytest.raises(AssertionError, match="ThreadSanitizer: data race") as error:
        column_sums("race")
    assert "reduce.cuh" in str(error.value)


def test_threads_at_different_barriers():
    answer = harness.ask("self_check", op="two_barriers")
    assert "threads of a block wait at different barriers" in answer


def test_launch_that_cuda_refuses():
    answer = harness.ask("self_check", op="too_many_threads")
    assert "1 blocks of 2048 threads failed: invalid configuration argument" in answer


# --- dropout


@pytest.mark.parametrize("threshold", [1, THRESHOLD, 65535, 65536])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 2048, 4099])
def test_dropout_mask(n, threshold):
    out = run(
        "dropout",
        {"seed": SEED_TENSOR},
        {"mask": torch.uint8},
        dtype="bool",
        n=n,
        threshold=threshold,
    )
    assert torch.equal(out["mask"], numpy_mask(n, threshold).to(torch.uint8))


@pytest.mark.parametrize(("n", "offset"), [(0, 0), (1, 0), (13, 1), (4096, 0), (4099, 1)])
def test_dropout(dtype, n, offset):
    x = randn(n, dtype=dtype)
    x[::5] = float("nan")
    x[1::5] = float("inf")
    for threshold in (THRESHOLD, 65536):
        out = run(
            "dropout",
            {"x": x, "seed": SEED_TENSOR},
            {"y": dtype},
            offset=offset,
            dtype=name_of(dtype),
            n=n,
            threshold=threshold,
        )
        check(out["y"], drop(x.double(), threshold), dtype)


# --- linear_act

# rows, cols, offset, residual, threshold, in_place, keep_a
EPILOGUES = [
    (1, 1, 0, True, THRESHOLD, False, False),
    (0, 5, 0, False, 0, True, False),
    (3, 16, 0, False, 0, True, False),
    (5, 8, 1, True, THRESHOLD, True, True),
    (13, 17, 0, True, THRESHOLD, False, True),
    (37, 131, 0, False, THRESHOLD, True, False),
    (40, 64, 0, True, 65536, False, False),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(activation, dtype):
    for rows, cols, offset, residual, threshold, in_place, keep_a in EPILOGUES:
        z = randn(rows, cols, dtype=dtype, scale=2)
        special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0], dtype=dtype)
        z.view(-1)[::3][:20] = special.repeat(5)[: z.view(-1)[::3][:20].numel()]
        r = randn(rows, cols, dtype=dtype) if residual else None
        out = run(
            "linear_act",
            {"z": z, "residual": r, "seed": SEED_TENSOR if threshold else None},
            ({} if in_place else {"y": dtype}) | ({"a": dtype} if keep_a else {}),
            changes=["z"] if in_place else [],
            offset=offset,
            op="epilogue",
            dtype=name_of(dtype),
            activation=list(ACTIVATIONS).index(activation),
            rows=rows,
            cols=cols,
            threshold=threshold,
            in_place=in_place,
            keep_a=keep_a,
        )
        expected = ACTIVATIONS[activation](z.double())
        if keep_a:
            check(out["a"], expected, dtype)
        if threshold:
            expected = drop(expected, threshold)
        if residual:
            expected = expected + r.double()
        check(out["z" if in_place else "y"], expected, dtype)


def act_grad(activation, order, dtype, shape, offset, threshold, bias_grad):
    """One call, checked; returns its results."""
    grad = randn(*shape, dtype=dtype)
    if threshold:  # a dropped NaN is 0
        grad.view(-1)[~numpy_mask(grad.numel(), threshold)] = float("nan")
    saved = None if activation == "identity" else randn(*shape, dtype=dtype).clamp(-0.9, 0.9)
    factor, saved_scale = (1.25, 1.25) if threshold else (1.0, 1.0)
    out = run(
        "linear_act",
        {"grad": grad, "saved": saved, "seed": SEED_TENSOR if threshold else None},
        {"dz": dtype} | ({"dbias": dtype} if bias_grad else {}),
        offset=offset,
        op="act_grad",
        dtype=name_of(dtype),
        activation=list(ACTIVATIONS).index(activation),
        order=order,
        rows=shape[0],
        cols=shape[1],
        threshold=threshold,
        bias_grad=bias_grad,
        factor=factor,
        saved_scale=saved_scale,
    )
    if saved is None:
        dz = grad.double() if order == 1 else torch.zeros(shape, dtype=torch.float64)
    else:
        dz = derivative(grad.double(), saved.double() / saved_scale, activation, order)
    if threshold:
        dz = drop(dz, threshold, factor)
    check(out["dz"], dz, dtype)
    if bias_grad:
        check(out["dbias"], dz.sum(0), dtype, terms=len(dz))
    return out


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_act_grad(activation, order, dtype):
    act_grad(activation, order, dtype, (37, 131), 1, THRESHOLD, False)
    act_grad(activation, order, dtype, (2, 40), 0, 0, False)
    act_grad(activation, order, dtype, (5, 9), 0, THRESHOLD, True)


# Blocks of one octet and of several, one chunk of rows and several, blocks side by side.
BIAS_SHAPES = [(0, 5), (1, 1), (300, 1), (13, 17), (129, 24), (131, 77)]


@pytest.mark.parametrize("shape", BIAS_SHAPES, ids=str)
def test_bias_grad(shape, dtype):
    for offset, threshold in ((0, 0), (1, THRESHOLD)):
        act_grad("silu", 1, dtype, shape, offset, threshold, True)


def test_bias_grad_depends_on_the_shape_alone():
    """Aligned and misaligned arrays take other paths through memory, not another order of sums."""
    results = []
    for offset in (0, 1):
        torch.manual_seed(0)
        results.append(act_grad("silu", 1, torch.float32, (300, 24), offset, 0, True))
    assert torch.equal(results[0]["dz"], results[1]["dz"])
    assert torch.equal(results[0]["dbias"], results[1]["dbias"])


# --- prox


PROX = {  # op -> its function, its arrays besides strengths, its results
    "prox": (prox, ["x"], ["y"]),
    "prox_grad": (prox_grad, ["grad", "x"], ["dx", "dl1", "dl2"]),
    "prox_grad_grad": (
        prox_grad_grad,
        ["cx", "c1", "c2", "grad", "x"],
        ["dgrad", "dx", "dl1", "dl2"],
    ),
}


@pytest.mark.parametrize(("n", "offset"), [(1, 0), (13, 1), (2100, 0)])
@pytest.mark.parametrize("op", PROX)
def test_prox(op, n, offset, dtype):
    function, names, results = PROX[op]
    for kinds in (("number", "number"), ("one", "each"), ("each", "one"), ("each", "number")):
        arrays = {name: randn(n, dtype=dtype) for name in names}
        values = {}
        for name, kind in zip(("l1", "l2"), kinds, strict=True):
            arrays[name] = randn(n if kind == "each" else 1, dtype=dtype).abs()
            values |= {f"{name}_value": float(arrays[name][0]), f"{name}_each": kind == "each"}
        if "c1" in arrays:  # strengths that are numbers have no cotangents
            for cotangent, kind in zip(("c1", "c2"), kinds, strict=True):
                arrays[cotangent] *= kind != "number"
        doubles = [arrays[name].double().expand(n).clone() for name in (*names, "l1", "l2")]
        expected = function(*doubles)
        expected = dict(zip(results, [expected] if op == "prox" else expected, strict=True))
        for name, kind in zip(("1", "2"), kinds, strict=True):
            if kind == "number":
                arrays |= {f"l{name}": None, f"c{name}": None}
                expected.pop(f"dl{name}", None)
        out = run(
            "prox",
            arrays,
            dict.fromkeys(expected, dtype),
            offset=offset,
            op=op,
            dtype=name_of(dtype),
            n=n,
            **values,
        )
        for name, t in expected.items():
            check(out[name], t, dtype)
            assert torch.equal(out[name] == 0, t.to(dtype) == 0)  # zeros are exact


# --- optimizers

SIZES = (0, 1, 8, 13, 16384 + 5)
# Numbers that float32 holds as they are: 1 - 0.999 would differ in the fifth digit.
SGD = {
    "lr": 0.125,
    "momentum": 0.875,
    "dampening": 0.125,
    "weight_decay": 0.03125,
    "nesterov": False,
    "maximize": False,
    "first_step": False,
    "l1": 0.0,
    "l2": 0.0,
}
ADAMW = {
    "lr": 0.125,
    "beta1": 0.875,
    "beta2": 1 - 2**-10,
    "eps": 2**-20,
    "weight_decay": 0.03125,
    "maximize": False,
    "l1": 0.0,
    "l2": 0.0,
    "adaptive": True,
    "bound": math.inf,
}


def optimize(op, dtype, sizes, offset, options):
    """One step of the kernel, checked against one of the reference for each tensor."""
    momentum = op == "sgd" and options["momentum"] != 0
    arrays = {}
    for k, n in enumerate(sizes):
        arrays[f"param{k}"] = randn(n, dtype=dtype)
        arrays[f"grad{k}"] = randn(n, dtype=dtype)
        if momentum or op == "adamw":
            arrays[f"state1_{k}"] = randn(n, dtype=dtype)
        if op == "adamw":
            arrays[f"state2_{k}"] = randn(n, dtype=dtype).square()
            for name in ("grad", "state1_", "state2_"):  # no gradient was ever seen
                arrays[f"{name}{k}"][::3] = 0
            arrays[f"step{k}"] = torch.tensor([k % 3], dtype=torch.float32)
    out = run(
        "optim",
        arrays,
        changes=[name for name in arrays if not name.startswith("grad")],
        offset=offset,
        op=op,
        dtype=name_of(dtype),
        sizes=",".join(map(str, sizes)),
        **options,
    )
    for k in range(len(sizes)):
        names = [name + str(k) for name in ("param", "grad", "state1_", "state2_", "step")]
        expected = {name: arrays[name].double() for name in names if name in arrays}
        if op == "sgd":
            buffer = expected.get(f"state1_{k}")
            sgd_step(expected[f"param{k}"], expected[f"grad{k}"], buffer, **options)
        else:
            adamw_step(*expected.values(), **options)
            assert out[f"step{k}"] == expected.pop(f"step{k}")
        for name, t in expected.items():
            check(out[name], t, dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": 0.0, "dampening": 0.0},
        {"first_step": True},
        {"nesterov": True, "maximize": True, "dampening": 0.0, "l2": 0.5},
        {"l1": 2.0},
    ],
    ids=str,
)
def test_sgd(options, dtype):
    optimize("sgd", dtype, SIZES, "maximize" in options, SGD | options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"maximize": True, "l1": 2.0},
        {"l1": 2.0, "l2": 0.5, "bound": 0.25},
        {"l2": 0.5, "adaptive": False},
    ],
    ids=str,
)
def test_adamw(options, dtype):
    optimize("adamw", dtype, SIZES, "maximize" in options, ADAMW | options)


@pytest.mark.parametrize(("op", "options"), [("sgd", SGD), ("adamw", ADAMW)])
def test_more_tensors_than_one_launch_takes(op, options):
    optimize(op, torch.float32, [k % 11 for k in range(131)], 0, options)
