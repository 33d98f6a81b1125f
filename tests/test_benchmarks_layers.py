"""What the benchmarks of layers compare: both do the same, in the sizes and bounds named."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks is part of the checkout, not of the package

from benchmarks import bench_dropout, bench_gated, bench_mlp, layers  # noqa: E402
from benchmarks.bench_dropout import KINDS  # noqa: E402
from benchmarks.harness import Config  # noqa: E402
from torchcalc.functional import gated_linear, linear_act, mlp  # noqa: E402
from torchcalc.ops.activations import NAMES  # noqa: E402

pytestmark = pytest.mark.no_kernels

CPU = torch.device("cpu")


def test_eager_layers_are_what_ours_are():
    """But for what is dropped: without dropout, and with nothing kept."""
    tensors = layers.inputs(Config(CPU, 1), torch.float32, 3, 4, 10)
    for name in NAMES:
        ours = linear_act(*tensors, name)
        torch.testing.assert_close(ours, layers.eager_linear_act(name, 0.0)(*tensors))
    for name in NAMES:
        gated = bench_gated.eager(name, 0.0, *tensors)
        torch.testing.assert_close(gated_linear(*tensors, name), gated)
    tensors = layers.inputs(Config(CPU, 1), torch.float32, 3, 4, 10, 2)
    expected = mlp(*tensors)
    torch.testing.assert_close(bench_mlp.eager(0.0, *tensors), expected)
    torch.testing.assert_close(bench_mlp.two_linear_acts(0.0, *tensors), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_eager_dropout_is_what_ours_is(kind):
    """Of all or nothing; and as many elements are dropped, of the same kept ones' value."""
    theirs, shape = KINDS[kind]
    x = torch.randn([2] * len(shape))
    inputs = [x, torch.randn_like(x)][: 2 if kind == "dropout_add" else 1]
    ours = bench_dropout.ours(kind)
    for p in (0.0, 1.0):
        torch.testing.assert_close(ours(*inputs, p=p), theirs(*inputs, p=p))
    x = torch.ones([64] * min(2, len(shape)) + [2] * (len(shape) - 2))
    inputs = [x, 2 * x][: len(inputs)]
    torch.manual_seed(0)
    found = [drop(*inputs, p=0.25) for drop in (ours, theirs)]
    for y in found:
        assert y.unique().numel() == 2
    torch.testing.assert_close(found[0].unique(), found[1].unique())


def test_what_a_step_does():
    """Gradients reach the leaves, and are gone afterwards."""
    x = torch.randn(3, requires_grad=True)
    seen = []
    x.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.clone()))
    layers.step(lambda x: 2 * x, [x])()
    assert [g.tolist() for g in seen] == [[2.0] * 3]
    assert x.grad is None


def test_bounds_of_shapes():
    assert [layers.must(shape) for shape in layers.SHAPES] == [1.0, 1.0, 1.0, 1.03, 1.0, 0.85]
    assert layers.must(layers.SMALL, 0.0) == 1.5
    assert layers.sizes_name((8, 16, 32)) == "8 x 16 -> 32"
    assert [layers.rounds(shape) for shape in layers.SHAPES] == [7, None, None, None, None, None]


def test_fewer_rounds():
    contenders = {"copy": int, "torchcalc": int}
    for rounds, expected in ((2, 2), (9, 5), (None, 5)):
        row = Config(CPU, 5, quick=True).compare(
            "step", "", "", contenders, baseline="copy", rounds=rounds
        )
        assert len(row.rounds["torchcalc"]) == expected
