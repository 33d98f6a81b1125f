"""Bad input: a Python exception that names the argument, in eager mode and while tracing.

That of optimizers: test_bad_optimizers.py.
"""

from __future__ import annotations

import pytest
import torch

from torchcalc import functional as F
from torchcalc import nn, prox

X, W, B, R = torch.randn(3, 5), torch.randn(7, 5), torch.randn(7), torch.randn(3, 7)
W8 = torch.randn(8, 5)  # an even number of rows
ONE = torch.tensor([1])
INF = float("inf")
NAN = float("nan")

CASES = {
    "prox of no tensor": (lambda: F.soft_threshold([1.0], 0.5), TypeError, "x must be a Tensor"),
    "prox of integers": (
        lambda: F.soft_threshold(X.long().to("meta"), 0.5),
        TypeError,
        "x must be float32",
    ),
    "p in eval mode": (
        lambda: F.linear_act(X, W, dropout_p=2.0, training=False),
        ValueError,
        "dropout_p must be in",
    ),
    "x is no tensor": (lambda: F.linear_act([1.0], W), TypeError, "x must be a Tensor"),
    "x is an integer": (lambda: F.linear_act(X.long(), W), TypeError, "x must be float32"),
    "x is complex": (lambda: F.dropout(X.cfloat()), TypeError, "x must be float32"),
    "x is sparse": (lambda: F.dropout(X.to_sparse()), TypeError, "x must be a dense"),
    "x is 0-d": (lambda: F.linear_act(X[0, 0], W), ValueError, r"x must have shape \[\*, 5\]"),
    "x too narrow": (lambda: F.linear_act(X[:, 1:], W), ValueError, r"x must .*got \(3, 4\)"),
    "weight is 3-d": (
        lambda: F.linear_act(X[None], W[None]),
        ValueError,
        "weight must be",
    ),
    "weight1 is 3-d": (
        lambda: F.mlp(X[None], W[None], None, W.t()[None], None),
        ValueError,
        "weight1 must be",
    ),
    "weight is 1-d": (lambda: F.linear_act(X, B), ValueError, "weight must be"),
    "weight of another dtype": (lambda: F.linear_act(X, W.double()), TypeError, "weight must have"),
    "weight elsewhere": (lambda: F.linear_act(X, W.to("meta")), ValueError, "weight must be on"),
    "bias of another size": (lambda: F.linear_act(X, W, B[1:]), ValueError, "bias must have shape"),
    "bias of another dtype": (lambda: F.linear_act(X, W, B.half()), TypeError, "bias must have"),
    "activation": (lambda: F.linear_act(X, W, B, "gleu"), ValueError, "activation .*'gleu'"),
    "dropout_p > 1": (lambda: F.linear_act(X, W, dropout_p=1.5), ValueError, "dropout_p .*1.5"),
    "dropout_p NaN": (lambda: F.linear_act(X, W, dropout_p=NAN), ValueError, "dropout_p .*nan"),
    "dropout_p str": (lambda: F.linear_act(X, W, dropout_p="1"), TypeError, "dropout_p must be"),
    "residual's shape": (lambda: F.linear_act(X, W, residual=X), ValueError, "residual must have"),
    "residual's dtype": (
        lambda: F.linear_act(X, W, residual=R.double()),
        TypeError,
        "residual must have",
    ),
    "gated x": (lambda: F.gated_linear([1.0], W8), TypeError, "x must be a Tensor"),
    "gated x too narrow": (
        lambda: F.gated_linear(X[:, 1:], W8),
        ValueError,
        r"gated_linear: x must .*got \(3, 4\)",
    ),
    "odd rows": (
        lambda: F.gated_linear(X, W),
        ValueError,
        r"weight must be \[2 out_features, in_f",
    ),
    "pair of one": (
        lambda: F.gated_linear(X, (W,)),
        TypeError,
        "weight must be a Tensor or a pair",
    ),
    "pair of no tensors": (
        lambda: F.gated_linear(X, (W, None)),
        TypeError,
        "weight must be a Tensor or a pair",
    ),
    "unlike weights": (
        lambda: F.gated_linear(X, (W, W[1:])),
        ValueError,
        r"weight\[1\] must have shape \(7, 5\)",
    ),
    "weights of unlike dtypes": (
        lambda: F.gated_linear(X, (W, W.double())),
        TypeError,
        r"weight\[1\] must have the dtype",
    ),
    "pair of vectors": (
        lambda: F.gated_linear(X, (B, B)),
        ValueError,
        r"weight\[0\] must be \[out_features, in_features\]",
    ),
    "bias of one half": (
        lambda: F.gated_linear(X, W8, B[:4]),
        ValueError,
        r"bias must have shape \(8,\)",
    ),
    "bias of one half of a pair": (
        lambda: F.gated_linear(X, (W, W), B),
        ValueError,
        r"bias must have shape \(14,\)",
    ),
    "unlike biases": (
        lambda: F.gated_linear(X, (W, W), (B, B[1:])),
        ValueError,
        r"bias\[1\] must have shape \(7,\)",
    ),
    "unlike biases that fill the weight": (
        lambda: F.gated_linear(X, W8, (B[:3], B[:5])),
        ValueError,
        r"bias\[0\] must have shape \(4,\)",
    ),
    "pair with one bias": (
        lambda: F.gated_linear(X, (W, W), (B, None)),
        TypeError,
        "bias must be a Tensor or a pair",
    ),
    "gated activation": (lambda: F.gated_linear(X, W8, None, "gleu"), ValueError, "'gleu'"),
    "gated activation's type": (
        lambda: F.gated_linear(X, W8, None, torch.nn.Linear(1, 1)),
        TypeError,
        "activation must be a name",
    ),
    "gated dropout_p": (
        lambda: F.gated_linear(X, W8, dropout_p=1.5),
        ValueError,
        "gated_linear: dropout_p must be in",
    ),
    "gated seed": (
        lambda: F.gated_linear(X, W8, dropout_p=0.5, seed=X),
        TypeError,
        "gated_linear: seed must be",
    ),
    "gated shard": (
        lambda: F.gated_linear(X, W8, shard=((3, 3), (0, 0))),
        ValueError,
        "gated_linear: shard must hold",
    ),
    "p < 0": (lambda: F.dropout(X, -0.1), ValueError, "p must be in"),
    "p is a tensor": (lambda: F.dropout(X, ONE), TypeError, "p must be a number"),
    "p is a bool": (lambda: F.dropout(X, True), TypeError, "p must be a number"),
    "seed too large": (lambda: F.dropout(X, seed=2**63), ValueError, "seed must fit"),
    "seed a float": (lambda: F.dropout(X, seed=1.0), TypeError, "seed must be an int"),
    "seed float tensor": (lambda: F.dropout(X, seed=X[0, :1]), TypeError, "seed must be"),
    "seed of two": (lambda: F.dropout(X, seed=ONE.repeat(2)), ValueError, "seed must have one"),
    "seed elsewhere": (lambda: F.dropout(X, seed=ONE.to("meta")), ValueError, "seed must be on"),
    "residual of dropout_add": (lambda: F.dropout_add(X, X[0]), ValueError, "residual must have"),
    "residual in eval mode": (
        lambda: F.dropout_add(X, X[:1], 0.5, False),
        ValueError,
        "residual must have",
    ),
    "residual None": (lambda: F.dropout_add(X, None), TypeError, "residual must be a Tensor"),
    "dimensions of dropout1d": (lambda: F.dropout1d(B), ValueError, r"dropout1d: x must be \[N, C"),
    "no channels": (
        lambda: F.feature_alpha_dropout(B, 0.5, True),
        ValueError,
        "feature_alpha_dropout: x must have 2 or more",
    ),
    "no samples": (lambda: F.drop_path(B[0], 0.5), ValueError, "drop_path: x must have 1 or more"),
    "dropout1d of no tensor": (lambda: F.dropout1d([1.0]), TypeError, "dropout1d: x must be a Ten"),
    "dropout2d of integers": (lambda: F.dropout2d(X.long()), TypeError, "dropout2d: x must be flo"),
    "dropout3d's seed": (
        lambda: F.dropout3d(torch.ones(1, 1, 1, 1), seed=X),
        TypeError,
        "dropout3d: seed must be",
    ),
    "alpha_dropout's p": (lambda: F.alpha_dropout(X, "1"), TypeError, "alpha_dropout: p must be"),
    "drop_path's p": (lambda: F.drop_path(X, 2), ValueError, "drop_path: p must be in"),
    "shard is a number": (lambda: F.dropout(X, shard=1), TypeError, "shard must be"),
    "shard of one": (lambda: F.dropout(X, shard=((3, 5),)), TypeError, "shard must be"),
    "shard of floats": (
        lambda: F.dropout(X, shard=((3.0, 5), (0, 0))),
        TypeError,
        "shard must be",
    ),
    "shard of other dimensions": (
        lambda: F.dropout_add(X, X, shard=((3, 5, 1), (0, 0, 0))),
        ValueError,
        "shard must be a shape and an offset of 2 dim",
    ),
    "shard's offset too short": (
        lambda: F.dropout_mask((3, 5), shard=((3, 5), (0,))),
        ValueError,
        "shard must be a shape and an offset of 2 dim",
    ),
    "shard's offset < 0": (
        lambda: F.dropout(X, shard=((9, 9), (-1, 0))),
        ValueError,
        "shard must hold",
    ),
    "shard beyond the shape": (
        lambda: F.dropout_mask((3, 5), shard=((9, 9), (0, 5))),
        ValueError,
        "shard must hold",
    ),
    "shard of another layer": (
        lambda: F.linear_act(X, W, shard=((3, 5), (0, 0))),
        ValueError,
        "linear_act: shard must hold",
    ),
    "shard in eval mode": (
        lambda: F.dropout(X, 0.5, False, shard=((2, 5), (0, 0))),
        ValueError,
        "shard must hold",
    ),
    "shard too large": (
        lambda: F.dropout(X, shard=((2**40, 2**40), (0, 0))),
        ValueError,
        "shard must be of a shape",
    ),
    "shard of nine dimensions": (
        lambda: F.dropout_mask((1,) * 9, shard=((2,) * 9, (0,) * 9)),
        ValueError,
        "shard must have at most 8",
    ),
    "shape": (lambda: F.dropout_mask((-1, 2), seed=1), ValueError, "shape must be sizes"),
    "shape too large": (lambda: F.dropout_mask((2**62, 4)), ValueError, "shape must be sizes"),
    "shape None": (lambda: F.dropout_mask(None, seed=1), TypeError, "shape must be a size"),
    "shape float": (lambda: F.dropout_mask((1.0,), seed=1), TypeError, "shape must be a size"),
    "lam < 0": (lambda: F.soft_threshold(X, -1.0), ValueError, "lam must be >= 0"),
    "lam NaN": (lambda: F.soft_threshold(X, NAN), ValueError, "lam must be >= 0"),
    "lam str": (lambda: F.prox_l2(X, "1"), TypeError, "lam must be a number"),
    "lam's shape": (lambda: F.prox_l2(X, B), ValueError, "lam must broadcast"),
    "lam larger than x": (lambda: F.prox_l2(X[0], X), ValueError, "lam must broadcast"),
    "lam's dtype": (lambda: F.prox_l2(X, X.double()), TypeError, "lam must have the dtype"),
    "l1": (lambda: F.prox_elastic_net(X, -1.0, 0.0), ValueError, "l1 must be"),
    "l2": (lambda: F.prox_elastic_net(X, 0.0, NAN), ValueError, "l2 must be"),
    "L1": (lambda: prox.L1(-1.0), ValueError, "L1: lam"),
    "L2": (lambda: prox.L2("1"), TypeError, "L2: lam"),
    "L2 of a tensor of ints": (lambda: prox.L2(ONE), TypeError, "L2: lam must be a number or a"),
    "L1 infinite": (lambda: prox.L1(INF), ValueError, "L1: lam must be finite"),
    "L1 True": (lambda: prox.L1(True), TypeError, "L1: lam must be a number"),
    "Box": (lambda: prox.Box(1.0, 0.0), ValueError, "Box: low must be <= high"),
    "Box NaN": (lambda: prox.Box(0.0, NAN), ValueError, "Box: low must be <= high"),
    "Box str": (lambda: prox.Box("0", 1.0), TypeError, "Box: low must be a number"),
    "Huber": (lambda: prox.Huber(1.0, 0.0), ValueError, "Huber: delta must be > 0"),
    "MCP": (lambda: prox.MCP(1.0, 0.0), ValueError, "MCP: gamma must be > 0"),
    "MCP NaN": (lambda: prox.MCP(1.0, NAN), ValueError, "MCP: gamma must be > 0"),
    "SCAD": (lambda: prox.SCAD(1.0, 2.0), ValueError, "SCAD: a must be > 2"),
    "GroupL2 dim": (lambda: prox.GroupL2(1.0, dim=0.5), TypeError, "GroupL2: dim must be an int"),
    "no such dim": (
        lambda: prox.GroupL2(1.0, dim=2).prox(X),
        ValueError,
        r"GroupL2: dim must be a dimension of the tensor, of shape \(3, 5\), got 2",
    ),
    "NMSparse n > m": (lambda: prox.NMSparse(5, 4), ValueError, "NMSparse: n must be at most m"),
    "NMSparse n": (lambda: prox.NMSparse(0, 4), ValueError, "NMSparse: n must be at least 1"),
    "m does not divide": (
        lambda: prox.NMSparse(2, 4).prox(X),
        ValueError,
        "m must divide the size of dimension -1, which is 5",
    ),
    "TopK both": (lambda: prox.TopK(k=1, density=0.5), ValueError, "one of k and density"),
    "TopK neither": (lambda: prox.TopK(), ValueError, "one of k and density"),
    "TopK density": (lambda: prox.TopK(density=0.0), ValueError, r"density must be in \(0, 1\]"),
    "TopK density > 1": (lambda: prox.TopK(density=1.5), ValueError, r"density must be in \(0"),
    "k > n": (
        lambda: prox.TopK(k=16).prox(X),
        ValueError,
        "k must be at most the number of coordinates, 15, got 16",
    ),
    "Nuclear of a vector": (lambda: prox.Nuclear(1.0).prox(B), ValueError, "must be a matrix"),
    "Nuclear in a metric": (
        lambda: prox.Nuclear(1.0).prox(X, X.abs()),
        ValueError,
        "step must be a number for Nuclear",
    ),
    "no such sum": (lambda: prox.L1(1.0) + prox.L1Ball(1.0), TypeError, "Sums exist of L1"),
    "an empty sum": (lambda: prox.Box(0, 1) + prox.Box(2, 3), ValueError, "infinite everywhere"),
    "a sum with a number": (lambda: prox.L1(1.0) + 1, TypeError, "unsupported operand"),
    "a negative factor": (lambda: -1 * prox.L1(1.0), ValueError, "L1: factor must be >= 0"),
    "0 times a constraint": (
        lambda: 0 * prox.L1Ball(1.0),
        ValueError,
        "L1Ball: factor must be > 0",
    ),
    "not convex in a box": (
        lambda: prox.MCP(1.0) + prox.Box(0, 1),
        TypeError,
        "no closed form is known for the sum of MCP and Box",
    ),
    "SeparableSum of": (lambda: prox.SeparableSum("tv"), ValueError, "of must be"),
    "prox of a class": (lambda: F.prox(X, prox.L1), TypeError, "must be a torchcalc.prox penalty"),
    "an infinite step": (lambda: F.prox(X, prox.L1(1.0), INF), ValueError, "step must be finite"),
    "a vector for Nuclear": (
        lambda: F.prox(X, prox.Nuclear(B)),
        ValueError,
        "prox of Nuclear: strengths must have one element",
    ),
    "value of complex": (lambda: prox.L1(1.0).value(X.cfloat()), TypeError, "L1: w must be float"),
    "prox of no penalty": (lambda: F.prox(X, "l1"), TypeError, "penalty must be a torchcalc.prox"),
    "any prox of no tensor": (lambda: F.prox(1.0, prox.L0(1.0)), TypeError, "v must be a Tensor"),
    "prox of complex": (
        lambda: F.prox(X.cfloat(), prox.L0(1.0)),
        TypeError,
        "v must be float32, .* got torch.complex64",
    ),
    "negative step": (lambda: F.prox(X, prox.L0(1.0), -1.0), ValueError, "step must be >= 0"),
    "step's shape": (lambda: F.prox(X, prox.L0(1.0), B), ValueError, "step must broadcast"),
    "step's dtype": (lambda: F.prox(X, prox.L0(1.0), X.double()), TypeError, "step must have"),
    "strength's dtype": (
        lambda: F.prox(X, prox.L0(torch.tensor(1.0).double())),
        TypeError,
        "strengths must have v's dtype",
    ),
    "strength's shape": (lambda: F.prox(X, prox.L0(B)), ValueError, "strengths must broadcast"),
    "strengths of groups": (
        lambda: F.prox(X, prox.GroupL2(torch.ones(3))),
        ValueError,
        "strengths must have one element",
    ),
    "ElasticNet": (lambda: prox.ElasticNet(1.0, NAN), ValueError, "ElasticNet: l2"),
    "LinearAct activation": (lambda: nn.LinearAct(2, 2, activation=None), TypeError, "activation"),
    "LinearAct p": (lambda: nn.LinearAct(2, 2, dropout_p=2), ValueError, "dropout_p"),
    "GatedLinear activation": (
        lambda: nn.GatedLinear(2, 2, activation="gleu"),
        ValueError,
        "GatedLinear: activation must be",
    ),
    "GatedLinear p": (lambda: nn.GatedLinear(2, 2, dropout_p=2), ValueError, "dropout_p"),
    "features < 0": (
        lambda: nn.LinearAct(-1, 4),
        ValueError,
        "in_features must be at least 0, got -1",
    ),
    "GatedLinear features": (lambda: nn.GatedLinear(4, -2), ValueError, "out_features .*got -2"),
    "features float": (lambda: nn.GatedLinear(4, 2.5), TypeError, "out_features must be an int"),
    "MLP features": (lambda: nn.MLP(4, None), TypeError, "hidden_features must be an int"),
    "MLP gated": (lambda: nn.MLP(4, 4, gated="no"), TypeError, "gated must be True or False"),
    "mlp gated": (
        lambda: F.mlp(X, W, None, W.t(), None, gated=1.5),
        TypeError,
        "gated must be True or False",
    ),
    "packed": (lambda: F.dropout_mask(3, packed="yes"), TypeError, "packed must be True or False"),
    "activation's parameter": (
        lambda: F.linear_act(X, W, activation=torch.nn.LeakyReLU("a")),
        TypeError,
        "parameter of activation leaky_relu is no number",
    ),
    "Dropout p": (lambda: nn.Dropout(-1), ValueError, "Dropout: p must"),
    "Dropout2d p": (lambda: nn.Dropout2d("1"), TypeError, "Dropout2d: p must"),
    "DropPath p": (lambda: nn.DropPath(NAN), ValueError, "DropPath: p must"),
    "SoftThreshold lam": (lambda: nn.SoftThreshold(-1), ValueError, "lam must"),
}


@pytest.mark.parametrize(("call", "error", "match"), CASES.values(), ids=list(CASES))
def test_functions_and_modules(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: F.linear_act(x, W[:, 1:]), "x must have shape"),
        (lambda x: F.gated_linear(x, W), r"weight must be \[2 out_features"),
        (lambda x: F.gated_linear(x, (W, W[1:])), r"weight\[1\] must have shape"),
        (lambda x: F.gated_linear(x, (W, W), B), "bias must have shape"),
        (lambda x: F.dropout(x, 2.0), "p must be in"),
        (lambda x: F.dropout(x, shard=((2, 5), (0, 0))), "shard must hold"),
        (lambda x: F.linear_act(x, W, shard=((2, 7), (0, 0))), "shard must hold"),
        (lambda x: F.dropout_add(x, x[0]), "residual must have shape"),
        (lambda x: F.dropout1d(x[0]), "x must be"),
        (lambda x: F.drop_path(x[0, 0], 0.5), "x must have 1 or more"),
        (lambda x: F.soft_threshold(x, -1.0), "lam must be"),
    ],
)
def test_errors_while_tracing_name_the_argument_too(call, match):
    with pytest.raises(Exception, match=match):
        torch.compile(call, fullgraph=True, backend="eager")(X)
